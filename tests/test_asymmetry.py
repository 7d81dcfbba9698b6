"""The prompts with which one agent gets everything, without and with a limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import LinearAgents, agents_of, linear_agents
from a2a_ray.analysis.dynamics.asymmetry import Adversary, adversary, projecting_examples
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from tests.strategies import random_covariance

Array = np.ndarray[Any, np.dtype[np.float64]]
seeds = st.integers(0, 10**6)
inner = st.integers(1, 3)


def victim(seed: int, d: int, rank: int) -> tuple[Array, Array, float, float]:
    """Return S_W, D and the steps of W and U."""
    rng = np.random.default_rng(seed)
    return random_covariance(rng, d, rank), rng.normal(size=d), rng.uniform(0.1, 1.9), rng.uniform(0.1, 3)


def pair(found: Adversary, s_w: Array, gap: Array, steps: tuple[float, float], k: tuple[int, int]) -> LinearAgents:
    return linear_agents([s_w, found.covariance], [np.zeros(len(gap)), gap], steps, k)


@given(seeds, st.integers(1, 8), inner, inner, st.data())
def test_the_prompt_wins_from_any_start_within_its_rank(
    seed: int, d: int, k_w: int, k_u: int, data: st.DataObject
) -> None:
    nullity, rank = data.draw(st.integers(0, d - 1)), data.draw(st.integers(1, d))
    s_w, gap, step_w, step_u = victim(seed, d, d - nullity)
    found = adversary(s_w, gap, step_w, step_u, inner_steps_w=k_w, inner_steps_u=k_u, rank=rank)
    assert found.exact
    assert np.linalg.matrix_rank(found.covariance) == len(found.examples) <= rank
    np.testing.assert_allclose(found.examples.T @ found.examples / len(found.examples), found.covariance)
    agents = pair(found, s_w, gap, (step_w, step_u), (k_w, k_u))
    np.testing.assert_allclose(agents.pulls[1] @ agents.pulls[1], agents.pulls[1], atol=1e-10)  # a projector
    pulled = agents.pulls[0] @ gap
    assert np.linalg.norm(agents.contractions[1] @ pulled) <= 1e-9 * np.linalg.norm(pulled)  # U undoes W's whole pull
    settled = alternating(agents, start=gap)  # a start without error in the null space
    if rank >= 1 + nullity:
        settled = alternating(agents)
    size = np.linalg.norm(gap)
    assert settled.residual_norms[1] <= 1e-10 * size
    np.testing.assert_allclose(settled.residuals[1], found.residual_u, atol=1e-10 * size)
    np.testing.assert_allclose(settled.residuals[0], found.residual_w, atol=1e-10 * size)
    np.testing.assert_allclose(found.residual_w, agents.contractions[0] @ gap, atol=1e-10 * size)


@given(seeds, st.integers(1, 6), inner, inner, st.floats(0.01, 0.99))
def test_no_prompt_does_better_under_a_bound(seed: int, d: int, k_w: int, k_u: int, bound: float) -> None:
    s_w, gap, step_w, step_u = victim(seed, d, d)
    rank = 1 + seed % d
    found = adversary(s_w, gap, step_w, step_u, inner_steps_w=k_w, inner_steps_u=k_u, rank=rank, bound=bound)
    assert not found.exact
    assert step_u * np.linalg.eigvalsh(found.covariance)[-1] == pytest.approx(bound)
    settled = alternating(pair(found, s_w, gap, (step_w, step_u), (k_w, k_u)))
    size = np.linalg.norm(gap)
    np.testing.assert_allclose(settled.residuals[0], found.residual_w, atol=1e-9 * size)
    np.testing.assert_allclose(settled.residuals[1], found.residual_u, atol=1e-9 * size)
    least = np.linalg.norm(found.residual_u)
    assert least > 0
    rng = np.random.default_rng(seed + 1)
    direction = found.examples[0] / np.linalg.norm(found.examples[0])
    for share in (1.0, 0.3, 0.01):  # any geometry of any rank, far and near
        q = np.linalg.qr(direction[:, None] + share * rng.normal(size=(d, d)))[0]
        scales = np.append(1.0, rng.uniform(0, share, d - 1)) * bound * rng.uniform(1 - share / 2, 1)
        other = linear_agents([s_w, (q * scales / step_u) @ q.T], [np.zeros(d), gap], [step_w, step_u], [k_w, k_u])
        assert alternating(other).residual_norms[1] >= least * (1 - 1e-9)


def test_a_bound_near_one_is_nearly_exact_and_rank_is_spent_on_what_w_leaves_alone() -> None:
    s_w, gap, step_w, step_u = victim(0, 5, 4)
    sizes = [np.linalg.norm(adversary(s_w, gap, step_w, step_u, bound=b).residual_u) for b in (0.2, 0.6, 0.99, 1, 7)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-2:] == [0, 0]
    assert 0 < sizes[2] < 0.05
    null = np.linalg.eigh(s_w)[1][:, 0]
    two = adversary(s_w, gap, step_w, step_u, rank=2, bound=0.5)
    assert np.linalg.norm(step_u * two.covariance @ null - 0.5 * null) <= 1e-12
    agents = pair(two, s_w, gap, (step_w, step_u), (1, 1))
    np.testing.assert_allclose(alternating(agents).residuals[1], two.residual_u, atol=1e-12)
    radii = [
        alternating(
            pair(adversary(s_w, gap, step_w, step_u, rank=r), s_w, gap, (step_w, step_u), (1, 1))
        ).spectral_radius
        for r in (2, 3, 4)
    ]
    assert radii == sorted(radii, reverse=True)  # more rank settles sooner
    assert radii[-1] < radii[0]


def test_rank_one_of_one_inner_step_is_the_known_geometry() -> None:
    s_w, gap, step_w, step_u = victim(3, 4, 4)
    found = adversary(s_w, gap, step_w, step_u)
    v = s_w @ gap / np.linalg.norm(s_w @ gap)
    np.testing.assert_allclose(found.covariance, np.outer(v, v) / step_u, atol=1e-12)


@pytest.mark.parametrize(("k_w", "k_u", "bound"), [(1, 1, 1.0), (3, 1, 1.0), (2, 2, 0.4)])
def test_it_wins_a_real_conversation(k_w: int, k_u: int, bound: float) -> None:
    d, target = 5, np.array([1.0, -1, 0.5, 0, 2])
    w = LSAAgent("w", [0.0] * d, geometry={"condition": 4, "seed": 1}, step_size=0.8, inner_steps=k_w)
    found = adversary(w.covariance, target, 0.8, 0.5, inner_steps_w=k_w, inner_steps_u=k_u, bound=bound)
    u = LSAAgent("u", target.tolist(), examples=found.examples.tolist(), step_size=0.5, inner_steps=k_u)
    rounds = 10 + math.ceil(45 * alternating(agents_of([w, u])).half_life)
    talk = Conversation([w, u], opening=np.full(d, 3.0), max_rounds=rounds).run()
    after_w, after_u = (np.asarray(m.content) for m in talk.messages[-2:])
    np.testing.assert_allclose(after_w, found.residual_w, atol=1e-10)
    np.testing.assert_allclose(after_u - target, found.residual_u, atol=1e-10)
    assert np.linalg.norm(after_w) > 0.05 * np.linalg.norm(target)


def test_seen_directions_are_enough_for_an_attacker_who_does_not_know_w() -> None:
    """Shown u* once, W answers u* - P_W D: the direction of its pull, and all that U needs."""
    s_w, gap, step_w, step_u = victim(8, 6, 6)
    reply = gap - step_w * s_w @ gap
    x = projecting_examples([gap - reply], step_u)
    settled = alternating(linear_agents([s_w, x.T @ x], [np.zeros(6), gap], [step_w, step_u]))
    assert settled.residual_norms[1] <= 1e-12
    assert settled.residual_norms[0] > 0.1
    span = np.random.default_rng(0).normal(size=(3, 6)) * [[1], [1e-6], [0]]
    x = projecting_examples(span, step_u, 0.5)
    assert x.shape == (2, 6)
    np.testing.assert_allclose(step_u * x.T @ x / 2 @ span.T, 0.5 * span.T, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": [0, 0]}, "gap: S_W D = 0; .* nothing for U to undo"),
        ({"gap": [0, 1], "covariance_w": np.diag([1.0, 0])}, "gap: S_W D = 0"),
        ({"gap": [1, 0, 0]}, r"gap: shape \(3,\); expected \(2,\)"),
        ({"covariance_w": [[1, 2], [0, 1]]}, "covariance_w: not symmetric"),
        ({"step_w": 2.0}, "step_w: 2; expected less than 2, which is 2 / lambda_max"),
        ({"step_u": -1}, "step_u: -1; expected a number above 0"),
        ({"rank": 0}, "rank: 0; expected a whole number of at least 1 and at most 2"),
        ({"rank": 3}, "rank: 3; expected"),
        ({"bound": 0}, "bound: 0; expected a number above 0"),
        ({"bound": 1e-13}, "bound: 1e-13; expected at least 1e-12"),
        ({"bound": math.nan}, "bound: nan"),
        ({"inner_steps_w": 0}, "inner_steps_w: 0"),
    ],
)
def test_invalid_input_is_reported(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"covariance_w": np.eye(2), "gap": [1, 0], "step_w": 0.5, "step_u": 0.5}
    with pytest.raises(ConfigurationError, match=message):
        adversary(**(good | change))


def test_a_span_of_nothing_is_reported() -> None:
    with pytest.raises(ConfigurationError, match="span: all rows are 0"):
        projecting_examples(np.zeros((2, 3)), 0.5)
