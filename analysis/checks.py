"""Checks of array arguments. Each returns float64 or raises ConfigurationError.

A message names the argument, its value or shape, and what was expected. `first` is added to the leading index in a
message, for an array that is a part of a longer one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


def check_array(value: Any, name: str, shape: Sequence[int | str], first: int = 0) -> Array:
    """Return a finite float64 copy of `value` with that shape.

    shape: a whole number is an exact size, a letter any size of at least 1 (the same letter, the same size); "..." in
    front allows further leading axes. Raises ConfigurationError.
    """
    expected = f"({', '.join(str(size) for size in shape)}{',' * (len(shape) == 1)})"
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{name}: {str(value)[:60]}; expected numbers in the shape {expected}") from None
    leading = bool(shape) and shape[0] == "..."
    sizes = shape[1:] if leading else shape
    if array.size == 0 or not _fits(array.shape[array.ndim - len(sizes) :] if leading else array.shape, sizes):
        raise ConfigurationError(f"{name}: shape {array.shape}; expected {expected}")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise ConfigurationError(f"{name}{_place(wrong[0], first)}: {array[tuple(wrong[0])]}; expected finite numbers")
    return array


def check_covariance(
    value: Any, name: str = "covariance", shape: Sequence[int | str] = ("d", "d"), first: int = 0
) -> Array:
    """Return symmetric, positive semi-definite matrices, float64, made symmetric to the last bit.

    shape: as in `check_array`; ("...", "d", "d") allows leading axes. Symmetry and the sign of the eigenvalues are
    judged to the square root of the machine precision of the value's own dtype, relative to the largest entry and to
    the largest eigenvalue. Raises ConfigurationError, which names the first wrong matrix.
    """
    array = check_array(value, name, shape, first)
    given = getattr(value, "dtype", None)
    precision = np.finfo(given if given in (np.float16, np.float32) else np.float64).eps
    tolerance = math.sqrt(float(precision))
    transposed = np.swapaxes(array, -1, -2)
    skew = np.abs(array - transposed)
    lift = tolerance * np.abs(array).max(axis=(-1, -2), keepdims=True)
    wrong = np.argwhere(skew > lift)
    if len(wrong):
        *at, i, j = (int(k) for k in wrong[0])
        pair = f"entries [{i}, {j}] and [{j}, {i}] are {array[(*at, i, j)]:.6g} and {array[(*at, j, i)]:.6g}"
        raise ConfigurationError(f"{name}{_place(at, first)}: not symmetric: {pair}; expected a symmetric matrix")
    symmetric = np.asarray((array + transposed) / 2)
    if _positive_definite(symmetric + lift * np.eye(array.shape[-1])):
        return symmetric
    eigenvalues = np.linalg.eigvalsh(symmetric)
    wrong = np.argwhere(eigenvalues[..., 0] < -tolerance * np.abs(eigenvalues).max(axis=-1))
    if len(wrong):
        least = eigenvalues[(*wrong[0], 0)]
        raise ConfigurationError(
            f"{name}{_place(wrong[0], first)}: smallest eigenvalue {least:.6g}; expected a positive semi-definite"
            " matrix"
        )
    return symmetric


def check_noise(value: Any, name: str, agents: int, dim: int) -> Array:
    """Return the covariances of the noise in each agent's turn, (agents, dim, dim), positive semi-definite.

    value: that, or one (dim, dim) for all, or a number of at least 0: the variance on each axis. Raises
    ConfigurationError.
    """
    if np.ndim(value) == 0:
        variance = float(check_array(value, name, ()))
        if variance < 0:
            raise ConfigurationError(f"{name}: {variance:.6g}; expected a variance of at least 0")
        return np.tile(variance * np.eye(dim), (agents, 1, 1))
    shape = (dim, dim) if np.ndim(value) == 2 else (agents, dim, dim)
    return np.array(np.broadcast_to(check_covariance(value, name, shape), (agents, dim, dim)))


def step_bound(covariance: Array) -> Array:
    """Return 2 / lambda_max(S) in the shape of the leading axes, infinite if S = 0; covariance: (..., d, d), symmetric.

    Below it every gradient step on 1/2 (x - w)^T S (x - w) contracts, and so does every round of such steps. Rounds
    with a larger step may still converge: the bound is sufficient, not necessary.
    """
    largest = np.linalg.eigvalsh(covariance)[..., -1]
    with np.errstate(divide="ignore"):
        return np.asarray(2 / np.maximum(largest, 0))


def check_steps(value: Any, covariances: Array, name: str = "step_sizes", first: int = 0) -> Array:
    """Return step sizes above 0, each below the `step_bound` of its own covariance; one number stands for all.

    covariances: (..., d, d), as returned by `check_covariance`. The result has the shape of their leading axes. Raises
    ConfigurationError.
    """
    steps = check_positive(value, name, covariances.shape[:-2])
    if not _positive_definite((2 / steps)[..., None, None] * np.eye(covariances.shape[-1]) - covariances):
        check_below(steps, step_bound(covariances), name, first)
    return steps


def check_below(steps: Array, bounds: Array, name: str, first: int = 0) -> None:
    """Raise ConfigurationError unless every step is below its bound, 2 / lambda_max; shapes as they broadcast."""
    wrong = np.argwhere(steps >= bounds)
    if len(wrong):
        step, bound = (np.broadcast_to(v, steps.shape)[tuple(wrong[0])] for v in (steps, bounds))
        raise ConfigurationError(
            f"{name}{_place(wrong[0], first)}: {step:.6g}; expected less than {bound:.6g}, which is 2 / lambda_max of"
            " its covariance: below it every step contracts"
        )


def check_positive(value: Any, name: str, shape: tuple[int, ...] = ()) -> Array:
    """Return finite numbers above 0 in that shape; one number stands for all. Raises ConfigurationError."""
    array = check_array(value, name, () if np.ndim(value) == 0 else shape)
    wrong = np.argwhere(array <= 0)
    if len(wrong):
        raise ConfigurationError(f"{name}{_place(wrong[0])}: {array[tuple(wrong[0])]:.6g}; expected a number above 0")
    return np.array(np.broadcast_to(array, shape))


def check_count(value: Any, name: str, least: int = 1, most: float = math.inf) -> int:
    """Return a whole number from `least` to `most`, both allowed. Raises ConfigurationError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        upper = "" if most == math.inf else f" and at most {most:.0f}"
        raise ConfigurationError(f"{name}: {value!r}; expected a whole number of at least {least}{upper}")
    return int(value)


def check_probabilities(value: Any, name: str, size: int) -> Array:
    """Return `size` numbers of at least 0 that sum to 1 (to 1e-9; scaled to sum to 1). Raises ConfigurationError."""
    array = check_array(value, name, (size,))
    if array.min() < 0 or abs(array.sum() - 1) > 1e-9:
        raise ConfigurationError(f"{name}: {array.tolist()}; expected numbers of at least 0 that sum to 1")
    return np.asarray(array / array.sum())


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    sizes: dict[int | str, int] = {}
    return len(shape) == len(wanted) and all(
        size == (want if isinstance(want, int) else sizes.setdefault(want, size))
        for size, want in zip(shape, wanted, strict=True)
    )


def _positive_definite(matrices: Array) -> bool:
    """Return whether all are positive definite, by Cholesky: an eighth of the cost of eigenvalues."""
    try:
        np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        return False
    return True


def _place(index: Sequence[int] | Array, first: int = 0) -> str:
    """Return "[i, j]", or nothing for a single value."""
    if not len(index):
        return ""
    return f"[{', '.join(str(int(i)) for i in (index[0] + first, *index[1:]))}]"
