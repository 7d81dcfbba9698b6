"""The path of a conversation through embedding space, projected to the plane (t-SNE, as in arXiv 2512.06256)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_POINTS = 2_000
"""Limit on the points that t-SNE places: a few seconds on one core (2 500 points of 384 dimensions: 6 s)."""

_FEWEST = 5
"""Fewer points have no meaningful neighbourhoods; their first two principal components are drawn instead."""


def even_sample(n: int, maximum: int = MAX_POINTS) -> NDArray[np.intp]:
    """Return at most `maximum` ascending, evenly spread indices of n items, including the first and the last."""
    if n <= maximum:
        return np.arange(n)
    return np.linspace(0, n - 1, maximum).round().astype(np.intp)


def tsne(vectors: NDArray[Any], maximum: int = MAX_POINTS) -> NDArray[np.float64]:
    """Return a point in the plane for each vector, identical on every call.

    vectors: shape (n, d). The result has shape (n, 2), float64. Of more than `maximum` vectors an even sample is
    placed; the points of the others are NaN. The perplexity is 30, or a third of the other points if there are few.
    Fewer than five points get their principal components; equal vectors get one point.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if len(vectors) > maximum:
        points = np.full((len(vectors), 2), np.nan)
        chosen = even_sample(len(vectors), maximum)
        points[chosen] = tsne(vectors[chosen], maximum)
        return points
    if len(vectors) == 0 or np.allclose(vectors, vectors[0]):
        return np.zeros((len(vectors), 2))
    if len(vectors) < _FEWEST:
        left, scale, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
        points = np.zeros((len(vectors), 2))
        points[:, : len(scale[:2])] = left[:, :2] * scale[:2]
        return points
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return np.asarray(TSNE(init="pca", random_state=0, perplexity=perplexity).fit_transform(vectors), dtype=np.float64)
