"""What a protocol returns: who speaks next, and the context of a turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from a2a_ray.core.message import COMBINE, EMPTY, Content, Message


class TurnContext(NamedTuple):
    """What a speaker is shown: the newest content and who said it, and what went before, oldest first."""

    sender: str
    content: Content
    history: tuple[Message, ...] = ()
    options: Mapping[str, Any] = EMPTY


class Stop(NamedTuple):
    """The conversation is over, and why."""

    reason: str


class BidRequest(NamedTuple):
    """Ask these agents how much they want the next turn; each bid is recorded."""

    speakers: Sequence[str]


class ProtocolMessage(NamedTuple):
    """The protocol itself puts something on record, e.g. the average of simultaneous turns."""

    sender: str
    content: Content
    kind: str = COMBINE


Next: TypeAlias = "str | Sequence[str] | BidRequest | ProtocolMessage | Stop"
