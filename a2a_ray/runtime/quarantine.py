"""Finds the conversation that kills its worker: suspects run in workers of their own, in smaller and smaller groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

ALONE_DEATHS = 3
"""Deaths of a worker with one conversation in it, and no turn of it committed, before that conversation is set aside.
A process can also die of another cause at that moment, but hardly three times."""


class QuarantineDecision(NamedTuple):
    """The conversations of a worker that died, by id."""

    cleared: list[str]
    """Run like any other conversation."""
    suspects: list[list[str]]
    """Run in quarantine: each group in a worker that runs nothing else at the same time."""
    guilty: list[str]
    """Kill their worker every time."""


class Quarantine:
    """Keeps track of conversations that make no progress when workers die.

    A conversation becomes a suspect when no turn of it was committed in two deaths in a row. A death with progress
    clears it. Each further death halves a group of suspects, until one is alone. The number of deaths therefore grows
    with the logarithm of the number of conversations that the worker had.
    """

    def __init__(self) -> None:
        self._deaths_without_progress: Counter[str] = Counter()
        self._deaths_alone: Counter[str] = Counter()

    def sort_after_death(self, progress: Mapping[str, bool], *, quarantined: bool) -> QuarantineDecision:
        """Sort the conversations that a worker had when it died.

        Args:
            progress: for each conversation, whether a turn of it was committed since the worker got it.
            quarantined: whether the worker had a group of suspects and nothing else.
        """
        cleared: list[str] = []
        suspects: list[str] = []
        for id, progressed in progress.items():
            self._deaths_without_progress[id] = 0 if progressed else self._deaths_without_progress[id] + 1
            innocent = progressed or (self._deaths_without_progress[id] < 2 and not quarantined)
            (cleared if innocent else suspects).append(id)
        if len(suspects) > 1:
            half = (len(suspects) + 1) // 2
            return QuarantineDecision(cleared, [suspects[:half], suspects[half:]], [])
        if quarantined and suspects and len(progress) == 1:
            self._deaths_alone[suspects[0]] += 1
            if self._deaths_alone[suspects[0]] >= ALONE_DEATHS:
                return QuarantineDecision(cleared, [], suspects)
        return QuarantineDecision(cleared, [suspects] if suspects else [], [])
