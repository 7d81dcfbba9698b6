"""The four published distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.analysis.text.distances import (
    MAX_SENTENCES,
    Text,
    bleu_distance,
    coherence,
    coherence_difference,
    cosine_distance,
    jaccard_distance,
    sentences,
)

some_words = st.sampled_from(["the", "cat", "sat", "on", "a", "mat", ".", "!", "?", ",", "\n"])
texts = st.one_of(st.text(max_size=40), st.lists(some_words, max_size=30).map(" ".join))


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@settings(deadline=None)  # the first call imports nltk
@given(texts, texts)
def test_word_distances_stay_in_range_and_blank_texts_have_none(a: str, b: str) -> None:
    for distance in (jaccard_distance(a, b), bleu_distance(a, b)):
        if not a.strip() and not b.strip():
            assert math.isnan(distance)
        elif not a.strip() or not b.strip():
            assert distance == 1
        else:
            assert 0 <= distance <= 1


@given(texts, texts)
def test_jaccard_is_symmetric(a: str, b: str) -> None:
    assert jaccard_distance(a, b) == pytest.approx(jaccard_distance(b, a), nan_ok=True)


@given(texts.filter(str.strip))
def test_identical_texts_have_distance_zero_however_short(text: str) -> None:
    assert jaccard_distance(text, text) == 0
    assert bleu_distance(text, text) == 0
    assert bleu_distance(text, f"  {text}\n") == 0


def test_jaccard_by_hand() -> None:
    assert Text("The cat, the CAT!").words == {"the", "cat"}
    assert jaccard_distance("the cat sat", "a cat sat down") == pytest.approx(1 - 2 / 5)
    assert Text("?! ...").words == {"?!", "..."}  # a text without words is not empty


def test_bleu_is_the_one_of_nltk_with_the_earlier_text_as_reference() -> None:
    from nltk.tokenize import wordpunct_tokenize
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    a, b = "The cat sat on the mat, quietly.", "The cat sat on the old mat; it was not quiet at all."
    expected = sentence_bleu(
        [wordpunct_tokenize(a)], wordpunct_tokenize(b), smoothing_function=SmoothingFunction().method1
    )
    assert Text(a).tokens == wordpunct_tokenize(a)
    assert 0.2 < expected < 0.5
    assert bleu_distance(a, b) == pytest.approx(1 - expected, abs=1e-12)
    assert bleu_distance(a, b) != pytest.approx(bleu_distance(b, a), abs=1e-3)


def test_cosine_by_hand_and_for_blank_texts() -> None:
    a = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 0]], dtype=np.float32)
    b = np.array([[1, 0], [0, 1], [-1, 0], [0, 0], [0, 0]], dtype=np.float32)
    np.testing.assert_array_equal(cosine_distance(a, b), [0, 1, 2, 1, np.nan])
    assert cosine_distance(a[0], b[1]) == 1


@given(st.integers(0, 2**32 - 1))
def test_cosine_is_symmetric_and_in_range(seed: int) -> None:
    a, b = unit(np.random.default_rng(seed), 2, 5, 7)
    distance = cosine_distance(a, b)
    assert distance.shape == (5,)
    assert ((distance >= 0) & (distance <= 2)).all()
    np.testing.assert_array_equal(distance, cosine_distance(b, a))
    np.testing.assert_allclose(cosine_distance(a, a), 0, atol=1e-6)


def test_coherence_is_the_mean_cosine_of_neighbours() -> None:
    rows = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert coherence(rows) == pytest.approx(0.5)
    assert math.isnan(coherence(rows[:1]))
    assert math.isnan(coherence(rows[:0]))
    assert coherence_difference(0.2, 0.5) == coherence_difference(0.5, 0.2) == pytest.approx(0.3)
    assert math.isnan(coherence_difference(math.nan, 0.5))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("  \n ", 0),
        ("One sentence", 1),
        ("One. Two! Three?", 3),
        ('"One." Two', 2),
        ("pi is 3.14 today", 1),
        ("a line\nanother", 2),
        ("一。二！三", 3),
        ("So. " * 100, MAX_SENTENCES),
    ],
)
def test_sentences(text: str, number: int) -> None:
    assert len(sentences(text)) == number
