"""The cumulative score of repeated turns, and evidence of the loop that a person can check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from a2a_ray.analysis.text.exact_repetition import clipped

MAX_SCORE = 8.0
"""The largest possible score, in turns' worth of repetition: recovery from a long loop takes about as long as from a
short one."""

KEPT = 4.0
"""The first new turn cuts the level down to this."""

SHORTEST = 2.0
"""The level of the shortest loops: a turn of at least sixteen words, repeated four times with a tenth of them changed
each time (2.2 for most of 200 random ones; 2.2 for eight unchanged words). A lower level scores at most 1."""

RECENT = 0.4
"""Weight of the newest turn in the running mean of novelty."""

_NAMES = 8


class RepeatedTurn(NamedTuple):
    """One turn that repeats.

    turn: its number. speaker: its sender. score: how much it counts towards a loop, 0 to 1. weight: by its length, 0
    to 1. kind: "verbatim", "template" or "semantic". back: distance to the repeated turn, in turns. earlier: the number
    of that turn. span, earlier_span: the repeated text and its earlier wording. similarity: 0 to 1.
    """

    turn: int
    speaker: str
    score: float
    weight: float
    kind: str
    back: int
    earlier: int
    span: str
    earlier_span: str
    similarity: float


@dataclass(slots=True)
class CumulativeScore:
    """A cumulative sum of repetition, turn by turn (Page 1954, "Continuous inspection schemes").

    It is zero while the turns are new. The turn with which it last left zero is the onset, the usual estimate of the
    change point.
    """

    level: float = 0.0
    onset: RepeatedTurn | None = None
    spent: int = 0  # tokens of the conversation before the onset
    newest: RepeatedTurn | None = None
    left: int = 0  # the first of the new turns at the end; 0 if the newest turn repeats
    kinds: Counter[str] = field(default_factory=Counter)
    periods: Counter[int] = field(default_factory=Counter)
    speakers: set[str] = field(default_factory=set)
    wording: float = 1.0  # running mean of the novelty of all turns
    answered: float = 0.0  # how far others have answered since the speaker's newest turn

    @property
    def score(self) -> float:
        """The level; at most 1 below `SHORTEST`."""
        return self.level if self.level >= SHORTEST else min(self.level, 1.0)

    def update_wording(self, novelty: float, weight: float) -> None:
        """Update the running mean with the novelty of a turn's wording. weight: of the turn, 0 to 1."""
        self.wording += (novelty - self.wording) * weight * RECENT

    def add(self, repeat: RepeatedTurn, spent: int) -> None:
        """Add a repeated turn. spent: tokens of the conversation before it."""
        amount = repeat.score * repeat.weight
        if self.onset is None:
            self.onset, self.spent = repeat, spent
        self.level = min(MAX_SCORE, self.level + amount)
        self.newest, self.left = repeat, 0
        self.kinds[repeat.kind] += round(1000 * amount)
        self.periods[repeat.back] += 1
        if len(self.speakers) < _NAMES:
            self.speakers.add(repeat.speaker)

    def lower(self, amount: float, turn: int) -> None:
        """Lower the level by a new turn of that number."""
        if not self.level or amount <= 0:
            return
        self.level = max(0.0, min(self.level, KEPT) - amount)
        self.left = self.left or turn
        if not self.level:
            self.reset()

    def reset(self) -> None:
        """Make the next repeated turn a new onset."""
        self.onset = self.newest = None
        self.kinds.clear()
        self.periods.clear()
        self.speakers.clear()

    def _period(self) -> int:
        """Return the most frequent period, or a frequent divisor: changed words can favor an older round."""
        most, times = self.periods.most_common(1)[0]
        divisors = (p for p, seen in self.periods.items() if p and most % p == 0 and 3 * seen >= times)
        return min(divisors, default=most)

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
