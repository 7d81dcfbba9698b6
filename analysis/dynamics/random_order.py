"""The long-run mean and covariance of the state if the order of turns is random.

A random turn or round maps the state to x' = A x + b, with (A, b) drawn independently each time. The mean follows
x -> E[A] x + E[b]. In the long run the covariance around the mean m solves

    C = E[A C A^T] + E[z z^T] + (noise),        z = A m + b - m.

The covariance exists if rho(E[A kron A]) < 1. rho(E[A]) < 1 alone is not enough: the mean can converge while the
variance grows without bound. Our own derivation; for such equations see Costa, Fragoso, Marques,
Discrete-Time Markov Jump Linear Systems (2005), ch. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_noise, check_probabilities
from a2a_ray.analysis.dynamics.affine import LinearAgents, check_convergence, check_start, fixed_point
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]
Turn: TypeAlias = Callable[[int, Array, float], Array]
"""Apply agent i's turn to a moment weighted by a probability: (i, moment, probability) -> moment."""
Law: TypeAlias = Callable[[Turn, Array], tuple[Array, Sequence[Array]]]
"""(turn, moment) -> the expected moment at the end, and after each agent's own turn."""

MOST_AGENTS = 10
"""The limit for permutations: the exact expectation visits all 2^N sets of agents that have spoken."""
MOST_DIMENSIONS = 50
"""The covariance equation has d (d + 1) / 2 unknowns and is solved with a dense matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class RandomEquilibrium(RoundEquilibrium):
    """The long-run moments of N agents in random order; all arrays float64.

    states: (N, d), the mean of the state read after each agent's own turn; `residuals` are the means of their errors,
    and `speakers` is 0 to N - 1. round_end: (d,), the mean of the state after a turn (i.i.d. speakers) or at the end of
    a round (permutations). `covariance`, (d, d), is the covariance of that state; `covariances`, (N, d, d), are those
    read after each agent's own turn. All their entries are infinite if the variance grows without bound.
    spectral_radius: of E[A], the factor per round for the mean; `half_life` follows from it. second_moment_radius: of
    E[A kron A], the factor per round for the covariance. With i.i.d. speakers a round is N turns.
    """

    covariance: Array
    covariances: Array
    second_moment_radius: float


def random_speaker(
    agents: LinearAgents, probabilities: Any = None, noise: Any = 0.0, start: Any = None
) -> RandomEquilibrium:
    """Return the equilibrium if each turn's speaker is drawn independently: agent i with probability p_i.

    probabilities: (N,), each above 0, summing to 1; all equal by default. noise: the
    covariance of zero-mean noise added in every turn: (N, d, d), one (d, d) for all, or a variance for each axis.
    start: (d,), see `alternating`. Raises ConfigurationError for invalid arguments, for more than MOST_DIMENSIONS, if
    the mean does not converge (the message gives the bound 2 / lambda_max), and if the limit needs a start.
    """
    n = len(agents)
    p = np.full(n, 1 / n) if probabilities is None else check_probabilities(probabilities, "probabilities", n)
    if p.min() == 0:
        raise ConfigurationError(
            f"probabilities: {p.tolist()}; expected numbers above 0; leave out agents that never speak"
        )

    def law(turn: Turn, moment: Array) -> tuple[Array, list[Array]]:
        after = [turn(i, moment, 1.0) for i in range(n)]
        return np.asarray(sum(p_i * moment_i for p_i, moment_i in zip(p, after, strict=True))), after

    return _settled(agents, law, noise, start, n)


def random_permutation(agents: LinearAgents, noise: Any = 0.0, start: Any = None) -> RandomEquilibrium:
    """Return the equilibrium if each round has its own random order in which every agent speaks once.

    All N! orders are equally likely. The result is exact, by a recursion over the sets of agents that have spoken.
    noise, start, Raises: as for `random_speaker`; also ConfigurationError for more than MOST_AGENTS.
    """
    n = len(agents)
    if n > MOST_AGENTS:
        raise ConfigurationError(
            f"agents: {n}; expected at most {MOST_AGENTS} for the exact expectation over permutations"
        )

    def law(turn: Turn, moment: Array) -> tuple[Array, list[Array]]:
        after = [np.zeros_like(moment) for _ in range(n)]
        spoken = {0: moment}
        probability = 1.0  # of each set of agents that have spoken
        for left in range(n, 0, -1):
            longer: dict[int, Array] = {}
            for group, value in spoken.items():
                for i in range(n):
                    if not group >> i & 1:
                        new = turn(i, value, probability) / left
                        after[i] += new
                        both = group | 1 << i
                        longer[both] = longer[both] + new if both in longer else new
            probability *= (n - left + 1) / left
            spoken = longer
        return spoken[2**n - 1], after

    return _settled(agents, law, noise, start, 1)


def _settled(agents: LinearAgents, law: Law, noise: Any, start: Any, repeats: int) -> RandomEquilibrium:
    """Return the moments under a law of the order; a round is `repeats` draws."""
    n, d = len(agents), agents.dim
    if d > MOST_DIMENSIONS:
        raise ConfigurationError(f"agents: {d} dimensions; expected at most {MOST_DIMENSIONS} for a random order")
    noises, opening = check_noise(noise, "noise", n, d), check_start(start, d)
    centre = agents.objectives[0]
    local, speakers = agents.centred(centre), tuple(range(n))
    end, after = law(_first_moment(local), np.zeros((d, d + 1)))
    begin = None if opening is None else opening - centre
    fixed = fixed_point(local, speakers, end[:, :d], end[:, d], begin)
    check_convergence(agents, speakers, fixed.spectral_radius**repeats)
    means = np.stack([fixed.state - m[:, :d] @ fixed.state + m[:, d] for m in after])
    around = local.centred(fixed.state)
    covariance, covariances, radius = _spread(around, law, noises, fixed.moved, fixed.kept)
    return RandomEquilibrium(
        speakers,
        means + centre,
        fixed.state + centre,
        means - local.objectives,
        fixed.spectral_radius**repeats,
        fixed.kept.shape[1] > 0,
        covariance,
        covariances,
        radius**repeats,
    )


def _first_moment(agents: LinearAgents) -> Turn:
    """Return the turn of [I - A, b], (d, d + 1): with small steps, A itself would lose digits."""
    targets = [np.column_stack([np.eye(agents.dim), wanted]) for wanted in agents.objectives]
    return lambda i, moment, probability: moment + agents.pulls[i] @ (probability * targets[i] - moment)


def _spread(agents: LinearAgents, law: Law, noises: Array, moved: Array, kept: Array) -> tuple[Array, Array, float]:
    """Return the covariance (d, d), those after each agent's turn (N, d, d), and the radius of E[A kron A].

    agents: with the origin at the mean. The computation is restricted to the directions in `moved`.
    """
    n, d = len(agents), agents.dim
    r = moved.shape[1]
    contractions = moved.T @ agents.contractions @ moved
    radius, shortfall = _second_moment_map(contractions, law)
    drift = np.abs(kept.T @ noises @ kept).max(initial=0)
    if radius >= 1 - NULL or drift > NULL * np.abs(noises).max():
        return np.full((d, d), np.inf), np.full((n, d, d), np.inf), radius
    maps = np.zeros((n, r + 1, r + 1))  # of (x - mean, 1)
    maps[:, :r, :r] = contractions
    maps[:, :r, r] = np.einsum("ji,njk,nk->ni", moved, agents.pulls, agents.objectives)
    maps[:, r, r] = 1
    added = np.zeros_like(maps)
    added[:, :r, :r] = moved.T @ noises @ moved

    def turn(i: int, moment: Array, probability: float) -> Array:
        return np.asarray(maps[i] @ moment @ maps[i].T + probability * added[i])

    moment = np.zeros((r + 1, r + 1))
    moment[r, r] = 1
    source = law(turn, moment)[0][:r, :r]
    upper = np.triu_indices(r)
    moment[upper] = np.linalg.solve(shortfall, source[upper])
    moment[:r, :r] = np.triu(moment[:r, :r]) + np.triu(moment[:r, :r], 1).T
    after = np.stack(law(turn, moment)[1])
    spreads = after[:, :r, :r] - after[:, :r, r:] @ after[:, r:, :r]
    return moved @ moment[:r, :r] @ moved.T, moved @ spreads @ moved.T, radius


def _second_moment_map(contractions: Array, law: Law) -> tuple[float, Array]:
    """Return the spectral radius of C -> E[A C A^T] and I minus its matrix, on upper triangles of symmetric matrices.

    The map preserves positive semi-definite matrices, so its radius is that of E[A kron A].
    """
    r = contractions.shape[1]
    rows, columns = np.triu_indices(r)
    size = len(rows)
    basis = np.zeros((size, r, r))
    basis[range(size), rows, columns] = basis[range(size), columns, rows] = 1

    def turn(i: int, moments: Array, _: float) -> Array:
        return np.asarray(contractions[i] @ moments @ contractions[i])

    image = law(turn, basis)[0][:, rows, columns].T
    return float(np.abs(np.linalg.eigvals(image)).max(initial=0)), np.eye(size) - image
