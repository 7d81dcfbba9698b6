"""Where agents settle that take turns: the closed forms against plain simulation and against real conversations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import LinearAgents, agents_of, linear_agents
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium, alternating, round_map, simultaneous
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from tests.strategies import linear_teams

Array = np.ndarray[Any, np.dtype[np.float64]]


def turn(agents: LinearAgents, i: int, x: Array) -> Array:
    """Return the states of plain gradient steps."""
    for _ in range(agents.inner_steps[i]):
        x = x - agents.step_sizes[i] * agents.covariances[i] @ (x - agents.objectives[i])
    return x


def enough(found: RoundEquilibrium) -> int:
    """Rounds after which 1e-13 of the way is left, even where the round's map is far from normal."""
    return 20 + math.ceil(45 * found.half_life)


def scale(agents: LinearAgents) -> float:
    return float(np.linalg.norm(agents.objectives - agents.objectives[0], axis=1).max())


@given(linear_teams(), st.data())
def test_any_fixed_order_settles_at_its_closed_form(agents: LinearAgents, data: st.DataObject) -> None:
    n = len(agents)
    order = data.draw(st.none() | st.lists(st.integers(0, n - 1), min_size=1, max_size=8))
    found = alternating(agents, order)
    assume(found.spectral_radius <= 0.99)
    speakers = order or list(range(n))
    x = np.random.default_rng(n).normal(size=agents.dim)
    states: list[Array] = []
    for _ in range(enough(found)):
        states = []
        for i in speakers:
            x = turn(agents, i, x)
            states.append(x)
    bound = 1e-10 * scale(agents)
    assert found.speakers == tuple(speakers)
    assert found.converges
    assert not found.depends_on_start
    np.testing.assert_allclose(found.states, states, rtol=0, atol=bound)
    np.testing.assert_allclose(found.round_end, x, rtol=0, atol=bound)
    for i in range(n):
        last = [state for j, state in zip(speakers, states, strict=True) if j == i]
        read = last[-1] if last else x
        np.testing.assert_allclose(found.residuals[i], read - agents.objectives[i], rtol=0, atol=bound)
    a, b = round_map(agents, order)
    np.testing.assert_allclose(a @ found.round_end + b, found.round_end, rtol=0, atol=bound)
    assert found.spectral_radius == pytest.approx(np.abs(np.linalg.eigvals(a)).max(), abs=1e-10)


@given(linear_teams())
def test_simultaneous_answers_that_are_averaged(agents: LinearAgents) -> None:
    found = simultaneous(agents)
    assume(found.spectral_radius <= 0.99)
    x = np.random.default_rng(0).normal(size=agents.dim)
    for _ in range(enough(found)):
        answers = [turn(agents, i, x) for i in range(len(agents))]
        x = np.mean(answers, axis=0)
    bound = 1e-10 * scale(agents)
    np.testing.assert_allclose(found.round_end, x, rtol=0, atol=bound)
    np.testing.assert_allclose(found.states, answers, rtol=0, atol=bound)
    np.testing.assert_allclose(found.residuals, answers - agents.objectives, rtol=0, atol=bound)
    radius = np.abs(np.linalg.eigvalsh(agents.contractions.mean(axis=0))).max()
    assert found.spectral_radius == pytest.approx(radius, abs=1e-12)


@given(linear_teams(dims=(1, 4)))
def test_simultaneous_answers_that_go_round_a_ring(agents: LinearAgents) -> None:
    found = simultaneous(agents, combine=None)
    assume(found.spectral_radius <= 0.99)
    n, d = len(agents), agents.dim
    said = [np.random.default_rng(0).normal(size=d)] * n
    for _ in range(n * enough(found)):
        said = [turn(agents, i, said[i - 1]) for i in range(n)]
    np.testing.assert_allclose(found.states, said, rtol=0, atol=1e-10 * scale(agents))
    whole = np.zeros((n, d, n, d))  # the map of all answers of a round
    for i in range(n):
        whole[i, :, i - 1] = agents.contractions[i]
    radius = np.abs(np.linalg.eigvals(whole.reshape(n * d, n * d))).max()
    assert found.spectral_radius == pytest.approx(radius, abs=1e-6)  # n-th roots of rounding near 0
    assert found.spectral_radius**n == pytest.approx(radius**n, abs=1e-10)


@given(linear_teams(singular=True), st.sampled_from(["alternating", "mean", "ring"]))
def test_a_common_null_space_keeps_the_start(agents: LinearAgents, how: str) -> None:
    start = np.random.default_rng(0).normal(size=agents.dim)

    def settle(opening: Array | None) -> RoundEquilibrium:
        if how == "alternating":
            return alternating(agents, start=opening)
        return simultaneous(agents, "mean" if how == "mean" else None, opening)

    found = settle(start)
    assume(found.spectral_radius <= 0.99)
    said = [start] * len(agents)
    x = start
    for _ in range(len(agents) * enough(found)):
        if how == "ring":
            said = [turn(agents, i, said[i - 1]) for i in range(len(agents))]
        elif how == "mean":
            said = [turn(agents, i, x) for i in range(len(agents))]
            x = np.mean(said, axis=0)
        else:
            said = [x := turn(agents, i, x) for i in range(len(agents))]
    np.testing.assert_allclose(found.states, said, rtol=0, atol=1e-10 * (scale(agents) + 1))
    rank = np.linalg.matrix_rank(agents.covariances.sum(axis=0), tol=1e-10)
    assert found.depends_on_start == (rank < agents.dim)
    if found.depends_on_start:
        with pytest.raises(
            ConfigurationError, match=rf"start: not given; .* null space of {agents.dim - rank} of {agents.dim}"
        ):
            settle(None)
    else:
        np.testing.assert_allclose(settle(None).states, found.states, rtol=0, atol=1e-12 * scale(agents))


@given(linear_teams(dims=(1, 5)))
def test_small_steps_settle_at_the_mean_weighted_by_steps(agents: LinearAgents) -> None:
    tiny = linear_agents(agents.covariances, agents.objectives, 1e-6 * agents.step_sizes, agents.inner_steps)
    weights = (tiny.step_sizes * tiny.inner_steps)[:, None, None] * tiny.covariances
    weighted = np.einsum("nij,nj->i", weights, tiny.objectives)
    expected = np.linalg.solve(weights.sum(axis=0), weighted)
    np.testing.assert_allclose(alternating(tiny).round_end, expected, rtol=0, atol=2e-3 * scale(tiny))
    np.testing.assert_allclose(simultaneous(tiny).round_end, expected, rtol=0, atol=1e-4 * scale(tiny))


@given(linear_teams())
def test_residuals_keep_their_digits_far_from_the_origin(agents: LinearAgents) -> None:
    near, far = (
        alternating(agents),
        alternating(
            linear_agents(agents.covariances, agents.objectives + 2.0**20, agents.step_sizes, agents.inner_steps)
        ),
    )
    np.testing.assert_allclose(far.residuals, near.residuals, rtol=0, atol=1e-7 * scale(agents))
    moved = agents.centred(np.ones(agents.dim))
    np.testing.assert_allclose(alternating(moved).states + 1, near.states, rtol=0, atol=1e-10 * scale(agents))


def test_stable_steps_need_not_be_an_interval() -> None:
    def settles(step: float) -> bool:  # curvatures 10 and 1: 2 / lambda_max is 0.2 for the first
        agents = linear_agents([[[10.0]], [[1.0]]], [[0.0], [1.0]], step)
        found = alternating(agents, allow_divergence=True)
        assert found.spectral_radius == pytest.approx(abs((1 - 10 * step) * (1 - step)))
        if found.converges:
            np.testing.assert_array_equal(found.states, alternating(agents).states)
        else:
            with pytest.raises(
                ConfigurationError, match=r"step_sizes\[0\]: .* expected less than 0.2, which is 2 / lambda_max"
            ):
                alternating(agents)
        return found.converges

    assert [settles(step) for step in (0.1, 0.22, 0.25, 0.5, 0.85, 0.9, 1.0, 1.05, 1.2)] == [
        True, True, False, False, False, True, True, True, False
    ]  # fmt: skip


def test_half_lives() -> None:
    agents = linear_agents([np.eye(2)] * 2, [[0.0, 0], [1, 0]], 0.5)
    assert alternating(agents).half_life == pytest.approx(0.5)
    assert simultaneous(agents).half_life == pytest.approx(1)
    assert simultaneous(agents, None).half_life == pytest.approx(1)
    assert alternating(linear_agents([np.eye(1)], [[3.0]], 1.0)).half_life == 0
    unstable = alternating(linear_agents([np.eye(1)], [[3.0]], 2.5), allow_divergence=True)
    assert unstable.half_life == math.inf
    assert not unstable.converges
    np.testing.assert_array_equal(unstable.states, [[3.0]])


def lsa_agents(n: int, d: int = 6) -> list[LSAAgent]:
    return [
        LSAAgent(
            f"a{i}",
            np.random.default_rng(i).normal(size=d).tolist(),
            geometry={"condition": 4, "seed": i},
            step_size=0.4 + 0.3 * i,
            inner_steps=1 + i % 2,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("protocol", ["order", "mean", "ring"])
def test_real_conversations_settle_at_the_closed_form(n: int, protocol: str) -> None:
    team = lsa_agents(n)
    agents = agents_of(team)
    order = [0, 1, *range(n), 0]
    found, turns_of = {
        "order": lambda: (alternating(agents, order), Alternating(order=[f"a{i}" for i in order])),
        "mean": lambda: (simultaneous(agents), Simultaneous("mean")),
        "ring": lambda: (simultaneous(agents, None), Simultaneous()),
    }[protocol]()
    turns = enough(found) * len(found.speakers) * (n if protocol == "ring" else 1)
    transcript = Conversation(team, turns_of, opening=np.full(6, 2.0), max_turns=turns).run()
    last = transcript.messages[-len(found.speakers) :]
    assert [m.sender for m in last] == [f"a{i}" for i in found.speakers]
    np.testing.assert_allclose([m.content for m in last], found.states, rtol=0, atol=1e-10 * scale(agents))
    assert found.residual_norms.min() > 0.01 * scale(agents)  # nobody is where it wants to be


EYE = np.eye(2)
GOOD: dict[str, Any] = {"covariances": [EYE, EYE], "objectives": [[0, 0], [1, 1]], "step_sizes": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariances": EYE}, r"covariances: shape \(2, 2\); expected \(N, d, d\)"),
        (
            {"covariances": [EYE, [[1, 2], [3, 4]]]},
            r"covariances\[1\]: not symmetric: entries \[0, 1\] and \[1, 0\] are",
        ),
        ({"covariances": [-EYE, EYE]}, r"covariances\[0\]: smallest eigenvalue -1; expected a positive semi-definite"),
        ({"covariances": [EYE, [[np.nan, 0], [0, 1]]]}, r"covariances\[1, 0, 0\]: nan; expected finite"),
        ({"objectives": [[0, 0, 0], [1, 1, 1]]}, r"objectives: shape \(2, 3\); expected \(2, 2\)"),
        ({"objectives": [[0, 0], [np.inf, 1]]}, r"objectives\[1, 0\]: inf; expected finite"),
        ({"objectives": "here"}, r"objectives: here; expected numbers in the shape \(2, 2\)"),
        ({"step_sizes": [0.5, 0]}, r"step_sizes\[1\]: 0; expected a number above 0"),
        ({"step_sizes": [0.5, 0.5, 0.5]}, r"step_sizes: shape \(3,\); expected \(2,\)"),
        ({"inner_steps": 0}, r"inner_steps: 0; expected a whole number of at least 1"),
        ({"inner_steps": 1.5}, r"inner_steps: 1.5; expected a whole number"),
        ({"inner_steps": [1, 1, 1]}, r"inner_steps: 3 numbers; expected one, or one for each of the 2 agents"),
    ],
)
def test_invalid_agents_are_reported(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        linear_agents(**(GOOD | change))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": []}, "order: empty"),
        ({"order": [0, 2]}, "order: 2; expected numbers of agents, 0 to 1"),
        ({"order": [True]}, "order: True"),
        ({"start": [1, 2, 3]}, r"start: shape \(3,\); expected \(2,\)"),
        ({"start": [1, np.nan]}, r"start\[1\]: nan"),
    ],
)
def test_invalid_conversations_are_reported(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        alternating(linear_agents(**GOOD), **settings)


def test_other_invalid_input_is_reported() -> None:
    with pytest.raises(ConfigurationError, match="combine: 'median'"):
        simultaneous(linear_agents(**GOOD), "median")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="agents: none given"):
        agents_of([])
    pair = [LSAAgent("a", [0.0]), LSAAgent("b", [0.0, 1.0])]
    with pytest.raises(ConfigurationError, match=r"agents: objectives of shapes \(1,\), \(2,\)"):
        agents_of(pair)
    with pytest.raises(ConfigurationError, match=r"carries some direction over unchanged .* expected less than 2, 2"):
        alternating(linear_agents([EYE, EYE], GOOD["objectives"], [3.0, 1.5]), allow_divergence=True)
    with pytest.raises(
        ConfigurationError, match=r"step_sizes: 1e\+200, 1e\+200; one turn leaves the range .* less than 2, 2, which"
    ):
        linear_agents([EYE, EYE], GOOD["objectives"], 1e200, 3)
    with pytest.raises(ConfigurationError, match="the spectral radius of a round is inf"):
        alternating(linear_agents([EYE, EYE], GOOD["objectives"], 1e200))
    with pytest.raises(ConfigurationError, match=r"too near to 1 .* expected larger steps"):
        alternating(linear_agents([EYE, EYE], GOOD["objectives"], 1e-14))
