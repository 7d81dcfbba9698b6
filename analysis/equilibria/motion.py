"""Noisy trajectories that do not settle: limit cycles and explosions.

An affine map with an eigenvalue near -1 oscillates too, but noise shifts its phase; a limit cycle keeps its phase. So
the phase of each round is added to the regression of the steps on the states. The variance it explains is compared with
trajectories simulated from the fitted map without phases. A fitted spectral radius above 1 is compared in the same way
with trajectories of a map whose eigenvalues are cut to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.equilibria.affine_fit import affine_fit
from a2a_ray.analysis.equilibria.bootstrap import CHUNK

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

LONGEST = 8
"""The longest period searched for, in rounds."""
SHARE = 0.5
"""Phases must explain at least this share of the variance of the later half (adjusted for their number)."""
SIGNIFICANCE = 0.01
"""Size of both tests."""
DRAWS = 399


def noisy_period(states: Array, seed: int | Sequence[int] = 0) -> int:
    """Return the period, 2 to `LONGEST` rounds, of a cycle in noisy states, (T, r); 0 without a cycle.

    The later half must have three periods. Of several periods that fit equally well, the result is the shortest.
    """
    half = states[len(states) // 2 :]
    shares = {p: _share(half, p) for p in range(2, LONGEST + 1) if len(half) >= 3 * p}
    best = max(shares.values(), default=0.0)
    if best < SHARE:
        return 0
    period = min(p for p, share in shares.items() if share >= 0.95 * best)
    return period if _p_value(states, lambda some: _explained(some, period), seed) <= SIGNIFICANCE else 0


def explodes(states: Array, seed: int | Sequence[int] = 0) -> bool:
    """Return whether noisy states, (T, r), diverge faster than at random with a spectral radius of 1."""
    if affine_fit(states).rate <= 1:
        return False
    return _p_value(states, lambda some: np.array([affine_fit(one).rate for one in some]), seed) <= SIGNIFICANCE


def _p_value(states: Array, statistic: Callable[[Array], Array], seed: int | Sequence[int]) -> float:
    """Return the one-sided p-value of a statistic, (B, T, r) to (B,), from `DRAWS` trajectories of the fitted map.

    They begin at the first state; eigenvalues above 1 are cut to 1.
    """
    found = affine_fit(states)
    values, vectors = np.linalg.eig(found.matrix)
    matrix = np.real(vectors @ np.diag(values / np.maximum(1.0, np.abs(values))) @ np.linalg.pinv(vectors))
    spread, directions = np.linalg.eigh(found.covariance)
    root = directions * np.sqrt(spread.clip(0))
    observed, larger = statistic(states[None])[0], 0
    random = np.random.default_rng(seed)
    size = max(1, CHUNK // states.size)
    for start in range(0, DRAWS, size):
        simulated = random.standard_normal((min(size, DRAWS - start), *states.shape)) @ root.T
        simulated[:, 0] = state = np.broadcast_to(states[0] - found.fixed_point, simulated[:, 0].shape)
        for t in range(1, len(states)):
            simulated[:, t] += state @ matrix.T
            state = simulated[:, t]
        larger += int((statistic(simulated + found.fixed_point) >= observed).sum())
    return (1 + larger) / (DRAWS + 1)


def _share(states: Array, period: int) -> float:
    """Return the adjusted share of the variance of states, (n, r), that the means of the phases explain."""
    means = np.array([states[phase::period].mean(axis=0) for phase in range(period)])
    left = ((states - means[np.arange(len(states)) % period]) ** 2).sum() / (len(states) - period)
    total = ((states - states.mean(axis=0)) ** 2).sum() / (len(states) - 1)
    return float(1 - left / total) if total > 0 else 0.0


def _explained(states: Array, period: int) -> Array:
    """Return the share of the residual steps, given (state, 1), that phases explain, (B,). states: (B, T, r)."""
    r = states.shape[-1]
    phases = np.eye(period)[np.arange(states.shape[1] - 1) % period, 1:]
    rows = np.empty((len(states), states.shape[1] - 1, 2 * r + period))
    rows[..., :r] = states[:, :-1]
    rows[..., r] = 1.0
    rows[..., r + 1 : r + period] = phases
    rows[..., r + period :] = np.diff(states, axis=1)
    moments = np.swapaxes(rows, 1, 2) @ rows
    scale = np.sqrt(np.diagonal(moments, axis1=1, axis2=2))
    moments /= scale[:, :, None] * scale[:, None, :]
    moments += 1e-12 * np.eye(moments.shape[-1])
    left = np.linalg.cholesky(moments)[:, r + period :] * scale[:, r + period :, None]
    by_phase = (left[:, :, r + 1 : r + period] ** 2).sum(axis=(1, 2))
    return np.asarray(by_phase / (by_phase + (left[:, :, r + period :] ** 2).sum(axis=(1, 2))))
