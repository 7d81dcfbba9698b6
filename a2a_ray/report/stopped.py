"""Conversations that an observer ended early, and what that saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript

TOKENS_PER_WORD = 4 / 3
"""Of English in the tokenizers of today's models, for agents that do not report their tokens."""


@dataclass(frozen=True, slots=True)
class StoppedTalk:
    """A conversation that an observer ended before its limit.

    turn: after which it was stopped. onset_turn: of the loop that was found with this turn, None if there is none.
    turns_left: messages up to the limit. tokens_since_onset: of the messages from the onset on.
    tokens_saved: estimate: turns_left times the mean tokens of a message of this conversation.
    counted: whether every message reports its tokens; else those of the others are words times 4/3.
    """

    id: str
    observer: str
    turn: int
    onset_turn: int | None
    turns_left: int
    tokens_since_onset: int
    tokens_saved: int
    counted: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON value of it."""
        return asdict(self)


def stopped_talk(transcript: Transcript, limit: int, findings: Sequence[Finding]) -> StoppedTalk:
    """How an observer ended a conversation that may have `limit` messages. findings: of this conversation."""
    messages = transcript.messages
    turn = len(messages)
    onset = next((f.onset_turn for f in findings if f.looped and f.alarm_turn == turn), None)
    left = max(limit - turn, 0)
    return StoppedTalk(
        transcript.id,
        transcript.stopped_by,
        turn,
        onset,
        left,
        0 if onset is None else round(tokens(messages[onset - 1 :])),
        round(left * tokens(messages) / turn) if turn else 0,
        all("output_tokens" in m.usage for m in messages),
    )


def tokens(messages: Iterable[Message]) -> float:
    """Output tokens of messages: as reported, else words times `TOKENS_PER_WORD`; vectors have none."""
    total = 0.0
    for message in messages:
        reported = message.usage.get("output_tokens")
        if isinstance(reported, (int, float)):
            total += reported
        elif isinstance(message.content, str):
            total += len(message.content.split()) * TOKENS_PER_WORD
    return total
