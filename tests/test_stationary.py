"""The spread of noisy talks in a fixed order: against exact recursion of the covariance, and against simulation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from a2a_ray.analysis.dynamics.affine import LinearAgents, linear_agents
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.analysis.dynamics.stationary import stationary
from a2a_ray.core.errors import ConfigurationError
from tests.strategies import linear_teams, random_covariance

Array = np.ndarray[Any, np.dtype[np.float64]]


def noises(agents: LinearAgents, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.stack(
        [random_covariance(rng, agents.dim, int(rng.integers(1, agents.dim + 1))) for _ in range(len(agents))]
    )


def turn_map(agents: LinearAgents, i: int) -> Array:
    one = np.eye(agents.dim) - agents.step_sizes[i] * agents.covariances[i]
    return np.asarray(np.linalg.matrix_power(one, agents.inner_steps[i]))


@given(linear_teams(dims=(1, 12)), st.data())
def test_covariances_are_those_of_the_recursion(agents: LinearAgents, data: st.DataObject) -> None:
    n, d = len(agents), agents.dim
    order = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=6))
    noise = noises(agents, d)
    found = stationary(agents, noise, order)
    assume(found.equilibrium.spectral_radius <= 0.99)
    np.testing.assert_array_equal(found.equilibrium.states, alternating(agents, order).states)
    covariance, maps = np.zeros((d, d)), [turn_map(agents, i) for i in range(n)]
    for _ in range(20 + int(16 / -np.log(max(found.equilibrium.spectral_radius, 1e-9)))):
        covariances = []
        for i in order:
            covariance = maps[i] @ covariance @ maps[i].T + noise[i]
            covariances.append(covariance)
    scale = np.abs(covariances).max()
    np.testing.assert_allclose(found.covariances, covariances, rtol=0, atol=1e-10 * scale)
    for t in range(len(order)):  # the covariance with the state a round later, turn by turn
        lag = covariances[t]
        for i in order[t + 1 :] + order[: t + 1]:
            lag = maps[i] @ lag
        np.testing.assert_allclose(found.lag_one[t], lag, rtol=0, atol=1e-10 * scale)


@given(linear_teams(agents=(2, 4), dims=(1, 4)))
def test_a_ring_of_answers_has_the_same_covariances(agents: LinearAgents) -> None:
    n, noise = len(agents), noises(agents, 0)
    found = stationary(agents, noise)
    assume(found.equilibrium.spectral_radius <= 0.99)
    said = [np.zeros((agents.dim, agents.dim))] * n
    for _ in range(n * (20 + int(16 / -np.log(max(found.equilibrium.spectral_radius, 1e-9))))):
        said = [turn_map(agents, i) @ said[i - 1] @ turn_map(agents, i).T + noise[i] for i in range(n)]
    np.testing.assert_allclose(found.covariances, said, rtol=0, atol=1e-10 * np.abs(said).max())


def test_simulated_conversations_have_these_covariances() -> None:
    """Compare 20 000 conversations of three agents with the theory; also the covariance with a round later."""
    rng = np.random.default_rng(11)
    d, n, talks = 3, 3, 20_000
    agents = linear_agents(
        [random_covariance(rng, d, d) for _ in range(n)], rng.normal(size=(n, d)), [0.2, 0.5, 1.1], [1, 1, 2]
    )
    noise = 0.1 * noises(agents, 3)
    roots = np.linalg.cholesky(noise + 1e-15 * np.eye(d))
    found = stationary(agents, noise)
    x, states = np.zeros((talks, d)), np.zeros((2, n, talks, d))
    for r in range(62):
        for i in range(n):
            for _ in range(agents.inner_steps[i]):
                x = x - agents.step_sizes[i] * (x - agents.objectives[i]) @ agents.covariances[i]
            x = x + rng.normal(size=x.shape) @ roots[i].T
            states[r % 2, i] = x
    off = states - found.equilibrium.states[:, None]
    assert (np.abs(off.mean(axis=2)) <= 4 * off.std(axis=2) / talks**0.5).all()
    for sample, expected in ((off[1], found.covariances), (None, found.lag_one)):
        later = off[1]
        products = later[:, :, :, None] * (later if sample is not None else off[0])[:, :, None, :]
        assert (np.abs(products.mean(axis=1) - expected) <= 4 * products.std(axis=1) / talks**0.5).all()


def test_two_agents_by_hand() -> None:
    agents = linear_agents([[[1.0]], [[1.0]]], [[0.0], [1.0]], [0.5, 0.2])
    found = stationary(agents, [[[1.0]], [[3.0]]])
    after_u = (0.8**2 * 1 + 3) / (1 - 0.16)  # M_U Q_W M_U + Q_U over 1 - (M_U M_W)^2
    after_w = (0.5**2 * 3 + 1) / (1 - 0.16)
    np.testing.assert_allclose(found.covariances.ravel(), [after_w, after_u])
    np.testing.assert_allclose(found.lag_one.ravel(), [0.4 * after_w, 0.4 * after_u])


def test_noise_in_a_common_null_space_is_reported() -> None:
    agents = linear_agents([np.diag([1.0, 0]), np.diag([0.5, 0])], [[0.0, 0], [1, 1]], 0.5)
    found = stationary(agents, np.diag([1.0, 0]), start=[5, 6])
    assert found.equilibrium.depends_on_start
    np.testing.assert_allclose(found.covariances[:, 1], 0, atol=1e-20)
    assert found.covariances[0, 0, 0] > 0
    with pytest.raises(
        ConfigurationError, match=r"noise: not 0 in the common null space of all speakers \(1 dimensions\)"
    ):
        stationary(agents, 0.1, start=[5, 6])
    np.testing.assert_array_equal(stationary(agents, 0, start=[5, 6]).covariances, np.zeros((2, 2, 2)))


def test_invalid_input_is_reported() -> None:
    agents = linear_agents([np.eye(2)] * 2, np.zeros((2, 2)), 0.5)
    with pytest.raises(ConfigurationError, match=r"noise: shape \(3, 2, 2\); expected \(2, 2, 2\)"):
        stationary(agents, np.zeros((3, 2, 2)))
    with pytest.raises(ConfigurationError, match=r"noise\[1\]: not symmetric"):
        stationary(agents, [np.eye(2), [[1, 1], [0, 1]]])
    with pytest.raises(ConfigurationError, match="noise: nan"):
        stationary(agents, np.nan)
    with pytest.raises(ConfigurationError, match=r"spectral radius of a round is 4, .* below it every step contracts"):
        stationary(linear_agents([np.eye(2)] * 2, np.zeros((2, 2)), 3.0), 0.1)
