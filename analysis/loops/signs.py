"""How far one turn speaks for a loop: from -1, something new, to 1, nothing but repetition.

Each constant below is a level of one quantity. docs/method/loop_detector.md gives the reason for each.
"""

from __future__ import annotations

from a2a_ray.analysis.loops.lexical import Copied

OLD, NEW = 0.2, 0.45
"""Novelty up to which a turn is wholly a repetition, and from which it says something new."""

FIRST_TIME, FIRST_TURN = 0.5, 0.75
"""What is copied for the first time counts so much of what had been copied before: a loop needs both. A whole turn that
is said again counts more than a passage, which may come along with its subject."""

FRAME = 0.5
"""A word swapped within a frame that comes for the third time or more, or within a turn that is said again from its
first word to its last, costs half of a new word."""

PROGRESS = 25
"""So many fresh words (in a long turn: and a quarter of its length) are progress, whatever else the turn quotes."""

LEFT_OUT = 2
"""A turn that leaves out so many words of an earlier one, and adds fewer, is that one less an item."""

USUAL, FULLY = 0.5, 0.7
"""Likeness, on the embedder's scale, up to which talk about one subject goes in words that were said, and at which it
is nothing but repetition."""

BY_NEWS = 0.6
"""Both are higher by so much where all content words are new: who says the same in other words runs out of words."""

BY_WORDING = 0.7
"""And by so much where all wording is copied: common wording raises likeness without common meaning; there the words
decide."""

READ = 1200
"""So many characters of a turn the default embedder reads: of a longer one likeness speaks for that part."""

COURTEOUS, COURTESY = 0.5, 0.8
"""Likeness to a courtesy from which a turn counts as one, and at which it is nothing else."""


def of_words(copied: Copied) -> float:
    """The sign of the words alone."""
    heard = 1.0 if copied.framed else copied.again
    novelty = copied.novelty - FRAME * heard * copied.swapped / copied.words
    novelty = max(novelty, copied.fresh / (PROGRESS + copied.words / 4))
    sign = _within((NEW - novelty) / (NEW - OLD))
    first = FIRST_TURN if copied.framed else FIRST_TIME
    return sign * (first + (1 - first) * copied.again) if sign > 0 else sign


def of_courtesy(likeness: float) -> float:
    """The sign of how near a turn is to a courtesy."""
    return _within((likeness - COURTEOUS) / (COURTESY - COURTEOUS))


def of_likeness(likeness: float, news: float, wording: float) -> float:
    """The sign of a likeness. news: share of new content words. wording: mean novelty of the last turns. All 0 to 1."""
    expected = USUAL + BY_NEWS * news + BY_WORDING * (1 - wording)
    return _within((likeness - expected) / (FULLY - USUAL))


def shrinks(copied: Copied) -> bool:
    """Whether a turn is an earlier one less an item. Lists that are worked off get shorter; that has an end."""
    return copied.left_out >= LEFT_OUT and copied.new < copied.left_out


def answered(fresh: int) -> float:
    """How far a turn answers what was said before it: 0 to 1. fresh: content words of it that nobody said lately."""
    return max(0.0, min(1.0, fresh / PROGRESS - 1))


def _within(sign: float) -> float:
    return max(-1.0, min(1.0, sign))
