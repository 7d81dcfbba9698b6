"""Sources of many pairs of agents: drawn from a seed as they are needed, or given as arrays or files.

A pair is W and U, each with a covariance S (its geometry) and an objective. A source loads or draws only the pairs that
are requested, so memory does not limit their number.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_count
from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BLOCK = 256
"""Pairs that are drawn and computed together: pair i belongs to block i // BLOCK of its seed."""


class Pairs(NamedTuple):
    """b pairs. covariance_w, covariance_u: (b, d, d); objective_w, objective_u: (b, d)."""

    covariance_w: Array
    covariance_u: Array
    objective_w: Array
    objective_u: Array


@dataclass(frozen=True, eq=False)
class DrawnPairs:
    """Pairs drawn from a seed. Pair i depends on the seed, i and the settings only, not on how the pairs are split.

    pairs: their number. dim: d, at least 2. seed: at least 0.
    condition: c, or (c of W, c of U): the eigenvalues of the covariance are log-spaced from 1/c to 1, as in the
        geometry of an LSA agent; or
    eigenvalues: shape (d,), or (2, d) for W and U: none below 0, at least one above, the same for all pairs.
    eigenvectors: "own": a random rotation (uniform) for each agent of each pair; "pair": one for W and U of a pair;
        "all": pair 0's two geometries for all pairs.
    angles: degrees, of W's and of U's objective in a plane drawn uniformly for each pair: the objective is
        norm (cos(angle) e1 + sin(angle) e2), as in `core.linear_task.read_objective`. Adding 90 to both angles rotates
        both objectives of every pair by 90 degrees in its plane.
    norms: |w*| and |u*|, or one number for both.
    first: the number of the first pair.

    Raises ConfigurationError.
    """

    pairs: int
    dim: int
    seed: int = 0
    condition: float | tuple[float, float] = 1.0
    eigenvalues: Any = None
    eigenvectors: Literal["own", "pair", "all"] = "own"
    angles: tuple[float, float] = (0.0, 60.0)
    norms: float | tuple[float, float] = 1.0
    first: int = 0

    def __post_init__(self) -> None:
        check_count(self.pairs, "pairs")
        check_count(self.dim, "dim", least=2)
        check_count(self.seed, "seed", least=0)
        check_count(self.first, "first", least=0)
        check_array(self.angles, "angles", (2,))
        if self.eigenvectors not in ("own", "pair", "all"):
            raise ConfigurationError(f"eigenvectors: {self.eigenvectors!r}; expected own, pair or all")
        for name, least in (("condition", 1.0), ("norms", 0.0)):
            value = check_array(getattr(self, name), name, () if np.ndim(getattr(self, name)) == 0 else (2,))
            if value.min() < least:
                raise ConfigurationError(f"{name}: {value.tolist()}; expected at least {least:g}")
        if self.eigenvalues is not None:
            if np.ndim(self.condition) or self.condition != 1.0:
                raise ConfigurationError("eigenvalues and condition are both given; give one of them")
            given = check_array(self.eigenvalues, "eigenvalues", (2, self.dim)[-np.ndim(self.eigenvalues) :])
            if given.min() < 0 or given.max(axis=-1).min() == 0:
                raise ConfigurationError(f"eigenvalues: {given.tolist()}; expected none below 0 and at least one above")

    @property
    def spectra(self) -> Array:
        """Return the eigenvalues of W's and U's covariances, shape (2, d), float64."""
        if self.eigenvalues is not None:
            return np.array(np.broadcast_to(np.asarray(self.eigenvalues, np.float64), (2, self.dim)))
        conditions = np.broadcast_to(np.asarray(self.condition, np.float64), (2,))
        return np.stack([np.geomspace(1 / c, 1, self.dim) for c in conditions])

    def part(self, first: int, last: int) -> DrawnPairs:
        """Return pairs `first` to `last` - 1."""
        return replace(self, pairs=last - first, first=self.first + first)

    def take(self, first: int, last: int) -> Pairs:
        """Draw pairs `first` to `last` - 1, float64."""
        first, last = self.first + first, self.first + last
        parts = [
            Pairs(*(value[max(first - block * BLOCK, 0) : last - block * BLOCK] for value in self._block(block)))
            for block in range(first // BLOCK, -(-last // BLOCK))
        ]
        return parts[0] if len(parts) == 1 else Pairs._make(map(np.concatenate, zip(*parts, strict=True)))

    def _block(self, block: int) -> Pairs:
        """Draw all pairs of a block together, so that each pair has the same bits in any part."""
        d, (root_w, root_u) = self.dim, np.sqrt(self.spectra)
        drawn = _gaussians(self.seed, d, block)
        turned = _gaussians(self.seed, d, 0)[:1] if self.eigenvectors == "all" else drawn
        rotation_w = _orthonormal(turned[:, :d])
        rotation_u = rotation_w if self.eigenvectors == "pair" else _orthonormal(turned[:, d : 2 * d])
        plane = _orthonormal(drawn[:, 2 * d :].swapaxes(1, 2))
        norms = np.broadcast_to(np.asarray(self.norms, np.float64), (2,))
        along = norms * np.cos(np.radians(self.angles)), norms * np.sin(np.radians(self.angles))
        w, u = (c * plane[..., 0] + s * plane[..., 1] for c, s in zip(*along, strict=True))
        s_w, s_u = _square(rotation_w * root_w), _square(rotation_u * root_u)
        return Pairs(np.broadcast_to(s_w, (BLOCK, d, d)), np.broadcast_to(s_u, (BLOCK, d, d)), w, u)


class GivenPairs:
    """Pairs given as arrays (NumPy, memory-mapped, torch on the CPU), or as paths of .npy files.

    covariance_w, covariance_u: shape (B, d, d), or (d, d) for all pairs; symmetric, positive semi-definite.
    objective_w, objective_u: shape (B, d), or (d,) for all pairs. At least one of the four has the axis B.

    Each process that reads a file maps it into memory and loads only the rows that it uses. Values are checked when
    they are used. Raises ConfigurationError for shapes that do not match and for files that cannot be read.
    """

    def __init__(self, covariance_w: Any, covariance_u: Any, objective_w: Any, objective_u: Any) -> None:
        given = (covariance_w, covariance_u, objective_w, objective_u)
        self._values = Pairs(*(array_or_file(v, name) for v, name in zip(given, Pairs._fields, strict=True)))
        self.pairs, self.dim = _sizes(self._values)

    def part(self, first: int, last: int) -> GivenPairs:
        """Return pairs `first` to `last` - 1; copies no data."""
        return GivenPairs(*self._rows(first, last))

    def take(self, first: int, last: int) -> Pairs:
        """Return pairs `first` to `last` - 1, in the dtype in which they were given."""
        shapes = [(last - first, *(self.dim,) * axes) for axes in _AXES]
        rows = [np.asarray(v) for v in self._rows(first, last)]
        return Pairs(*(np.broadcast_to(v, s) for v, s in zip(rows, shapes, strict=True)))

    def _rows(self, first: int, last: int) -> list[Any]:
        """Return the four values, cut to these pairs if they have an axis of pairs."""
        return [v[first:last] if v.ndim > axes else v for v, axes in zip(self._values, _AXES, strict=True)]


class FileRows:
    """Rows `first` to `last` - 1 of a .npy file, mapped into memory. Pickling sends the path, not the data."""

    def __init__(self, path: str, first: int = 0, last: int | None = None, mapped: Array | None = None) -> None:
        try:
            self._mapped = np.load(path, mmap_mode="r") if mapped is None else mapped
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: {error}; expected a .npy file") from None
        self._path, self._first = path, first
        self._rows = self._mapped[first:last]
        self.shape, self.ndim, self.dtype = self._rows.shape, self._rows.ndim, self._rows.dtype

    def __getitem__(self, rows: slice) -> FileRows:
        first, last, _ = rows.indices(len(self._rows))
        return FileRows(self._path, self._first + first, self._first + last, self._mapped)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self._rows, dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRows, (self._path, self._first, self._first + len(self._rows))


def array_or_file(value: Any, name: str) -> Any:
    """Return a NumPy array or `FileRows` of real numbers; both are sliced without reading the other rows.

    value: anything NumPy can convert, or the path of a .npy file. Raises ConfigurationError.
    """
    if isinstance(value, (str, os.PathLike)):
        value = FileRows(str(Path(value).absolute()))  # a process in another folder may read it
    elif not isinstance(value, (np.ndarray, FileRows)):
        try:
            value = np.asarray(value)
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"{name}: {str(value)[:60]}; expected an array of numbers, or the path of a .npy file"
            ) from None
    if value.dtype.kind not in "fiu":
        raise ConfigurationError(f"{name}: dtype {value.dtype}; expected real numbers")
    return value


def examples_of(covariance: Array) -> Array:
    """Return X, shape (d, d), with X^T X / d = S to rounding: a prompt with this covariance."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return np.asarray(np.sqrt(len(covariance) * np.maximum(eigenvalues, 0))[:, None] * vectors.T)


_AXES = (2, 2, 1, 1)
"""Axes of a single pair's covariances and objectives."""


def _sizes(values: Pairs) -> tuple[int, int]:
    """Return B and d. Raises ConfigurationError if the shapes do not match."""
    pairs, dims = {}, {}
    for (name, value), axes in zip(values._asdict().items(), _AXES, strict=True):
        wanted = ", ".join(["d"] * axes)
        if value.ndim not in (axes, axes + 1) or 0 in value.shape or len(set(value.shape[value.ndim - axes :])) > 1:
            raise ConfigurationError(
                f"{name}: shape {value.shape}; expected (B, {wanted}), or ({wanted}) for all pairs"
            )
        dims[name] = value.shape[-1]
        if value.ndim > axes:
            pairs[name] = value.shape[0]
    for axis, sizes in (("pairs", pairs), ("dimensions", dims)):
        if len(set(sizes.values())) > 1:
            raise ConfigurationError(
                f"number of {axis} differs: {', '.join(f'{n}: {s}' for n, s in sizes.items())}; expected one for all"
            )
    if not pairs:
        raise ConfigurationError(
            f"{', '.join(values._fields)}: none has an axis of pairs; expected one of shape (B, d, d) or (B, d)"
        )
    return next(iter(pairs.values())), next(iter(dims.values()))


def _orthonormal(gaussian: Array) -> Array:
    """Return uniformly drawn orthonormal columns, over leading axes: QR with positive diagonal (Mezzadri 2007)."""
    q, r = np.linalg.qr(gaussian)
    return np.asarray(q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :])


def _square(root: Array) -> Array:
    """Return R R^T over leading axes."""
    return np.asarray(root @ root.swapaxes(-1, -2))


@lru_cache(maxsize=2)
def _gaussians(seed: int, dim: int, block: int) -> Array:
    """Return (BLOCK, 2 d + 2, d): the random numbers of each pair's two rotations and of its plane of objectives."""
    drawn = np.random.default_rng((seed, 2, block)).standard_normal((BLOCK, 2 * dim + 2, dim))
    drawn.flags.writeable = False
    return drawn
