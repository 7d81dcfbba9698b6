"""Recorded answers once more: a conversation without a model call."""

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
    """Gives recorded answers again, found by the number of the turn; an agent keeps nothing between turns.

    Exactly one of:

    turns: what to say, {number of the turn: content}, or a list of the contents of turns 1, 2, 3, ... (null, or what
        somebody else says, where the turn is not this agent's). Content is text or a list of floats (float64). The
        same in every conversation.
    file: JSONL in the exchange format; `id` there is the id of the conversation here, `speaker` the agent's name. It
        must be readable on every node. Bids and combinations are not in such a file, so it fits protocols without
        them; for those that have them, and for exact dtypes, use `from_transcript`.

    A turn without a record raises AgentError. Kind and metadata come with the content; usage does not: nothing is
    spent.
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
            said = [Message("", turn, name, _content(c, turn)) for turn, c in numbered if c is not None]
            self._everywhere = _records(said, name)

    @classmethod
    def from_transcript(cls, transcript: Transcript) -> list[ReplayAgent]:
        """An agent for each agent of a transcript, in its order: messages, bids, arrays and kinds as they were.

        `Conversation(ReplayAgent.from_transcript(t), same protocol, t.opening.content)` holds it again; what the
        protocol itself put on record (combinations) it computes anew.
        """
        agents = [cls(name, turns={}) for name in transcript.agents]
        for agent in agents:
            agent._everywhere = _records(transcript.turns, agent.name)
        return agents

    def check(self) -> None:
        """Raises ConfigurationError where the file cannot be read, or this agent says nothing in it."""
        self._recorded()

    def step(self, message: Message) -> Message:
        """The recorded answer at this turn. Raises AgentError where there is none."""
        record = self._find(message, "answer")
        return message.reply(record.content, self.name, EMPTY, record.metadata, record.kind)

    def bid(self, message: Message) -> float:
        """The recorded bid at this turn. Raises AgentError where there is none."""
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
        """Conversation -> records of the file, read once; None without a file."""
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
    """What an agent said, by turn, and bid, by seq: there can be several bids for a turn."""
    mine = (m for m in records if m.sender == name and (m.kind == BID or m.turn is not None))
    return {(m.kind == BID, m.seq if m.kind == BID else m.turn): m for m in mine}


def _content(value: Any, turn: int) -> Content:
    if isinstance(value, str):
        return value
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigurationError(f"turns.{turn}: {str(value)[:60]!r}; expected text or a list of floats") from None


def _few(values: Iterable[Any] | None) -> str:
    """The values in a sentence: the first eight."""
    shown = [str(v) for v in values or ()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "") or "none"
