"""The equilibrium of any number of agents that take turns in a fixed order, or all at once.

A round of gradient steps on quadratic objectives is an affine map x -> A x + b, A the product (or the mean) of the
agents' M_i; where it contracts, there is one settled state after each turn.
The agents: `a2a_ray.analysis.dynamics.affine`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from a2a_ray.analysis.dynamics.affine import FixedPoint, LinearAgents, check_convergence, check_start, fixed_point
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
Order: TypeAlias = Sequence[int] | None
"""Who speaks in a round, by number from 0; an agent may stand in it more than once. None: each once, 0 to N - 1."""


@dataclass(frozen=True, slots=True, eq=False)
class RoundEquilibrium:
    """A settled round of N agents; all arrays float64.

    speakers: the agent of each of the T turns of a round. states: (T, d), the state read after each turn.
    round_end: (d,), the state from which the next round starts.
    residuals: (N, d), each agent's own error, state minus objective, read after its own last turn in the round; for an
        agent that never speaks, read at the round's end.
    spectral_radius: the factor by which a round shrinks the distance to the settled state in the long run, in the
        directions in which somebody who speaks pulls.
    depends_on_start: whether there are others, a common null space of all who speak: there the state keeps its start.
    """

    speakers: tuple[int, ...]
    states: Array
    round_end: Array
    residuals: Array
    spectral_radius: float
    depends_on_start: bool

    @property
    def residual_norms(self) -> Array:
        """Return the 2-norm of each agent's residual, (N,)."""
        return np.asarray(np.linalg.norm(self.residuals, axis=1))

    @property
    def converges(self) -> bool:
        """Return whether conversations converge: the spectral radius is below 1 by more than rounding (1e-12)."""
        return self.spectral_radius < 1 - NULL

    @property
    def half_life(self) -> float:
        """Return the rounds until the distance to equilibrium halves, ln 2 / -ln(spectral_radius) or infinity."""
        return half_life(self.spectral_radius)


def half_life(radius: float) -> float:
    """Return ln 2 / -ln(radius), in rounds: 0 if the radius is 0, infinite from 1 on."""
    if radius >= 1:
        return math.inf
    return math.log(2) / -math.log(radius) if radius > 0 else 0.0


def alternating(
    agents: LinearAgents, order: Order = None, start: Any = None, *, allow_divergence: bool = False
) -> RoundEquilibrium:
    """Return the equilibrium of a fixed order: the fixed point of the round's map, then one turn after the other.

    start: (d,), the opening; needed only where the limit depends on it, and then its part in the common null space of
    all who speak is kept. Raises ConfigurationError for such a limit without a start, and where the rounds do not
    converge (the spectral radius is not below 1): the message names the bound 2 / lambda_max below which every step
    contracts. allow_divergence: returns the fixed point nevertheless, if it is unique.
    """
    speakers, centre = check_order(agents, order), agents.objectives[0]
    opening, local = check_start(start, agents.dim), agents.centred(centre)
    fixed = fixed_point(local, speakers, *_compose(local, speakers), None if opening is None else opening - centre)
    if not allow_divergence:
        check_convergence(agents, speakers, fixed.spectral_radius)
    state, states = fixed.state, []
    for i in speakers:
        state = state - local.pulls[i] @ (state - local.objectives[i])
        states.append(state)
    return _equilibrium(local, centre, speakers, np.stack(states), state, fixed)


def simultaneous(
    agents: LinearAgents,
    combine: Literal["mean"] | None = "mean",
    start: Any = None,
    *,
    allow_divergence: bool = False,
) -> RoundEquilibrium:
    """Return the equilibrium of agents that all answer at once, as in the protocol `simultaneous`.

    combine: "mean": all are shown the average of the last answers, so that the round's map is the mean of the turns'
    maps; `states` holds the answers, `round_end` the average. None: each receives the last answer of the agent before
    it (in a ring). That is N interleaved chains, which alternate in the order 0 to N - 1; each takes N rounds for
    what alternating agents do in one: the states are those of `alternating`, the spectral radius is its N-th root
    (the one of the block-cyclic map of all N answers), and `round_end` is the answer of the last agent.
    start, allow_divergence and what is raised: as for `alternating`.
    """
    if combine is None:
        chain = alternating(agents, None, start, allow_divergence=allow_divergence)
        return replace(chain, spectral_radius=chain.spectral_radius ** (1 / len(agents)))
    if combine != "mean":
        raise ConfigurationError(f"combine: {combine!r}; expected 'mean' or None")
    speakers, centre = check_order(agents, None), agents.objectives[0]
    opening, local = check_start(start, agents.dim), agents.centred(centre)
    offset = np.einsum("nij,nj->i", local.pulls, local.objectives) / len(agents)
    shortfall = local.pulls.mean(axis=0)
    fixed = fixed_point(local, speakers, shortfall, offset, None if opening is None else opening - centre)
    if not allow_divergence:
        check_convergence(agents, speakers, fixed.spectral_radius)
    answers = fixed.state - np.einsum("nij,nj->ni", local.pulls, fixed.state - local.objectives)
    return _equilibrium(local, centre, speakers, answers, fixed.state, fixed)


def round_map(agents: LinearAgents, order: Order = None) -> tuple[Array, Array]:
    """Return A, (d, d), and b, (d,), of a round x -> A x + b in that order: A = M_T ... M_1."""
    shortfall, offset = _compose(agents, check_order(agents, order))
    return np.eye(agents.dim) - shortfall, offset


def check_order(agents: LinearAgents, order: Order) -> tuple[int, ...]:
    """Return the speakers of a round. Raises ConfigurationError."""
    if order is None:
        return tuple(range(len(agents)))
    speakers = tuple(order)
    for i in speakers:
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < len(agents):
            raise ConfigurationError(f"order: {i!r}; expected numbers of agents, 0 to {len(agents) - 1}")
    if not speakers:
        raise ConfigurationError("order: empty; expected at least one agent's number")
    return tuple(int(i) for i in speakers)


def _compose(agents: LinearAgents, speakers: Sequence[int]) -> tuple[Array, Array]:
    """Return I - A, (d, d), and b, (d,), of the turns one after the other, without cancellation for small steps."""
    shortfall, offset = np.zeros((agents.dim, agents.dim)), np.zeros(agents.dim)
    with np.errstate(over="ignore", invalid="ignore"):  # `fixed_point` says so of steps that diverge that far
        for i in speakers:
            shortfall = shortfall + agents.pulls[i] - agents.pulls[i] @ shortfall
            offset = offset + agents.pulls[i] @ (agents.objectives[i] - offset)
    return shortfall, offset


def _equilibrium(
    local: LinearAgents, centre: Array, speakers: tuple[int, ...], states: Array, end: Array, fixed: FixedPoint
) -> RoundEquilibrium:
    """Return the equilibrium from states relative to the centre."""
    last = dict(zip(speakers, states, strict=True))
    residuals = np.stack([last.get(i, end) - wanted for i, wanted in enumerate(local.objectives)])
    depends = fixed.kept.shape[1] > 0
    return RoundEquilibrium(speakers, states + centre, end + centre, residuals, fixed.spectral_radius, depends)
