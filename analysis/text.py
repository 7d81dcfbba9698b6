"""Analysis of text conversations: distances per round and per turn, drift, and the loops found in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from a2a_ray.analysis.distances import (
    bleu_distance,
    coherence,
    coherence_difference,
    cosine_distance,
    jaccard_distance,
    sentences,
)
from a2a_ray.analysis.published import DISTANCES, PublishedFinding, PublishedRule
from a2a_ray.analysis.repetition import Repetition, find_repetition, repeated_phrase
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from a2a_ray.analysis.embedding import Embedder

    Series = dict[str, NDArray[np.float64]]


class Loop(NamedTuple):
    """The earliest finding of a conversation: which rule, at which turn it begins, and its most telling phrase."""

    rule: str
    onset: int
    phrase: str


@dataclass(frozen=True, slots=True)
class TextAnalysis:
    """What was found in one conversation.

    id: of the conversation. turns: the number of each message, length n.
    consecutive: name of a distance -> its value between a message and the next, shape (n - 1,).
    rounds: name -> its value between the outputs of a round, shape (n_rounds,): with two agents of the two outputs,
        with more the mean over neighbours within the round. NaN in a round with a single message.
    drift: cosine distance from the opening, shape (n,).
    All float64, NaN where undefined; without an embedder cosine, coherence and drift are NaN throughout.
    published, exact: what the published rule and exact repetition found.
    loop: the finding with the earlier onset.
    """

    id: str
    turns: list[int]
    rounds: Series
    consecutive: Series
    drift: NDArray[np.float64]
    published: PublishedFinding | None
    exact: Repetition | None
    loop: Loop | None

    def to_dict(self) -> dict[str, Any]:
        """JSON value; NaN becomes None, numbers keep six decimals."""
        return {
            "id": self.id,
            "turns": self.turns,
            "loop": self.loop._asdict() if self.loop else None,
            "published": self.published.to_dict() if self.published else None,
            "exact": self.exact.to_dict() if self.exact else None,
            "rounds": {name: _plain(values) for name, values in self.rounds.items()},
            "consecutive": {name: _plain(values) for name, values in self.consecutive.items()},
            "drift": _plain(self.drift),
        }


def is_text(transcript: Transcript) -> bool:
    """Whether every message is text (an empty conversation is)."""
    return all(isinstance(message.content, str) for message in transcript.messages)


def analyze_texts(
    transcripts: Sequence[Transcript],
    embedder: Embedder | None,
    rule: PublishedRule | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[TextAnalysis]:
    """The analysis of each text conversation, in order. A conversation with a vector in it is left out.

    All texts of all conversations are embedded in one go, equal ones once.
    progress: called with how many texts were embedded, and how many are to be.
    """
    rule = rule or PublishedRule()
    chosen = [t for t in transcripts if is_text(t)]
    if embedder is not None:
        # fills the cache of the embedder; from here on every text is looked up
        embedder.encode([text for t in chosen for text in _texts(t)], progress)
    return [_analyze(t, embedder, rule) for t in chosen]


def _texts(transcript: Transcript) -> list[str]:
    """Every text of a conversation that needs an embedding."""
    said = _said(transcript)
    return [_opening(transcript), *said, *(s for text in said for s in _adjacent(text))]


def _analyze(transcript: Transcript, embedder: Embedder | None, rule: PublishedRule) -> TextAnalysis:
    said = _said(transcript)
    consecutive = _consecutive(said, embedder)
    rounds = transcript.rounds()
    series = {name: _by_round(values, [len(r) for r in rounds]) for name, values in consecutive.items()}
    published = rule.find(series, [r[0].turn for r in rounds])
    exact = find_repetition(transcript)
    return TextAnalysis(
        transcript.id,
        [m.turn for m in transcript.messages],
        series,
        consecutive,
        _drift(_opening(transcript), said, embedder),
        published,
        exact,
        _loop(transcript, published, exact),
    )


def _loop(transcript: Transcript, published: PublishedFinding | None, exact: Repetition | None) -> Loop | None:
    found = [(exact.onset, "exact_repetition")] if exact else []
    if published:
        found.append((published.onset_turn, "published"))
    if not found:
        return None
    onset, rule = min(found)
    phrase = repeated_phrase(transcript, onset) or (exact.phrase if exact else "")
    return Loop(rule, onset, phrase)


def _consecutive(said: list[str], embedder: Embedder | None) -> Series:
    """The distances between each text and the next, shape (n - 1,) each."""
    pairs = list(pairwise(said))
    out = {name: np.full(len(pairs), np.nan) for name in DISTANCES}
    if not pairs:
        return out
    out["jaccard"][:] = [jaccard_distance(a, b) for a, b in pairs]
    out["bleu"][:] = [bleu_distance(a, b) for a, b in pairs]
    if embedder is not None:
        vectors = embedder.encode(said)
        out["cosine"][:] = cosine_distance(vectors[:-1], vectors[1:])
        own = [coherence(embedder.encode(adjacent)) if (adjacent := _adjacent(text)) else np.nan for text in said]
        out["coherence"][:] = [coherence_difference(a, b) for a, b in pairwise(own)]
    return out


def _by_round(values: NDArray[np.float64], sizes: list[int]) -> NDArray[np.float64]:
    """Mean of the distances between neighbours within each round; `values` are between consecutive messages."""
    out = np.full(len(sizes), np.nan)
    start = 0
    for i, size in enumerate(sizes):
        within = values[start : start + size - 1]
        defined = within[~np.isnan(within)]
        if len(defined):
            out[i] = defined.mean()
        start += size
    return out


def _drift(opening: str, said: list[str], embedder: Embedder | None) -> NDArray[np.float64]:
    """Cosine distance of each text from the opening, shape (n,); NaN without an opening."""
    if embedder is None or not said or not opening.strip():
        return np.full(len(said), np.nan)
    vectors = embedder.encode([opening, *said])
    return cosine_distance(np.broadcast_to(vectors[0], vectors[1:].shape), vectors[1:])


def _said(transcript: Transcript) -> list[str]:
    return [str(message.content) for message in transcript.messages]


def _opening(transcript: Transcript) -> str:
    return transcript.opening.content if isinstance(transcript.opening.content, str) else ""


def _adjacent(text: str) -> list[str]:
    """The sentences of a text, where it has at least two: a single one has no coherence."""
    found = sentences(text)
    return found if len(found) > 1 else []


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(x) else round(x, 6) for x in values.tolist()]
