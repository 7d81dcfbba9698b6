"""The decisions of a protocol: who speaks next, and the context of a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from a2a_ray.core.message import COMBINE, EMPTY, Content, Message


class TurnContext(NamedTuple):
    """The context of a turn: the newest content and its sender, the history (oldest first), and the turn's options."""

    sender: str
    content: Content
    history: tuple[Message, ...] = ()
    options: Mapping[str, Any] = EMPTY


class Stop(NamedTuple):
    """Ends the conversation, with the reason."""

    reason: str


class BidRequest(NamedTuple):
    """Requests a bid for the next turn from these agents; each bid is recorded."""

    speakers: Sequence[str]


class ProtocolMessage(NamedTuple):
    """A record from the protocol itself, such as the average of simultaneous turns."""

    sender: str
    content: Content
    kind: str = COMBINE


Next: TypeAlias = "str | Sequence[str] | BidRequest | ProtocolMessage | Stop"
