"""Tests of the fixed point of x_{t+1} = A x_t + b + noise from one trajectory, valid near a unit root.

A hypothesis on the fixed point x* is a restriction of the rank of coefficients. Write z0 for the part of (x, 1) that
vanishes at every x* that the hypothesis allows, z1 for the rest, and regress the step x_{t+1} - x_t on both:

* "axis . x* = mu": z0 = axis . x - mu, z1 = (the other directions of x, 1). The hypothesis holds if and only if the
  d x d coefficients of z1 are singular: some x* on that plane stops the step. mu = infinity is the hypothesis that A
  has the eigenvalue 1 along the axis. So an interval is bounded if and only if a unit root is rejected.
* "x* = point": z0 = x - point, z1 = 1: its coefficient, the intercept, is zero.

The statistic is that of the likelihood ratio for reduced rank (Anderson, Annals of Mathematical Statistics 22, 1951):
the smallest squared partial canonical correlation of step and z1 given z0, as lambda / (1 - lambda). Its distribution
depends on A, so it is simulated from the trajectory's first state with the fit under the hypothesis (a
null-restricted parametric bootstrap) and Gaussian noise. Near a unit root a valid region must be unbounded with
positive probability (Dufour, Econometrica 65, 1997).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

FLOOR = 1e-7
"""Lower limit of the noise, as a share of the spread of the states along each principal direction."""
CHUNK = 2_000_000
"""Limit on the normal numbers kept in memory; more are drawn again when needed."""
FIRST = 99
"""Number of draws that decide about a unit root if they are conclusive."""
GRID, CLOSE, MOST = 32, 0.03, 3
"""The search for the end of an interval uses `GRID` angles, refined three times. A simulated critical value holds
within `CLOSE` radians; each search simulates at most `MOST` of them."""
GROWTH = 10.0
"""Limit of the growth of a fitted explosive map in a simulated trajectory: a factor of e^GROWTH."""


class Hypothesis(NamedTuple):
    """rows: shape (..., d + 1, d + 1), regular: (z0, z1) = rows @ (x, 1). size: number of rows of z0."""

    rows: Array
    size: int


class Interval(NamedTuple):
    """From `low` to `high`, infinite if unbounded. needed: further steps that should bound it; 0 if it is bounded."""

    low: float
    high: float
    needed: float


class Fitted(NamedTuple):
    """x_{t+1} - x_t = slope x_t + intercept + root e; slope = A - I (d, d), e standard normal; and the statistic."""

    statistic: float
    slope: Array
    intercept: Array
    root: Array


class FixedPointTest:
    """Tests on one trajectory of states, shape (T, d), T >= 2 d + 2, of unit variance along uncorrelated axes.

    draws: simulated trajectories. seed: of their noise, which is the same for every hypothesis.
    """

    def __init__(self, states: Array, draws: int, seed: int | Sequence[int]) -> None:
        self.states, self.draws = states, draws
        self._seed = seed
        steps, d = len(states) - 1, states.shape[1]
        self._shape = (steps, d)
        self._size = max(1, CHUNK // (steps * d))
        self._kept = list(self._noise(draws)) if draws <= self._size else None
        self._moments = _moments(states[None])[0]
        diagonal = np.arange(d + 1, 2 * d + 1)
        self._moments[diagonal, diagonal] += steps * FLOOR**2

    def axis(self, direction: Array, centre: float, scale: float, angle: Any) -> Hypothesis:
        """direction . x* = centre + scale tan(angle), for one or more angles; pi / 2 stands for infinity.

        direction: unit vector, shape (d,).
        """
        d, angle = len(direction), np.asarray(angle)
        cosine, sine = np.cos(angle)[..., None], np.sin(angle)[..., None]
        rows = np.zeros((*angle.shape, d + 1, d + 1))
        rows[..., 0, :d], rows[..., 0, d:] = cosine * direction, -cosine * centre - sine * scale
        rows[..., 1:d, :d] = _complement(direction)
        rows[..., d, :d], rows[..., d, d:] = sine * direction / scale, cosine - sine * centre / scale
        return Hypothesis(rows, 1)

    def point(self, point: Array) -> Hypothesis:
        """x* = point, shape (d,)."""
        rows = np.eye(len(point) + 1)
        rows[:-1, -1] = -point
        return Hypothesis(rows, len(point))

    def interval(self, direction: Array, estimate: float, scale: float, alpha: float) -> Interval:
        """Return the range of the values of direction . x* that a test of size `alpha` accepts.

        estimate: its least-squares estimate. scale: its approximate standard error, which makes the search fast.
        """

        infinite = self.axis(direction, 0.0, 1.0, math.pi / 2)
        statistic, far = self._against(infinite, alpha)
        if statistic <= far:  # with more rounds the statistic stays, and its critical value falls as 1 / T
            needed = self._shape[0] * (far / max(statistic, 1e-300) - 1)
            return Interval(-math.inf, math.inf, max(1.0, math.ceil(needed)))
        near = self.critical(self.axis(direction, estimate, scale, 0.0), alpha)

        def end(scale: float) -> float:
            critical = {0.0: near, math.pi / 2: far}
            for _ in range(MOST):
                angle = self._last_accepted(direction, estimate, scale, critical)
                if min(abs(angle - known) for known in critical) < CLOSE:
                    break
                critical[angle] = self.critical(self.axis(direction, estimate, scale, angle), alpha)
            return estimate + scale * math.tan(angle)

        return Interval(end(-scale), end(scale), 0.0)

    def _last_accepted(self, direction: Array, centre: float, scale: float, critical: Mapping[float, float]) -> float:
        """Return the largest angle in [0, pi / 2) at which the statistic is at most its critical value.

        critical: critical values at some angles, including 0 and pi / 2; values between them are interpolated.
        """
        known = np.sort(list(critical))
        values = [critical[angle] for angle in known]
        low, high = 0.0, math.pi / 2
        for _ in range(3):
            angles = np.linspace(low, high, GRID + 1)
            statistics = _statistics(self._moments, self.axis(direction, centre, scale, angles))
            accepted = np.flatnonzero(statistics <= np.interp(angles, known, values))
            last = min(int(accepted[-1]), GRID - 1) if len(accepted) else 0
            low, high = float(angles[last]), float(angles[last + 1])
        return (low + high) / 2

    def p_value(self, hypothesis: Hypothesis) -> float:
        """Return the share of draws, including the trajectory itself, whose statistic is at least as large."""
        fitted = self.restricted(hypothesis)
        return (1 + int((self._simulated(hypothesis, fitted, self.draws) >= fitted.statistic).sum())) / (self.draws + 1)

    def critical(self, hypothesis: Hypothesis, alpha: float) -> float:
        """Return the value that the statistic exceeds with probability `alpha` under the hypothesis."""
        return _upper(self._simulated(hypothesis, self.restricted(hypothesis), self.draws), alpha)

    def _against(self, hypothesis: Hypothesis, alpha: float) -> tuple[float, float]:
        """Return the statistic and its critical value, from a few draws if these are conclusive."""
        fitted = self.restricted(hypothesis)
        few = self._simulated(hypothesis, fitted, min(FIRST, self.draws))
        larger = float((few >= fitted.statistic).mean())
        if larger > 4 * alpha + 5 / len(few) or fitted.statistic > 1.5 * few.max():
            return fitted.statistic, _upper(few, alpha)
        return fitted.statistic, _upper(self._simulated(hypothesis, fitted, self.draws), alpha)

    def restricted(self, hypothesis: Hypothesis) -> Fitted:
        """Return the maximum-likelihood fit under the hypothesis."""
        d, size = self._shape[1], hypothesis.size
        moments = _ordered(self._moments, hypothesis)
        lower = _cholesky(moments)
        step, z1 = slice(size, size + d), slice(size + d, None)
        left, singular, right = np.linalg.svd(np.linalg.solve(lower[z1, z1], lower[z1, step]), full_matrices=False)
        kept = singular / (1 + singular**2)
        kept[-1] = 0.0  # under the hypothesis the smallest canonical correlation is zero
        directions = np.linalg.solve(lower[z1, z1].T, left)
        on_z1 = (directions * kept) @ right @ lower[step, step].T  # (d + 1 - size, d)
        on_z0 = np.linalg.solve(moments[:size, :size], moments[:size, step] - moments[:size, z1] @ on_z1)
        on_state = np.vstack([on_z0, on_z1]).T @ hypothesis.rows  # (d, d + 1)
        settled = np.linalg.solve(hypothesis.rows, np.concatenate([np.zeros(size), directions[:, -1]]))
        slope, intercept = self._tamed(on_state[:, :d], on_state[:, d], settled)
        noise = np.diff(self.states, axis=0) - self.states[:-1] @ on_state[:, :d].T - on_state[:, d]
        unknowns = d + 1 - (d + 1 - size) / d
        covariance = noise.T @ noise / (len(noise) - unknowns) + FLOOR**2 * np.eye(d)
        return Fitted(float(singular[-1] ** 2), slope, intercept, np.linalg.cholesky(covariance))

    def _tamed(self, slope: Array, intercept: Array, settled: Array) -> tuple[Array, Array]:
        """Return the map, with its eigenvalues cut if it explodes; then its fixed point is `settled`, (x*, 1)."""
        d = len(slope)
        values, vectors = np.linalg.eig(np.eye(d) + slope)
        most = math.exp(GROWTH / self._shape[0])
        if np.abs(values).max() <= most:
            return slope, intercept
        values *= np.minimum(1.0, most / np.maximum(np.abs(values), 1e-300))
        cut = np.real(vectors @ np.diag(values) @ np.linalg.pinv(vectors)) - np.eye(d)
        if abs(settled[d]) > 1e-8 * np.abs(settled).max():
            intercept = -cut @ settled[:d] / settled[d]
        return cut, intercept

    def _simulated(self, hypothesis: Hypothesis, fitted: Fitted, draws: int) -> Array:
        """Return the statistics of `draws` simulated trajectories with the same first state, shape (draws,)."""
        chunks = (self._kept[0][:draws],) if self._kept is not None else self._noise(draws)
        return np.concatenate([self._statistics_of(noise, hypothesis, fitted) for noise in chunks])

    def _statistics_of(self, noise: Array, hypothesis: Hypothesis, fitted: Fitted) -> Array:
        pushes = noise @ fitted.root.T
        pushes += fitted.intercept
        states = np.empty((len(noise), self._shape[0] + 1, self._shape[1]))
        states[:, 0] = state = np.broadcast_to(self.states[0], (len(noise), self._shape[1]))
        matrix = (np.eye(self._shape[1]) + fitted.slope).T
        for t in range(self._shape[0]):
            states[:, t + 1] = state = state @ matrix + pushes[:, t]
        return _statistics(_moments(states), hypothesis)

    def _noise(self, draws: int) -> Iterator[Array]:
        """Yield standard normal numbers, (up to `_size`, T - 1, d) at a time, equal on every call."""
        random = np.random.default_rng(self._seed)
        for start in range(0, draws, self._size):
            yield random.standard_normal((min(self._size, draws - start), *self._shape))


def _complement(direction: Array) -> Array:
    """Return rows, (d - 1, d), that complete a unit vector to an orthonormal basis, by a Householder reflection."""
    d = len(direction)
    first = int(np.abs(direction).argmax())
    mirror = direction.copy()
    mirror[first] += math.copysign(1.0, direction[first])
    reflection = np.eye(d) - 2 * np.outer(mirror, mirror) / (mirror @ mirror)
    return np.delete(reflection, first, axis=0)


def _moments(states: Array) -> Array:
    """Return sums of products of (x_t, 1, x_{t+1} - x_t) over t, shape (..., 2 d + 1, 2 d + 1); states: (..., T, d)."""
    d = states.shape[-1]
    states = np.swapaxes(states, -1, -2)
    rows = np.empty((*states.shape[:-2], 2 * d + 1, states.shape[-1] - 1))
    rows[..., :d, :] = states[..., :-1]
    rows[..., d, :] = 1.0
    np.subtract(states[..., 1:], states[..., :-1], out=rows[..., d + 1 :, :])
    return np.asarray(rows @ np.swapaxes(rows, -1, -2))


def _ordered(moments: Array, hypothesis: Hypothesis) -> Array:
    """Return the same sums for (z0, step, z1)."""
    rows, size = hypothesis
    d = rows.shape[-1] - 1
    turn = np.zeros((*rows.shape[:-2], 2 * d + 1, 2 * d + 1))
    turn[..., :size, : d + 1], turn[..., size + d :, : d + 1] = rows[..., :size, :], rows[..., size:, :]
    turn[..., size : size + d, d + 1 :] = np.eye(d)
    return np.asarray(turn @ moments @ np.swapaxes(turn, -1, -2))


def _statistics(moments: Array, hypothesis: Hypothesis) -> Array:
    """Return lambda / (1 - lambda) of each (..., 2 d + 1, 2 d + 1), from one Cholesky factor."""
    size, d = hypothesis.size, hypothesis.rows.shape[-1] - 1
    lower = _cholesky(_ordered(moments, hypothesis))
    left, step = slice(size + d, None), slice(size, size + d)
    ratio = np.linalg.solve(lower[..., left, left], lower[..., left, step])
    if size == d:
        return np.asarray((ratio**2).sum(axis=(-1, -2)))
    return np.asarray(np.linalg.svd(ratio, compute_uv=False)[..., -1] ** 2)


def _cholesky(moments: Array) -> Array:
    """Return the lower factor. Sums that are singular to rounding get a larger diagonal."""
    for raised in (0.0, 1e-12, 1e-9):
        try:
            return np.asarray(np.linalg.cholesky(moments * (1 + raised * np.eye(moments.shape[-1]))))
        except np.linalg.LinAlgError:
            continue
    return np.asarray(np.linalg.cholesky(moments * (1 + 1e-6 * np.eye(moments.shape[-1]))))


def _upper(values: Array, alpha: float) -> float:
    """Return the upper `alpha` quantile: of B values the alpha (B + 1)-th from above, interpolated."""
    ordered = np.sort(values)[::-1]
    place = alpha * (len(values) + 1) - 1
    return float(np.interp(place, np.arange(len(values)), ordered))
