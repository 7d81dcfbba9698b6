"""The contract of turn protocols."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from typing import Any

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import RUNNING, Transcript
from a2a_ray.core.turns import BidRequest, ProtocolMessage, Stop, TurnContext
from a2a_ray.testing.comparing import comparable, expect, run_anywhere


def check_protocol(
    protocol: TurnProtocol,
    agents: Sequence[str] = ("ann", "bob"),
    opening: Content = "Hello.",
    turns: int = 12,
) -> None:
    """Check that a protocol is a pure function of the transcript.

    The check runs a conversation of `turns` messages. Cut after any record, it must continue to the same end. The
    protocol must give the same answers whenever it is called, in any order, and on any copy of the transcript.

    Args:
        agents: names of the agents; the protocol must name no others.
        opening: text or a 1-D array of floats.

    Raises:
        AssertionError: a promise is broken; the message says which one, and by what.
    """
    names = tuple(agents)
    whole = _run(protocol, Transcript("check", names, opening, seed=5), turns)
    expect(bool(whole.turns), "it stopped before anybody spoke")
    cuts = [_cut(whole, length) for length in range(len(whole) + 1)]
    decisions = [_decision(protocol, cut, names) for cut in cuts]
    for cut, before in reversed(list(zip(cuts, decisions, strict=True))):
        where = f"after {len(cut)} records"
        expect(_decision(protocol, cut, names) == before, f"{where}, it gives two answers for the same transcript")
        copy: Transcript = pickle.loads(pickle.dumps(cut))
        expect(_decision(protocol, copy, names) == before, f"{where}, it gives another answer for an equal transcript")
        expect(len(cut) == len(copy) and cut.status == RUNNING, f"{where}, it changed the transcript")
        resumed = _run(protocol, copy, turns)
        expect(_outcome(resumed) == _outcome(whole), f"cut {where}, the conversation continues differently")


def _run(protocol: TurnProtocol, transcript: Transcript, turns: int) -> Transcript:
    """Run the conversation to its end; its agents are pure functions of their context."""
    agents = [_HashingAgent(name) for name in transcript.agents]
    conversation = Conversation(agents, protocol, max_turns=turns, transcript=transcript)
    transcript = conversation.transcript
    most = (turns + 1) * (2 + len(agents))

    async def run() -> None:
        async for record in conversation:
            expect(record.seq <= most, f"{record.seq} records, but only {len(transcript.messages)} messages: no end")

    try:
        run_anywhere(run())
    except A2AError as error:
        raise AssertionError(f"the conversation failed: {error}") from None
    expect(bool(transcript.reason), "it stopped without a reason")
    return transcript


class _HashingAgent:
    """Answers and bids with a hash of its whole context."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        number = self._number(message)
        if isinstance(message.content, str):
            return message.reply(f"{self.name} says {number}.", self.name)
        return message.reply(message.content * 0.5 + number % 7, self.name)

    def bid(self, message: Message) -> float:
        return self._number(message) % 5

    def _number(self, message: Message) -> int:
        context = {k: v for k, v in message.to_dict().items() if k != "created_at"}
        context["history"] = [(m.sender, m.to_dict()["content"]) for m in message.history]
        digest = hashlib.blake2b(f"{self.name}{context}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")


def _decision(protocol: TurnProtocol, transcript: Transcript, names: tuple[str, ...]) -> Any:
    """Return the protocol's decision for a transcript, in a form that can be compared."""
    chosen = protocol.speakers(transcript)
    if isinstance(chosen, Stop):
        return chosen
    if isinstance(chosen, ProtocolMessage):
        return Message("", 0, chosen.sender, chosen.content, kind=chosen.kind).to_dict()
    speakers = (
        (chosen,) if isinstance(chosen, str) else tuple(chosen.speakers if isinstance(chosen, BidRequest) else chosen)
    )
    unknown = [s for s in speakers if s not in names]
    expect(bool(speakers) and not unknown, f"it named {speakers}; expected names out of {names}")
    return type(chosen).__name__, [(s, _as_dict(protocol.context(transcript, s), s)) for s in speakers]


def _as_dict(context: TurnContext, speaker: str) -> dict[str, Any]:
    valid = isinstance(context, TurnContext)
    expect(valid, f"the context of {speaker!r} is {type(context).__name__}; expected a TurnContext")
    return Message("", 0, context.sender, context.content, tuple(context.history), options=context.options).to_dict()


def _cut(whole: Transcript, length: int) -> Transcript:
    cut = Transcript(whole.id, whole.agents, whole.opening.content, whole.seed, whole.metadata)
    for record in whole.turns[:length]:
        cut.append(record)
    return cut


def _outcome(transcript: Transcript) -> list[Any]:
    return [comparable(m) for m in transcript.turns] + [transcript.status, transcript.reason]
