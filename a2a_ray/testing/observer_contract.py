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
from a2a_ray.testing.comparing import expect


def check_observer(factory: Callable[[], Observer], transcripts: Sequence[Transcript] | None = None) -> None:
    """Check that verdicts depend on the messages alone, not on other conversations, the clock or the speakers' names.

    Args:
        factory: makes a fresh observer; one observer watches one conversation.
        transcripts: the conversations to observe. By default two and three speakers with and without loops, blank
            texts, other scripts, bids, and one conversation of vectors.

    Raises:
        AssertionError: a promise is broken; the message says which one, and by what.
    """
    conversations = list(transcripts) if transcripts is not None else list(_conversations())
    alone = [_verdicts(factory(), each.turns) for each in conversations]
    for conversation, verdicts in zip(conversations, alone, strict=True):
        _check_conversation(factory, conversation, verdicts)
    together = [factory() for _ in conversations]
    mixed: list[list[ObserverVerdict]] = [[] for _ in conversations]
    for place in range(max(len(each) for each in conversations)):
        for observer, conversation, out in zip(together, conversations, mixed, strict=True):
            out.extend(observer.update(m) for m in conversation.turns[place : place + 1])
    expect(mixed == alone, "other verdicts when several conversations are observed at once")


def _check_conversation(
    factory: Callable[[], Observer], conversation: Transcript, verdicts: list[ObserverVerdict]
) -> None:
    records, where = conversation.turns, f"conversation {conversation.id!r}"
    for message, verdict in zip(records, verdicts, strict=True):
        _check_verdict(verdict, message)
    stored = [replace(Message.from_dict(json.loads(json.dumps(m.to_dict()))), created_at=1.0) for m in records]
    replayed = _verdicts(factory(), stored)
    _check_findings(factory(), conversation)
    expect(replayed == verdicts, f"{where}: other verdicts when it is read back from the store")
    names = {s: f"speaker_{i}" for i, s in enumerate(sorted({m.sender for m in records}, reverse=True))}
    renamed = _verdicts(factory(), [replace(m, sender=names[m.sender]) for m in records])
    original = [(v.status, v.action, {names.get(k, k): x for k, x in v.scores.items()}) for v in verdicts]
    other = [(v.status, v.action, dict(v.scores)) for v in renamed]
    expect(original == other, f"{where}: other verdicts when the speakers have other names")


def _verdicts(observer: Observer, messages: Sequence[Message]) -> list[ObserverVerdict]:
    return [observer.update(m) for m in messages]


def _check_findings(observer: Observer, conversation: Transcript) -> None:
    """Check what `findings` returns, if the observer has it."""
    findings: Callable[[str], Any] | None = getattr(observer, "findings", None)
    if findings is None:
        return
    for message in conversation.turns:
        observer.update(message)
    found, where = findings(conversation.id), f"conversation {conversation.id!r}"
    valid = isinstance(found, list) and bool(found) and all(isinstance(each, Finding) for each in found)
    expect(valid, f"{where}: findings() is {found!r:.200}; expected a list of at least one Finding")
    foreign = [f for f in found if f.conversation_id != conversation.id or f.through_seq != len(conversation)]
    expect(
        not foreign,
        f"{where}: a finding of {foreign and foreign[0].conversation_id!r} up to record"
        f" {foreign and foreign[0].through_seq}; expected this conversation up to record {len(conversation)}",
    )
    numbers = {(each.key, each.number) for each in found}
    expect(len(numbers) == len(found), f"{where}: two findings of one analyzer have the same number")


def _check_verdict(verdict: ObserverVerdict, message: Message) -> None:
    where = f"the verdict after turn {message.turn}"
    expect(isinstance(verdict, ObserverVerdict), f"{where} is {type(verdict).__name__}; expected an ObserverVerdict")
    actions = ("record", "nudge", "stop")
    expect(verdict.action in actions, f"{where} has action {verdict.action!r}; expected one of {actions}")
    expect(verdict.action != "stop" or bool(verdict.reason), f"{where} stops without a reason")
    expect(all(math.isfinite(s) for s in verdict.scores.values()), f"{where} has scores {verdict.scores}; not finite")
    try:
        json.dumps(dict(verdict.evidence))
    except TypeError as error:
        raise AssertionError(f"{where} has evidence that is not JSON: {error}") from None


def _conversations() -> Iterator[Transcript]:
    """Yield conversations of two and three speakers: varied, loops of several periods, blanks, bids, vectors."""
    varied = [f"Point {i}: {hashlib.blake2b(bytes([i]), digest_size=9).hexdigest()}." for i in range(12)]
    for speakers in (("ann", "bob"), ("ann", "bob", "cid")):
        yield _conversation(f"varied-{len(speakers)}", speakers, varied)
        for period in (1, 2, 3):
            loop = ["Yes, we agree.", "So we do.", "Let us go on."][:period] * 5
            yield _conversation(f"period-{period}-{len(speakers)}", speakers, [*varied[:4], *loop, *varied[8:]])
    yield _conversation(
        "blank",
        ("ann", "bob"),
        ["", " ", "", "\n", "", "", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。"],
    )
    bids = _conversation("bids", ("ann", "bob"), varied[:3])
    bids.append(Message("bids", 4, "ann", "0.5", kind="bid"))
    yield bids
    try:
        import numpy as np
    except ImportError:
        return
    yield _conversation("vectors", ("ann", "bob"), [np.array([0.5**i, 1.0]) for i in range(8)])


def _conversation(id: str, speakers: tuple[str, ...], contents: Sequence[Content]) -> Transcript:
    transcript = Transcript(id, speakers, "Hello.")
    for i, content in enumerate(contents):
        transcript.append(Message(id, i + 1, speakers[i % len(speakers)], content))
    return transcript
