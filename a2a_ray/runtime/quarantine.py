"""Which conversation kills its worker: those that stand still when workers die are held apart, in smaller groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

ALONE_DEATHS = 3
"""So often a worker must die with one conversation alone in it, and no turn of it committed, before that is set aside.
A process can die of another cause just then, but hardly three times."""


class Sorted(NamedTuple):
    """What to do with the conversations of a worker that died, by id."""

    free: list[str]
    """Go on like any other."""
    groups: list[list[str]]
    """Are held apart: each group in a worker that holds nothing else meanwhile."""
    poison: list[str]
    """Kill their worker again and again."""


class Suspects:
    """Remembers, over the deaths of workers, which conversations did not get on.

    A death with progress clears a conversation of what was before. One that twice in a row had no turn committed when
    its worker died is a suspect; suspects are halved with each further death until one is alone, so that an innocent
    one is out of it after a few deaths: the number grows with the logarithm of what the worker held.
    """

    def __init__(self) -> None:
        self._still: Counter[str] = Counter()
        self._alone: Counter[str] = Counter()

    def died(self, progress: Mapping[str, bool], *, apart: bool) -> Sorted:
        """After the death of a worker that still held these conversations.

        progress: whether a turn of each was committed since the worker got it. apart: the worker held a group of
        suspects and nothing else.
        """
        free: list[str] = []
        suspected: list[str] = []
        for id, moved in progress.items():
            self._still[id] = 0 if moved else self._still[id] + 1
            (free if moved or (self._still[id] < 2 and not apart) else suspected).append(id)
        if len(suspected) > 1:
            half = (len(suspected) + 1) // 2
            return Sorted(free, [suspected[:half], suspected[half:]], [])
        if apart and suspected and len(progress) == 1:
            self._alone[suspected[0]] += 1
            if self._alone[suspected[0]] >= ALONE_DEATHS:
                return Sorted(free, [], suspected)
        return Sorted(free, [suspected] if suspected else [], [])
