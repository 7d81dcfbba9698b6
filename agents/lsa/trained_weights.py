"""The trained weights of the linear-self-attention layer that come with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.floating[Any]]]"


def trained_weights(dim: int) -> dict[str, Array]:
    """Return the weights from scripts/train_lsa.py: `query_key` and `value`, shape (dim + 1, dim + 1), float64.

    Their `step_size` and the `seed` of the training are included. Raises ConfigurationError if `dim` has no weights.
    """
    folder = Path(str(files("a2a_ray"))) / "data" / "lsa"
    path = folder / f"d{dim}.npz"
    if not path.is_file():
        known = ", ".join(map(str, sorted(int(other.stem[1:]) for other in folder.glob("d*.npz"))))
        raise ConfigurationError(
            f"weights: none were trained for {dim} dimensions; expected analytic weights, or one of {known}"
        )
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
