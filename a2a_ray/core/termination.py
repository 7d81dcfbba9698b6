"""Stop conditions: when a conversation is over. Combine them with `|` and `&`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.transcript import Transcript


class TerminationCondition:
    """`check(transcript)` gives the reason to stop, or None. Subclass it, or give it a function."""

    def __init__(self, check: Callable[[Transcript], str | None]) -> None:
        self._check = check

    def check(self, transcript: Transcript) -> str | None:
        """The reason why the conversation is over, or None."""
        return self._check(transcript)

    def __or__(self, other: TerminationCondition) -> TerminationCondition:
        return TerminationCondition(lambda t: self.check(t) or other.check(t))

    def __and__(self, other: TerminationCondition) -> TerminationCondition:
        def both(transcript: Transcript) -> str | None:
            first, second = self.check(transcript), other.check(transcript)
            return f"{first} and {second}" if first and second else None

        return TerminationCondition(both)


class MaxTurns(TerminationCondition):
    """Over after so many messages of agents (bids and combinations are not counted)."""

    def __init__(self, turns: int) -> None:
        if turns < 1:
            raise ConfigurationError(f"turns: {turns}; expected at least 1")
        self.turns = turns
        self.reason = f"turn limit {turns}"

    def check(self, transcript: Transcript) -> str | None:
        return self.reason if len(transcript.messages) >= self.turns else None


class TextMention(TerminationCondition):
    """Over when the newest message holds the phrase, e.g. "TERMINATE"."""

    def __init__(self, phrase: str) -> None:
        if not phrase:
            raise ConfigurationError("phrase: ''; expected some text (the empty phrase is in every message)")
        self.phrase = phrase

    def check(self, transcript: Transcript) -> str | None:
        last = transcript.messages[-1].content if transcript.messages else ""
        return f"{self.phrase!r} was said" if isinstance(last, str) and self.phrase in last else None


class MaxTokens(TerminationCondition):
    """Over when the agents have written so many tokens, as far as they report their usage."""

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigurationError(f"tokens: {tokens}; expected at least 1")
        self.tokens = tokens

    def check(self, transcript: Transcript) -> str | None:
        used = sum(m.usage.get("output_tokens", 0) for m in transcript.messages)
        return f"token limit {self.tokens}" if used >= self.tokens else None


class Converged(TerminationCondition):
    """Over when no agent moved by more than `tolerance` (2-norm) between its own turns, the last `rounds` of them."""

    def __init__(self, tolerance: float = 1e-12, rounds: int = 1) -> None:
        if tolerance < 0 or rounds < 1:
            raise ConfigurationError(
                f"tolerance: {tolerance}, rounds: {rounds}; expected tolerance >= 0 and rounds >= 1"
            )
        self.tolerance, self.rounds = tolerance, rounds

    def check(self, transcript: Transcript) -> str | None:
        own: dict[str, list[Any]] = {name: [] for name in transcript.agents}
        missing = len(own)
        for message in reversed(transcript.messages):
            if isinstance(message.content, str):
                return None
            last = own.setdefault(message.sender, [])
            if len(last) <= self.rounds:
                last.append(message.content)
                missing -= len(last) == self.rounds + 1
                if missing == 0:
                    break
        if missing > 0:
            return None
        # The squares' sum by hand: plain arithmetic that needs no NumPy here.
        moved = max(float(((a - b) ** 2).sum()) for last in own.values() for a, b in pairwise(last)) ** 0.5
        return (
            f"settled: no agent moved by more than {self.tolerance:g} in a round" if moved <= self.tolerance else None
        )
