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
"""Positions that differ by less than so many units in the last place of the largest are the same."""
CAUTION = 10.0
"""Rounding errors are neither independent nor Gaussian: an interval made from them is so many times as wide."""
REFITS = 99
"""So many refits show what rounding errors do to a fixed point."""
LONGEST_CYCLE = 12
"""Exact cycles are looked for up to this period, in rounds."""


class Frame:
    """The plane in which positions (T, d) move: `states`, (T, r), along its principal axes, each of unit variance.

    unit: the unit in the last place of the largest position; rounding: differences up to it mean nothing.
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
        """(..., d) to (..., r)."""
        return np.asarray((positions - self.centre) @ self._back)

    def positions(self, states: Array) -> Array:
        """(..., r) to (..., d)."""
        return np.asarray(self.centre + states @ self.axes)

    def split(self, axis: Array) -> tuple[Array, float]:
        """axis @ position = v @ state + constant: v, shape (r,), and the constant; axis: shape (d,)."""
        return self.axes @ axis, float(self.centre @ axis)

    def length(self, differences: Array) -> float:
        """Root mean square, in the unit of the positions, of differences of states, (n, r)."""
        return math.sqrt(float(((differences @ self.axes) ** 2).sum(axis=1).mean()))

    def spread(self, covariance: Array) -> Array:
        """A covariance of states, (r, r), as one of positions, (d, d)."""
        return np.asarray(self.axes.T @ covariance @ self.axes)

    def rounding_errors(self) -> Array:
        """The covariance, among the states, (r, r), of errors of one unit in each coordinate of a position."""
        return np.asarray(self.unit**2 * self._back.T @ self._back)

    def matrix(self, matrix: Array) -> Array:
        """A linear map of states, (r, r), as one of positions, (d, d): zero across the plane."""
        return np.asarray(self.axes.T @ matrix @ self._back.T)


class AffineFit(NamedTuple):
    """z_{t+1} = matrix z_t + intercept + residuals, of states (T, r), T >= r + 2, by least squares.

    inverse: the pseudo-inverse of the design, (r + 1, T - 1): coefficients are inverse @ steps.
    covariance: of the residuals, (r, r), over T - 1 - (r + 1) degrees of freedom (at least one).
    fixed_point: (r,), NaN where there is none.
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
    """The fit, centred at the last state: for a trajectory that has settled that keeps all digits of where it did."""
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
    """Where each slope (n, r, r) @ z + intercept (n, r) is zero, (n, r); NaN where a slope is singular."""
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
        """Of axis @ x*; the size alpha of a test does not matter to it."""
        middle = float(axis @ self.fixed_point)
        if math.isnan(middle):
            return Interval(-math.inf, math.inf, math.inf)
        half = math.sqrt(float(axis @ self.squares @ axis)) + self.rounding
        return Interval(middle - half, middle + half, 0.0)

    def p_value(self, point: Array) -> float:
        """1 where every coordinate of the point is possible, else 0."""
        return min(
            self.p_value_along(axis, float(value)) for axis, value in zip(np.eye(len(point)), point, strict=True)
        )

    def p_value_along(self, axis: Array, value: float) -> float:
        """1 where axis @ x* = value is possible, else 0."""
        low, high, _ = self.interval(axis, 0.0)
        return float(low <= value <= high)


def noise_free(frame: Frame, found: AffineFit, level: float) -> NoiseFree:
    """The fixed point of a map that fits to rounding, as sure as refits with rounding errors in every step leave it.

    There is none where these send it further away than the trajectory ever went. The errors have a fixed seed.
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
    """The standard normal errors of the refits, the same for every trajectory of that size."""
    normal = np.random.default_rng(0).standard_normal((REFITS, steps, r))
    normal.flags.writeable = False
    return normal


def exact_period(positions: Array, rounding: float) -> int:
    """After how many rounds the positions, (T, d), come round again for good: 1 at rest, 0 if they do not.

    The repetition lasts to the end, for two periods and a fifth of the rounds at least (three rounds at rest), and no
    state in it was ever followed by another: an agent that leaves a state may leave it again.
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
