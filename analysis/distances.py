"""The four published distances between two texts (arXiv 2512.06256): cosine, Jaccard, BLEU and coherence difference.

In all of them 0 is equality. Two blank texts have no distance (NaN): silence is never a similarity by itself. A blank
text and one that says something are as far apart as can be (1). The publication names the four but not every detail;
what is chosen here is stated with each function.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOKEN = re.compile(r"\w+|[^\w\s]+")
"""A token: a run of letters, digits and underscores, or a run of punctuation (NLTK's wordpunct rule; needs no data)."""

MAX_SENTENCES = 30
"""Only so many sentences of a text count for its coherence; the embedding of a text sees no more of it (256 tokens)."""

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’»)\]]*\s+|(?<=[。！？])|\s*\n\s*")


def tokens(text: str) -> list[str]:
    """The tokens of a text in order, case kept."""
    return TOKEN.findall(text)


def words(text: str) -> frozenset[str]:
    """The set of a text's words, case folded, without punctuation; of a text without words, its punctuation."""
    folded = text.casefold()
    return frozenset(_WORD.findall(folded)) or frozenset(tokens(folded))


def sentences(text: str) -> list[str]:
    """The first `MAX_SENTENCES` sentences of a text.

    A sentence ends after . ! ? … (and closing quotes) before white space, after 。！？, and at a line's end. There is
    no list of abbreviations, so "Mr. Holmes" is cut in two: the same in every text, and no data to download.
    """
    return [s for s in _SENTENCE_END.split(text) if s.strip()][:MAX_SENTENCES]


def jaccard_distance(a: str, b: str) -> float:
    """1 - |A ∩ B| / |A ∪ B| of the two sets of words, in [0, 1], symmetric; NaN for two blank texts."""
    first, second = words(a), words(b)
    union = len(first | second)
    return 1 - len(first & second) / union if union else np.nan


def bleu_distance(reference: str, hypothesis: str) -> float:
    """1 - BLEU-4 of `hypothesis` against `reference`, the earlier text, in [0, 1]; NaN for two blank texts.

    NLTK's sentence BLEU with smoothing method 1 on `tokens`. Not symmetric (brevity penalty). Equal token sequences
    have distance 0 by definition: smoothed BLEU gives identical texts of one to three tokens only 0.18 to 0.56.
    """
    first, second = tokens(reference), tokens(hypothesis)
    if first == second:
        return 0.0 if first else np.nan
    if not first or not second:
        return 1.0
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    bleu = float(sentence_bleu([first], second, smoothing_function=SmoothingFunction().method1))
    return min(max(1 - bleu, 0.0), 1.0)


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
