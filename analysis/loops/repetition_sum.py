"""The cumulative sum of repetition of one family of loops, with evidence that a person can check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from a2a_ray.analysis.text.exact_repetition import clipped

MAX_SCORE = 4.0
"""The largest possible score. A loop that lasts longer does not raise it, so recovery takes a bounded time."""

KEPT = 1.0
"""The first new turn cuts the score down to this."""

_NAMES = 8


class RepeatedTurn(NamedTuple):
    """One turn that repeats.

    turn: its number. speaker: its sender. kind: "verbatim", "template", "semantic", "courtesy" or "action". earlier:
    the number of the turn that it repeats; 0 for none. span, earlier_span: the repeated text and its earlier wording.
    similarity: 0 to 1.
    """

    turn: int
    speaker: str
    kind: str
    earlier: int
    span: str
    earlier_span: str
    similarity: float


@dataclass(slots=True)
class RepetitionSum:
    """A cumulative sum of repetition, turn by turn (Page 1954, "Continuous inspection schemes").

    It is zero while the turns are new. The turn with which it last left zero is the onset, the usual estimate of the
    change point.

    full: the level of an alarm; the score is the level divided by it.
    """

    full: float
    level: float = 0.0
    onset: RepeatedTurn | None = None
    spent: int = 0  # tokens of the conversation before the onset
    newest: RepeatedTurn | None = None
    left: int = 0  # the first of the new turns at the end; 0 if the newest turn repeats
    kinds: Counter[str] = field(default_factory=Counter)
    periods: Counter[int] = field(default_factory=Counter)
    speakers: set[str] = field(default_factory=set)

    @property
    def score(self) -> float:
        """The level in units of an alarm; above 1 it is a loop."""
        return round(self.level / self.full, 9)

    def add(
        self, amount: float, repeat: RepeatedTurn, spent: int, first: tuple[RepeatedTurn, int] | None = None
    ) -> None:
        """Add a repeated turn. spent: tokens of the conversation before it.

        first: the first repeated turn of the run that this one belongs to, and the tokens before it; by default this.
        """
        if amount <= 0:
            return
        if self.onset is None:
            self.onset, self.spent = first or (repeat, spent)
        self.level = min(MAX_SCORE * self.full, self.level + amount)
        self.newest, self.left = repeat, 0
        self.kinds[repeat.kind] += round(1000 * amount)
        if repeat.earlier:
            self.periods[repeat.turn - repeat.earlier] += 1
        if len(self.speakers) < _NAMES:
            self.speakers.add(repeat.speaker)

    def lower(self, amount: float, turn: int) -> None:
        """Lower the level by a new turn of that number."""
        if not self.level or amount <= 0:
            return
        self.level = max(0.0, min(self.level, KEPT * self.full) - amount)
        self.left = self.left or turn
        if not self.level:
            self.reset()

    def reset(self) -> None:
        """Make the next repeated turn a new onset."""
        self.level, self.onset, self.newest = 0.0, None, None
        self.kinds.clear()
        self.periods.clear()
        self.speakers.clear()

    def _period(self) -> int:
        """Return the most frequent period, or a frequent divisor: changed words can favor an older round."""
        if not self.periods:
            return 0
        most, times = self.periods.most_common(1)[0]
        return min(p for p, seen in self.periods.items() if most % p == 0 and 3 * seen >= times)

    def evidence(self, spent: int) -> dict[str, Any]:
        """Return the evidence, with the field names of a Finding. spent: tokens of the conversation so far."""
        onset, newest = self.onset, self.newest
        assert onset is not None
        assert newest is not None
        return {
            "kind": self.kinds.most_common(1)[0][0],
            "onset_turn": onset.turn,
            "period": self._period(),
            "span": clipped(newest.span),
            "earlier_span": clipped(newest.earlier_span),
            "speakers": sorted(self.speakers),
            "tokens_since_onset": spent - self.spent,
            "first_repeats_turn": onset.earlier,
            "last_repeats_turn": newest.earlier,
            "similarity": round(newest.similarity, 3),
        }


_DESCRIPTIONS = {
    "verbatim": "repeat earlier ones word for word, or nearly so",
    "template": "repeat earlier ones with a few words swapped",
    "semantic": "repeat earlier ones in other words",
    "courtesy": "are mostly thanks, farewells, offers and agreement",
    "silent": "are empty",
    "action": "make the same call with the same result",
}


def describe(evidence: dict[str, Any], turn: int) -> str:
    """Return the evidence as one sentence."""
    period = evidence["period"] or 0
    every = f", once every {period} turns" if period > 1 else ""
    first = f"first at turn {evidence['first_repeats_turn']}; " if evidence["first_repeats_turn"] else ""
    quoted = f": {evidence['span']}" if evidence["span"] else ""
    return (
        f"turns {evidence['onset_turn']} to {turn} {_DESCRIPTIONS[evidence['kind']]}{every}"
        f" ({first}{evidence['tokens_since_onset']} tokens since the onset){quoted}"
    )
