"""Repetition in other words: the similarity of a turn to those one, two and three periods before.

Each embedder gets its own scale for cosines: 0 for unrelated texts, 1 for paraphrases, both measured on pairs of
sentences. So one threshold serves any embedder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from a2a_ray.analysis.loops.reference_sentences import PARAPHRASES
from a2a_ray.analysis.loops.tokenize import words
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, Embedder, load_embedder
from a2a_ray.core.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERIODS = 12
"""The longest period searched for, in turns."""

ROUNDS = 3
"""A turn is compared with those one to three periods before; at least two of them must exist."""

REACH = PERIODS * ROUNDS
"""This many turns are kept."""

STEM_FROM, STEM, READ = 4, 6, 600
"""A content word has at least `STEM_FROM` letters, because most shorter English words are function words. Its first
`STEM` letters identify it. Only the first `READ` words of a turn are searched, as many as are embedded."""

SAMPLE = 1000
"""This many characters of a text decide whether the embedder can read it."""

PIECES, UNKNOWN = 2.75, 0.05
"""Largest number of tokens per word, and largest share of unknown tokens, in a text that an embedder can read. The
default model has 1.2 to 1.6 tokens per word of English and code, 2 of French or German, 3 of Turkish, 5 of Korean. It
knows one Chinese character in four."""


class SemanticSimilarity(NamedTuple):
    """The similarity of a turn to earlier ones, on the embedder's scale.

    whole: mean over the turns one to three periods before, for the best period. period: that period, in turns.
    news: share of the turn's content words that none of the last `PERIODS` turns contains, 0 to 1.
    own, own_period, own_news: the same among the speaker's own turns; the period is still in turns of the conversation.
    fresh: number of content words that none of the last `PERIODS` turns contains.
    """

    whole: float
    period: int
    news: float
    own: float
    own_period: int
    own_news: float
    fresh: int


class SimilarityScale:
    """The scale of an embedder's cosines, measured on sentences of known meaning, and which texts it can read."""

    def __init__(self, embedder: Embedder) -> None:
        import numpy as np

        first = embedder.encode([a for a, _ in PARAPHRASES])
        second = embedder.encode([b for _, b in PARAPHRASES])
        cosines = first @ second.T
        same = float(np.diag(cosines).mean())
        self.size: int = first.shape[1]  # d of the vectors
        found = next(embedder.folder.rglob("tokenizer.json"), None)
        self._tokenizer: Any = None
        if found is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(found))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        self.unrelated = float((cosines.sum() - np.trace(cosines)) / (cosines.size - len(cosines)))
        self.span = same - self.unrelated
        if not self.span > 0.1:
            raise ConfigurationError(
                f"embedder {embedder.name!r}: paraphrases have cosine {same:.2f}, unrelated sentences"
                f" {self.unrelated:.2f}; expected a model that separates them, such as the default"
            )

    def reads(self, text: str) -> bool:
        """Return whether the embedder can read a text: a model trained on English finds all Korean texts similar.

        A readable text has few tokens per word and hardly any unknown ones. True without a tokenizer.
        """
        if self._tokenizer is None:
            return True
        sample = text[:SAMPLE]
        tokens = self._tokenizer.encode(sample, add_special_tokens=False).tokens
        unknown = sum(token in ("[UNK]", "<unk>") for token in tokens)
        return len(tokens) <= PIECES * len(words(sample)) and unknown <= UNKNOWN * len(tokens)

    def __call__(self, cosine: float) -> float:
        """Return a cosine on the scale: 0 for unrelated texts, 1 for paraphrases."""
        return (cosine - self.unrelated) / self.span


def resolve_embedder(embedder: str | Embedder | None) -> str | Embedder | None:
    """Return None for "none", the default model's name for "default", and anything else unchanged."""
    if isinstance(embedder, str):
        return {"none": None, "default": DEFAULT_MODEL}.get(embedder.lower(), embedder)
    return embedder


@cache
def load_shared(embedder: str | Embedder) -> Embedder:
    """Return the embedder, loaded once per process for each name. Raises as `load_embedder` does."""
    found = load_embedder(embedder) if isinstance(embedder, str) else embedder
    assert found is not None
    return found


@cache
def similarity_scale(embedder: Embedder) -> SimilarityScale:
    """Return the scale of an embedder, measured once per process."""
    return SimilarityScale(embedder)


class SemanticHistory:
    """The vectors, content words and speakers of the last turns.

    Vectors are float16 in memory as well as pickled, so that a pickled copy continues with identical scores.
    """

    def __init__(self) -> None:
        self._vectors: deque[NDArray[np.float16]] = deque(maxlen=REACH)
        self._content: deque[frozenset[str]] = deque(maxlen=REACH)
        self._speakers: deque[int] = deque(maxlen=REACH)

    def skip(self, tokens: Sequence[str], speaker: int, size: int) -> None:
        """Add a turn that the embedder cannot read: it is similar to no other. size: d of the vectors."""
        import numpy as np

        self._keep(np.zeros(size, dtype=np.float16), content_words(tokens), speaker)

    def add(
        self, vector: NDArray[np.float32], tokens: Sequence[str], speaker: int, scale: SimilarityScale
    ) -> SemanticSimilarity:
        """Add a turn and compare it with those before. vector: unit, shape (d,). tokens: the words of the turn."""
        import numpy as np

        now = vector.astype(np.float16).astype(np.float32)
        whole = own = (0.0, 0)
        places = [i for i, s in enumerate(self._speakers) if s == speaker][::-1]
        if self._vectors:
            cosines = np.asarray(self._vectors, dtype=np.float32) @ now
            whole = _recurring(cosines[::-1].tolist())
            mean, back = _recurring([float(cosines[i]) for i in places])
            own = (mean, len(self._vectors) - places[back - 1] if back else 0)
        about, before = content_words(tokens), list(self._content)
        news = _news(about, before[-PERIODS:])
        fresh = sum(not any(word in one for one in before[-PERIODS:]) for word in about)
        own_news = _news(about, [before[i] for i in places[:PERIODS]])
        self._keep(vector.astype(np.float16), about, speaker)
        return SemanticSimilarity(scale(whole[0]), whole[1], news, scale(own[0]), own[1], own_news, fresh)

    def _keep(self, vector: NDArray[np.float16], about: frozenset[str], speaker: int) -> None:
        self._vectors.append(vector)
        self._content.append(about)
        self._speakers.append(speaker)

    def __getstate__(self) -> dict[str, Any]:
        import numpy as np

        about = [" ".join(sorted(turn)) for turn in self._content]
        return {"vectors": np.asarray(self._vectors), "content": about, "speakers": list(self._speakers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._vectors = deque(state["vectors"], maxlen=REACH)
        self._content = deque((frozenset(turn.split()) for turn in state["content"]), maxlen=REACH)
        self._speakers = deque(state["speakers"], maxlen=REACH)


def content_words(tokens: Sequence[str]) -> frozenset[str]:
    """Return the content words of a turn, cut to their first letters to ignore endings."""
    return frozenset(w[:STEM] for w in tokens[:READ] if w.isalpha() and (len(w) >= STEM_FROM or not w.isascii()))


def _news(about: frozenset[str], before: Sequence[frozenset[str]]) -> float:
    """Return the share of these words that occur in none of the turns before; near a half if there are few words."""
    new = sum(not any(word in turn for turn in before) for word in about)
    return (new + 1) / (len(about) + 2)  # Laplace's rule of succession


def _recurring(back: Sequence[float]) -> tuple[float, int]:
    """Return the best mean over one, two and three periods back, and that period; back[0] is the turn just before."""
    best, period = 0.0, 0
    for step in range(1, min(PERIODS, len(back) // 2) + 1):
        rounds = back[step - 1 : step * ROUNDS : step]
        mean = sum(rounds) / len(rounds)
        if mean > best:
            best, period = mean, step
    return best, period
