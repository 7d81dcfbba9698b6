"""Talk that has run dry: nothing is copied, the words even change, but nothing is added any more.

Turns of such a talk are nearer to each other than its earlier ones were, they share more than the subject of the talk,
they bring fewer new words than before, and they begin with what is said when nothing is left to say. Each of these
alone is common in healthy talk; their sum, over the last five turns, is not.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from a2a_ray.analysis.loops.semantic import Scale

WINDOW = 5
"""So many turns in a row are looked at together."""

BEFORE = 6
"""A turn is compared with so many before it; what was said earlier still is the talk's own subject."""

START = 3
"""So many turns at least stand for the talk's own subject."""

FIRST = 4
"""From this turn on, counted from 0, there is something to compare with."""

SMOOTHED = 3
"""What a turn shares with those before it is a mean over so many turns."""

USUAL_NEWS = 2 / 3
"""Share of new content words in healthy talk, where a talk has had none yet that could be measured."""

CLOSE, SHARED = 0.31, 0.15
"""Closeness and sharing below which a talk is not dry, whatever its turns begin with; these need not be embedded."""

CLOSEST = 0.51
"""Closeness counts up to here: talk about a narrow subject is close by itself."""

EMPTY = 0.25
"""Emptiness below which a talk is not dry."""

WEIGHT_EMPTY, WEIGHT_NEWS, USUAL, STEEP = 2.0, 2 / 3, 1.25, 7.5
"""Sign = STEEP * (closeness + shared + 2 emptiness + 2/3 of the loss of news - 1.25), between -1 and 1."""

NOT_DRY = -0.5
"""Sign of a turn in a talk that is not dry by one of the bounds above."""

LEVEL = 2.5
"""What these turns must add up to: their signs are means over five turns, which come late but also go on."""

OPENING_WORDS, OPENING = 3, 80
"""A turn's opening is its first sentences, until they have so many words; at most so many characters. Running text that
was cut within a sentence has none: it begins with whatever came."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


class Dry(NamedTuple):
    """How far a turn says that the talk has run dry. sign: -1 to 1. back: how many turns ago the nearest turn was, of
    the last BEFORE. similarity: likeness to it, on the embedder's scale."""

    sign: float
    back: int
    similarity: float


class Dryness:
    """The last turns of a talk, and what the talk was like before them. The pickled copy goes on exactly the same."""

    def __init__(self) -> None:
        self._count = 0
        self._vectors: deque[NDArray[np.float32]] = deque(maxlen=BEFORE)
        self._older: Any = 0.0  # sum of the vectors before those, at first of the first START; shape (d,)
        self._shared: deque[float] = deque(maxlen=SMOOTHED)
        self._news: deque[float] = deque(maxlen=WINDOW)
        self._older_news = [0.0, 0.0]  # sum and count of what left `_news`
        self._openings: deque[str | float] = deque(maxlen=WINDOW)  # emptiness, or the text where it was not needed
        self._cut = False  # whether the newest turn ended within a sentence

    def read(
        self, vector: NDArray[np.float32], news: float, text: str, scale: Scale, embed: Callable[[str], Any]
    ) -> Dry:
        """Takes a turn in. vector: unit, float32, shape (d,). news: share of new content words. embed: text -> vector;
        it is called only where the rest speaks for a dry talk."""
        now = vector.astype("float16").astype("float32")
        self._openings.append(0.0 if self._cut and text.lstrip()[:1].islower() else opening(text))
        self._cut = text.rstrip()[-1:].isalnum() or text.rstrip()[-1:] in ",;:-"
        found = Dry(NOT_DRY, 1, 0.0)
        if self._count >= FIRST:
            cosines = [float(v @ now) for v in self._vectors]
            back = 1 + max(range(len(cosines)), key=lambda i: cosines[-1 - i])
            found = Dry(self._sign(now, news, scale, embed), back, scale(cosines[-back]))
        if self._count < START:
            self._older = self._older + now
        elif len(self._vectors) == BEFORE and self._count - BEFORE >= START:
            self._older = self._older + self._vectors[0]
        self._vectors.append(now)
        self._count += 1
        return found

    def _sign(self, now: NDArray[np.float32], news: float, scale: Scale, embed: Callable[[str], Any]) -> float:
        import numpy as np

        before = np.asarray(self._vectors)
        window = np.vstack([before[1 - WINDOW :], now])
        closeness = scale(float(((window @ window.T).sum() - WINDOW) / (WINDOW * (WINDOW - 1))))
        usual = self._older / max(START, self._count - BEFORE)
        apart = np.vstack([before, now]) - usual
        apart /= np.linalg.norm(apart, axis=1, keepdims=True) + 1e-9
        self._shared.append(float((apart[:-1] @ apart[-1]).mean()))
        shared = sum(self._shared) / len(self._shared)
        loss = self._loss(news)
        if closeness < CLOSE or shared < SHARED or loss < 0:
            return NOT_DRY
        emptiness = self._emptiness(scale, embed)
        if emptiness < EMPTY:
            return NOT_DRY
        dryness = min(closeness, CLOSEST) + shared + WEIGHT_EMPTY * emptiness + WEIGHT_NEWS * loss
        return max(-1.0, min(1.0, STEEP * (dryness - USUAL)))

    def _loss(self, news: float) -> float:
        """By how much the last turns bring a smaller share of new words than those before them did."""
        if len(self._news) == WINDOW:
            self._older_news[0] += self._news[0]
            self._older_news[1] += 1
        self._news.append(news)
        total, count = self._older_news
        return (total / count if count else USUAL_NEWS) - sum(self._news) / len(self._news)

    def _emptiness(self, scale: Scale, embed: Callable[[str], Any]) -> float:
        """Mean likeness of the openings of the last turns to the nearest sentence that says nothing."""
        for place, text in enumerate(self._openings):
            if isinstance(text, str):
                self._openings[place] = scale(float((scale.emptiness @ embed(text)).max()))
        known = [value for value in self._openings if isinstance(value, float)]
        return sum(known) / len(known)


def opening(text: str) -> str:
    """The first sentences of a turn, until they have a few words."""
    found = ""
    for part in _SENTENCE.split(text[:1200].strip()):
        found = f"{found} {part}".strip()
        if len(found.split()) >= OPENING_WORDS:
            break
    return found[:OPENING]
