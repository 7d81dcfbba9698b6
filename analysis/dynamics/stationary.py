"""The stationary covariance of a noisy conversation in a fixed order, after each turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_noise
from a2a_ray.analysis.dynamics.affine import LinearAgents, directions
from a2a_ray.analysis.dynamics.rounds import Order, RoundEquilibrium, alternating, check_order, round_map
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Stationary:
    """The stationary distribution of a noisy conversation, for each of the T reading turns of a round; float64.

    equilibrium: the means, `equilibrium.states`, (T, d). covariances: (T, d, d), of the state read after each turn.
    lag_one: (T, d, d), the covariance of the state a round later with the state now, both read after the same turn.
    The distribution is Gaussian if the noise is.
    """

    equilibrium: RoundEquilibrium
    covariances: Array
    lag_one: Array


def stationary(agents: LinearAgents, noise: Any, order: Order = None, start: Any = None) -> Stationary:
    """Return the stationary distribution if each turn of agent i adds independent noise e to x - P_i (x - w_i).

    e has mean zero and covariance Q_i. After turn t the covariance of the state solves the discrete Lyapunov equation
    C = A C A^T + Q. A is the map of the round that ends with turn t, Q the noise that this round accumulates: for W
    then U, after U's turn, M_U Q_W M_U^T + Q_U. `lag_one` is A C. For such processes see
    Hamilton, Time Series Analysis (1994), section 10.2.

    noise: Q_i, (N, d, d), one (d, d) for all, or a variance for each axis. order, start: as for `alternating`. The
    protocol `simultaneous` without combining runs such chains side by side, with the same covariances.
    Raises ConfigurationError as `alternating` does, and for noise within the common null space of all speakers: no
    agent pulls there, so the variance grows without bound.
    """
    from scipy.linalg import solve_discrete_lyapunov

    speakers = check_order(agents, order)
    noises = check_noise(noise, "noise", len(agents), agents.dim)
    equilibrium = alternating(agents, speakers, start)
    used = sorted(set(speakers))
    moved, kept = directions(agents.pulls[used])
    if np.abs(kept.T @ noises[used] @ kept).max(initial=0) > NULL * np.abs(noises).max():
        raise ConfigurationError(
            f"noise: not 0 in the common null space of all speakers ({kept.shape[1]} dimensions), where no agent pulls"
            " and the variance grows without bound; expected noise without a part there"
        )
    contractions = agents.contractions
    added = np.zeros_like(noises[0])
    for i in speakers:
        added = contractions[i] @ added @ contractions[i] + noises[i]
    round_end, _ = round_map(agents, speakers)
    reduced = solve_discrete_lyapunov(moved.T @ round_end @ moved, moved.T @ added @ moved)
    covariance, covariances, lags = moved @ reduced @ moved.T, [], []
    for t, i in enumerate(speakers, 1):
        covariance = contractions[i] @ covariance @ contractions[i] + noises[i]
        covariances.append(covariance)
        lags.append(round_map(agents, speakers[t:] + speakers[:t])[0] @ covariance)
    return Stationary(equilibrium, np.stack(covariances), np.stack(lags))
