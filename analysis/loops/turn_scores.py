"""The score of one turn: from -1, something new, to 1, nothing but repetition.

`docs/method/loop_detector.md` gives the source of each constant below.
"""

from __future__ import annotations

from a2a_ray.analysis.loops.lexical import CopiedWords

OLD, NEW = 0.2, 0.45
"""Novelty up to which a turn is pure repetition, and from which it says something new."""

FIRST_TIME, FIRST_TURN = 0.5, 0.75
"""A first copy counts this much of a further copy: one repetition is not a loop. The second value is for a whole turn,
which counts more than a passage, because a passage may recur with its subject."""

FRAME = 0.5
"""A swapped word costs half of a new word within a frame that occurs at least three times, or within a turn that is
repeated from its first word to its last."""

PROGRESS = 25
"""This many fresh words (plus a quarter of the turn's length) are progress, whatever else the turn quotes."""

LEFT_OUT = 2
"""A turn that omits at least this many words of an earlier one, and adds fewer, repeats a list that gets shorter."""

USUAL, FULLY = 0.5, 0.7
"""Similarity, on the embedder's scale: up to `USUAL` for turns about one subject in the same words; from `FULLY` on a
turn is pure repetition."""

BY_NEWS = 0.6
"""Both are higher by this much if all content words are new: repetition in other words runs out of new words."""

BY_WORDING = 0.7
"""Both are higher by this much if all wording is copied. Shared wording raises the similarity without shared meaning;
then the words decide."""

READ = 1200
"""The default embedder reads this many characters of a turn. The similarity of a longer turn counts for that part."""

COURTEOUS, COURTESY = 0.5, 0.8
"""Similarity to a courtesy phrase from which a turn counts as courtesy, and at which it is nothing else."""


def word_score(copied: CopiedWords) -> float:
    """Return the score by the words alone."""
    familiar = 1.0 if copied.framed else copied.again
    novelty = copied.novelty - FRAME * familiar * copied.swapped / copied.words
    novelty = max(novelty, copied.fresh / (PROGRESS + copied.words / 4))
    score = _clipped((NEW - novelty) / (NEW - OLD))
    first = FIRST_TURN if copied.framed else FIRST_TIME
    return score * (first + (1 - first) * copied.again) if score > 0 else score


def courtesy_score(similarity: float) -> float:
    """Return the score of a turn by its similarity to the nearest courtesy phrase."""
    return _clipped((similarity - COURTEOUS) / (COURTESY - COURTEOUS))


def semantic_score(similarity: float, news: float, wording: float) -> float:
    """Return the score by meaning.

    similarity: to earlier turns, on the embedder's scale. news: share of new content words, 0 to 1.
    wording: mean novelty of the wording of the last turns, 0 to 1.
    """
    expected = USUAL + BY_NEWS * news + BY_WORDING * (1 - wording)
    return _clipped((similarity - expected) / (FULLY - USUAL))


def shortens_list(copied: CopiedWords) -> bool:
    """Return whether a turn repeats a list with items left out. Such a list gets shorter and ends."""
    return copied.left_out >= LEFT_OUT and copied.new < copied.left_out


def answer_share(fresh: int) -> float:
    """Return how substantial an answer is, 0 to 1. fresh: its content words that no recent turn contains."""
    return max(0.0, min(1.0, fresh / PROGRESS - 1))


def _clipped(score: float) -> float:
    return max(-1.0, min(1.0, score))
