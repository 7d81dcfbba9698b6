"""The four published distances between two texts (arXiv 2512.06256): cosine, Jaccard, BLEU and coherence difference.

In all of them 0 is equality. Two blank texts have no distance (NaN): silence is never a similarity by itself. A blank
text and one that says something are as far apart as can be (1). The publication names the four but not every detail;
what is chosen here is stated with each function.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISTANCES = ("cosine", "jaccard", "bleu", "coherence")
"""The names of the four distances, in the order in which they are shown."""

TOKEN = re.compile(r"\w+|[^\w\s]+")
"""A token: a run of letters, digits and underscores, or a run of punctuation (NLTK's wordpunct rule; needs no data)."""

MAX_SENTENCES = 30
"""Only so many sentences of a text count for its coherence; the embedding of a text sees no more of it (256 tokens)."""

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\s*\n\s*")


class Text:
    """A text with its tokens and words, which several distances need."""

    __slots__ = ("grams", "text", "tokens", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = TOKEN.findall(text)
        folded = text.casefold()
        self.words = frozenset(_WORD.findall(folded)) or frozenset(TOKEN.findall(folded))
        """The set of words, case folded, without punctuation; of a text without words, its punctuation."""
        self.grams: list[Counter[Any]] | None = None

    def counts(self) -> list[Counter[Any]]:
        """How often each n-gram of the tokens occurs, n = 1 to 4."""
        if self.grams is None:
            at = self.tokens
            self.grams = [
                Counter(at),
                Counter(pairwise(at)),
                Counter(zip(at, at[1:], at[2:], strict=False)),
                Counter(zip(at, at[1:], at[2:], at[3:], strict=False)),
            ]
        return self.grams


def sentences(text: str) -> list[str]:
    """The first `MAX_SENTENCES` sentences of a text.

    A sentence ends after . ! ? … (and closing quotes) before white space, after 。！？, and at a line's end. There is
    no list of abbreviations, so "Mr. Holmes" is cut in two: the same in every text, and no data to download.
    """
    return [s for s in _SENTENCE_END.split(text) if s.strip()][:MAX_SENTENCES]


def jaccard_distance(a: Text | str, b: Text | str) -> float:
    """1 - |A ∩ B| / |A ∪ B| of the two sets of words, in [0, 1], symmetric; NaN for two blank texts."""
    first, second = _text(a).words, _text(b).words
    union = len(first | second)
    return 1 - len(first & second) / union if union else np.nan


def bleu_distance(reference: Text | str, hypothesis: Text | str) -> float:
    """1 - BLEU-4 of `hypothesis` against `reference`, the earlier text, in [0, 1]; NaN for two blank texts.

    NLTK's sentence BLEU with smoothing method 1 on tokens, with n-grams counted here: NLTK's own counting is five times
    slower. Not symmetric (brevity penalty). Equal token sequences have distance 0 by definition: smoothed BLEU gives
    identical texts of one to three tokens only 0.18 to 0.56.
    """
    first, second = _text(reference), _text(hypothesis)
    if first.tokens == second.tokens:
        return 0.0 if first.tokens else np.nan
    if not first.tokens or not second.tokens:
        return 1.0
    brevity_penalty, fraction, smoothed = _nltk()
    length = len(second.tokens)
    precisions = []
    for n, (known, said) in enumerate(zip(first.counts(), second.counts(), strict=True)):
        shared = sum(min(times, known[gram]) for gram, times in said.items() if gram in known)
        if not n and not shared:
            return 1.0
        precisions.append(fraction(shared, max(1, length - n), _normalize=False))
    mean: float = math.exp(math.fsum(0.25 * math.log(p) for p in smoothed(precisions)))
    penalty: float = brevity_penalty(len(first.tokens), length)
    return min(max(1 - penalty * mean, 0.0), 1.0)


@functools.cache
def _nltk() -> tuple[Any, Any, Any]:
    """NLTK's brevity penalty, fraction, and smoothing method 1."""
    from nltk.translate import bleu_score

    return bleu_score.brevity_penalty, bleu_score.Fraction, bleu_score.SmoothingFunction().method1


def _text(text: Text | str) -> Text:
    return Text(text) if isinstance(text, str) else text


def cosine_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """1 - cosine of unit vectors, in [0, 2], symmetric.

    a, b: shape (d,) or (n, d); unit rows, or zero rows for blank texts. Gives shape () or (n,), float64: 1 where one of
    the two is zero, NaN where both are.
    """
    product = np.einsum("...i,...i->...", a, b, dtype=np.float64)
    distance = np.clip(1 - product, 0.0, 2.0)
    blank = ~(np.any(a, axis=-1) | np.any(b, axis=-1))
    return np.asarray(np.where(blank, np.nan, distance))


def coherence(sentence_vectors: NDArray[Any]) -> float:
    """Mean cosine of adjacent sentences, in [-1, 1]; NaN for fewer than two.

    sentence_vectors: shape (n, d), unit rows, in the order of the text.
    """
    if len(sentence_vectors) < 2:
        return np.nan
    pairs = np.einsum("ij,ij->i", sentence_vectors[:-1], sentence_vectors[1:], dtype=np.float64)
    return float(np.clip(pairs, -1.0, 1.0).mean())


def coherence_difference(a: float, b: float) -> float:
    """|coherence(a) - coherence(b)|, in [0, 2], symmetric; NaN where a text has a single sentence."""
    return abs(a - b)
