"""How far one turn speaks for a loop: from -1, something new, to 1, nothing but repetition.

Every constant below is a level of one quantity that can be pictured; `docs/loops.md` says where each comes from.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from a2a_ray.analysis.loops.evidence import Run
from a2a_ray.analysis.loops.lexical import Copied

OLD, NEW = 0.2, 0.45
"""Novelty up to which a turn is wholly a repetition, and from which it says something new."""

FIRST_TIME = 0.5
"""What is copied for the first time counts half of what had been copied before: a loop needs both."""

FRAME = 0.5
"""A word swapped within a frame that comes for the third time or more costs half of a new word."""

PROGRESS = 25
"""So many fresh words (in a long turn: and a quarter of its length) are progress, whatever else the turn quotes."""

USUAL = 0.65
"""Likeness, on the embedder's scale, up to which talk about one subject goes without saying the same."""

BY_WORDING = 1.0
"""Common wording raises likeness without common meaning; where all is copied, by so much. Then the words decide."""

ABOVE_USUAL = 0.07
"""So far above what is usual in the same talk likeness must be to count."""

FULLY = 0.25
"""So far above the expected, likeness says: nothing but repetition."""

COURTEOUS, COURTESY = 0.5, 0.8
"""Likeness to a courtesy from which a turn counts as one, and at which it is nothing else."""

RECENT = 0.4
"""Weight of the newest turn in the running mean of novelty."""

REMEMBERED = 64
"""So many likenesses make up what is usual in a talk."""


def of_words(copied: Copied) -> float:
    """The sign of the words alone."""
    novelty = copied.novelty - FRAME * copied.again * copied.swapped / copied.words
    novelty = max(novelty, copied.fresh / (PROGRESS + copied.words / 4))
    sign = _within((NEW - novelty) / (NEW - OLD))
    return sign * (FIRST_TIME + (1 - FIRST_TIME) * copied.again) if sign > 0 else sign


def of_courtesy(likeness: float) -> float:
    """The sign of how near a turn is to a courtesy."""
    return _within((likeness - COURTEOUS) / (COURTESY - COURTEOUS))


@dataclass(slots=True)
class Voice:
    """What adds up for the whole talk, or for one of its speakers.

    wording: running mean of novelty. likeness: of the last turns.
    """

    run: Run = field(default_factory=Run)
    wording: float = 1.0
    likeness: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def hear(self, novelty: float, weight: float) -> None:
        """Takes in how new the wording of a turn is. weight: of the turn, 0 to 1."""
        self.wording += (novelty - self.wording) * weight * RECENT

    def of_likeness(self, likeness: float) -> float:
        """The sign of a likeness, against what wording and the talk so far explain. Takes it in."""
        expected = USUAL + BY_WORDING * (1 - self.wording)
        if len(self.likeness) > 2:
            expected = max(expected, median(self.likeness) + ABOVE_USUAL)
        self.likeness.append(likeness)
        return _within((likeness - expected) / FULLY)


def _within(sign: float) -> float:
    return max(-1.0, min(1.0, sign))
