"""The affine map of a round, x_{t+1} = A x_t + b, by least squares, from positions that may move in few dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from a2a_ray.analysis.equilibria.bootstrap import Interval

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

ROUNDING = 64.0
"""Positions count as equal if they differ by less than this many units in the last place of the largest one."""
CAUTION = 10.0
"""Factor for intervals from rounding errors, which are neither independent nor Gaussian."""
REFITS = 99
"""Number of refits that measure the effect of rounding errors on a fixed point."""
LONGEST_CYCLE = 12
"""The longest exact cycle searched for, in rounds."""


class Frame:
    """The plane in which positions (T, d) move: `states`, (T, r), along its principal axes, each of unit variance.

    unit: the unit in the last place of the largest position; rounding: smaller differences are ignored.
    extent: root mean square distance of the positions from their mean.
    """

    def __init__(self, positions: Array) -> None:
        with np.errstate(over="ignore"):
            single = bool((positions == positions.astype(np.float32)).all())
        precision = float(np.finfo(np.float32 if single else np.float64).eps)
        self.unit = precision * float(np.abs(positions).max())
        self.rounding = ROUNDING * self.unit
        self.centre = positions.mean(axis=0)
        _, sizes, axes = np.linalg.svd(positions - self.centre, full_matrices=False)
        sizes /= math.sqrt(len(positions))
        self.extent = float(np.linalg.norm(sizes))
        moved = sizes > self.rounding
        self.axes = sizes[moved, None] * axes[moved]  # (r, d)
        self._back = (axes[moved] / sizes[moved, None]).T  # (d, r)

    @property
    def dim(self) -> int:
        """r."""
        return len(self.axes)

    def states(self, positions: Array) -> Array:
        """Convert positions, (..., d), to states, (..., r)."""
        return np.asarray((positions - self.centre) @ self._back)

    def positions(self, states: Array) -> Array:
        """Convert states, (..., r), to positions, (..., d)."""
        return np.asarray(self.centre + states @ self.axes)

    def split(self, axis: Array) -> tuple[Array, float]:
        """Return v, shape (r,), and c with axis @ position = v @ state + c. axis: shape (d,)."""
        return self.axes @ axis, float(self.centre @ axis)

    def length(self, differences: Array) -> float:
        """Return the root mean square of differences of states, (n, r), in the unit of the positions."""
        return math.sqrt(float(((differences @ self.axes) ** 2).sum(axis=1).mean()))

    def rounding_errors(self) -> Array:
        """Return the covariance of states, (r, r), for errors of one unit in each coordinate of a position."""
        return np.asarray(self.unit**2 * self._back.T @ self._back)

    def matrix(self, matrix: Array) -> Array:
        """Convert a linear map of states, (r, r), to one of positions, (d, d), zero across the plane."""
        return np.asarray(self.axes.T @ matrix @ self._back.T)


class AffineFit(NamedTuple):
    """z_{t+1} = matrix z_t + intercept + residuals, of states (T, r), T >= r + 2, by least squares.

    inverse: the pseudo-inverse of the design, (r + 1, T - 1): coefficients are inverse @ steps.
    covariance: of the residuals, (r, r), over T - 1 - (r + 1) degrees of freedom (at least one).
    fixed_point: (r,), NaN if there is none.
    """

    matrix: Array
    intercept: Array
    centre: Array
    inverse: Array
    residuals: Array
    covariance: Array
    fixed_point: Array

    @property
    def rate(self) -> float:
        """Spectral radius of the matrix."""
        return float(np.abs(np.linalg.eigvals(self.matrix)).max())

    def long_run(self) -> Array:
        """(I - A)^-1 Q (I - A)^-T, (r, r): T times the covariance of the fixed point's estimate in large samples."""
        inverse = np.linalg.pinv(np.eye(len(self.matrix)) - self.matrix)
        return np.asarray(inverse @ self.covariance @ inverse.T)


def affine_fit(states: Array) -> AffineFit:
    """Fit the map, centred at the last state, which keeps all digits of the fixed point of a settled trajectory."""
    r, centre = states.shape[1], states[-1]
    steps = np.diff(states, axis=0)
    design = np.column_stack([states[:-1] - centre, np.ones(len(steps))])
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ steps
    residuals = steps - design @ coefficients
    covariance = residuals.T @ residuals / max(1, len(steps) - r - 1)
    slope, intercept = coefficients[:r].T, coefficients[r]
    fixed_point = centre + _rests(slope[None], intercept[None])[0]
    return AffineFit(np.eye(r) + slope, intercept, centre, inverse, residuals, covariance, fixed_point)


def _rests(slopes: Array, intercepts: Array) -> Array:
    """Return the zeros, (n, r), of slope (n, r, r) @ z + intercept (n, r); NaN if a slope is singular."""
    try:
        return np.asarray(-np.linalg.solve(slopes, intercepts[..., None])[..., 0])
    except np.linalg.LinAlgError:
        return np.full(intercepts.shape, np.nan)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseFree:
    """A fixed point, (d,), known to rounding: axis @ x* to sqrt(axis @ squares @ axis) + rounding; NaN for none."""

    fixed_point: Array
    squares: Array
    rounding: float

    def interval(self, axis: Array, alpha: float) -> Interval:
        """Return the interval of axis @ x*, whatever the size alpha of the test."""
        middle = float(axis @ self.fixed_point)
        if math.isnan(middle):
            return Interval(-math.inf, math.inf, math.inf)
        half = math.sqrt(float(axis @ self.squares @ axis)) + self.rounding
        return Interval(middle - half, middle + half, 0.0)

    def p_value(self, point: Array) -> float:
        """Return 1 if every coordinate of the point is possible, else 0."""
        return min(
            self.p_value_along(axis, float(value)) for axis, value in zip(np.eye(len(point)), point, strict=True)
        )

    def p_value_along(self, axis: Array, value: float) -> float:
        """Return 1 if axis @ x* = value is possible, else 0."""
        low, high, _ = self.interval(axis, 0.0)
        return float(low <= value <= high)


def noise_free(frame: Frame, found: AffineFit, level: float) -> NoiseFree:
    """Return the fixed point of a map that fits to rounding, with the uncertainty of refits with rounding errors.

    There is none if the refits move it farther than the extent of the trajectory. The errors have a fixed seed.
    """
    from scipy.special import stdtrit  # quantiles of Student's t

    r, steps = frame.dim, found.inverse.shape[1]
    factor = CAUTION * float(stdtrit(max(1, steps - r - 1), (1 + level) / 2))
    values, vectors = np.linalg.eigh(found.covariance + frame.rounding_errors())
    normal = _draws(steps, r)
    changes = found.inverse @ (normal * np.sqrt(values.clip(0))) @ vectors.T
    rests = _rests(found.matrix - np.eye(r) + np.swapaxes(changes[:, :r], -1, -2), found.intercept + changes[:, r])
    errors = (found.centre + rests - found.fixed_point) @ frame.axes
    squares = factor**2 * errors.T @ errors / REFITS
    if not np.trace(squares) < factor**2 * frame.extent**2:
        return NoiseFree(np.full(len(frame.centre), np.nan), squares, frame.rounding)
    return NoiseFree(frame.positions(found.fixed_point), squares, frame.rounding)


@lru_cache(maxsize=16)
def _draws(steps: int, r: int) -> Array:
    """Return the standard normal errors of the refits, equal for every trajectory of that size."""
    normal = np.random.default_rng(0).standard_normal((REFITS, steps, r))
    normal.flags.writeable = False
    return normal


def exact_period(positions: Array, rounding: float) -> int:
    """Return the period, in rounds, with which the positions, (T, d), repeat exactly: 1 at rest, 0 without a cycle.

    The repetition lasts until the end, for at least two periods and a fifth of the rounds (three rounds at rest). No
    state of the cycle was ever followed by a state outside it: an agent that left a state may leave it again.
    """
    total = len(positions)
    for period in range(1, LONGEST_CYCLE + 1):
        lasts = max(2 * period, 3, math.ceil(total / 5))
        if total < lasts + period:
            break
        tail = positions[total - lasts - period :]
        if np.abs(tail[period:] - tail[:-period]).max() <= rounding and _never_left(positions, period, rounding):
            return period
    return 0


def _never_left(positions: Array, period: int, rounding: float) -> bool:
    cycle = positions[-period:]
    for state, following in zip(cycle, np.roll(cycle, -1, axis=0), strict=True):
        visits = np.flatnonzero((np.abs(positions[:-1] - state) <= rounding).all(axis=1))
        if (np.abs(positions[visits + 1] - following) > rounding).any():
            return False
    return True
