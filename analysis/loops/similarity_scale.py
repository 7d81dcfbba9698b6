"""Embedders of the loop detector, each with its own scale for cosines.

0 on the scale are unrelated texts, 1 paraphrases, both measured on pairs of sentences. So one threshold serves any
embedder.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from a2a_ray.analysis.loops.reference_sentences import PARAPHRASES
from a2a_ray.analysis.loops.tokenize import words
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, Embedder, load_embedder
from a2a_ray.core.errors import ConfigurationError

SAMPLE = 1000
"""This many characters of a text decide whether the embedder can read it."""

PIECES, UNKNOWN = 2.75, 0.05
"""Largest number of tokens per word, and largest share of unknown tokens, in a text that an embedder can read. The
default model has 1.2 to 1.6 tokens per word of English and code, 2 of French or German, 3 of Turkish, 5 of Korean. It
knows one Chinese character in four."""


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
