"""Replay recorded answers: a conversation without model calls."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import AgentError, ConfigurationError
from a2a_ray.core.message import BID, EMPTY, Content, Message
from a2a_ray.transcripts.jsonl import read_jsonl

if TYPE_CHECKING:
    from a2a_ray.core.transcript import Transcript

log = logging.getLogger(__name__)

_Records: TypeAlias = "dict[tuple[bool, int], Message]"


class ReplayAgent(BaseAgent):
    """Return recorded answers by the number of the turn; keeps no state between turns.

    Give exactly one of:

    turns: {number of the turn: content}, or a list of the contents of turns 1, 2, 3, ... (null, or any content, at
        another agent's turn). Content is text or a list of floats (float64). The same in every conversation.
    file: JSONL in the exchange format; its `id` is the id of the conversation, its `speaker` the agent's name. It must
        be readable on every node. It stores no bids or combinations; use `from_transcript` for protocols that have
        them, and for exact dtypes.

    A turn without a record raises AgentError. Answers have the kind and metadata of the record, but no usage, because
    nothing is spent.
    """

    def __init__(
        self,
        name: str,
        turns: dict[int, str | list[float]] | list[str | list[float] | None] | None = None,
        file: str | None = None,
    ) -> None:
        if (turns is None) == (file is None):
            raise ConfigurationError("turns, file: expected exactly one of them")
        self.name = name
        self.file = file
        self._everywhere: _Records = {}
        self._by_conversation: dict[str, _Records] | None = None
        if turns is not None:
            numbered = turns.items() if isinstance(turns, dict) else enumerate(turns, 1)
            records = [Message("", turn, name, _content(c, turn)) for turn, c in numbered if c is not None]
            self._everywhere = _records(records, name)

    @classmethod
    def from_transcript(cls, transcript: Transcript) -> list[ReplayAgent]:
        """Return an agent for each agent of a transcript, in order, with its messages, bids, arrays and kinds.

        `Conversation(ReplayAgent.from_transcript(t), same protocol, t.opening.content)` repeats the conversation; the
        protocol computes its combinations again.
        """
        agents = [cls(name, turns={}) for name in transcript.agents]
        for agent in agents:
            agent._everywhere = _records(transcript.turns, agent.name)
        return agents

    def check(self) -> None:
        """Raise ConfigurationError if the file cannot be read or has no turn of this agent."""
        self._recorded()

    def step(self, message: Message) -> Message:
        """Return the recorded answer of this turn. Raises AgentError if none is recorded."""
        record = self._find(message, "answer")
        return message.reply(record.content, self.name, EMPTY, record.metadata, record.kind)

    def bid(self, message: Message) -> float:
        """Return the recorded bid for this turn. Raises AgentError if none is recorded."""
        return float(str(self._find(message, BID).content))

    def _find(self, message: Message, what: str) -> Message:
        conversations = self._recorded()
        records = self._everywhere if conversations is None else conversations.get(message.conversation)
        where = f"agent {self.name!r} at turn {message.turn} of conversation {message.conversation!r}"
        if records is None:
            raise AgentError(
                f"{where}: says nothing in that conversation in {self.file}; there is: {_few(conversations)}"
            )
        record = records.get((what == BID, message.seq if what == BID else message.turn))
        if record is None:
            turns = [m.seq - m.asides for (bids, _), m in records.items() if bids == (what == BID)]
            raise AgentError(f"{where}: no {what} is recorded; there is one at turns: {_few(turns)}")
        return record

    def _recorded(self) -> dict[str, _Records] | None:
        """Return conversation -> records of the file, read once; None without a file."""
        if self.file is None or self._by_conversation is not None:
            return self._by_conversation
        transcripts, problems = read_jsonl(self.file)
        for problem in problems:
            log.warning("%s", problem)
        found = {t.id: _records(t.turns, self.name) for t in transcripts}
        if not any(found.values()):
            speakers = dict.fromkeys(name for t in transcripts for name in t.agents)
            raise ConfigurationError(
                f"file: {self.file}; {self.name!r} says nothing in it; speakers there: {_few(speakers)}"
            )
        self._by_conversation = {id: records for id, records in found.items() if records}
        return self._by_conversation


def _records(records: Iterable[Message], name: str) -> _Records:
    """Return an agent's messages by turn and its bids by seq, because a turn can have several bids."""
    own = (m for m in records if m.sender == name and (m.kind == BID or m.turn is not None))
    return {(m.kind == BID, m.seq if m.kind == BID else m.turn): m for m in own}


def _content(value: Any, turn: int) -> Content:
    if isinstance(value, str):
        return value
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigurationError(f"turns.{turn}: {str(value)[:60]!r}; expected text or a list of floats") from None


def _few(values: Iterable[Any] | None) -> str:
    """Return the first eight values as a phrase."""
    shown = [str(v) for v in values or ()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "none"
