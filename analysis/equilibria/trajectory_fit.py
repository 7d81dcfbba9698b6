"""Estimate where an agent settles and how fast, with confidence intervals, from its trajectory alone.

The model is x_{t+1} = A x_t + b + noise, where x is the state after the agent's own turn, once per round. It is exact
for gradient steps on quadratic objectives with noise in any turn, because the turns of a round make one affine map. It
is an approximation for other agents. `bootstrap.py` has the tests; docs/method/equilibrium_inference.md measures
their coverage.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_count
from a2a_ray.analysis.equilibria.affine_fit import AffineFit, Frame, NoiseFree, affine_fit, exact_period, noise_free
from a2a_ray.analysis.equilibria.bootstrap import FLOOR, FixedPointTest, Interval
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import MESSAGE
from a2a_ray.core.transcript import Transcript

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

NOISY, EXACT, AT_REST, CYCLE = "noisy", "exact", "at rest", "cycle"
"""Kinds of trajectory: see `Fit.kind`."""
NOISE_FREE = 1e-6
"""Residuals below this share of the movement are rounding errors: the trajectory follows an affine map."""
LARGEST = 1e100
"""Squares of larger positions overflow."""
NEVER = 50
"""If an interval needs more than this many times the existing rounds, `rounds_needed` is infinite."""


class TooFewRounds(ConfigurationError):
    """A trajectory is too short for the number of dimensions in which it moves."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The estimate of where one agent settles, from its trajectory of T rounds in d dimensions; arrays are float64.

    fixed_point: (d,), the estimate of x* = (I - A)^-1 b; NaN if A has the eigenvalue 1.
    rate: spectral radius of A, per round; the half-life is ln 2 / -ln(rate) rounds. NaN if it cannot be estimated.
    matrix: A, (d, d); zero across the plane of the positions, NaN if it cannot be estimated.
    axes: (k, d), unit rows: the directions of the intervals.
    intervals: (k, 2), confidence intervals of axes @ x*, each at `level`. They are infinite if the rounds do not rule
        out a unit root, that is, the absence of a fixed point. A region in two pieces is reported as unbounded too.
    standard_error: (k,), long-run standard error of the fixed point along each axis a in large samples,
        sqrt(a^T (I - A)^-1 Q (I - A)^-T a / T), Q the covariance of a round's noise.
    spread: (d,), standard deviation of a round's noise in each coordinate.
    rounds: T. level: of each interval.
    kind: "noisy": intervals are from the bootstrap; "exact": an affine map without noise, to rounding; "at rest": the
        agent has stopped at the fixed point; "cycle": it repeats exactly, and the fixed point is the mean.
    period: of an exact cycle, in rounds; else 1.
    rounds_needed: further rounds until all intervals are expected to be bounded; 0 if they are, infinite if they will
        not be soon.
    """

    fixed_point: Array
    rate: float
    matrix: Array
    axes: Array
    intervals: Array
    standard_error: Array
    spread: Array
    rounds: int
    level: float
    kind: str
    period: int
    rounds_needed: float
    _region: NoiseFree | _Noisy = field(repr=False)

    @property
    def bounded(self) -> bool:
        """Return whether all intervals are finite."""
        return bool(np.isfinite(self.intervals).all())

    def p_value(self, point: Any, axis: Any = None) -> float:
        """Return the p-value of x* = point, shape (d,); with an axis, shape (d,), of axis . x* = point, a number.

        The axis is scaled to unit length. Without noise (see `kind`) the p-value is 1 or 0, possible or not. With too
        few rounds for a test, fewer than 2 d + 2, it is 1. Raises ConfigurationError.
        """
        d = len(self.fixed_point)
        if axis is None:
            return self._region.p_value(check_array(point, "point", (d,)))
        return self._region.p_value_along(check_axes([axis], d)[0], float(check_array(point, "point", ())))

    def covers(self, point: Any) -> bool:
        """Return whether `point`, shape (d,), lies in the joint confidence region of x* at `level`.

        Raises ConfigurationError.
        """
        return self.p_value(point) > 1 - self.level + 1e-12

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value; None stands for infinite or unknown numbers."""
        names = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
        return {name: plain(getattr(self, name)) for name in (*names, "bounded")}


def fit(positions: Any, *, axes: Any = None, level: float = 0.95, draws: int = 399, seed: int = 0) -> Fit:
    """Estimate where and how fast one agent settles, from its own turns alone, with confidence intervals.

    positions: (T, d), or (T,) for d = 1: the state after that agent's turn, once per round, from the first round on.
        The path to the fixed point carries most of the information about A.
    axes: (k, d), directions of the intervals (rows are scaled to unit length); the d coordinates by default.
    level: of each interval, between .5 and 1. draws: simulated trajectories, at least 1 / (1 - level) - 1.
    seed: equal inputs give equal results.

    An interval contains the values that a test of size 1 - level accepts, each with its own simulated distribution
    (`bootstrap.py`). Noise-free, resting and exactly repeating trajectories give the fixed point to rounding. With
    noise and fewer than 2 d + 2 rounds, all intervals are unbounded.

    Raises ConfigurationError for NaN and other shapes. Raises TooFewRounds, a ConfigurationError, for fewer rounds than
    unknowns: T < d + 3, where d is the number of dimensions in which the trajectory moves (T < 4 if it is at rest).
    """
    x = check_positions(positions)
    dim = x.shape[1]
    rows = check_axes(np.eye(dim) if axes is None else axes, dim)
    check_level(level)
    check_count(draws, "draws", least=math.ceil(1 / (1 - level) - 1 - 1e-9))
    check_count(seed, "seed", least=0)
    frame = Frame(x)
    period = exact_period(x, frame.rounding)
    if not period and len(x) < max(4, frame.dim + 3):
        raise TooFewRounds(
            f"positions: {len(x)} rounds that move in {frame.dim} dimensions; expected at least"
            f" {max(4, frame.dim + 3)}: {frame.dim + 1} unknowns per axis, and one more step to estimate the noise"
        )
    found = affine_fit(frame.states(x)) if 0 < frame.dim <= len(x) - 2 else None
    kind, region = _region(x, frame, found, period, level, draws, seed)
    intervals = [region.interval(axis, 1 - level) for axis in rows]
    noisy = found if kind == NOISY else None
    return Fit(
        fixed_point=region.fixed_point,
        rate=found.rate if found else math.nan,
        matrix=frame.matrix(found.matrix) if found else np.full((dim, dim), math.nan),
        axes=rows,
        intervals=np.array([(interval.low, interval.high) for interval in intervals]),
        standard_error=_deviations(noisy.long_run() / len(x), frame, rows) if noisy else np.zeros(len(rows)),
        spread=_deviations(noisy.covariance, frame, np.eye(dim)) if noisy else np.zeros(dim),
        rounds=len(x),
        level=level,
        kind=kind,
        period=max(period, 1),
        rounds_needed=max(interval.needed for interval in intervals),
        _region=region,
    )


def _region(
    x: Array, frame: Frame, found: AffineFit | None, period: int, level: float, draws: int, seed: int
) -> tuple[str, NoiseFree | _Noisy]:
    """Return the kind of trajectory and the confidence regions of its fixed point."""
    if period or found is None:
        point = NoiseFree(x[-period:].mean(axis=0), np.zeros((x.shape[1],) * 2), frame.rounding)
        return AT_REST if period == 1 else CYCLE, point
    if frame.length(found.residuals) <= max(NOISE_FREE * frame.extent, frame.rounding):
        return EXACT, noise_free(frame, found, level)
    test = None
    if len(x) >= 2 * frame.dim + 2 and np.linalg.matrix_rank(found.inverse) > frame.dim:
        test = FixedPointTest(frame.states(x), draws, own_seed(x, seed))
    return NOISY, _Noisy(frame, found, len(x), test)


class _Noisy:
    """Confidence regions of the fixed point of a noisy trajectory."""

    def __init__(self, frame: Frame, found: AffineFit, rounds: int, test: FixedPointTest | None) -> None:
        self.fixed_point = frame.positions(found.fixed_point)
        self._frame, self._found, self._rounds, self._test = frame, found, rounds, test

    def interval(self, axis: Array, alpha: float) -> Interval:
        direction, size, constant = self._inside(axis)
        if size == 0:
            return Interval(constant - self._frame.rounding, constant + self._frame.rounding, 0.0)
        if self._test is None:
            return Interval(-math.inf, math.inf, max(1.0, 2.0 * self._frame.dim + 2 - self._rounds))
        estimate = float(direction @ self._found.fixed_point)
        if not math.isfinite(estimate):
            return Interval(-math.inf, math.inf, math.inf)
        error = math.sqrt(max(0.0, float(direction @ self._found.long_run() @ direction)) / self._rounds)
        low, high, needed = self._test.interval(direction, estimate, min(max(error, FLOOR), 1.0), alpha)
        if needed > NEVER * self._rounds or (needed and self._found.rate >= 1):
            needed = math.inf
        return Interval(constant + size * low, constant + size * high, needed)

    def p_value(self, point: Array) -> float:
        state = self._frame.states(point)
        if np.abs(self._frame.positions(state) - point).max() > self._frame.rounding:
            return 0.0  # beside the plane in which all positions lie
        return 1.0 if self._test is None else self._test.p_value(self._test.point(state))

    def p_value_along(self, axis: Array, value: float) -> float:
        direction, size, constant = self._inside(axis)
        if size == 0:
            return float(abs(value - constant) <= self._frame.rounding)
        if self._test is None:
            return 1.0
        return self._test.p_value(self._test.axis(direction, (value - constant) / size, 1.0, 0.0))

    def _inside(self, axis: Array) -> tuple[Array, float, float]:
        """axis @ position = size direction @ state + constant, direction of unit length; size 0 across the plane."""
        inside, constant = self._frame.split(axis)
        size = float(np.linalg.norm(inside))
        return (inside / size, size, constant) if size > self._frame.rounding else (inside, 0.0, constant)


def _deviations(covariance: Array, frame: Frame, axes: Array) -> Array:
    """Return standard deviations along axes, (k, d), for a covariance of the states, (r, r)."""
    inside = axes @ frame.axes.T
    return np.asarray(np.sqrt(np.einsum("ki,ij,kj->k", inside, covariance, inside).clip(0)))


def own_seed(positions: Array, seed: int) -> list[int]:
    """Return a seed for this trajectory: each one gets its own draws, so that their errors average out."""
    return [seed, zlib.crc32(positions.tobytes())]


def check_positions(positions: Any, name: str = "positions") -> Array:
    """Return positions as finite (T, d) float64; (T,) becomes (T, 1). Raises ConfigurationError."""
    try:
        single = np.ndim(positions) == 1
    except ValueError:  # rows of differing length; check_array reports them
        single = False
    x = check_array(positions, name, ("T",))[:, None] if single else check_array(positions, name, ("T", "d"))
    if np.abs(x).max() > LARGEST:
        raise ConfigurationError(
            f"{name}: {float(np.abs(x).max()):.3g} among them; expected numbers up to {LARGEST:.0g}"
        )
    return x


def check_level(level: float) -> None:
    """Raise ConfigurationError for a confidence level out of range."""
    if not 0.5 < level < 1:
        raise ConfigurationError(f"level: {level!r}; expected a number above 0.5 and below 1")


def check_axes(axes: Any, dim: int, name: str = "axes") -> Array:
    """Return axes as (k, dim) float64, each row scaled to unit length. Raises ConfigurationError."""
    rows = check_array(axes, name, ("k", dim))
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise ConfigurationError(f"{name}: row {int(np.argmin(largest))} is zero; expected a direction")
    rows /= largest
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def plain(value: Any) -> Any:
    """Return the JSON value of numbers and arrays: None for NaN and infinity."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def positions_by_agent(transcript: Transcript) -> dict[str, Array]:
    """Return each agent's positions, name -> (T, d) float64: its vectors, one per complete round.

    Only messages of kind "message" count. A round has one message of each agent, in any order. Raises
    ConfigurationError for text, vectors of differing length, a round in which an agent speaks twice, and a conversation
    without a complete round.
    """
    messages = [message for message in transcript.messages if message.kind == MESSAGE]
    names = transcript.agents or tuple(dict.fromkeys(message.sender for message in messages))
    size = len(names)
    rounds = [messages[i : i + size] for i in range(0, len(messages) - size + 1, size)] if size else []
    if not rounds:
        raise ConfigurationError(
            f"transcript {transcript.id!r}: {len(messages)} messages of {size} agents; expected a complete round"
        )
    found: dict[str, list[Any]] = {name: [] for name in names}
    for number, spoken in enumerate(rounds, 1):
        speakers = [message.sender for message in spoken]
        if sorted(speakers) != sorted(names):
            raise ConfigurationError(
                f"transcript {transcript.id!r}: round {number} is {', '.join(speakers)}; expected each of"
                f" {', '.join(names)} once"
            )
        for message in spoken:
            if isinstance(message.content, str):
                raise ConfigurationError(
                    f"transcript {transcript.id!r}: turn {message.turn} is text; expected vectors."
                    " For positions in text, use analysis/equilibria/positions.py"
                )
            found[message.sender].append(message.content)
    if len({len(row) for rows in found.values() for row in rows}) > 1:
        raise ConfigurationError(f"transcript {transcript.id!r}: vectors of differing length; expected one length")
    return {name: np.array(rows, dtype=np.float64) for name, rows in found.items()}
