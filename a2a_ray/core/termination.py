"""Termination conditions: when a conversation ends. Combine them with `|` and `&`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.transcript import Transcript


class TerminationCondition:
    """Ends a conversation if `check(transcript)` returns a reason. Subclass it, or pass a function."""

    def __init__(self, check: Callable[[Transcript], str | None]) -> None:
        self._check = check

    def check(self, transcript: Transcript) -> str | None:
        """Return the reason why the conversation is over, or None."""
        return self._check(transcript)

    def __or__(self, other: TerminationCondition) -> TerminationCondition:
        return TerminationCondition(lambda t: self.check(t) or other.check(t))

    def __and__(self, other: TerminationCondition) -> TerminationCondition:
        def both(transcript: Transcript) -> str | None:
            first, second = self.check(transcript), other.check(transcript)
            return f"{first} and {second}" if first and second else None

        return TerminationCondition(both)


class MaxTurns(TerminationCondition):
    """Ends the conversation after this number of messages; bids, combinations, nudges and reviews do not count."""

    def __init__(self, turns: int) -> None:
        if turns < 1:
            raise ConfigurationError(f"turns: {turns}; expected at least 1")
        self.turns = turns
        self.reason = f"turn limit {turns}"

    def check(self, transcript: Transcript) -> str | None:
        """Return the limit as the reason once it is reached."""
        return self.reason if len(transcript.messages) >= self.turns else None


class TextMention(TerminationCondition):
    """Ends the conversation when the newest message contains the phrase, such as "TERMINATE"."""

    def __init__(self, phrase: str) -> None:
        if not phrase:
            raise ConfigurationError(
                "phrase: ''; expected text that is not empty (every message contains the empty phrase)"
            )
        self.phrase = phrase

    def check(self, transcript: Transcript) -> str | None:
        """Return the phrase as the reason once it occurs."""
        last = transcript.messages[-1].content if transcript.messages else ""
        return f"{self.phrase!r} was said" if isinstance(last, str) and self.phrase in last else None


class MaxTokens(TerminationCondition):
    """Ends the conversation when the agents have written this many tokens, as far as they report their usage."""

    def __init__(self, tokens: int) -> None:
        if tokens < 1:
            raise ConfigurationError(f"tokens: {tokens}; expected at least 1")
        self.tokens = tokens

    def check(self, transcript: Transcript) -> str | None:
        """Return the limit as the reason once it is reached."""
        used = sum(m.usage.get("output_tokens", 0) for m in transcript.messages)
        return f"token limit {self.tokens}" if used >= self.tokens else None


class Converged(TerminationCondition):
    """Ends when no agent moved by more than `tolerance` (2-norm) between its turns, for `rounds` rounds."""

    def __init__(self, tolerance: float = 1e-12, rounds: int = 1) -> None:
        if tolerance < 0 or rounds < 1:
            raise ConfigurationError(
                f"tolerance: {tolerance}, rounds: {rounds}; expected tolerance >= 0 and rounds >= 1"
            )
        self.tolerance, self.rounds = tolerance, rounds

    def check(self, transcript: Transcript) -> str | None:
        """Return the tolerance as the reason once no agent moves further; never for texts."""
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
        # Plain arithmetic, so that this module needs no NumPy.
        moved = max(float(((a - b) ** 2).sum()) for last in own.values() for a, b in pairwise(last)) ** 0.5
        return (
            f"settled: no agent moved by more than {self.tolerance:g} in a round" if moved <= self.tolerance else None
        )
