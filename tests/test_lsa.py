"""The agent whose turn is one gradient step in context, and the prompt it is given."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError
from a2a_ray.core.linear_task import make_task, read_objective
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents

DTYPES = ["float64", "float32"]


def asked(content: Any, **options: Any) -> Message:
    return Message("c", 1, "", content, options=options)


def random_agent(seed: int, d: int, n: int, dtype: Any = "float64", **more: Any) -> LSAAgent:
    rng = np.random.default_rng(seed)
    examples = rng.normal(size=(n, d))
    largest = float(np.linalg.norm(examples, 2)) ** 2 / n
    step = float(rng.uniform(0.1, 1.9)) / largest
    return LSAAgent("w", rng.normal(size=d).tolist(), examples=examples.tolist(), step_size=step, dtype=dtype, **more)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_turn_is_gradient_descent_on_its_own_loss(seed: int, d: int, n: int, inner: int) -> None:
    agent = random_agent(seed, d, n, inner_steps=inner)
    w = np.random.default_rng(seed + 1).normal(size=d)
    expected = w
    for _ in range(inner):
        expected = expected - agent.step_size * agent.covariance @ (expected - agent.objective)
    answer = agent.step(asked(w)).content
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == np.float64
    scale = np.abs(w).max() + np.abs(agent.objective).max()
    assert np.abs(answer - expected).max() <= 4e-15 * inner * scale * math.sqrt(d)


def test_the_layer_is_textbook_linear_attention_with_the_querys_key_masked() -> None:
    import torch

    d, n = 5, 13
    agent = random_agent(3, d, n)
    module = copy.deepcopy(agent.module)
    torch.manual_seed(0)
    for weights in (module.query_key, module.value):  # any weights, as after training
        weights.data = torch.randn(d + 1, d + 1, dtype=torch.float64)
    x = torch.from_numpy(agent.examples.copy())
    y = x @ torch.from_numpy(agent.objective.copy())
    query = torch.cat([torch.randn(d, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)])
    tokens = torch.cat([torch.cat([x, y[:, None]], 1), query[None]])  # (n + 1, d + 1), the query last
    mask = torch.ones(n + 1, n + 1, dtype=torch.float64)
    mask[:, n] = 0
    scores = mask * (tokens @ (tokens @ module.query_key.T).T).T
    attended = tokens + scores @ (tokens @ module.value.T) / n
    got = module(tokens[:n], query[None])
    assert torch.allclose(got[0], attended[n], rtol=0, atol=1e-13)
    got.sum().backward()  # the weights can be trained
    assert module.query_key.grad is not None
    assert module.value.grad is not None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", range(1, 21))
def test_a_row_has_the_same_bits_in_any_batch(d: int, dtype: str) -> None:
    rng = np.random.default_rng(d)
    for n in (1, int(rng.integers(2, 50)), 50):
        agent = random_agent(d, d, n, dtype, inner_steps=1 + d % 2)
        objectives = rng.normal(size=(64, d))
        plain = [asked(w) for w in rng.normal(size=(64, d))]
        some = [m if i % 3 else asked(m.content, objective=objectives[i]) for i, m in enumerate(plain)]
        for messages, sizes in ((plain, range(1, 65)), (some, (1, 2, 7, 64))):
            alone = [agent.step(m).content for m in messages]
            for size in sizes:
                batch = [a.content for a in agent.step_batch(messages[:size])]
                assert np.array(batch).tobytes() == np.array(alone[:size]).tobytes()
                assert batch[0].dtype == dtype  # type: ignore[union-attr]


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    import torch

    agent = random_agent(0, 20, 50, "float32")
    messages = [asked(w) for w in np.random.default_rng(0).normal(size=(300, 20))]
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers.append(np.array([a.content for a in agent.step_batch(messages)]).tobytes())
    finally:
        torch.set_num_threads(before)
    assert answers[0] == answers[1] == answers[2]


def test_batches_answer_in_order_and_own_their_memory() -> None:
    agent = random_agent(0, 3, 5)
    messages = [Message("c", turn, "", np.full(3, float(turn)), seed=turn) for turn in (4, 2, 9)]
    answers = agent.step_batch(messages)
    assert [(a.turn, a.seed, a.sender) for a in answers] == [(4, 4, "w"), (2, 2, "w"), (9, 9, "w")]
    assert all(isinstance(a.content, np.ndarray) and a.content.base is None for a in answers)
    assert agent.step_batch([]) == []
    np.testing.assert_array_equal(messages[0].content, np.full(3, 4.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_objective_of_one_turn_is_as_good_as_a_configured_one(dtype: Any) -> None:
    settings: dict[str, Any] = {"dim": 4, "geometry": {"condition": 7, "seed": 3}, "step_size": 0.5, "dtype": dtype}
    w = asked(np.linspace(-1, 1, 4))
    for objective in ([1.0, 2.0, 3.0, 4.0], {"angle": 70, "norm": 2.0, "seed": 5}):
        own = LSAAgent("u", objective, **settings)
        other = LSAAgent("u", [0.0] * 4, **settings)
        told = asked(w.content, objective=objective)
        assert own.step(w).content.tobytes() == other.step(told).content.tobytes()  # type: ignore[union-attr]
        assert own.bid(w) == other.bid(told) != other.bid(w)
        assert own.bid(asked(own.objective)) == 0
    assert LSAAgent.turn_options == {"objective"}


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_the_bid_is_the_residual(seed: int, d: int, n: int) -> None:
    agent = random_agent(seed, d, n)
    w = np.random.default_rng(seed + 1).normal(size=d)
    off = w - agent.objective
    assert agent.bid(asked(w)) == pytest.approx(math.sqrt(off @ agent.covariance @ off), rel=1e-9)
    assert agent.bid(asked(w)) == pytest.approx(
        np.linalg.norm(agent.examples @ agent.objective - agent.examples @ w) / math.sqrt(n), rel=1e-9
    )


@given(st.integers(0, 10**6), st.floats(-360, 360), st.integers(2, 12), st.floats(0, 10))
@settings(max_examples=60, deadline=None)
def test_objectives_by_angle_lie_in_one_plane(seed: int, angle: float, d: int, norm: float) -> None:
    at = {a: read_objective({"angle": a, "norm": norm, "seed": seed}, d) for a in (0, 90, angle)}
    assert at[0] @ at[90] == pytest.approx(0, abs=1e-13 * (1 + norm**2))
    assert np.linalg.norm(at[angle]) == pytest.approx(norm, abs=1e-12)
    gap = np.linalg.norm(at[angle] - at[0])
    assert gap == pytest.approx(abs(2 * norm * math.sin(math.radians(angle) / 2)), abs=1e-12 * (1 + norm))
    again = read_objective({"angle": angle, "norm": norm, "seed": seed}, d)
    assert again.tobytes() == at[angle].tobytes()
    if norm > 1e-3:
        assert not np.allclose(at[0], read_objective({"angle": 0, "norm": norm, "seed": seed + 1}, d))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 20), st.floats(1, 1e4))
@settings(max_examples=60, deadline=None)
def test_examples_have_the_covariance_that_was_asked_for(seed: int, d: int, more: int, condition: float) -> None:
    geometry = {"examples": d + more, "condition": condition, "seed": seed}
    prompt = make_task(dim=d, geometry=geometry)
    assert prompt.examples.shape == (d + more, d)
    found = np.linalg.eigvalsh(prompt.covariance)
    assert found == pytest.approx(np.geomspace(1 / condition, 1, d) if d > 1 else [1.0], abs=1e-13)
    spectrum = [0.0] * (d - 1) + [1.7]
    singular = make_task(geometry={"examples": 1, "eigenvalues": spectrum, "seed": seed})
    assert np.linalg.eigvalsh(singular.covariance) == pytest.approx(spectrum, abs=1e-13)


def test_the_geometry_is_isotropic_by_default_and_follows_its_seed() -> None:
    prompt = make_task(dim=6)
    assert prompt.examples.shape == (24, 6)
    np.testing.assert_allclose(prompt.covariance, np.eye(6), atol=1e-14)
    one, other = (make_task(dim=6, geometry={"condition": 10, "seed": s}).covariance for s in (1, 2))
    assert not np.allclose(one, other)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"objective": {"angle": 10}}, "dim is missing"),
    ({"objective": {"angle": 10}, "dim": 1}, "at least 2 dimensions"),
    ({"objective": {"angel": 10}, "dim": 2}, "Did you mean 'angle'"),
    ({"objective": {"norm": 1.0}, "dim": 2}, "key 'angle'"),
    ({"objective": {"angle": "ten"}, "dim": 2}, "objective.angle: 'ten'"),
    ({"objective": {"angle": 10, "norm": -1}, "dim": 2}, "at least 0"),
    ({"objective": {"angle": 10, "seed": -1}, "dim": 2}, "objective.seed: -1"),
    ({"objective": []}, "objective: shape (0,)"),
    ({"objective": [1.0, math.nan]}, "objective: NaN or infinite"),
    ({"objective": [1.0], "dim": 2}, "dim: 2, objective: 1"),
    ({"objective": [1.0], "dim": 0}, "they must agree"),
    ({"objective": {"angle": 1}, "dim": 0}, "dim: 0; expected at least 1"),
    ({"objective": [1.0], "examples": []}, "examples: shape (0,)"),
    ({"objective": [1.0], "examples": [[1.0], [1.0, 2.0]]}, "expected numbers in the shape (n, d)"),
    ({"objective": [1.0, 2.0], "examples": [[1.0]]}, "objective: 2, examples: 1"),
    ({"objective": [1.0], "examples": [[math.inf]]}, "examples: NaN or infinite"),
    ({"objective": [1.0], "examples": [[1.0]], "geometry": {}}, "both given"),
    ({"objective": [1.0], "geometry": {"example": 3}}, "Did you mean 'examples'"),
    ({"objective": [1.0, 1.0], "geometry": {"examples": 1}}, "at least 2, the rank"),
    ({"objective": [1.0], "geometry": {"condition": 0.5}}, "at least 1"),
    ({"objective": [1.0], "geometry": {"eigenvalues": [-1.0]}}, "none below 0"),
    ({"objective": [1.0], "geometry": {"eigenvalues": [0.0]}}, "at least one above"),
    ({"objective": [1.0], "geometry": {"eigenvalues": [1.0], "condition": 2}}, "both given"),
    ({"objective": [1.0], "step_size": 0.0}, "above 0"),
    ({"objective": [1.0], "step_size": math.nan}, "finite"),
    ({"objective": [1.0], "step_size": 2.0}, "less than 2, which is 2 / lambda_max"),
    ({"objective": [1.0], "examples": [[2.0]], "step_size": 0.6}, "less than 0.5, which is 2 / lambda_max"),
    ({"objective": [1.0], "inner_steps": 0}, "inner_steps: 0"),
    ({"objective": [1.0], "dtype": "float16"}, "dtype: 'float16'"),
]


@pytest.mark.parametrize(("config", "sentence"), BAD, ids=[s for _, s in BAD])
def test_bad_settings_get_one_clear_sentence(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LSAAgent("w", **config)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_registry_builds_it_and_checks_its_settings() -> None:
    agent = agents.build({"kind": "lsa", "name": "w", "objective": {"angle": 30}, "dim": 2}, "agents.0")
    assert agent.objective.shape == (2,)
    with pytest.raises(ConfigurationError, match=r"agents\.0\.step_sizes.*Did you mean 'step_size'"):
        agents.build({"kind": "lsa", "name": "w", "objective": [1.0], "step_sizes": 0.1}, "agents.0")
    with pytest.raises(ConfigurationError, match=r"agents\.0: step_size: 3;"):
        agents.build({"kind": "lsa", "name": "w", "objective": [1.0], "step_size": 3}, "agents.0")
    with pytest.raises(ConfigurationError, match=r"agents\.0\.objective: 'north'"):
        agents.build({"kind": "lsa", "name": "w", "objective": "north"}, "agents.0")


@pytest.mark.parametrize("content", ["hello", np.zeros(2), np.zeros((3, 1))])
def test_what_it_cannot_read_is_told_with_shapes(content: Any) -> None:
    agent = random_agent(0, 3, 5)
    for ask in (agent.step, agent.bid):
        with pytest.raises(AgentError, match=r"agent 'w' received .*\(3,\)"):
            ask(asked(content))
    with pytest.raises(AgentError, match=r"agent 'w' at turn 1: options: objective: 2 numbers; expected 3"):
        agent.step(asked(np.zeros(3), objective=[1.0, 2.0]))


def test_a_diverging_iterate_fails_the_conversation_by_name() -> None:
    agent = random_agent(0, 3, 5)
    with pytest.raises(AgentError, match="NaN or infinite"):
        Conversation([agent], opening=np.array([1.0, math.nan, 0.0])).run()


def test_two_agents_talk_in_their_own_dtypes_and_survive_pickling() -> None:
    w = LSAAgent("w", {"angle": 0}, dim=4, step_size=0.5)
    u = LSAAgent("u", {"angle": 90}, dim=4, step_size=0.5, dtype="float32")
    first = Conversation([w, u], opening=np.zeros(4), max_rounds=3).run()
    assert [m.content.dtype for m in first.messages] == [np.float64, np.float32] * 3  # type: ignore[union-attr]
    clones = pickle.loads(pickle.dumps([w, u]))
    again = Conversation(clones, opening=np.zeros(4), max_rounds=3).run()
    assert [m.content.tolist() for m in again] == [m.content.tolist() for m in first]  # type: ignore[union-attr]


def test_importing_and_making_one_does_not_load_torch() -> None:
    code = (
        "import sys; from a2a_ray.agents.lsa.lsa_agent import LSAAgent; LSAAgent('w', [1.0, 2.0]);"
        " import a2a_ray.protocols.newton_helper; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
