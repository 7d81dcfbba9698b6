"""The contract of observers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from a2a_ray.core.contracts import Observer
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.testing.comparing import hold


def check_observer(factory: Callable[[], Observer], transcripts: Sequence[Transcript] | None = None) -> None:
    """Verdicts follow from the messages alone: not from other conversations, the clock, or how speakers are named.

    factory: makes a fresh detector; one watches one conversation.
    transcripts: what to show it; by default talks of two and three speakers that loop and that do not, with blank
        texts, other scripts, bids, and one of vectors.
    """
    talks = list(transcripts) if transcripts is not None else list(_talks())
    alone = [_verdicts(factory(), talk.turns) for talk in talks]
    for talk, verdicts in zip(talks, alone, strict=True):
        for message, verdict in zip(talk.turns, verdicts, strict=True):
            _check_verdict(verdict, message)
        stored = [replace(Message.from_dict(json.loads(json.dumps(m.to_dict()))), created_at=1.0) for m in talk.turns]
        replayed = _verdicts(factory(), stored)
        _check_findings(factory(), talk)
        hold(replayed == verdicts, f"talk {talk.id!r}: other verdicts when it is read back from the store")
        names = {s: f"speaker_{i}" for i, s in enumerate(sorted({m.sender for m in talk.turns}, reverse=True))}
        renamed = _verdicts(factory(), [replace(m, sender=names[m.sender]) for m in talk.turns])
        same = [(v.status, v.action, {names.get(k, k): x for k, x in v.scores.items()}) for v in verdicts]
        other = [(v.status, v.action, dict(v.scores)) for v in renamed]
        hold(same == other, f"talk {talk.id!r}: other verdicts when the speakers have other names")
    together = [factory() for _ in talks]
    mixed: list[list[ObserverVerdict]] = [[] for _ in talks]
    for place in range(max(len(t) for t in talks)):
        for detector, talk, out in zip(together, talks, mixed, strict=True):
            out.extend(detector.update(m) for m in talk.turns[place : place + 1])
    hold(mixed == alone, "other verdicts when several conversations are watched at once")


def _verdicts(detector: Observer, messages: Sequence[Message]) -> list[ObserverVerdict]:
    return [detector.update(m) for m in messages]


def _check_findings(detector: Observer, talk: Transcript) -> None:
    """What `findings` gives, if the detector has it."""
    own: Callable[[str], Any] | None = getattr(detector, "findings", None)
    if own is None:
        return
    for message in talk.turns:
        detector.update(message)
    found = own(talk.id)
    right = isinstance(found, list) and bool(found) and all(isinstance(each, Finding) for each in found)
    hold(right, f"talk {talk.id!r}: findings() is {found!r:.200}; expected a list of at least one Finding")
    strange = [each for each in found if each.conversation_id != talk.id or each.through_seq != len(talk)]
    hold(
        not strange,
        f"talk {talk.id!r}: a finding of {strange and strange[0].conversation_id!r}, or read not to its end",
    )
    hold(len({each.number for each in found}) == len(found), f"talk {talk.id!r}: two findings have one number")


def _check_verdict(verdict: ObserverVerdict, message: Message) -> None:
    where = f"the verdict after turn {message.turn}"
    hold(isinstance(verdict, ObserverVerdict), f"{where} is {type(verdict).__name__}; expected a ObserverVerdict")
    actions = ("record", "nudge", "stop")
    hold(verdict.action in actions, f"{where} has action {verdict.action!r}; expected one of {actions}")
    hold(verdict.action != "stop" or bool(verdict.reason), f"{where} stops without a reason")
    hold(all(math.isfinite(s) for s in verdict.scores.values()), f"{where} has scores {verdict.scores}; not finite")
    try:
        json.dumps(dict(verdict.evidence))
    except TypeError as error:
        raise AssertionError(f"{where} has evidence that is no JSON: {error}") from None


def _talks() -> Iterator[Transcript]:
    """Talks of two and three speakers: a varied one, loops of several periods, blanks, bids, vectors."""
    varied = [f"Point {i}: {hashlib.blake2b(bytes([i]), digest_size=9).hexdigest()}." for i in range(12)]
    for speakers in (("ann", "bob"), ("ann", "bob", "cid")):
        yield _spoken(f"varied-{len(speakers)}", speakers, varied)
        for period in (1, 2, 3):
            said = [*varied[:4], *(["Yes, we agree.", "So we do.", "Let us go on."][:period] * 5), *varied[8:]]
            yield _spoken(f"period-{period}-{len(speakers)}", speakers, said)
    yield _spoken(
        "blank",
        ("ann", "bob"),
        ["", " ", "", "\n", "", "", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。"],
    )
    bids = _spoken("bids", ("ann", "bob"), varied[:3])
    bids.append(Message("bids", 4, "ann", "0.5", kind="bid"))
    yield bids
    try:
        import numpy as np
    except ImportError:
        return
    yield _spoken("vectors", ("ann", "bob"), [np.array([0.5**i, 1.0]) for i in range(8)])


def _spoken(id: str, speakers: tuple[str, ...], said: Sequence[Content]) -> Transcript:
    transcript = Transcript(id, speakers, "Hello.")
    for i, content in enumerate(said):
        transcript.append(Message(id, i + 1, speakers[i % len(speakers)], content))
    return transcript
