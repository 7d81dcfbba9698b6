"""Agents whose turns are affine maps: gradient steps on quadratic objectives, and the fixed points of their rounds.

A turn of agent i takes the state x to x - P_i (x - w_i), P_i = I - (I - eta_i S_i)^k_i its pull: k_i inner steps of
size eta_i on 1/2 (x - w_i)^T S_i (x - w_i). M_i = I - P_i. The setting is that of arXiv 2511.08710; the closed forms
are our own derivation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_count, check_covariance, check_positive, step_bound
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL, pull

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


class Stepping(Protocol):
    """The attributes that `agents_of` reads; an `LSAAgent` and a `core.linear_task.LinearTask` have them."""

    @property
    def covariance(self) -> Array:
        """Return S, (d, d)."""

    @property
    def objective(self) -> Array:
        """Return w, (d,)."""

    @property
    def step_size(self) -> float:
        """Return eta."""

    @property
    def inner_steps(self) -> int:
        """Return k, the gradient steps of a turn."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearAgents:
    """N agents whose turns are x -> x - P_i (x - w_i); all arrays float64. Made by `linear_agents` or `agents_of`.

    covariances: S_i, (N, d, d). objectives: w_i, (N, d). step_sizes: eta_i, (N,). inner_steps: k_i, N of them.
    pulls: P_i = I - (I - eta_i S_i)^k_i, (N, d, d), symmetric.
    """

    covariances: Array
    objectives: Array
    step_sizes: Array
    inner_steps: tuple[int, ...]
    pulls: Array

    def __len__(self) -> int:
        return len(self.objectives)

    @property
    def dim(self) -> int:
        """Return d."""
        return int(self.objectives.shape[1])

    @property
    def contractions(self) -> Array:
        """Return M_i = I - P_i, (N, d, d)."""
        return np.eye(self.dim) - self.pulls

    def centred(self, centre: Array) -> LinearAgents:
        """Return the same agents with the origin moved to `centre`, (d,): residuals keep their digits far from 0."""
        return replace(self, objectives=self.objectives - centre)


def linear_agents(covariances: Any, objectives: Any, step_sizes: Any, inner_steps: Any = 1) -> LinearAgents:
    """Return N agents from arrays.

    covariances: (N, d, d), each symmetric and positive semi-definite. objectives: (N, d). step_sizes: above 0, (N,) or
    one for all; they may be so large that a turn does not contract: a round of such turns can still settle.
    inner_steps: whole numbers of at least 1, N of them or one for all. Raises ConfigurationError.
    """
    s = check_covariance(covariances, "covariances", ("N", "d", "d"))
    wanted = check_array(objectives, "objectives", s.shape[:2])
    steps = check_positive(step_sizes, "step_sizes", (len(s),))
    counts = list(inner_steps) if np.ndim(inner_steps) else [inner_steps] * len(s)
    if len(counts) != len(s):
        raise ConfigurationError(
            f"inner_steps: {len(counts)} numbers; expected one, or one for each of the {len(s)} agents"
        )
    inner = tuple(check_count(k, "inner_steps") for k in counts)
    with np.errstate(over="ignore", invalid="ignore"):
        pulls = np.stack([pull(s_i, eta, k) for s_i, eta, k in zip(s, steps, inner, strict=True)])
    if not np.isfinite(pulls).all():
        raise ConfigurationError(
            f"step_sizes: {_listed(steps)}; one turn leaves the range of numbers; expected less than"
            f" {_listed(step_bound(s))}, which is 2 / lambda_max: below it every step contracts"
        )
    return LinearAgents(s, wanted, steps, inner, pulls)


def agents_of(agents: Sequence[Stepping]) -> LinearAgents:
    """Return LinearAgents from LSA agents or their prompts. Raises ConfigurationError."""
    if not agents:
        raise ConfigurationError("agents: none given; expected at least one")
    shapes = [np.shape(agent.objective) for agent in agents]
    if len(set(shapes)) > 1:
        raise ConfigurationError(
            f"agents: objectives of shapes {', '.join(map(str, shapes))}; expected one shape for all"
        )
    return linear_agents(
        np.stack([agent.covariance for agent in agents]),
        np.stack([agent.objective for agent in agents]),
        np.array([agent.step_size for agent in agents]),
        [agent.inner_steps for agent in agents],
    )


@dataclass(frozen=True, slots=True, eq=False)
class FixedPoint:
    """The state, (d,), that a round leaves where it is.

    spectral_radius: of the round's map in the directions, orthonormal columns of `moved`, (d, r), in which somebody who
    speaks pulls. kept: the others, (d, d - r): the common null space of the pulls.
    """

    state: Array
    spectral_radius: float
    moved: Array
    kept: Array


def fixed_point(
    agents: LinearAgents, speakers: Sequence[int], shortfall: Array, offset: Array, start: Array | None
) -> FixedPoint:
    """Return the fixed point of x -> x - shortfall x + offset: the state x with shortfall x = offset.

    shortfall: I - A, (d, d), composed of the pulls of the speakers, so that it vanishes on their common null space and
    its image is orthogonal to that. There the state is that of `start`, (d,). Raises ConfigurationError where it is
    needed and None, and where the map leaves another direction unchanged.
    """
    if not np.isfinite(shortfall).all():
        check_convergence(agents, speakers, np.inf)
    moved, kept = directions(agents.pulls[sorted(set(speakers))])
    d, m = kept.shape
    if m and start is None:
        raise ConfigurationError(
            f"start: not given; the covariances of all who speak have a common null space of {m} of {d} dimensions: no"
            f" turn moves the iterate along it, so the limit depends on the start; expected a start of shape ({d},)"
        )
    reduced = moved.T @ shortfall @ moved
    if np.linalg.matrix_rank(reduced) < d - m:
        raise ConfigurationError(
            f"step_sizes: {_listed(agents.step_sizes)}; a round carries some direction over unchanged (I - A is"
            " singular) in which agents pull: steps are beyond 2 / lambda_max; expected less than"
            f" {_listed(step_bound(agents.covariances))}: below it every step contracts"
        )
    radius = float(np.abs(1 - np.linalg.eigvals(reduced)).max(initial=0))
    state = moved @ np.linalg.solve(reduced, moved.T @ offset)
    if start is not None:
        state = state + kept @ (kept.T @ start)
    return FixedPoint(state, radius, moved, kept)


def check_convergence(agents: LinearAgents, speakers: Sequence[int], radius: float) -> None:
    """Raise ConfigurationError unless the spectral radius of a round is below 1 by more than rounding (NULL)."""
    if radius < 1 - NULL:
        return
    bounds = step_bound(agents.covariances)
    i = max(speakers, key=lambda k: agents.step_sizes[k] / bounds[k])
    if agents.step_sizes[i] < bounds[i]:
        raise ConfigurationError(
            f"step_sizes: {_listed(agents.step_sizes)}; the spectral radius of a round is {radius:.15g}: too near to 1"
            " to distinguish from divergence; expected larger steps"
        )
    raise ConfigurationError(
        f"step_sizes[{i}]: {agents.step_sizes[i]:.6g}; the spectral radius of a round is {radius:.6g}, so it does not"
        f" settle; expected less than {bounds[i]:.6g}, which is 2 / lambda_max of the agent's covariance: below it"
        " every step contracts"
    )


def check_start(start: Any, dim: int) -> Array | None:
    """Return a start of shape (dim,), or None. Raises ConfigurationError."""
    return None if start is None else check_array(start, "start", (dim,))


def directions(pulls: Array) -> tuple[Array, Array]:
    """Return orthonormal columns: (d, r), the range of the pulls, (n, d, d), and (d, d - r), their common null space.

    A direction z is in the null space where |P_i z| <= NULL |P_i| for each i, so that an agent of tiny steps counts.
    If the null space is empty, the first is the identity.
    """
    n, d, _ = pulls.shape
    sizes = np.linalg.norm(pulls, axis=(1, 2), keepdims=True)
    _, values, rows = np.linalg.svd((pulls / np.where(sizes > 0, sizes, 1)).reshape(n * d, d), full_matrices=False)
    rank = int((values > NULL).sum())
    return (np.eye(d), np.zeros((d, 0))) if rank == d else (rows[:rank].T, rows[rank:].T)


def _listed(values: Array) -> str:
    """Return the first numbers of an array, for a message."""
    return ", ".join(f"{v:.6g}" for v in values[:8]) + (", ..." if len(values) > 8 else "")
