"""Distances in text conversations: within each round, and of each turn from the opening."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from a2a_ray.analysis.text.distances import (
    DISTANCES,
    Text,
    bleu_distance,
    coherence,
    coherence_difference,
    cosine_distance,
    jaccard_distance,
    sentences,
)
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from a2a_ray.analysis.text.embedding import Embedder

    Series = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Distances:
    """The distances of arXiv 2512.06256 in one conversation of n messages.

    rounds: name -> distance within each round, shape (n_rounds,): between the two outputs, or the mean over adjacent
        outputs for more agents. NaN in a round with a single message.
    drift: cosine distance from the opening, shape (n,).
    All arrays are float64, NaN if undefined. Without an embedder, cosine, coherence and drift are NaN.
    """

    rounds: Series
    drift: NDArray[np.float64]


def is_text(transcript: Transcript) -> bool:
    """Return whether every message is text; true for an empty conversation."""
    return all(isinstance(message.content, str) for message in transcript.messages)


def texts(transcript: Transcript) -> list[str]:
    """Return every text that `distances` embeds, so that a caller can embed them in advance into the cache."""
    messages = _messages(transcript)
    return [_opening(transcript), *messages, *(s for text in messages for s in _adjacent(text))]


def distances(transcript: Transcript, embedder: Embedder | None = None) -> Distances:
    """Compute all distances of a text conversation."""
    messages = [Text(str(message.content)) for message in transcript.messages]
    vectors = None if embedder is None else embedder.encode([each.text for each in messages])
    sizes = [len(members) for members in transcript.rounds()]
    series = {name: np.full(len(sizes), np.nan) for name in DISTANCES}
    start = 0
    for place, size in enumerate(sizes):
        pairs = list(pairwise(range(start, start + size)))
        start += size
        if not pairs:
            continue
        series["jaccard"][place] = _mean([jaccard_distance(messages[i], messages[j]) for i, j in pairs])
        series["bleu"][place] = _mean([bleu_distance(messages[i], messages[j]) for i, j in pairs])
        if embedder is not None and vectors is not None:
            series["cosine"][place] = _mean([float(cosine_distance(vectors[i], vectors[j])) for i, j in pairs])
            own = {i: _coherence(messages[i].text, embedder) for pair in pairs for i in pair}
            series["coherence"][place] = _mean([coherence_difference(own[i], own[j]) for i, j in pairs])
    return Distances(series, _drift(_opening(transcript), [each.text for each in messages], embedder))


def _mean(values: list[float]) -> float:
    """Return the mean of the defined values; NaN if there are none."""
    defined = [value for value in values if value == value]
    return sum(defined) / len(defined) if defined else np.nan


def _coherence(text: str, embedder: Embedder) -> float:
    adjacent = _adjacent(text)
    return coherence(embedder.encode(adjacent)) if adjacent else np.nan


def _drift(opening: str, messages: list[str], embedder: Embedder | None) -> NDArray[np.float64]:
    """Return the cosine distance of each text from the opening, shape (n,); NaN without an opening."""
    if embedder is None or not messages or not opening.strip():
        return np.full(len(messages), np.nan)
    vectors = embedder.encode([opening, *messages])
    return cosine_distance(np.broadcast_to(vectors[0], vectors[1:].shape), vectors[1:])


def _messages(transcript: Transcript) -> list[str]:
    return [str(message.content) for message in transcript.messages]


def _opening(transcript: Transcript) -> str:
    return transcript.opening.content if isinstance(transcript.opening.content, str) else ""


def _adjacent(text: str) -> list[str]:
    """Return the sentences of a text if there are at least two; a single one has no coherence."""
    found = sentences(text)
    return found if len(found) > 1 else []
