"""The helper's turn-wise objective: error maps, and a helper that learns W's turn from probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import LinearAgents
from a2a_ray.analysis.dynamics.helper_objectives import (
    TurnEstimate,
    estimate_turn,
    helper_error_map,
    objective_to_reach,
    probe_points,
    probing_objective,
)
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import helper_objective
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext
from tests.strategies import linear_teams, random_covariance

Array = np.ndarray[Any, np.dtype[np.float64]]
pairs = linear_teams(agents=(2, 2))
any_pairs = linear_teams(agents=(2, 2), singular=True)


def turn(agents: LinearAgents, i: int, x: Array, objective: Array | None = None) -> Array:
    wanted = agents.objectives[i] if objective is None else objective
    for _ in range(agents.inner_steps[i]):
        x = x - agents.step_sizes[i] * agents.covariances[i] @ (x - wanted)
    return x


@given(any_pairs, st.floats(0.05, 1.95))
def test_a_round_with_a_helper_that_knows_w_is_the_map(agents: LinearAgents, damping: float) -> None:
    """Any ranks; U takes one inner step, which is what `helper_objective` is for."""
    rng = np.random.default_rng(0)
    w, x = agents.objectives[0], rng.normal(size=agents.dim)
    before = turn(agents, 0, x)
    objective = helper_objective(
        before, agents.covariances[0], w, agents.covariances[1], agents.step_sizes[1], damping=damping
    )
    after = before - agents.step_sizes[1] * agents.covariances[1] @ (before - objective)
    error_map = helper_error_map(agents.pulls[0], agents.step_sizes[1] * agents.covariances[1], damping)
    np.testing.assert_allclose(after - w, error_map @ (x - w), atol=1e-10)


@given(pairs, st.floats(0.05, 1.95))
def test_the_maps_of_the_three_cases(agents: LinearAgents, damping: float) -> None:
    d, (p_w, p_u), m_w = agents.dim, agents.pulls, agents.contractions[0]
    np.testing.assert_allclose(helper_error_map(p_w, p_u), np.zeros((d, d)), atol=1e-11)
    np.testing.assert_allclose(helper_error_map(p_w, p_u, damping), (1 - damping) * m_w, atol=1e-11)
    singular = random_covariance(np.random.default_rng(d), d, (d + 1) // 2)
    outside = np.eye(d) - np.linalg.pinv(singular, rcond=1e-12) @ singular
    np.testing.assert_allclose(helper_error_map(p_w, singular), outside @ m_w, atol=1e-11)
    assert np.abs(np.linalg.eigvals(helper_error_map(p_w, singular))).max() < 1  # w* is reached, if not at once


def estimate_by_probes(turn: Callable[[Array], Array], centre: Array) -> TurnEstimate:
    """Return the estimate of a turn from its replies to the probes alone."""
    points = probe_points(centre)
    return estimate_turn(points, np.stack([turn(x) for x in points]))


@given(pairs)
def test_d_plus_one_probes_determine_the_turn(agents: LinearAgents) -> None:
    centre = np.random.default_rng(1).normal(size=agents.dim)
    calls: list[Array] = []

    def black_box(x: Array) -> Array:
        calls.append(x)
        return turn(agents, 0, x)

    found = estimate_by_probes(black_box, centre)
    assert len(calls) == agents.dim + 1
    np.testing.assert_allclose(found.pull, agents.pulls[0], atol=1e-13)
    np.testing.assert_allclose(found.objective, agents.objectives[0], atol=1e-11)  # the pull's condition: up to 400
    u = found.helper_objective(centre, agents.pulls[1])
    np.testing.assert_allclose(turn(agents, 1, centre, u), agents.objectives[0], atol=1e-10)


def test_probes_of_well_conditioned_turns_are_exact_to_4e_14() -> None:
    rng = np.random.default_rng(0)
    worst = 0.0
    for d in (2, 5, 10, 20):
        for _ in range(20):
            s, w = random_covariance(rng, d, d), rng.normal(size=d)
            found = estimate_by_probes(lambda x, s=s, w=w: x - 0.9 * s @ (x - w), np.zeros(d))
            worst = max(worst, np.abs(found.pull - 0.9 * s).max(), np.abs(found.objective - w).max())
    assert worst <= 4e-14


def test_probes_see_no_more_than_the_range_of_w() -> None:
    s = random_covariance(np.random.default_rng(4), 4, 2)
    w, centre = np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1])
    found = estimate_by_probes(lambda x: x - 0.7 * s @ (x - w), centre)
    np.testing.assert_allclose(s @ found.objective, s @ w, atol=1e-12)
    mean = probe_points(centre).mean(axis=0)
    along = np.linalg.pinv(s, rcond=1e-12) @ s
    np.testing.assert_allclose(found.objective - mean, along @ (found.objective - mean), atol=1e-12)


def test_more_probes_average_the_noise_of_replies() -> None:
    rng = np.random.default_rng(2)
    s, w = random_covariance(rng, 3, 3), rng.normal(size=3)
    errors = []
    for m in (4, 400):
        points = rng.normal(size=(m, 3))
        replies = points - 0.8 * (points - w) @ s + 0.01 * rng.normal(size=(m, 3))
        errors.append(np.abs(estimate_turn(points, replies).pull - 0.8 * s).max())
    assert errors[1] < errors[0] / 4


@given(pairs)
def test_any_point_can_be_reached(agents: LinearAgents) -> None:
    rng = np.random.default_rng(3)
    x, target = rng.normal(size=(2, agents.dim))
    u = objective_to_reach(x, target, agents.pulls[1])
    np.testing.assert_allclose(turn(agents, 1, x, u), target, atol=1e-10)


def test_a_singular_helper_reaches_the_nearest_point() -> None:
    u = objective_to_reach([1.0, 1.0], [5.0, 5.0], np.diag([0.5, 0]))
    np.testing.assert_allclose(np.array([1.0, 1]) - np.diag([0.5, 0]) @ (np.array([1.0, 1]) - u), [5.0, 1.0])


class ProbingHelper(TurnProtocol):
    """W and its helper alternate; the helper knows nothing of W but what it said."""

    def __init__(self, pull_u: Array, damping: float) -> None:
        self.pull_u, self.damping = pull_u, damping

    def speakers(self, transcript: Transcript) -> str:
        return transcript.agents[len(transcript.messages) % 2]

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        last = transcript.last
        if speaker == transcript.agents[0]:
            return TurnContext(last.sender, last.content)
        said = [np.asarray(m.content) for m in transcript.messages]
        return TurnContext(last.sender, last.content, (), {
            "objective": probing_objective(said[::2], said[1::2], self.pull_u, self.damping)
        })  # fmt: skip


@pytest.mark.parametrize(("k_w", "k_u", "damping"), [(1, 1, 1.0), (3, 2, 1.0), (1, 1, 0.5)])
def test_an_uninformed_helper_brings_a_real_agent_to_its_objective(k_w: int, k_u: int, damping: float) -> None:
    d = 5
    target = np.random.default_rng(0).normal(size=d)
    w = LSAAgent("w", target.tolist(), geometry={"condition": 5, "seed": 1}, step_size=0.3, inner_steps=k_w)
    u = LSAAgent("u", [0.0] * d, geometry={"condition": 3, "seed": 2}, step_size=0.7, inner_steps=k_u)
    pull_u = np.eye(d) - np.linalg.matrix_power(np.eye(d) - 0.7 * u.covariance, k_u)
    protocol = ProbingHelper(pull_u, damping)
    talk = Conversation([w, u], protocol, opening=np.full(d, 2.0), max_rounds=d + 3).run()
    states = np.stack([np.asarray(m.content) for m in talk.messages])
    np.testing.assert_allclose(states[1], states[0], atol=1e-12)  # the first probe is where W left the iterate
    errors = np.linalg.norm(states[1::2] - target, axis=1)  # after each round
    assert errors[d] > 0.1
    if damping == 1:
        assert errors[d + 1 :].max() <= 1e-12
    else:
        assert errors[-1] > 1e-3
        m_w = np.linalg.matrix_power(np.eye(d) - 0.3 * w.covariance, k_w)
        np.testing.assert_allclose(states[-1] - target, (1 - damping) * m_w @ (states[-3] - target), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: helper_error_map(np.eye(2), np.eye(3)), r"pull_u: shape \(3, 3\); expected \(2, 2\)"),
        (lambda: helper_error_map(np.eye(2), np.eye(2), 0), "damping: 0; expected a number above 0"),
        (lambda: objective_to_reach([1, 2, 3], [1, 2], np.eye(2)), r"x: shape \(3,\); expected \(2,\)"),
        (lambda: probe_points([1.0, np.nan]), r"centre\[1\]: nan"),
        (lambda: probe_points([1.0], 0), "scale: 0; expected a number above 0"),
        (lambda: estimate_turn(np.eye(3), np.eye(3)), "points: 3 that span 2 of 3 dimensions; expected at least 4"),
        (lambda: estimate_turn(np.eye(3), np.eye(2)), r"replies: shape \(2, 2\); expected \(3, 3\)"),
        (
            lambda: probing_objective(np.ones((3, 2)), np.ones((3, 2)), np.eye(2)),
            r"outputs_u: shape \(3, 2\); .*\(2, 2\)",
        ),
        (lambda: probing_objective(np.ones((1, 2)), [], np.eye(3)), r"x: shape \(2,\); expected \(3,\)"),
    ],
)
def test_invalid_input_is_reported(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()
