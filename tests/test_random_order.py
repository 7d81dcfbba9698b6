"""Moments of talks in random order: against exact recursion of the moments, and against simulation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from a2a_ray.analysis.dynamics.affine import LinearAgents, linear_agents
from a2a_ray.analysis.dynamics.random_order import RandomEquilibrium, random_permutation, random_speaker
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.analysis.dynamics.stationary import stationary
from a2a_ray.core.errors import ConfigurationError
from tests.strategies import linear_teams, random_covariance

Array = np.ndarray[Any, np.dtype[np.float64]]
Outcome = tuple[float, Array, Array, Array]
"""Probability, A, b and noise of x -> A x + b + noise."""


def outcome(agents: LinearAgents, noise: Array, order: Sequence[int], probability: float) -> Outcome:
    d = agents.dim
    a, b, added = np.eye(d), np.zeros(d), np.zeros((d, d))
    for i in order:
        m = np.linalg.matrix_power(np.eye(d) - agents.step_sizes[i] * agents.covariances[i], agents.inner_steps[i])
        a, b = m @ a, m @ b + (np.eye(d) - m) @ agents.objectives[i]
        added = m @ added @ m.T + noise[i]
    return probability, a, b, added


def push(outcomes: list[Outcome], mean: Array, covariance: Array) -> tuple[Array, Array]:
    """Return mean and covariance after one draw, by the laws of total expectation and variance."""
    means = [a @ mean + b for _, a, b, _ in outcomes]
    total = np.einsum("o,oi->i", [o[0] for o in outcomes], means)
    spread = np.zeros_like(covariance)
    for (p, a, _, added), m in zip(outcomes, means, strict=True):
        spread += p * (a @ covariance @ a.T + added + np.outer(m - total, m - total))
    return total, spread


def check(found: RandomEquilibrium, outcomes: list[Outcome], after: list[list[Outcome]], draws: int) -> None:
    """Compare with moments propagated to stationarity.

    after: what ends with agent i's own turn. draws: how many make a round.
    """
    d = len(found.round_end)
    mean, covariance = np.zeros(d), np.zeros((d, d))
    rounds = 20 + int(64 / -np.log(max(found.second_moment_radius, 1e-9)))  # 1e-14 of the mean is left
    for _ in range(draws * rounds):
        mean, covariance = push(outcomes, mean, covariance)
    size, spread = np.abs(found.states - mean).max(), np.abs(covariance).max()
    np.testing.assert_allclose(found.round_end, mean, rtol=0, atol=1e-10 * size)
    np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=1e-10 * spread)
    for i, until in enumerate(after):
        mean_i, covariance_i = push(until, mean, covariance)
        np.testing.assert_allclose(found.states[i], mean_i, rtol=0, atol=1e-10 * size)
        np.testing.assert_allclose(found.covariances[i], covariance_i, rtol=0, atol=1e-10 * spread)
    kron = sum(p * np.kron(a, a) for p, a, _, _ in outcomes)
    first = sum(p * a for p, a, _, _ in outcomes)
    assert float(np.abs(np.linalg.eigvals(kron)).max()) ** draws == pytest.approx(found.second_moment_radius, abs=1e-9)
    assert float(np.abs(np.linalg.eigvals(first)).max()) ** draws == pytest.approx(found.spectral_radius, abs=1e-9)
    assert np.isfinite(found.covariance).all()
    assert found.converges


def noises(agents: LinearAgents, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(0, 0.1) * random_covariance(rng, agents.dim, 1) for _ in range(len(agents))])


@given(linear_teams(agents=(2, 4), dims=(1, 5)), st.integers(0, 99))
def test_permutations_have_the_moments_of_all_orders(agents: LinearAgents, seed: int) -> None:
    noise, n = noises(agents, seed), len(agents)
    found = random_permutation(agents, noise)
    assume(found.second_moment_radius <= 0.99)
    orders = list(itertools.permutations(range(n)))
    after = [
        [outcome(agents, noise, order[: order.index(i) + 1], 1 / len(orders)) for order in orders] for i in range(n)
    ]
    rounds = [outcome(agents, noise, order, 1 / len(orders)) for order in orders]
    check(found, rounds, after, 1)
    np.testing.assert_allclose(found.residuals, found.states - agents.objectives, atol=1e-12)


@given(linear_teams(dims=(1, 5)), st.integers(0, 99))
def test_independent_speakers_have_the_moments_of_the_recursion(agents: LinearAgents, seed: int) -> None:
    noise, n = noises(agents, seed), len(agents)
    p = np.random.default_rng(seed).dirichlet(np.full(n, 3.0))
    found = random_speaker(agents, p, noise)
    assume(found.second_moment_radius <= 0.99)
    turns = [outcome(agents, noise, [i], p[i]) for i in range(n)]
    check(found, turns, [[(1.0, *turn[1:])] for turn in turns], n)


@pytest.mark.parametrize("how", ["permutation", "speaker"])
def test_simulated_conversations_have_these_moments(how: str) -> None:
    """Compare 20 000 conversations: moments within four standard errors, before and after each agent's turn."""
    rng = np.random.default_rng(5)
    d, n, talks, rounds = 3, 3, 20_000, 60
    agents = linear_agents(
        [random_covariance(rng, d, d) for _ in range(n)], rng.normal(size=(n, d)), [0.6, 0.9, 1.2], [1, 2, 1]
    )
    noise = np.stack([0.05 * random_covariance(rng, d, d) for _ in range(n)])
    roots = np.linalg.cholesky(noise + 1e-15 * np.eye(d))
    p = np.array([0.5, 0.3, 0.2])
    found = random_permutation(agents, noise) if how == "permutation" else random_speaker(agents, p, noise)
    x = np.zeros((talks, d))
    own = np.full((n, talks, d), np.nan)  # the last state that each agent left
    for _ in range(rounds):
        if how == "permutation":
            speakers = rng.permuted(np.tile(np.arange(n), (talks, 1)), axis=1)
        else:
            speakers = rng.choice(n, p=p, size=(talks, n))
        for who in speakers.T:
            for i in range(n):
                mine = who == i
                for _ in range(agents.inner_steps[i]):
                    x[mine] -= agents.step_sizes[i] * (x[mine] - agents.objectives[i]) @ agents.covariances[i]
                x[mine] += rng.normal(size=(mine.sum(), d)) @ roots[i].T
                own[i, mine] = x[mine]
    for sample, mean, covariance in [
        (x, found.round_end, found.covariance),
        *zip(own, found.states, found.covariances, strict=True),
    ]:
        off = sample - mean
        assert (np.abs(off.mean(axis=0)) <= 4 * off.std(axis=0) / talks**0.5).all()
        products = off[:, :, None] * off[:, None, :]
        assert (np.abs(products.mean(axis=0) - covariance) <= 4 * products.std(axis=0) / talks**0.5).all()
    assert np.linalg.norm(found.residuals, axis=1).min() > 0.1


def test_the_mean_can_settle_while_the_variance_diverges() -> None:
    agents = linear_agents([[[1.0]], [[1.0]]], [[0.0], [1.0]], [3.0, 0.5])  # factors -2 and 0.5
    found = random_speaker(agents)
    assert found.converges
    assert found.spectral_radius == pytest.approx(0.75**2)
    assert found.second_moment_radius == pytest.approx(2.125**2)
    assert not np.isfinite(found.covariance).all()
    assert np.isinf(found.covariance).all()
    assert np.isinf(found.covariances).all()
    assert found.round_end == pytest.approx((0.5 * 0.5 * 1.0) / 1.75)


def test_permutations_and_independent_speakers_have_different_means() -> None:
    rng = np.random.default_rng(2)
    agents = linear_agents([random_covariance(rng, 3, 3) for _ in range(3)], rng.normal(size=(3, 3)), [0.3, 0.9, 1.5])
    permuted, independent = random_permutation(agents), random_speaker(agents)
    assert np.linalg.norm(permuted.round_end - independent.round_end) > 0.05
    orders = [alternating(agents, order).round_end for order in itertools.permutations(range(3))]
    assert np.linalg.norm(np.mean(orders, axis=0) - permuted.round_end) > 1e-3  # nor the mean of the fixed points


@given(linear_teams(agents=(1, 1), dims=(1, 6)))
@settings(max_examples=10)
def test_one_agent_has_no_order(agents: LinearAgents) -> None:
    fixed = stationary(agents, 0.01)
    for found in (random_permutation(agents, 0.01), random_speaker(agents, noise=0.01)):
        np.testing.assert_allclose(found.states, fixed.equilibrium.states, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.covariance, fixed.covariances[0], rtol=1e-9, atol=1e-15)
        assert found.spectral_radius == pytest.approx(fixed.equilibrium.spectral_radius, abs=1e-12)


def test_without_a_gap_or_noise_there_is_no_spread() -> None:
    rng = np.random.default_rng(0)
    agents = linear_agents([random_covariance(rng, 3, 3) for _ in range(3)], np.ones((3, 3)), 0.7)
    for found in (random_permutation(agents), random_speaker(agents)):
        np.testing.assert_allclose(found.states, np.ones((3, 3)), atol=1e-14)
        np.testing.assert_allclose(found.covariance, 0, atol=1e-28)
        np.testing.assert_allclose(found.covariances, 0, atol=1e-28)


def test_a_common_null_space_keeps_its_start_and_no_noise() -> None:
    covariances = [np.diag([1.0, 0.5, 0]), np.diag([0.4, 1.0, 0])]
    agents = linear_agents(covariances, [[0.0, 0, 0], [1, 1, 1]], 0.5)
    within, beyond = np.diag([0.1, 0.1, 0]), np.diag([0, 0, 0.1])
    for law in (random_permutation, random_speaker):
        with pytest.raises(ConfigurationError, match=r"start: not given; .* null space of 1 of 3"):
            law(agents)
        found = law(agents, noise=within, start=[9, 9, 7])
        assert found.depends_on_start
        np.testing.assert_allclose(found.states[:, 2], 7)
        plane = linear_agents([s[:2, :2] for s in covariances], [[0.0, 0], [1, 1]], 0.5)
        small = law(plane, noise=within[:2, :2])
        np.testing.assert_allclose(found.covariances[:, :2, :2], small.covariances, rtol=1e-12)
        np.testing.assert_allclose(found.covariance[2], 0, atol=1e-20)
        np.testing.assert_allclose(found.states[:, :2], small.states, rtol=1e-12)
        assert np.isinf(law(agents, noise=beyond, start=[9, 9, 7]).covariance).all()
    idle = linear_agents(np.zeros((2, 2, 2)), np.ones((2, 2)), 1.0)
    np.testing.assert_array_equal(random_speaker(idle, start=[3, 4]).states, [[3, 4], [3, 4]])


def many(n: int, d: int) -> LinearAgents:
    return linear_agents(np.tile(np.eye(d), (n, 1, 1)), np.zeros((n, d)), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_permutation(many(11, 1)), "agents: 11; expected at most 10"),
        (lambda: random_speaker(many(2, 51)), "agents: 51 dimensions; expected at most 50"),
        (
            lambda: random_speaker(many(2, 1), [1, 0]),
            r"probabilities: \[1.0, 0.0\]; expected numbers above 0; leave out",
        ),
        (lambda: random_speaker(many(2, 1), [0.5, 0.6]), r"probabilities: \[0.5, 0.6\]; .* sum to 1"),
        (lambda: random_speaker(many(2, 1), [1.5, -0.5]), "probabilities: .* of at least 0"),
        (lambda: random_speaker(many(2, 1), [1.0]), r"probabilities: shape \(1,\); expected \(2,\)"),
        (lambda: random_speaker(many(2, 2), noise=-1), "noise: -1; expected a variance of at least 0"),
        (lambda: random_speaker(many(2, 2), noise=np.eye(3)), r"noise: shape \(3, 3\); expected \(2, 2\)"),
        (lambda: random_permutation(many(2, 2), noise=[[1, 0], [0, -1]]), "noise: smallest eigenvalue -1"),
        (
            lambda: random_permutation(linear_agents([np.eye(1)] * 2, [[0.0], [1]], [2.5, 2.5])),
            r"step_sizes\[0\]: 2.5; the spectral radius of a round is 2.25, .* less than 2, which is 2 / lambda_max",
        ),
    ],
)
def test_invalid_input_is_reported(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()
