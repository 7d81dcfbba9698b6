"""How turns add up to a loop, and evidence for it that a person can check."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from a2a_ray.analysis.text.exact_repetition import clipped

MOST = 8.0
"""The largest score there is, in turns' worth of repetition: a long loop can be left nearly as soon as a short one."""

KEPT = 4.0
"""At the first new turn whatever was piled up beyond is forgotten."""

SHORTEST = 2.0
"""What the shortest loops add up to: one turn of sixteen words or more, a tenth of them changed each time, said four
times (2.2 for most of 200 made at random; of eight words, unchanged: 2.2). Less is no loop yet: it scores 1 at most."""

RECENT = 0.4
"""Weight of the newest turn in the running mean of novelty."""

_NAMES = 8


class Repeat(NamedTuple):
    """One turn that repeats.

    turn: its number. speaker: who said it. sign, weight: how far it speaks for a loop, and how much it has to say, both
    0 to 1. kind: "verbatim", "template" or "semantic". back: how many turns ago that was said. earlier: the number of
    that turn. span, earlier_span: what is repeated, and what it repeats. similarity: 0 to 1.
    """

    turn: int
    speaker: str
    sign: float
    weight: float
    kind: str
    back: int
    earlier: int
    span: str
    earlier_span: str
    similarity: float


@dataclass(slots=True)
class RepeatRun:
    """Repetition that adds up, turn by turn: a cumulative sum (Page 1954, "Continuous inspection schemes").

    Zero while what is said is new. The turn with which it last left zero is the onset, the usual estimate of when the
    change was.
    """

    level: float = 0.0
    onset: Repeat | None = None
    spent: int = 0  # tokens of the talk before the onset
    newest: Repeat | None = None
    left: int = 0  # the first of the new turns at the end; 0 where the newest turn repeats
    kinds: Counter[str] = field(default_factory=Counter)
    periods: Counter[int] = field(default_factory=Counter)
    speakers: set[str] = field(default_factory=set)
    wording: float = 1.0  # running mean of the novelty of all turns
    answered: float = 0.0  # how far others have answered since the newest turn

    @property
    def score(self) -> float:
        """The level, where it is that of a loop."""
        return self.level if self.level >= SHORTEST else min(self.level, 1.0)

    def hear(self, novelty: float, weight: float) -> None:
        """Takes in how new the wording of a turn is. weight: of the turn, 0 to 1."""
        self.wording += (novelty - self.wording) * weight * RECENT

    def add(self, repeat: Repeat, spent: int) -> None:
        """Takes a turn in that repeats. spent: tokens of the talk before it."""
        amount = repeat.sign * repeat.weight
        if self.onset is None:
            self.onset, self.spent = repeat, spent
        self.level = min(MOST, self.level + amount)
        self.newest, self.left = repeat, 0
        self.kinds[repeat.kind] += round(1000 * amount)
        self.periods[repeat.back] += 1
        if len(self.speakers) < _NAMES:
            self.speakers.add(repeat.speaker)

    def lose(self, amount: float, turn: int) -> None:
        """Something new was said, at the turn of that number."""
        if not self.level or amount <= 0:
            return
        self.level = max(0.0, min(self.level, KEPT) - amount)
        self.left = self.left or turn
        if not self.level:
            self.forget()

    def forget(self) -> None:
        """The next turn that repeats is a new onset."""
        self.onset = self.newest = None
        self.kinds.clear()
        self.periods.clear()
        self.speakers.clear()

    def _period(self) -> int:
        """The period seen most, or a divisor of it that was seen too: changed words can make an older round nearer."""
        most, times = self.periods.most_common(1)[0]
        divisors = (p for p, seen in self.periods.items() if p and most % p == 0 and 3 * seen >= times)
        return min(divisors, default=most)

    def evidence(self, spent: int) -> dict[str, Any]:
        """What can be shown of the run, named as in a Finding. spent: tokens of the conversation up to now."""
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


_WHAT = {
    "verbatim": "repeat earlier ones word for word, or nearly so",
    "template": "repeat earlier ones with a few words swapped",
    "semantic": "say again in other words what was said",
    "silent": "are empty",
    "action": "make the same call with the same result",
}


def sentence(evidence: dict[str, Any], turn: int) -> str:
    """The evidence in one sentence for people."""
    period = evidence["period"] or 0
    every = f", coming round every {period} turns" if period > 1 else ""
    first = f"first at turn {evidence['first_repeats_turn']}; " if evidence["first_repeats_turn"] else ""
    quoted = f": {evidence['span']}" if evidence["span"] else ""
    return (
        f"turns {evidence['onset_turn']} to {turn} {_WHAT[evidence['kind']]}{every}"
        f" ({first}{evidence['tokens_since_onset']} tokens since the onset){quoted}"
    )
