"""Where the embeddings of a file of transcripts are cached."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path


def cache_file(source: str, embedder: str | None) -> Path | None:
    """Return the cache file of a source in the user's cache folder; None without an embedder or a home folder."""
    if embedder is None:
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2a_ray"
    except RuntimeError:  # no home folder
        return None
    path = Path(source).resolve()
    key = blake2b(f"{path}\0{embedder}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return folder / f"{path.stem}-{key}.parquet"
