"""What kind of conversation a transcript is, and which families of loops count in it.

Each kind has loops, and harmless repetition, of its own. Two models that talk without a task may return to the same
thought in new words; in a task chat, similar meaning is usually the task.
"""

from __future__ import annotations

import re

from a2a_ray.core.message import Message

TOOLS, CHAT, SELF_TALK, HUMAN = "tools", "chat", "self_talk", "human"
AUTO = "auto"
"""Detect the kind from the messages."""

COPIES, ROUNDS, EMPTY_ACTS, MEANING, SILENT = "copies", "rounds", "empty acts", "meaning", "silent"

FAMILIES: dict[str, dict[str, float]] = {
    TOOLS: {COPIES: 1.0, ROUNDS: 1.0, EMPTY_ACTS: 1.0, SILENT: 1.0},
    CHAT: {COPIES: 1.0, EMPTY_ACTS: 1.0, SILENT: 1.0},
    SELF_TALK: {COPIES: 1.0, EMPTY_ACTS: 1.0, MEANING: 1.0, SILENT: 1.0},
    HUMAN: {COPIES: 1.0, ROUNDS: 1.0, SILENT: 1.0},
}
"""The families that count in each kind, with their alarm as a multiple of the family's own."""

FIRST = 6
"""The kind is decided by this many messages; the first call of a tool decides whenever it comes."""

ASKS = 0.34
"""Largest difference between the shares of messages with a question mark of the two speakers in self_talk."""

NUMBERS = 0.01
"""Most numbers per word in self_talk: tasks are about dates, prices, amounts and steps."""

PERSONS = frozenset({"human", "person"})
"""Names of speakers that are people. "user" is not among them: it is often a model that plays one."""

REPLIES = 2
"""A person takes part from this message on; the first one may only be the task."""

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")


class KindDetector:
    """Decides the kind of one conversation from its first messages.

    kind: as far as it is known; "chat" until it is decided. given: the kind, or "auto".
    """

    def __init__(self, given: str = AUTO) -> None:
        self.kind = CHAT if given == AUTO else given
        self._given = self.decided = given != AUTO
        self._asks: dict[str, list[bool]] = {}
        self._words = self._numbers = self._messages = self._by_persons = 0

    def add_call(self) -> None:
        """Take note of a call of a tool, or of its result."""
        if not self._given:
            self.kind, self.decided = TOOLS, True

    def add_text(self, message: Message, text: str) -> None:
        """Take note of a message."""
        if self.decided:
            return
        if message.sender.casefold() in PERSONS:
            self._by_persons += 1
            if self._by_persons == REPLIES:
                self.kind, self.decided = HUMAN, True
                return
        self._asks.setdefault(message.sender, []).append("?" in text)
        self._words += len(_WORD.findall(text))
        self._numbers += len(_NUMBER.findall(text))
        self._messages += 1
        if self._messages == FIRST:
            self.decided = True
            self.kind = SELF_TALK if self._is_self_talk() else CHAT

    def _is_self_talk(self) -> bool:
        """Return whether two speakers ask alike, and there are few numbers: neither has a task."""
        if len(self._asks) != 2 or self._numbers > NUMBERS * self._words:
            return False
        one, other = (sum(asked) / len(asked) for asked in self._asks.values())
        return abs(one - other) <= ASKS
