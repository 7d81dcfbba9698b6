"""The closed form of two agents that take turns, compared with plain simulation and with real conversations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import agents_of, linear_agents
from a2a_ray.analysis.dynamics.asymmetry import adversary
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium, alternating
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.linear_task import helper_objective, make_task
from a2a_ray.core.transcript import Transcript
from a2a_ray.protocols.newton_helper import NewtonHelper

seeds = st.integers(0, 10**6)
dims = st.integers(1, 8)
Array = np.ndarray[Any, np.dtype[np.float64]]


def covariance(rng: np.random.Generator, d: int, rank: int | None = None) -> Array:
    """Return a random covariance with largest eigenvalue 1 and the rank given."""
    rank = d if rank is None else rank
    q = np.linalg.qr(rng.normal(size=(d, d)))[0][:, :rank]
    eigenvalues = np.append(rng.uniform(0.05, 1, size=rank - 1), 1.0)
    return np.asarray((q * eigenvalues) @ q.T)


def equilibrium(pair: dict[str, Any]) -> RoundEquilibrium:
    columns = ([pair[f"{name}_{agent}"] for agent in "wu"] for name in ("covariance", "objective", "step"))
    inner_steps = [pair.get("inner_steps_w", 1), pair.get("inner_steps_u", 1)]
    return alternating(linear_agents(*columns, inner_steps), allow_divergence=True)


def scalar_pair(step_w: float, step_u: float, d: int = 1) -> RoundEquilibrium:
    """Return the equilibrium of two isotropic agents with objectives 0 and 1, in d dimensions."""
    return alternating(linear_agents([np.eye(d)] * 2, [[0.0] * d, [1.0] * d], [step_w, step_u]), allow_divergence=True)


def simulate(pair: dict[str, Any], rounds: int) -> tuple[Array, Array]:
    """Return the states after W's and after U's turn, by plain gradient steps."""
    x = after_w = np.zeros(len(pair["objective_w"]))
    for _ in range(rounds):
        for _ in range(pair.get("inner_steps_w", 1)):
            x = x - pair["step_w"] * pair["covariance_w"] @ (x - pair["objective_w"])
        after_w = x
        for _ in range(pair.get("inner_steps_u", 1)):
            x = x - pair["step_u"] * pair["covariance_u"] @ (x - pair["objective_u"])
    return after_w, x


def random_pair(seed: int, d: int, rank_w: int | None = None, rank_u: int | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    w = {"covariance_w": covariance(rng, d, rank_w), "objective_w": rng.normal(size=d), "step_w": rng.uniform(0.1, 1.9)}
    u = {"covariance_u": covariance(rng, d, rank_u), "objective_u": rng.normal(size=d), "step_u": rng.uniform(0.1, 1.9)}
    return {**w, **u}


@given(seeds, dims, st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_simulation_converges_to_the_closed_form(seed: int, d: int, inner_w: int, inner_u: int) -> None:
    pair = {**random_pair(seed, d), "inner_steps_w": inner_w, "inner_steps_u": inner_u}
    found = equilibrium(pair)
    assume(found.spectral_radius <= 0.99)
    after_w, after_u = simulate(pair, 3000)
    gap = np.linalg.norm(pair["objective_u"] - pair["objective_w"])
    assert np.abs(found.states - [after_w, after_u]).max() <= 1e-10 * gap
    objectives = np.stack([pair["objective_w"], pair["objective_u"]])
    np.testing.assert_allclose(found.residuals, found.states - objectives, atol=1e-12)
    np.testing.assert_allclose(found.residual_norms, np.linalg.norm(found.residuals, axis=1))


@given(seeds, st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_each_covariance_may_be_singular_if_their_sum_is_not(seed: int, d: int) -> None:
    pair = random_pair(seed, d, rank_w=(d + 1) // 2, rank_u=d - d // 3)
    found = equilibrium(pair)
    assert found.spectral_radius < 1
    assume(found.spectral_radius <= 0.99)
    gap = np.linalg.norm(pair["objective_u"] - pair["objective_w"])
    assert np.abs(found.states[1] - simulate(pair, 3000)[1]).max() <= 1e-10 * gap


def test_a_common_null_space_has_no_single_limit() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    pair = random_pair(0, 5)
    pair["covariance_w"] = basis[:, :3] @ basis[:, :3].T
    pair["covariance_u"] = basis[:, 1:4] @ basis[:, 1:4].T
    with pytest.raises(ValueError, match=r"common null space of 1 of 5 dimensions: .* depends on the start"):
        equilibrium(pair)


def test_steps_that_undo_each_other_and_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="beyond 2 / lambda_max"):  # (1 - 3) (1 - 1.5) = 1
        scalar_pair(3.0, 1.5)
    with pytest.raises(ValueError, match=r"covariances: (?s:.*)expected numbers in the shape \(N, d, d\)"):
        linear_agents([np.eye(1), np.eye(2)], [np.zeros(1), np.ones(1)], 0.1)
    unstable = scalar_pair(3.0, 2.5)  # |(1 - 3) (1 - 2.5)| = 3
    assert unstable.spectral_radius == pytest.approx(3)
    assert unstable.half_life == math.inf


def test_half_lives_and_known_values() -> None:
    half = scalar_pair(0.5, 0.5)
    assert half.spectral_radius == pytest.approx(0.25)
    assert half.half_life == pytest.approx(0.5)  # a round is two halvings
    np.testing.assert_allclose(half.residuals, [[1 / 3], [-1 / 3]])  # x = u* (2/3) after U, halved by W
    assert scalar_pair(1.0, 0.5).half_life == 0
    small = scalar_pair(1e-9, 1e-9, d=2)  # no cancellation
    np.testing.assert_allclose(small.states[0], [0.5, 0.5], rtol=1e-8)


@given(seeds, dims)
@settings(max_examples=100, deadline=None)
def test_a_rank_one_adversary_gets_everything(seed: int, d: int) -> None:
    pair = random_pair(seed, d)
    gap = pair["objective_u"] - pair["objective_w"]
    attack = adversary(pair["covariance_w"], gap, pair["step_w"], pair["step_u"])
    pair["covariance_u"] = attack.covariance
    assert np.linalg.matrix_rank(pair["covariance_u"]) == 1
    found = equilibrium(pair)
    size = np.linalg.norm(gap)
    assert found.residual_norms[1] <= 1e-11 * size
    contraction = np.eye(d) - pair["step_w"] * pair["covariance_w"]
    np.testing.assert_allclose(found.residuals[0], contraction @ gap, atol=1e-11 * size)
    assert len(attack.examples) == 1
    np.testing.assert_array_equal(attack.examples.T @ attack.examples, attack.covariance)


def test_an_adversary_needs_a_pull_to_undo() -> None:
    with pytest.raises(ValueError, match="nothing for U to undo"):
        adversary(np.eye(2), np.zeros(2), 0.5, 0.5)
    with pytest.raises(ValueError, match="step_u: 0"):
        adversary(np.eye(2), np.ones(2), 0.5, 0.0)


def agent_pair(angle: float, d: int = 10, condition: float = 10) -> list[LSAAgent]:
    steps, names = (0.5, 0.8), "wu"
    return [
        LSAAgent(
            names[i],
            {"angle": angle * i, "seed": 7},
            dim=d,
            geometry={"condition": condition, "seed": i},
            step_size=steps[i],
        )
        for i in range(2)
    ]


def residuals(transcript: Transcript, w: LSAAgent, u: LSAAgent) -> tuple[Array, Array]:
    """Return each agent's error after its own last turn."""
    after_w, after_u = (np.asarray(m.content) for m in transcript.messages[-2:])
    return after_w - w.objective, after_u - u.objective


@pytest.mark.parametrize("angle", range(0, 181, 30))
def test_conversations_converge_to_the_closed_form(angle: int) -> None:
    w, u = agent_pair(angle)
    expected = alternating(agents_of([w, u]))
    rounds = math.ceil(45 * expected.half_life)
    transcript = Conversation([w, u], opening=np.zeros(10), max_rounds=rounds).run()
    measured = residuals(transcript, w, u)
    gap = np.linalg.norm(u.objective - w.objective)
    bound = 1e-9 * gap if angle else 1e-12
    assert np.linalg.norm(measured - expected.residuals, axis=1).max() <= bound
    assert gap == pytest.approx(2 * math.sin(math.radians(angle) / 2))
    if angle:
        assert expected.residual_norms.min() > 0.05 * gap


def test_the_plateau_of_an_isotropic_pair_grows_with_the_angle() -> None:
    plateaus = [alternating(agents_of(agent_pair(angle, condition=1))).residual_norms[0] for angle in range(0, 181, 10)]
    assert plateaus == sorted(plateaus)
    assert plateaus[0] <= 1e-15


@given(seeds, st.integers(2, 6))
@settings(max_examples=15, deadline=None)
def test_an_adversary_of_one_example_wins_a_real_conversation(seed: int, d: int) -> None:
    w = LSAAgent("w", {"angle": 0, "seed": seed}, dim=d, geometry={"condition": 4, "seed": seed}, step_size=0.9)
    target = LSAAgent("u", {"angle": 120, "seed": seed}, dim=d).objective
    examples = adversary(w.covariance, target - w.objective, 0.9, 0.5).examples
    u = LSAAgent("u", target.tolist(), examples=examples.tolist(), step_size=0.5)
    rounds = math.ceil(45 * alternating(agents_of([w, u])).half_life)
    e_w, e_u = residuals(Conversation([w, u], opening=np.zeros(d), max_rounds=rounds).run(), w, u)
    gap = target - w.objective
    assert np.linalg.norm(e_u) <= 1e-9 * np.linalg.norm(gap)
    assert np.linalg.norm(e_w - (gap - 0.9 * w.covariance @ gap)) <= 1e-9 * np.linalg.norm(gap)
    assert np.linalg.norm(e_w) > 0.05 * np.linalg.norm(gap)


@given(seeds, dims, st.floats(0.05, 1.95))
@settings(max_examples=60, deadline=None)
def test_a_helpers_turn_is_a_damped_newton_step(seed: int, d: int, damping: float) -> None:
    pair = random_pair(seed, d)
    x = np.random.default_rng(seed + 1).normal(size=d)
    u = helper_objective(
        x, pair["covariance_w"], pair["objective_w"], pair["covariance_u"], pair["step_u"], damping=damping
    )
    after = x - pair["step_u"] * pair["covariance_u"] @ (x - u)
    np.testing.assert_allclose(after, x - damping * (x - pair["objective_w"]), atol=1e-11)


@given(seeds, st.integers(2, 8))
@settings(max_examples=40, deadline=None)
def test_a_singular_helper_removes_the_error_within_its_range(seed: int, d: int) -> None:
    pair = random_pair(seed, d, rank_u=d - 1)
    off = np.random.default_rng(seed + 1).normal(size=d)
    x = pair["objective_w"] + off
    u = helper_objective(x, pair["covariance_w"], pair["objective_w"], pair["covariance_u"], pair["step_u"])
    after = x - pair["step_u"] * pair["covariance_u"] @ (x - u) - pair["objective_w"]
    projector = np.linalg.pinv(pair["covariance_u"], rcond=1e-12) @ pair["covariance_u"]
    np.testing.assert_allclose(after, off - projector @ off, atol=1e-10)


def helper_settings(agent: LSAAgent) -> dict[str, Any]:
    return {
        "kind": "lsa",
        "name": agent.name,
        "objective": agent.objective.tolist(),
        "examples": agent.examples.tolist(),
        "step_size": agent.step_size,
        "inner_steps": agent.inner_steps,
    }


@pytest.mark.parametrize("angle", [0, 60, 180])
@pytest.mark.parametrize("inner", [1, 3])
def test_a_helped_agent_reaches_its_objective_in_one_round(angle: float, inner: int) -> None:
    w, u = agent_pair(angle)
    u.inner_steps = inner
    protocol = NewtonHelper(helper_settings(w), helper_settings(u))
    transcript = Conversation([w, u], protocol, opening=np.full(10, 3.0), max_rounds=1).run()
    assert np.linalg.norm(np.asarray(transcript.last.content) - w.objective) <= 1e-12
    damped = NewtonHelper(helper_settings(w), helper_settings(u), damping=0.25)
    transcript = Conversation([w, u], damped, opening=np.full(10, 3.0), max_rounds=2).run()
    round_map = 0.75 * (np.eye(10) - w.step_size * w.covariance)
    expected = np.linalg.matrix_power(round_map, 2) @ (np.full(10, 3.0) - w.objective)
    np.testing.assert_allclose(np.asarray(transcript.last.content) - w.objective, expected, atol=1e-12)


def test_the_pull_of_small_steps_keeps_its_digits() -> None:
    prompt = make_task(dim=3, step_size=1e-12, inner_steps=4)
    np.testing.assert_allclose(prompt.pull, 4e-12 * np.eye(3), rtol=1e-9, atol=1e-26)
