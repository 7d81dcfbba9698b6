"""Turns that repeat earlier ones in other words: meaning that returns at a period."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from a2a_ray.analysis.loops.repetition_sum import RepeatedTurn, RepetitionSum
from a2a_ray.analysis.loops.similarity_scale import similarity_scale

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from a2a_ray.analysis.text.embedding import Embedder

ALARM = 1.99
"""More turns' worth of repetition than this are a loop."""

PERIODS, ROUNDS = 12, 3
"""The longest period, in turns. A turn is compared with those one to three periods before; two of them must exist."""

USUAL, SPAN = 0.5, 0.2
"""Similarity, on the embedder's scale: up to the first for turns about one subject; this much more is a full
repetition."""

BY_NEWS, BY_WORDING = 0.6, 0.7
"""The usual similarity is higher by these if all content words are new, and if all wording is copied. Repetition in
other words runs out of new words; shared wording raises the similarity without shared meaning."""

HALF_WEIGHT = 8
"""A turn of this many words weighs half as much as a long one."""

READ, EMBEDDED_CHARACTERS, READ_WORDS = 1200, 4000, 600
"""The default embedder reads the first of these; the second are embedded. The similarity of a longer turn counts for
the part that is read, and only this many words are compared."""

STEM_FROM, STEM = 4, 6
"""A content word has at least `STEM_FROM` letters, because most shorter English words are function words. Its first
`STEM` letters identify it."""

_QUOTED = 200


class RecurringMeaning:
    """The meanings of the last turns, and the sum of their repetition.

    Vectors are float16 in memory as well as pickled, so that a pickled copy continues with identical scores.
    """

    def __init__(self) -> None:
        self.sum = RepetitionSum(ALARM)
        self._vectors: deque[NDArray[np.float16]] = deque(maxlen=PERIODS * ROUNDS)
        self._turns: deque[tuple[int, str]] = deque(maxlen=PERIODS * ROUNDS)  # number and quote
        self._content: deque[frozenset[str]] = deque(maxlen=PERIODS)
        self._triples: deque[frozenset[int]] = deque(maxlen=PERIODS)

    def add(self, turn: int, speaker: str, text: str, words: Sequence[str], spent: int, embedder: Embedder) -> None:
        """Add a turn with its words. spent: tokens of the conversation before it."""
        import numpy as np

        scale = similarity_scale(embedder)
        read = words[:READ_WORDS]
        about, triples = _content_words(read), _word_triples(read)
        news = (sum(not any(word in old for old in self._content) for word in about) + 1) / (len(about) + 2)
        copied = sum(any(triple in old for old in self._triples) for triple in triples) / len(triples)
        similarity, back = 0.0, 0
        vector = np.zeros(scale.size, dtype=np.float16)
        if scale.reads(text):
            vector = embedder.vector(text[:EMBEDDED_CHARACTERS]).astype(np.float16)
            if self._vectors:
                cosines = np.asarray(self._vectors, dtype=np.float32) @ vector.astype(np.float32)
                mean, back = _recurring(cosines[::-1].tolist())
                similarity = scale(mean)
        weight = len(words) / (len(words) + HALF_WEIGHT)
        value = repetition(similarity, news, copied)
        if value > 0 and back:
            earlier, quote = self._turns[-back]
            repeat = RepeatedTurn(turn, speaker, "semantic", earlier, text[:_QUOTED], quote, min(1.0, similarity))
            self.sum.add(value * weight * min(1.0, READ / len(text)), repeat, spent)
        else:
            self.sum.lower(-value * weight, turn)
        self._vectors.append(vector)
        self._turns.append((turn, text[:_QUOTED]))
        self._content.append(about)
        self._triples.append(triples)

    def __getstate__(self) -> dict[str, Any]:
        import numpy as np

        about = [" ".join(sorted(turn)) for turn in self._content]
        triples = [array("I", turn).tobytes() for turn in self._triples]
        vectors, turns = np.asarray(self._vectors), list(self._turns)
        return {"sum": self.sum, "vectors": vectors, "turns": turns, "content": about, "triples": triples}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        self.sum = state["sum"]
        self._vectors.extend(state["vectors"])
        self._turns.extend(state["turns"])
        self._content.extend(frozenset(turn.split()) for turn in state["content"])
        self._triples.extend(frozenset(array("I", triples)) for triples in state["triples"])


def repetition(similarity: float, news: float, copied: float) -> float:
    """Return how much a turn repeats, -1 to 1.

    similarity: to earlier turns, on the embedder's scale. news: share of new content words, 0 to 1. copied: share of
    its word triples that recent turns contain, 0 to 1.
    """
    return max(-1.0, min(1.0, (similarity - USUAL - BY_NEWS * news - BY_WORDING * copied) / SPAN))


def _content_words(words: Sequence[str]) -> frozenset[str]:
    """Return the content words of a turn, cut to their first letters to ignore endings."""
    return frozenset(w[:STEM] for w in words if w.isalpha() and (len(w) >= STEM_FROM or not w.isascii()))


def _word_triples(words: Sequence[str]) -> frozenset[int]:
    """Return hashes of all three words in a row, equal in every process; of the whole text, if it is shorter."""
    triples = zip(words, words[1:], words[2:], strict=False) if len(words) > 2 else [tuple(words)]
    return frozenset(crc32(" ".join(triple).encode("utf-8", "surrogatepass")) for triple in triples)


def _recurring(back: Sequence[float]) -> tuple[float, int]:
    """Return the best mean over one, two and three periods back, and that period; back[0] is the turn just before."""
    best, period = 0.0, 0
    for step in range(1, min(PERIODS, len(back) // 2) + 1):
        rounds = back[step - 1 : step * ROUNDS : step]
        mean = sum(rounds) / len(rounds)
        if mean > best:
            best, period = mean, step
    return best, period
