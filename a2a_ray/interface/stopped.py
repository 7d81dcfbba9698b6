"""What observers said while a run went on: loops that they saw, talks that they stopped, and what that saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from a2a_ray.analysis.text import Loop
from a2a_ray.core.contracts import Verdict
from a2a_ray.core.message import EMPTY, Message
from a2a_ray.core.transcript import Transcript

TOKENS_PER_WORD = 4 / 3
"""Of English in the tokenizers of today's models, where an agent does not report its tokens."""


@dataclass(frozen=True, slots=True)
class StoppedTalk:
    """A conversation that an observer ended before its limit.

    turn: after which it was stopped. onset: the first turn of what it was stopped for, and last_before the last turn
        before that; None where the observer names none.
    turns_left: messages up to the limit. tokens_since_onset: of the messages from the onset on.
    tokens_saved: estimate: turns_left times the mean tokens of a message of this talk.
    counted: whether every message reports its tokens; else those of the others are words times 4/3.
    """

    id: str
    observer: str
    turn: int
    onset: int | None
    last_before: int | None
    turns_left: int
    tokens_since_onset: int
    tokens_saved: int
    counted: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON value of it."""
        return asdict(self)


def stopped_talk(transcript: Transcript, limit: int, kinds: Mapping[str, str] = EMPTY) -> StoppedTalk | None:
    """How an observer ended a conversation that may have `limit` messages; None where none did.

    kinds: of observers by name; a name that is not in it stands for itself.
    """
    ending = _ending(transcript)
    if ending is None:
        return None
    turn, verdict = ending
    onset = _onset(verdict)
    messages = transcript.messages
    left = max(limit - len(messages), 0)
    return StoppedTalk(
        transcript.id,
        kinds.get(transcript.stopped_by, transcript.stopped_by),
        turn,
        onset,
        None if onset is None else verdict.evidence.get("last_before", onset - 1),
        left,
        0 if onset is None else round(tokens(m for m in messages if m.turn >= onset)),
        round(left * tokens(messages) / len(messages)) if messages else 0,
        all("output_tokens" in m.usage for m in messages),
    )


def stopped_after(transcript: Transcript) -> int | None:
    """The turn after which an observer ended the conversation; None where none did."""
    ending = _ending(transcript)
    return ending[0] if ending else None


def observed_loop(transcript: Transcript, kinds: Mapping[str, str] = EMPTY) -> Loop | None:
    """The earliest loop that an observer saw while the conversation went on. kinds: see `stopped_talk`."""
    found = []
    for _, name, verdict in transcript.verdicts:
        onset = _onset(verdict)
        if verdict.status == "loop" and onset is not None:
            phrase = verdict.evidence.get("span") or verdict.evidence.get("phrase") or ""
            found.append(Loop(kinds.get(name, name), onset, str(phrase)))
    return min(found, key=lambda loop: loop.onset, default=None)


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


def _onset(verdict: Verdict) -> int | None:
    """The first turn of what an observer found, where it names one."""
    onset = verdict.evidence.get("onset")
    return onset if isinstance(onset, int) else None


def _ending(transcript: Transcript) -> tuple[int, Verdict] | None:
    """The verdict that ended the conversation: the newest call for a stop of the observer that stopped it."""
    for turn, name, verdict in reversed(transcript.verdicts if transcript.stopped_by else ()):
        if verdict.action == "stop" and name == transcript.stopped_by:
            return turn, verdict
    return None
