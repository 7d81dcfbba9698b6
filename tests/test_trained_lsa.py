"""Linear self-attention with trained weights: how near its turn is to the exact step, and the agent that uses it."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.agents.lsa.lsa_module import LSAModule, descend
from a2a_ray.agents.lsa.trained_weights import trained_weights
from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import make_task
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents
from a2a_ray.testing import check_agent

DIMS = [2, 5, 10, 20]
SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "train_lsa.py"
Array = np.ndarray[Any, np.dtype[np.float64]]


def drawn(d: int, count: int, condition: float, distance: tuple[float, float] = (0.1, 10)) -> tuple[Array, ...]:
    """Tokens (count, n, d + 1), iterates and S (w - w*) (count, d), n = 4 d; not drawn by the training script."""
    rng = np.random.default_rng((d, 77))
    tokens, iterates, gradients = np.empty((count, 4 * d, d + 1)), np.empty((count, d)), np.empty((count, d))
    for i in range(count):
        geometry = {"condition": float(condition ** rng.uniform()), "seed": i}
        objective, offset = rng.normal(size=(2, d))
        objective *= 10 ** rng.uniform(-1, 1) / np.linalg.norm(objective)
        offset *= np.exp(rng.uniform(*np.log(distance))) / np.linalg.norm(offset)
        prompt = make_task(objective.tolist(), geometry=geometry)
        tokens[i] = np.column_stack([prompt.examples, prompt.examples @ objective])
        iterates[i], gradients[i] = objective + offset, prompt.covariance @ offset
    return tokens, iterates, gradients


def errors(module: LSAModule, prompts: tuple[Array, ...], step_size: float = 0.1) -> Array:
    """|answer - exact| / |exact step|, all prompts in one call."""
    tokens, iterates, gradients = prompts
    off = descend(module, tokens, iterates, 1) - (iterates - step_size * gradients)
    return np.asarray(np.linalg.norm(off, axis=1) / np.linalg.norm(step_size * gradients, axis=1))


@pytest.mark.parametrize("condition", [1, 20])
@pytest.mark.parametrize("d", DIMS)
def test_a_trained_turn_is_the_gradient_step_on_held_out_prompts(d: int, condition: int) -> None:
    prompts = drawn(d, 400, condition)
    median, tail = np.quantile(errors(LSAModule.trained(d, 0.1), prompts), [0.5, 0.95])
    assert median <= 0.01
    assert tail <= 0.05
    card = (files("a2a_ray") / "data" / "lsa" / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| nothing: the training range \| (.+) \|$", card[card.index(f"\n## d = {d}\n") :], re.MULTILINE)
    assert row is not None
    told = float(row[1].split(" | ")[0 if condition == 1 else 3])
    assert told / 2 < median < told * 2, "the card is of other weights"
    assert errors(LSAModule(d, 0.1), prompts).max() <= 1e-6  # the analytic weights, the reference


@pytest.mark.parametrize("d", DIMS)
def test_the_error_grows_as_the_iterate_nears_the_objective(d: int) -> None:
    module = LSAModule.trained(d, 0.1)
    near, inside, far = (np.median(errors(module, drawn(d, 200, 20, (r, r)))) for r in (0.01, 1, 100))
    assert far < inside < near / 10


@pytest.mark.parametrize("d", DIMS)
def test_training_left_the_scale_free_and_found_the_rest(d: int) -> None:
    """value times c and query_key over c are the same layer; nothing else is free."""
    trained, exact = LSAModule.trained(d, 0.1), LSAModule(d, 0.1)
    assert not torch.allclose(trained.query_key, exact.query_key, rtol=0.01, atol=0.01)
    scale = trained.query_key.trace() / (d + 1)
    assert torch.allclose(trained.query_key / scale, exact.query_key, rtol=0, atol=1e-6)
    assert torch.allclose(trained.value * scale, exact.value, rtol=0, atol=1e-6)


@given(st.sampled_from(DIMS), st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(1, 200))
def test_only_the_covariance_of_the_examples_counts(d: int, seed: int, largest: float, condition: float) -> None:
    rng = np.random.default_rng(seed)
    objective, w = rng.normal(size=(2, d))
    eigenvalues = np.geomspace(largest / condition, largest, d).tolist()
    answers = []
    for n in (d, 4 * d):  # the rotation of the geometry depends on its seed alone
        geometry = {"examples": n, "eigenvalues": eigenvalues, "seed": seed}
        x = make_task(geometry=geometry, step_size=1e-6).examples
        for examples in (x, np.linalg.qr(rng.normal(size=(n, n))).Q @ x):
            tokens = np.column_stack([examples, examples @ objective])
            answers.append(descend(LSAModule.trained(d, 0.1), tokens, w[None], 1)[0])
    np.testing.assert_allclose(answers, [answers[0]] * 4, rtol=0, atol=1e-12 * (1 + largest))


@given(st.sampled_from(DIMS), st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_another_step_size_scales_the_step(d: int, seed: int, step_size: float) -> None:
    rng = np.random.default_rng(seed)
    tokens, w = rng.normal(size=(3, 2 * d, d + 1)), rng.normal(size=(3, d))
    step = descend(LSAModule.trained(d, 0.1), tokens, w, 1) - w
    other = descend(LSAModule.trained(d, step_size), tokens, w, 1) - w
    np.testing.assert_allclose(other, step * (step_size / 0.1), rtol=0, atol=1e-13 * (1 + step_size) * 100)


def trained_agent(d: int, **more: Any) -> LSAAgent:
    settings = {"geometry": {"condition": 10, "seed": 4}, "step_size": 0.5, "weights": "trained", **more}
    return LSAAgent("w", np.linspace(-1, 2, d).tolist(), **settings)


def asked(content: Any, **options: Any) -> Message:
    return Message("c", 1, "", content, options=options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("d", DIMS)
def test_the_agent_keeps_its_contract(d: int, dtype: str) -> None:
    agent = trained_agent(d, dtype=dtype, inner_steps=3)
    w = np.random.default_rng(d).normal(size=d)
    other = pickle.loads(pickle.dumps(agent))
    check_agent(agent, w, another=other, options={"objective": [0.5] * d})
    analytic = trained_agent(d, weights="analytic", inner_steps=3, dtype=dtype)
    assert (agent.step(asked(w)).content != analytic.step(asked(w)).content).any()  # it is the trained layer
    assert agent.bid(asked(w)) == analytic.bid(asked(w))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("d", DIMS)
def test_a_row_has_the_same_bits_in_any_batch(d: int, dtype: str) -> None:
    agent = trained_agent(d, dtype=dtype, inner_steps=2)
    rng = np.random.default_rng(d)
    plain = [asked(w) for w in rng.normal(size=(200, d))]  # at d = 20 that is more than one chunk
    told = [asked(m.content, objective=rng.normal(size=d)) for m in plain]
    for messages in (plain, told):
        alone = np.array([agent.step(m).content for m in messages])
        assert alone.dtype == dtype
        for size in (1, 2, 33, 200):
            batch = [a.content for a in agent.step_batch(messages[:size])]
            assert np.array(batch).tobytes() == alone[:size].tobytes()


@pytest.mark.parametrize("d", DIMS)
def test_a_turn_of_the_agent_is_its_gradient_steps(d: int) -> None:
    rng = np.random.default_rng(d)
    for options in ({}, {"objective": rng.normal(size=d).tolist()}):
        for inner in (1, 4):
            agent = trained_agent(d, inner_steps=inner)
            objective, w = np.array(options.get("objective", agent.objective)), rng.normal(size=d)
            expected = w
            for _ in range(inner):
                expected = expected - agent.step_size * agent.covariance @ (expected - objective)
            answer = agent.step(asked(w, **options)).content
            assert np.linalg.norm(answer - expected) <= 1e-5 * np.linalg.norm(expected - w)
            single = trained_agent(d, inner_steps=inner, dtype="float32").step(asked(w, **options)).content
            np.testing.assert_allclose(single, answer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("d", DIMS)
def test_two_trained_agents_settle_where_the_closed_form_says(d: int) -> None:
    w, u = (
        LSAAgent(
            name, {"angle": angle}, dim=d, step_size=0.8, geometry={"condition": 4, "seed": angle}, weights="trained"
        )
        for name, angle in (("w", 0), ("u", 70))
    )
    said = Conversation([w, u], opening=np.zeros(d), max_rounds=100).run().messages
    gap = np.linalg.norm(u.objective - w.objective)
    for message, predicted in zip(said[-2:], alternating(agents_of([w, u])).states, strict=True):
        assert np.linalg.norm(message.content - predicted) <= 1e-6 * gap
        assert np.linalg.norm(predicted - w.objective) > 0.1 * gap


def test_what_was_not_trained_is_told() -> None:
    config = {"kind": "lsa", "name": "w", "objective": [1.0, 0.0, 0.0], "weights": "trained"}
    with pytest.raises(ConfigurationError, match=r"agents\.0: weights: .*3 dimensions; expected .*2, 5, 10, 20"):
        agents.build(config, "agents.0")
    with pytest.raises(ConfigurationError, match=r"2, 5, 10, 20"):
        LSAModule.trained(3, 0.1)
    with pytest.raises(ConfigurationError, match=r"agents\.0\.weights: 'learned'"):
        agents.build({**config, "weights": "learned"}, "agents.0")
    with pytest.raises(ConfigurationError, match=r"weights: 'learned'; expected analytic or trained"):
        LSAAgent("w", [1.0, 0.0], weights="learned")  # type: ignore[arg-type]


def test_making_a_trained_agent_does_not_load_torch() -> None:
    code = (
        "import sys; from a2a_ray.agents.lsa.lsa_agent import LSAAgent; LSAAgent('w', [1.0, 2.0], weights='trained');"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def script() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip(f"no {SCRIPT.name}: it is not part of what is built")
    spec = importlib.util.spec_from_file_location("train_lsa", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_lsa"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_finds_the_weights_again(script: ModuleType) -> None:
    """From random weights that are far from the analytic ones; another processor rounds in another way."""
    stored, found = trained_weights(2), script.train(2, int(trained_weights(2)["seed"]))
    for name, weights in found.named_parameters():
        np.testing.assert_allclose(weights.detach().numpy(), stored[name], rtol=0, atol=1e-3)
    assert errors(found, drawn(2, 400, 20)).max() <= 0.01


def test_the_script_draws_what_its_card_says(script: ModuleType) -> None:
    examples, query, gradient = (t.numpy() for t in script.Prompts().draw(np.random.default_rng(1), 500, 5))
    x, y = examples[:, :, :5], examples[:, :, 5]
    objective = np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(x, y, strict=True)])
    covariance = x.transpose(0, 2, 1) @ x / x.shape[1]
    offset = query[:, :5] - objective
    np.testing.assert_allclose(gradient, np.einsum("bij,bj->bi", covariance, offset), atol=1e-12)
    assert (query[:, 5] == -1).all()
    eigenvalues = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(eigenvalues[:, -1], 1, atol=1e-12)
    for found, low, high in (
        (1 / eigenvalues[:, 0], 1, 20),
        (np.linalg.norm(offset, axis=1), 0.1, 10),
        (np.linalg.norm(objective, axis=1), 0.1, 10),
    ):
        assert low * (1 - 1e-9) <= found.min() < low * 1.1
        assert high / 1.1 < found.max() <= high * (1 + 1e-9)
        assert np.median(found) == pytest.approx(np.sqrt(low * high), rel=0.3)  # log-uniform
    share = np.log(eigenvalues[:, 1:-1]) / np.log(eigenvalues[:, :1])
    assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.04)
    assert np.abs((objective / np.linalg.norm(objective, axis=1, keepdims=True)).mean(0)).max() < 0.1
