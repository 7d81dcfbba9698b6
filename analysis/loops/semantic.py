"""The same content in other words: how near a turn is to what was said a period, two and three periods before.

Cosines are put on a scale of their own for each embedder: 0 for texts that have nothing to do with each other, 1 for
the same thing in other words, both measured on pairs of sentences. So one threshold serves any embedder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from a2a_ray.analysis.loops.phrases import COURTESIES, PAIRS
from a2a_ray.analysis.loops.words import words
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, Embedder, load_embedder
from a2a_ray.core.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PERIODS = 12
"""The longest period, in turns, that is looked for."""

ROUNDS = 3
"""A turn is compared with those one to three periods before; two of them must be there."""

REACH = PERIODS * ROUNDS
"""So many turns are kept."""

STEM_FROM, STEM, READ = 4, 6, 600
"""A content word has so many letters or more (in English most of what is shorter only holds a sentence together), is
told by so many, and is looked for among so many words of a turn, which is what is embedded of it."""

SAMPLE = 1000
"""So many characters of a text tell whether the embedder can read it."""

PIECES, UNKNOWN = 2.75, 0.05
"""Most pieces per word, and largest share of unknown ones, of a text that an embedder can read. The default model makes
1.2 to 1.6 of English and code, 2 of French or German, 3 of Turkish, 5 of Korean; of Chinese it knows one character in
four."""


class Likeness(NamedTuple):
    """How a turn is like earlier ones, on the embedder's scale.

    talk: mean over the turns one to three periods before, of the best period. period: that period, in turns.
    news: share of the content words of the turn that none of the last `PERIODS` turns said, 0 to 1.
    own, own_period, own_news: the same among the speaker's own turns; the period still in the talk's turns.
    courtesy: likeness to the nearest courtesy.
    """

    talk: float
    period: int
    news: float
    own: float
    own_period: int
    own_news: float
    fresh: int
    courtesy: float


class Scale:
    """What the cosines of an embedder mean, measured once on texts of which we know; and which texts it can read."""

    def __init__(self, embedder: Embedder) -> None:
        import numpy as np

        first = embedder.encode([a for a, _ in PAIRS])
        second = embedder.encode([b for _, b in PAIRS])
        cosines = first @ second.T
        same = float(np.diag(cosines).mean())
        found = next(embedder.folder.rglob("tokenizer.json"), None)
        self._tokenizer: Any = None
        if found is not None:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(found))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        self.courtesies: NDArray[np.float32] = embedder.encode(COURTESIES)
        self.unrelated = float((cosines.sum() - np.trace(cosines)) / (cosines.size - len(cosines)))
        self.span = same - self.unrelated
        if not self.span > 0.1:
            raise ConfigurationError(
                f"embedder {embedder.name!r}: a sentence in other words has cosine {same:.2f}, an unrelated one"
                f" {self.unrelated:.2f}; expected a model that tells them apart, such as the default"
            )

    def reads(self, text: str) -> bool:
        """Whether the embedder knows the words of a text: to one trained on English alone all Korean is alike.

        It does where its tokenizer makes few pieces of a word, and hardly any unknown ones. True without a tokenizer.
        """
        if self._tokenizer is None:
            return True
        sample = text[:SAMPLE]
        pieces = self._tokenizer.encode(sample, add_special_tokens=False).tokens
        unknown = sum(piece in ("[UNK]", "<unk>") for piece in pieces)
        return len(pieces) <= PIECES * len(words(sample)[0]) and unknown <= UNKNOWN * len(pieces)

    def __call__(self, cosine: float) -> float:
        """A cosine on the scale: 0 unrelated, 1 the same in other words."""
        return (cosine - self.unrelated) / self.span


def named(embedder: str | Embedder | None) -> str | Embedder | None:
    """What a detector keeps of its embedder: None for "none", the default model's name for "default"."""
    if isinstance(embedder, str):
        return {"none": None, "default": DEFAULT_MODEL}.get(embedder.lower(), embedder)
    return embedder


@cache
def loaded(embedder: str | Embedder) -> Embedder:
    """The embedder itself: of one name, one for the whole process. Raises as `load_embedder` does."""
    found = load_embedder(embedder) if isinstance(embedder, str) else embedder
    assert found is not None
    return found


@cache
def scale_of(embedder: Embedder) -> Scale:
    """The scale of an embedder, measured once in a process."""
    return Scale(embedder)


class Meaning:
    """The vectors and content words of the last turns, and who said them. float16, so that a pickled copy goes on
    exactly the same."""

    def __init__(self) -> None:
        self._vectors: deque[NDArray[np.float16]] = deque(maxlen=REACH)
        self._content: deque[frozenset[str]] = deque(maxlen=REACH)
        self._speakers: deque[int] = deque(maxlen=REACH)

    def skip(self, said: Sequence[str], speaker: int, size: int) -> None:
        """A turn that cannot be read: it is like none. size: of the vectors."""
        import numpy as np

        self._keep(np.zeros(size, dtype=np.float16), content(said), speaker)

    def read(self, vector: NDArray[np.float32], said: Sequence[str], speaker: int, scale: Scale) -> Likeness:
        """Compares a turn with those before and keeps it. vector: unit, shape (d,). said: the words of the turn."""
        import numpy as np

        now = vector.astype(np.float16).astype(np.float32)
        talk = own = (0.0, 0)
        places = [i for i, s in enumerate(self._speakers) if s == speaker][::-1]
        if self._vectors:
            cosines = np.asarray(self._vectors, dtype=np.float32) @ now
            talk = _recurring(cosines[::-1].tolist())
            mean, back = _recurring([float(cosines[i]) for i in places])
            own = (mean, len(self._vectors) - places[back - 1] if back else 0)
        about, before = content(said), list(self._content)
        news = _news(about, before[-PERIODS:])
        fresh = sum(not any(word in one for one in before[-PERIODS:]) for word in about)
        own_news = _news(about, [before[i] for i in places[:PERIODS]])
        self._keep(vector.astype(np.float16), about, speaker)
        courtesy = float((scale.courtesies @ now).max())
        return Likeness(scale(talk[0]), talk[1], news, scale(own[0]), own[1], own_news, fresh, scale(courtesy))

    def _keep(self, vector: NDArray[np.float16], about: frozenset[str], speaker: int) -> None:
        self._vectors.append(vector)
        self._content.append(about)
        self._speakers.append(speaker)

    def __getstate__(self) -> dict[str, Any]:
        import numpy as np

        about = [" ".join(sorted(said)) for said in self._content]
        return {"vectors": np.asarray(self._vectors), "content": about, "speakers": list(self._speakers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._vectors = deque(state["vectors"], maxlen=REACH)
        self._content = deque((frozenset(said.split()) for said in state["content"]), maxlen=REACH)
        self._speakers = deque(state["speakers"], maxlen=REACH)


def content(said: Sequence[str]) -> frozenset[str]:
    """The content words of a turn, by their first letters, so that their endings do not matter."""
    return frozenset(w[:STEM] for w in said[:READ] if w.isalpha() and (len(w) >= STEM_FROM or not w.isascii()))


def _news(about: frozenset[str], before: Sequence[frozenset[str]]) -> float:
    """The share of these words that were in none of the turns before; near a half where there are few words."""
    new = sum(not any(word in said for said in before) for word in about)
    return (new + 1) / (len(about) + 2)  # Laplace's rule of succession


def _recurring(back: Sequence[float]) -> tuple[float, int]:
    """The best mean over one, two and three periods back, and that period; back[0] is the turn just before."""
    best, period = 0.0, 0
    for step in range(1, min(PERIODS, len(back) // 2) + 1):
        rounds = back[step - 1 : step * ROUNDS : step]
        mean = sum(rounds) / len(rounds)
        if mean > best:
            best, period = mean, step
    return best, period
