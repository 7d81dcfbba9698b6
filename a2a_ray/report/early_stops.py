"""Conversations that an observer stopped early, and an estimate of the tokens that this saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript

TOKENS_PER_WORD = 4 / 3
"""Of English text with current tokenizers; for agents that do not report their tokens."""


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """A conversation that an observer stopped before its limit.

    turn: the last turn. onset_turn: of the loop whose alarm stopped it; None if no loop did.
    turns_left: messages up to the limit. tokens_since_onset: of the messages from the onset on.
    tokens_saved: estimate, turns_left times the mean tokens of a message of this conversation.
    counted: whether every message reports its tokens; for messages that do not, words times 4/3 are used.
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
        """Return the JSON value."""
        return asdict(self)


def early_stop(transcript: Transcript, limit: int, findings: Sequence[Finding]) -> EarlyStop:
    """Describe how an observer stopped a conversation of at most `limit` messages. findings: of this conversation."""
    messages = transcript.messages
    turn = len(messages)
    onset = next((f.onset_turn for f in findings if f.looped and f.alarm_turn == turn), None)
    left = max(limit - turn, 0)
    return EarlyStop(
        transcript.id,
        transcript.stopped_by,
        turn,
        onset,
        left,
        0 if onset is None else round(output_tokens(messages[onset - 1 :])),
        round(left * output_tokens(messages) / turn) if turn else 0,
        all("output_tokens" in m.usage for m in messages),
    )


def output_tokens(messages: Iterable[Message]) -> float:
    """Return the output tokens of messages: as reported, else words times `TOKENS_PER_WORD`; 0 for vectors."""
    total = 0.0
    for message in messages:
        reported = message.usage.get("output_tokens")
        if isinstance(reported, (int, float)):
            total += reported
        elif isinstance(message.content, str):
            total += len(message.content.split()) * TOKENS_PER_WORD
    return total
