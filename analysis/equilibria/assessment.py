"""Assess equilibria from trajectories: did each agent reach its objective, and who won?

An assessment needs a margin: the distance from the objective that counts as reached. Without a margin, enough rounds
would make every agent biased, because no agent settles at its objective to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_count, check_positive
from a2a_ray.analysis.equilibria.affine_fit import Frame
from a2a_ray.analysis.equilibria.motion import explodes, noisy_period
from a2a_ray.analysis.equilibria.trajectory_fit import (
    EXACT,
    LARGEST,
    NOISY,
    Fit,
    TooFewRounds,
    check_axes,
    check_level,
    check_positions,
    fit,
    own_seed,
    plain,
)
from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

REACHED, BIASED, ONE_SIDED, UNDETERMINED = "reached", "biased", "one_sided", "undetermined"
OSCILLATING, DIVERGING, NOT_SETTLED = "oscillating", "diverging", "not_settled"
NUMERICAL = (np.linalg.LinAlgError, FloatingPointError, OverflowError)
"""Numerical failures make an agent "undetermined"; other exceptions are programming errors and propagate."""
TURNING = 1e-6
"""A noise-free spectral radius within this distance of 1 counts as 1."""


@dataclass(frozen=True, slots=True, eq=False)
class AgentEquilibrium:
    """Where one agent settles, relative to its objective.

    status: "reached" (every interval lies within the margin of the objective), "biased" (some interval excludes the
        objective, with a correction for the number of axes), "undetermined" (neither, too few rounds, or a numerical
        failure), "oscillating", "diverging", or "not_settled" (some interval is unbounded). reason: one
        sentence with the numbers.
    error: fixed point minus objective, (d,); None without an estimate. fit: None if there is none.
    period: in rounds, if it oscillates; else 0.
    rounds_needed: expected number of further rounds until it settles or the margin can be decided; infinite if that
        number is unknown, 0 if no more are needed.
    """

    status: str
    reason: str
    error: Array | None = None
    fit: Fit | None = None
    period: int = 0
    rounds_needed: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "status": self.status,
            "reason": self.reason,
            "error": None if self.error is None else plain(self.error),
            "period": self.period,
            "rounds_needed": plain(self.rounds_needed),
            "fit": self.fit.to_dict() if self.fit else None,
        }


@dataclass(frozen=True, slots=True, eq=False)
class EquilibriumFinding:
    """Where a pair or group settles, relative to its objectives.

    status: the first that holds of: some agent "diverging", "oscillating", "not_settled"; all "reached"; all
        "biased"; "one_sided" (some reached, all others biased); "undetermined".
    winners: the agents that reached their objectives if it is one-sided. agents: name -> assessment of that agent.
    """

    status: str
    reason: str
    winners: tuple[str, ...] = ()
    agents: Mapping[str, AgentEquilibrium] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value."""
        agents = {name: outcome.to_dict() for name, outcome in self.agents.items()}
        return {"status": self.status, "reason": self.reason, "winners": list(self.winners), "agents": agents}


def assess_equilibrium(
    positions: Mapping[str, Any],
    objectives: Mapping[str, Any],
    margin: float,
    *,
    axes: Any = None,
    level: float = 0.95,
    draws: int = 399,
    seed: int = 0,
) -> EquilibriumFinding:
    """Assess from the trajectories where each agent settles, and the result for the group.

    positions: name -> the agent's own turns, (T, d), as for `fit`. objectives: name -> (d,).
    margin: above 0, in the unit of the positions, on every axis.
    axes: the directions to judge. None: the d coordinates. "gap": one per agent, from its objective to the mean of the
        others'. It has the most power and ignores other directions (the coordinates if the gap is zero). Or (k, d).
        Each interval has the level. For "biased", one of k axes must exclude the objective at the level
        1 - (1 - level) / k (Bonferroni), so more axes do not raise the false-positive rate.
    level, draws, seed: as for `fit`; more draws are made if many axes need them.

    Raises ConfigurationError, which names the key, for invalid input. An agent with too few rounds or a numerical
    failure is "undetermined"; the results of the others stay.
    """
    for value, name in ((positions, "positions"), (objectives, "objectives")):
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{name}: {type(value).__name__}; expected a mapping from agent names to arrays")
    if not positions:
        raise ConfigurationError("positions: no agents; expected at least one")
    check_positive(margin, "margin", ())
    check_level(level)
    check_count(draws, "draws")
    check_count(seed, "seed", least=0)
    cases = [_case(name, positions, objectives, axes) for name in positions]
    agents = {case.name: _judge(case, float(margin), level, draws, seed) for case in cases}
    return together(agents, float(margin))


class _Case(NamedTuple):
    """One agent's checked input. positions: None if they overflow."""

    name: str
    positions: Array | None
    objective: Array
    axes: Array


def _case(name: str, positions: Mapping[str, Any], objectives: Mapping[str, Any], axes: Any) -> _Case:
    """Check the input of one agent. Raises ConfigurationError."""
    if name not in objectives:
        raise ConfigurationError(
            f"objectives: none of {name!r}; there are {', '.join(map(repr, objectives)) or 'none'}"
        )
    x = None
    try:
        x = check_positions(positions[name], f"positions.{name}")
    except ConfigurationError:
        if not overflows(positions[name]):
            raise
    objective = _objective(objectives[name], f"objectives.{name}", _width(positions[name]) if x is None else x.shape[1])
    return _Case(name, x, objective, _axes(name, axes, objective, objectives))


def _width(positions: Any) -> int:
    shape = np.shape(positions)
    return int(shape[1]) if len(shape) == 2 else 1


def _judge(case: _Case, margin: float, level: float, draws: int, seed: int) -> AgentEquilibrium:
    """Assess one agent."""
    if case.positions is None:
        return AgentEquilibrium(DIVERGING, "its positions overflow")
    draws = max(draws, math.ceil(2 * len(case.axes) / (1 - level)))
    try:
        found = fit(case.positions, axes=case.axes, level=level, draws=draws, seed=seed)
        return _moving(case.positions, found, seed) or _settled(found, case.objective, margin)
    except TooFewRounds as error:  # keep the other agents' results
        return AgentEquilibrium(UNDETERMINED, str(error))
    except NUMERICAL as error:
        return AgentEquilibrium(UNDETERMINED, f"numerical failure: {type(error).__name__}: {error}")


def overflows(positions: Any) -> bool:
    """Return whether positions grow beyond the limit of `fit`."""
    try:
        x = np.asarray(positions, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    if x.ndim not in (1, 2) or x.size == 0:
        return False
    sizes = np.abs(x.reshape(len(x), -1)).max(axis=1)
    beyond = int(np.argmax(~(sizes <= LARGEST)))  # differences of infinities are NaN
    return beyond > 0 and bool(sizes[beyond - 1] > math.sqrt(LARGEST))


def _axes(name: str, axes: Any, objective: Array, objectives: Mapping[str, Any]) -> Array:
    d = len(objective)
    if axes is None:
        return np.eye(d)
    if not isinstance(axes, str):
        return check_axes(axes, d)
    if axes != "gap":
        raise ConfigurationError(f"axes: {axes!r}; expected None, 'gap' or an array (k, {d})")
    others = [_objective(other, f"objectives.{key}", d) for key, other in objectives.items() if key != name]
    gap = np.mean(others, axis=0) - objective if others else np.zeros(d)
    return check_axes([gap], d) if gap.any() else np.eye(d)


def _objective(value: Any, name: str, dim: int) -> Array:
    objective = check_array([value] if isinstance(value, (int, float, np.number)) else value, name, (dim,))
    if np.abs(objective).max() > LARGEST:
        raise ConfigurationError(f"{name}: {objective.tolist()}; expected numbers up to {LARGEST:.0g}")
    return objective


def _moving(x: Array, found: Fit, seed: int) -> AgentEquilibrium | None:
    """Return the result for an agent that diverges, oscillates or has not settled; else None."""
    states, own = Frame(x).states(x), own_seed(x, seed)
    explosive = explodes(states, own) if found.kind == NOISY else found.kind == EXACT and _grows(x, found)
    if explosive:
        return AgentEquilibrium(DIVERGING, f"its steps grow by a factor of {found.rate:.3g} a round", fit=found)
    period = noisy_period(states, own) if found.kind == NOISY else _period(found)
    if period > 1:
        reason = f"it repeats every {period:.3g} rounds, {'apart from noise' if found.kind == NOISY else 'exactly'}"
        return AgentEquilibrium(OSCILLATING, reason, fit=found, period=round(period))
    if found.bounded:
        return None
    more = found.rounds_needed
    expected = (
        f"about {more:.0f} more should suffice" if math.isfinite(more) else "the number of further rounds is unknown"
    )
    reason = f"{found.rounds} rounds do not show where it settles (rate {found.rate:.2f} a round): {expected}"
    return AgentEquilibrium(NOT_SETTLED, reason, fit=found, rounds_needed=more)


def _grows(x: Array, found: Fit) -> bool:
    """Return whether a noise-free map explodes. An eigenvalue above 1 in a fading direction is a rounding error."""
    steps = np.linalg.norm(np.diff(x, axis=0), axis=1)
    return found.rate > 1 + TURNING and bool(steps[-1] > steps[0])


def _period(found: Fit) -> float:
    """Return the period of an exact cycle, or of a noise-free map with its largest eigenvalues on the unit circle."""
    if found.kind != EXACT or abs(found.rate - 1) > TURNING:
        return found.period
    values = np.linalg.eigvals(found.matrix)
    angle = abs(float(np.angle(values[np.abs(values).argmax()])))
    return 2 * math.pi / angle if angle > TURNING else 0.0


def _settled(found: Fit, objective: Array, margin: float) -> AgentEquilibrium:
    """Return the result for an agent with bounded intervals."""
    error = found.fixed_point - objective
    aims = found.axes @ objective
    away = found.intervals - aims[:, None]  # (k, 2), from the objective
    farthest = np.abs(away).max(axis=1)
    basis = f"{found.level:.0%}, {found.rounds} rounds" if found.kind == NOISY else f"no noise, {found.rounds} rounds"
    if (farthest <= margin).all():
        reason = f"it settles within {farthest.max():.3g} of its objective, margin {margin:.3g} ({basis})"
        return AgentEquilibrium(REACHED, reason, error, found)
    k, worst = len(aims), int(farthest.argmax())
    excluding = np.flatnonzero((away[:, 0] > 0) | (away[:, 1] < 0))
    p_values = {int(i): found.p_value(aims[i], found.axes[i]) for i in excluding}
    if p_values:
        worst = min(p_values, key=lambda i: (p_values[i], -farthest[i]))
        low, high = found.intervals[worst]
        reason = (
            f"along {_axis(found.axes[worst])} it settles {_between(low, high)}, not at its objective"
            f" {aims[worst]:.4g} ({basis})"
        )
        if k == 1 or p_values[worst] <= (1 - found.level) / k + 1e-12:
            return AgentEquilibrium(BIASED, reason, error, found)
        reason += f"; but with p = {p_values[worst]:.3f} on one of {k} axes this can be chance"
    else:
        reason = (
            f"along {_axis(found.axes[worst])} it settles between {away[worst, 0]:.3g} and {away[worst, 1]:+.3g} of its"
            f" objective: neither certainly within the margin of {margin:.3g} nor certainly away from 0 ({basis})"
        )
    wide = min(float(np.ptp(away[worst])) / 2 / margin, 1e6)
    more = max(1, math.ceil(found.rounds * (wide**2 - 1)))  # widths decrease with the square root of the rounds
    return AgentEquilibrium(
        UNDETERMINED, f"{reason}; about {more} more rounds may suffice", error, found, rounds_needed=more
    )


def _between(low: float, high: float) -> str:
    """Return the interval as text; one number if both ends are equal to four digits."""
    ends = f"{low:.4g}", f"{high:.4g}"
    return f"at {ends[0]}" if ends[0] == ends[1] else f"between {ends[0]} and {ends[1]}"


def _axis(axis: Array) -> str:
    """Return the name of an axis, counted from 1, or its components."""
    used = np.flatnonzero(axis)
    if len(used) == 1:
        return f"axis {used[0] + 1}"
    return f"({', '.join(f'{c:.2g}' for c in axis[:6])}{', ...' if len(axis) > 6 else ''})"


def together(agents: Mapping[str, AgentEquilibrium], margin: float) -> EquilibriumFinding:
    """Return the result for the group from those of its agents."""
    by_status: dict[str, list[str]] = {}
    for name, outcome in agents.items():
        by_status.setdefault(outcome.status, []).append(name)
    for status in (DIVERGING, OSCILLATING, NOT_SETTLED):
        if status in by_status:
            return EquilibriumFinding(status, _reasons(agents, by_status[status]), (), agents)
    reached, biased = by_status.get(REACHED, []), by_status.get(BIASED, [])
    if len(reached) == len(agents):
        return EquilibriumFinding(
            REACHED, f"all are within {margin:.3g} of their objectives: {_reasons(agents, reached)}", (), agents
        )
    if len(biased) == len(agents):
        return EquilibriumFinding(BIASED, _reasons(agents, biased), (), agents)
    if len(reached) + len(biased) == len(agents):
        reason = f"{' and '.join(reached)} won: {_reasons(agents, [*reached, *biased])}"
        return EquilibriumFinding(ONE_SIDED, reason, tuple(reached), agents)
    return EquilibriumFinding(UNDETERMINED, _reasons(agents, by_status[UNDETERMINED]), (), agents)


def _reasons(agents: Mapping[str, AgentEquilibrium], names: list[str]) -> str:
    return "; ".join(f"{name}: {agents[name].reason}" for name in names)
