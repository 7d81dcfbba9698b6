"""The four distances between two texts of arXiv 2512.06256: cosine, Jaccard, BLEU and coherence difference.

A distance of 0 is equality. Two blank texts have no distance (NaN), because silence is not similarity. A blank text and
a non-blank one have the largest distance (1). The publication does not state every detail; each function documents its
choice.
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
"""The names of the four distances, in display order."""

TOKEN = re.compile(r"\w+|[^\w\s]+")
"""A token: a run of letters, digits and underscores, or a run of punctuation (NLTK's wordpunct rule; needs no data)."""

MAX_SENTENCES = 30
"""Limit on the sentences that count for coherence; the embedding of a text covers no more of it (256 tokens)."""

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\s*\n\s*")


class Text:
    """A text with its tokens and words, shared by several distances."""

    __slots__ = ("grams", "text", "tokens", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = TOKEN.findall(text)
        folded = text.casefold()
        self.words = frozenset(_WORD.findall(folded)) or frozenset(TOKEN.findall(folded))
        """The set of words, case folded, without punctuation; the punctuation of a text without words."""
        self.grams: list[Counter[Any]] | None = None

    def counts(self) -> list[Counter[Any]]:
        """Return the counts of the n-grams of the tokens, n = 1 to 4."""
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
    """Return the first `MAX_SENTENCES` sentences of a text.

    A sentence ends after . ! ? … (and closing quotes) before white space, after 。！？, and at a line's end. There is
    no list of abbreviations, so "Mr. Holmes" is split in two: consistently in every text, and without any download.
    """
    return [s for s in _SENTENCE_END.split(text) if s.strip()][:MAX_SENTENCES]


def jaccard_distance(a: Text | str, b: Text | str) -> float:
    """Return 1 - |A ∩ B| / |A ∪ B| of the two sets of words, in [0, 1], symmetric; NaN for two blank texts."""
    first, second = _text(a).words, _text(b).words
    union = len(first | second)
    return 1 - len(first & second) / union if union else np.nan


def bleu_distance(reference: Text | str, hypothesis: Text | str) -> float:
    """Return 1 - BLEU-4 of `hypothesis` against `reference`, the earlier text, in [0, 1]; NaN for two blank texts.

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
    for n, (known, grams) in enumerate(zip(first.counts(), second.counts(), strict=True)):
        shared = sum(min(times, known[gram]) for gram, times in grams.items() if gram in known)
        if not n and not shared:
            return 1.0
        precisions.append(fraction(shared, max(1, length - n), _normalize=False))
    mean: float = math.exp(math.fsum(0.25 * math.log(p) for p in smoothed(precisions)))
    penalty: float = brevity_penalty(len(first.tokens), length)
    return min(max(1 - penalty * mean, 0.0), 1.0)


@functools.cache
def _nltk() -> tuple[Any, Any, Any]:
    """Return NLTK's brevity penalty, fraction, and smoothing method 1."""
    from nltk.translate import bleu_score

    return bleu_score.brevity_penalty, bleu_score.Fraction, bleu_score.SmoothingFunction().method1


def _text(text: Text | str) -> Text:
    return Text(text) if isinstance(text, str) else text


def cosine_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 - cosine of unit vectors, in [0, 2], symmetric.

    a, b: shape (d,) or (n, d); unit rows, or zero rows for blank texts. The result has shape () or (n,),
    float64: 1 if one of the two is zero, NaN if both are.
    """
    product = np.einsum("...i,...i->...", a, b, dtype=np.float64)
    distance = np.clip(1 - product, 0.0, 2.0)
    blank = ~(np.any(a, axis=-1) | np.any(b, axis=-1))
    return np.asarray(np.where(blank, np.nan, distance))


def coherence(sentence_vectors: NDArray[Any]) -> float:
    """Return the mean cosine of adjacent sentences, in [-1, 1]; NaN for fewer than two.

    sentence_vectors: shape (n, d), unit rows, in the order of the text.
    """
    if len(sentence_vectors) < 2:
        return np.nan
    pairs = np.einsum("ij,ij->i", sentence_vectors[:-1], sentence_vectors[1:], dtype=np.float64)
    return float(np.clip(pairs, -1.0, 1.0).mean())


def coherence_difference(a: float, b: float) -> float:
    """Return |coherence(a) - coherence(b)|, in [0, 2], symmetric; NaN if a text has a single sentence."""
    return abs(a - b)
