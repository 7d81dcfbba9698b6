"""Ask a judge about transcripts afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from a2a_ray.analysis.judge.judged_observer import JudgedObserver
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.transcript import Transcript


class Judgement(NamedTuple):
    """The findings of a judged observer on one transcript, and the judge's answers in order."""

    findings: list[Finding]
    answers: list[Message]


async def judge_transcript(transcript: Transcript, observer: JudgedObserver) -> Judgement:
    """Show a transcript to a fresh observer, and ask its judge as in a live conversation, the last turn included."""
    answers = []
    for message in transcript.turns:
        observer.update(message)
        seed = turn_seed(transcript.seed, message.seq)
        review = observer.review(Message(transcript.id, message.seq, "", "", seed=seed, asides=message.asides))
        if review is not None:
            answers.append(await review)
            observer.take(answers[-1])
    return Judgement(observer.findings(transcript.id), answers)


async def judge_transcripts(
    transcripts: Sequence[Transcript], make_observer: Callable[[], JudgedObserver], at_once: int = 16
) -> list[Judgement]:
    """Judge several transcripts in order, each with an observer of its own; at most `at_once` of them overlap."""
    places = asyncio.Semaphore(at_once)

    async def one(transcript: Transcript) -> Judgement:
        async with places:
            return await judge_transcript(transcript, make_observer())

    return await asyncio.gather(*map(one, transcripts))
