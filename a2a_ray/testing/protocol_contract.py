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
from a2a_ray.testing.comparing import comparable, finish, hold


def check_protocol(
    protocol: TurnProtocol,
    agents: Sequence[str] = ("ann", "bob"),
    opening: Content = "Hello.",
    turns: int = 12,
) -> None:
    """A pure function of the transcript: who speaks and what is shown, asked at any time, in any order, on any copy.

    agents: names of the agents it is to lead; it must name no others. opening: text or a 1-D array of floats.
    A talk of `turns` messages is held; cut after any record, it must go on to the very same end.
    """
    names = tuple(agents)
    whole = _talk(protocol, Transcript("check", names, opening, seed=5), turns)
    hold(bool(whole.turns), "it stopped before anybody spoke")
    cuts = [_cut(whole, length) for length in range(len(whole) + 1)]
    asked = [_asked(protocol, cut, names) for cut in cuts]
    for cut, before in reversed(list(zip(cuts, asked, strict=True))):
        where = f"after {len(cut)} records"
        hold(_asked(protocol, cut, names) == before, f"{where}, it gives two answers for the same transcript")
        copy: Transcript = pickle.loads(pickle.dumps(cut))
        hold(_asked(protocol, copy, names) == before, f"{where}, it gives another answer for an equal transcript")
        hold(len(cut) == len(copy) and cut.status == RUNNING, f"{where}, it changed the transcript")
        resumed = _talk(protocol, copy, turns)
        hold(_told(resumed) == _told(whole), f"cut {where}, the talk goes on otherwise than undisturbed")


def _talk(protocol: TurnProtocol, transcript: Transcript, turns: int) -> Transcript:
    """The transcript, led to its end by the protocol; its agents are pure functions of what they are shown."""
    voices = [_Voice(name) for name in transcript.agents]
    conversation = Conversation(voices, protocol, max_turns=turns, transcript=transcript)
    transcript = conversation.transcript
    most = (turns + 1) * (2 + len(voices))

    async def lead() -> None:
        async for record in conversation:
            hold(record.seq <= most, f"{record.seq} records, but only {len(transcript.messages)} messages: no end")

    try:
        finish(lead())
    except A2AError as error:
        raise AssertionError(f"the talk failed: {error}") from None
    hold(bool(transcript.reason), "it stopped without a reason")
    return transcript


class _Voice:
    """Answers and bids by a hash of all that it is shown."""

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
        shown = {k: v for k, v in message.to_dict().items() if k != "created_at"}
        shown["history"] = [(m.sender, m.to_dict()["content"]) for m in message.history]
        digest = hashlib.blake2b(f"{self.name}{shown}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")


def _asked(protocol: TurnProtocol, transcript: Transcript, names: tuple[str, ...]) -> Any:
    """What the protocol says of a transcript, in a form that can be compared."""
    chosen = protocol.speakers(transcript)
    if isinstance(chosen, Stop):
        return chosen
    if isinstance(chosen, ProtocolMessage):
        return Message("", 0, chosen.sender, chosen.content, kind=chosen.kind).to_dict()
    speakers = (
        (chosen,) if isinstance(chosen, str) else tuple(chosen.speakers if isinstance(chosen, BidRequest) else chosen)
    )
    strange = [s for s in speakers if s not in names]
    hold(bool(speakers) and not strange, f"it named {speakers}; expected names out of {names}")
    return type(chosen).__name__, [(s, _shown(protocol.context(transcript, s), s)) for s in speakers]


def _shown(view: TurnContext, speaker: str) -> dict[str, Any]:
    hold(isinstance(view, TurnContext), f"the context of {speaker!r} is {type(view).__name__}; expected a TurnContext")
    return Message("", 0, view.sender, view.content, tuple(view.history), options=view.options).to_dict()


def _cut(whole: Transcript, length: int) -> Transcript:
    cut = Transcript(whole.id, whole.agents, whole.opening.content, whole.seed, whole.metadata)
    for record in whole.turns[:length]:
        cut.append(record)
    return cut


def _told(transcript: Transcript) -> list[Any]:
    return [comparable(m) for m in transcript.turns] + [transcript.status, transcript.reason]
