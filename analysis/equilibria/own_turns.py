"""Select the turns of an agent to compare: one per round, if there are rounds.

An agent settles from round to round. In a fixed order of turns, a round is one period. If the order is not fixed
(`adaptive`), the rounds begin where the order becomes periodic; if it never does, there are no rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.5
"""A periodic end must be at least this share of the conversation; the path to the fixed point is most informative."""
FEWEST = 4
"""Minimum number of rounds in a periodic end after a different beginning: two can be periodic by chance."""


@dataclass(frozen=True, slots=True)
class OwnTurns:
    """The compared turns.

    places: name -> indices, from 0, into the agent's own turns, in order: of its last turn in each round, or of all its
        turns without rounds.
    period: turns in a round; 0 without rounds.
    compared: one sentence for reports.
    """

    places: dict[str, list[int]]
    period: int
    compared: str

    def chain(self, every: int) -> OwnTurns:
        """Keep one of `every` rounds, including the last one.

        For simultaneous turns without combination, which form one interleaved chain per agent.
        """
        if every == 1 or not self.period:
            return self
        places = {name: found[(len(found) - 1) % every :: every] for name, found in self.places.items()}
        compared = f"each agent's own turn in every {_ordinal(every)} round, in which it continues the same chain"
        return OwnTurns(places, self.period, compared)


def own_turns(senders: Sequence[str], names: Sequence[str]) -> OwnTurns:
    """Find which turns to compare. senders: of all turns, in order. names: of all agents."""
    start, period = _periodic(senders, len(names))
    if not period:
        places = {name: list(range(sum(s == name for s in senders))) for name in names}
        compared = "each agent's own turns; the order of turns is not fixed, so the intervals are approximate"
        return OwnTurns(places, 0, compared)
    seen = dict.fromkeys((*names, *senders), 0)
    for sender in senders[:start]:
        seen[sender] += 1
    places = {name: [] for name in names}
    for begin in range(start, len(senders) - period + 1, period):
        speakers = senders[begin : begin + period]
        for sender in speakers:
            seen[sender] += 1
        for name in names:
            if name in speakers:
                places[name].append(seen[name] - 1)
    turn = "own turn" if period == len(set(senders[start:])) else "last own turn"
    compared = f"each agent's {turn} in each round of {period} {'turn' if period == 1 else 'turns'}"
    return OwnTurns(
        places, period, compared + (f", from turn {start + 1} on, where the order is fixed" if start else "")
    )


def _periodic(senders: Sequence[str], agents: int) -> tuple[int, int]:
    """Return where the order becomes periodic, and its period; (0, 0) if it does not."""
    total, speaking = len(senders), len(set(senders))
    best = (total, 0)
    for period in range(max(speaking, 1), max(total // 2, min(agents, total)) + 1):
        start = total - period
        while start > 0 and senders[start - 1] == senders[start - 1 + period]:
            start -= 1
        if len(set(senders[start:])) < speaking:
            continue  # an agent stopped
        if start == 0:
            return 0, period
        if total - start >= max(SHARE * total, FEWEST * period) and start < best[0]:
            best = (start, period)
    return best if best[1] else (0, 0)


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")
