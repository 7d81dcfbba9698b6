"""In-context regression: prompt, strict reading, re-asks and failures, over HTTP to a calculator that rounds."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.function import FunctionAgent
from a2a_ray.agents.hf.hf_agent import HFAgent
from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.agents.lsa.regression import RegressionAgent, parse_vector
from a2a_ray.agents.openai.openai_agent import SEEDS, OpenAIAgent
from a2a_ray.analysis.dynamics.affine import linear_agents
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium, alternating
from a2a_ray.analysis.equilibria.assessment import assess_equilibrium
from a2a_ray.analysis.equilibria.trajectory_fit import positions_by_agent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, InvalidResponseError
from a2a_ray.core.linear_task import read_objective
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.estimate import estimate
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.testing import check_agent
from tests.rounding_server import CHATTER, MODEL, RoundingServer, digest, gradient_step

ROOT = Path(__file__).resolve().parents[1]
GEOMETRY = {"examples": 8, "condition": 3}
W: dict[str, Any] = {"objective": {"angle": 0.0}, "dim": 2, "geometry": {**GEOMETRY, "seed": 1}, "step_size": 0.5}
U: dict[str, Any] = {"objective": {"angle": 90.0}, "dim": 2, "geometry": {**GEOMETRY, "seed": 2}, "step_size": 0.4}
START = np.array([0.3, -0.2])
# What a run is told; the class itself where it is not to depend on the name "regression".
KIND = "a2a_ray.agents.lsa.regression:RegressionAgent"


def model(server: RoundingServer, **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "model": MODEL, "base_url": server.url, "api_key_env": None, "max_attempts": 1, **more}


def answering(answer: str, **more: Any) -> RegressionAgent:
    return RegressionAgent("ann", [1.0, 2.0], model_agent=FunctionAgent("f", lambda _: answer), **more)


def ask(agent: RegressionAgent, content: Any = START, **parts: Any) -> Message:
    return asyncio.run(agent.step(Message("c", 3, "bob", content, **parts)))


@pytest.fixture
def server() -> Iterator[RoundingServer]:
    with RoundingServer() as running:
        yield running


# --- what is asked ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 12), st.integers(1, 3))
def test_the_prompt_tells_all_that_a_step_needs(seed: int, d: int, n: int, inner: int) -> None:
    rng = np.random.default_rng(seed)
    examples, objective, w = rng.normal(size=(n, d)), rng.normal(size=d), rng.normal(size=d)
    step = 0.9 / float(np.linalg.norm(examples, 2)) ** 2 * n
    prompt = {"examples": examples.tolist(), "step_size": step, "inner_steps": inner}
    agent = RegressionAgent("ann", [0.0] * d, model_agent=FunctionAgent("f", str), digits=17, **prompt)
    expected = w
    for _ in range(inner):
        expected = expected - step * examples.T @ (examples @ (expected - objective)) / n
    np.testing.assert_allclose(gradient_step(agent.prompt(w, objective)), expected, rtol=1e-11, atol=1e-12)


def test_digits_and_defaults_of_the_prompt() -> None:
    agent = answering("[1, 2]", digits=3, examples=[[1 / 3, 2 / 3]])
    assert "x = [0.333, 0.667], y = 1.67" in agent.prompt()
    assert "w = [0, 0]" in agent.prompt()
    assert "exactly 2 numbers" in agent.prompt()
    assert "L(w) = 1/(2*1) * sum of (x . w - y)^2" in agent.prompt()
    assert "w_new = w - (eta/1) * sum over all examples of (x . w - y) * x." in agent.prompt()
    assert "done" not in agent.prompt()


# --- what is read -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53), min_size=1))
def test_a_json_array_is_read_as_it_stands(values: list[float]) -> None:
    for text in (json.dumps(values), f"\n {json.dumps(values, indent=2)}\t", f"```json\n{json.dumps(values)}\n```"):
        read = parse_vector(text, len(values))
        assert read.dtype == np.float64
        assert read.tolist() == values


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        (CHATTER, "not a JSON array and nothing else"),
        ("[1, 2].", "not a JSON array and nothing else"),
        ("w = [1, 2]", "not a JSON array and nothing else"),
        ("[1, 2] [1, 2]", "not a JSON array and nothing else"),
        ("[1, 2,]", "not a JSON array and nothing else"),
        ("(1, 2)", "not a JSON array and nothing else"),
        ("[1, +2]", "not a JSON array and nothing else"),
        ("[1, 1/2]", "not a JSON array and nothing else"),
        ("[" * 100_000, "not a JSON array and nothing else"),
        (f"[1, {'9' * 5000}]", "not a JSON array and nothing else"),
        ("Here:\n```json\n[1, 2]\n```", "not a JSON array and nothing else"),
        ("```json\n[1, 2]\n```\n```json\n[1, 3]\n```", "not a JSON array and nothing else"),
        ('{"w": [1, 2]}', "not an array"),
        ("1", "not an array"),
        ("[1]", "it has 1 entries; expected 2"),
        ("[[1, 2]]", "it has 1 entries; expected 2"),
        ("[1, 2, 3]", "it has 3 entries; expected 2"),
        ('[1, "2"]', '"2" in it is not a number'),
        ("[1, null]", "null in it is not a number"),
        ("[1, true]", "true in it is not a number"),
        ("[1, []]", "[] in it is not a number"),
        ("[1, NaN]", "NaN or infinite"),
        ("[1, -Infinity]", "NaN or infinite"),
        ("[1, 1e999]", "NaN or infinite"),
        (f"[1, {'9' * 400}]", "NaN or infinite"),
    ],
)
def test_what_is_no_vector_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the reason is compared below
        parse_vector(text, 2)
    assert reason in str(caught.value)
    with pytest.raises(InvalidResponseError) as failed:
        ask(answering(text))
    assert str(failed.value).count(reason) == 2


# --- over HTTP ----------------------------------------------------------------------------------------------------


def settled(w: Any, u: Any) -> RoundEquilibrium:
    steps = [w.step_size, u.step_size]
    return alternating(linear_agents([w.covariance, u.covariance], [w.objective, u.objective], steps))


def tracks(transcript: Transcript) -> dict[str, np.ndarray[Any, Any]]:
    return {n: np.array([m.content for m in transcript.messages if m.sender == n]) for n in transcript.agents}


def test_two_agents_settle_where_the_closed_form_says_within_rounding(server: RoundingServer) -> None:
    pair = [RegressionAgent(n, model_agent=model(server), **p) for n, p in (("w", W), ("u", U))]
    talk = Conversation(pair, opening=np.zeros(2), max_rounds=40, seed=3).run()
    w, u = pair
    predicted = settled(w, u)
    m_w, m_u = (np.eye(2) - a.step_size * a.covariance for a in pair)
    each = 0.5e-3 * np.sqrt(2)  # the most that one rounding moves a state
    for name, state, last in (("w", predicted.states[0], m_w), ("u", predicted.states[1], m_u)):
        bound = each * (np.linalg.norm(last, 2) + 1) / (1 - np.linalg.norm(m_w, 2) * np.linalg.norm(m_u, 2))
        assert np.linalg.norm(tracks(talk)[name][-1] - state) <= bound
        objective = next(a.objective for a in pair if a.name == name)
        assert np.linalg.norm(state - objective) > 30 * bound  # biased: far from where it wants to be
    assert len(server.requests) == 80


def test_with_noise_the_mean_settles_there() -> None:
    sigma, rounds, transient = 0.01, 160, 15
    with RoundingServer(noise=sigma) as server:
        pair = [RegressionAgent(n, model_agent=model(server), **p) for n, p in (("w", W), ("u", U))]
        talk = Conversation(pair, opening=np.zeros(2), max_rounds=rounds, seed=4).run()
    m_w, m_u = (np.eye(2) - a.step_size * a.covariance for a in pair)
    predicted = settled(*pair)
    own = (sigma**2 + 1e-6 / 12) * np.eye(2)  # noise and rounding of one turn
    for name, state, last, other in (("w", predicted.states[0], m_w, m_u), ("u", predicted.states[1], m_u, m_w)):
        later = tracks(talk)[name][transient:]
        reach = np.linalg.inv(np.eye(2) - last @ other)
        long_run = reach @ (last @ own @ last.T + own) @ reach.T / len(later)
        assert (np.abs(later.mean(axis=0) - state) <= 4 * np.sqrt(np.diag(long_run))).all()
        assert later.std(axis=0).min() > sigma / 2


def test_verdicts_apply_to_its_trajectories() -> None:
    shared = {"objective": [1.0, 0.5]}
    with RoundingServer(noise=0.01) as server:
        apart = [RegressionAgent(n, model_agent=model(server), **p) for n, p in (("w", W), ("u", U))]
        alike = [RegressionAgent(n, model_agent=model(server), **{**p, **shared}) for n, p in (("w", W), ("u", U))]
        talks = [Conversation(pair, opening=np.zeros(2), max_rounds=60, seed=5).run() for pair in (apart, alike)]
    biased, reached = (
        assess_equilibrium(positions_by_agent(talk), {agent.name: agent.objective for agent in pair}, margin=0.05)
        for talk, pair in zip(talks, (apart, alike), strict=True)
    )
    assert (biased.status, reached.status) == ("biased", "reached"), (biased.reason, reached.reason)
    predicted = settled(*apart)
    for name, state in (("w", predicted.states[0]), ("u", predicted.states[1])):
        found = biased.agents[name].fit
        assert found is not None
        assert found.covers(state)


def test_one_malformed_answer_is_asked_again() -> None:
    with RoundingServer(malformed="first") as server:
        agent = RegressionAgent("ann", model_agent=model(server, price={"input": 1.0, "output": 5.0}), **W)
        answer = ask(agent, seed=7)
    first, second = server.requests
    exact = LSAAgent("ann", **W).step(Message("c", 3, "bob", START)).content
    assert np.abs(answer.content - exact).max() <= 0.5e-3 + 1e-5
    assert (answer.content.dtype, answer.sender, answer.turn, answer.seed) == (np.float64, "ann", 3, 7)
    raw = [CHATTER, json.dumps(answer.content.tolist())]
    assert answer.metadata["raw"] == raw
    second_id = f"answer-{digest(second).hex()}"
    assert (answer.metadata["asks"], answer.metadata["model"], answer.metadata["response_id"]) == (2, MODEL, second_id)
    assert answer.metadata["rejected"] == "it is not a JSON array and nothing else"
    asked = [r["messages"][-1]["content"] for r in server.requests]
    assert asked[0] == agent.prompt(START)
    assert asked[1].startswith(asked[0])
    assert CHATTER in asked[1]
    assert "cannot be used: it is not a JSON array" in asked[1]
    assert (first["seed"], second["seed"]) == (7, turn_seed(7, 1) % SEEDS)
    tokens = [sum(len(text) // 4 for text in texts) for texts in (asked, raw)]
    cost = pytest.approx((tokens[0] + 5 * tokens[1]) / 1e6)
    assert answer.usage == {"requests": 2, "input_tokens": tokens[0], "output_tokens": tokens[1], "cost": cost}


def test_a_good_answer_is_asked_for_once(server: RoundingServer) -> None:
    answer = ask(RegressionAgent("ann", model_agent=model(server), **W))
    assert (len(server.requests), answer.metadata["asks"], len(answer.metadata["raw"])) == (1, 1, 1)
    assert "rejected" not in answer.metadata


def test_a_second_malformed_answer_fails_the_conversation_which_is_kept(server: RoundingServer) -> None:
    with RoundingServer(malformed="always") as broken:
        pair = [RegressionAgent(n, model_agent=model(s), **p) for n, s, p in (("w", server, W), ("u", broken, U))]
        talk = Conversation(pair, opening=np.zeros(2), max_rounds=5)
        with pytest.raises(InvalidResponseError) as caught:
            talk.run()
    assert str(caught.value).startswith("agent 'u' at turn 2: no vector in 2 answers of the model: 'Sure! Taking one")
    assert str(caught.value).count(repr(CHATTER)) == 2
    assert (talk.transcript.status, talk.transcript.error) == ("failed", str(caught.value))
    assert [m.sender for m in talk.transcript] == ["w"]
    assert (len(server.requests), len(broken.requests)) == (1, 2)


def test_failures_of_the_model_agent_pass_through(server: RoundingServer) -> None:
    agent = RegressionAgent("ann", model_agent=model(server, model="another"), **W)
    with pytest.raises(AgentError, match=rf"agent 'ann' at turn 3: .* answered 404 after 1 attempt: only {MODEL}"):
        ask(agent)


def test_it_keeps_the_contract_of_agents() -> None:
    with RoundingServer(noise=0.01, malformed=0.4) as server:

        def make() -> RegressionAgent:
            return RegressionAgent("ann", model_agent=model(server), **W)

        options = {"objective": {"angle": 200.0}}
        check_agent(make(), START, another=pickle.loads(pickle.dumps(make())), options=options)
    elsewhere = make().prompt(START, read_objective(options["objective"], 2))
    assert elsewhere in [r["messages"][-1]["content"] for r in server.requests]


def test_one_bad_question_of_a_batch_stays_alone(server: RoundingServer) -> None:
    agent = RegressionAgent("ann", model_agent=model(server), **W)
    contents: list[Any] = ["Hello.", START, np.zeros(3), START]
    options: list[dict[str, Any]] = [{}, {}, {}, {"objective": [1.0]}]
    asked = [Message("c", i, "bob", c, options=o) for i, (c, o) in enumerate(zip(contents, options, strict=True))]
    text, good, shape, objective = asyncio.run(agent.step_batch(asked))
    assert "agent 'ann' at turn 0 received text 'Hello.'; expected a vector of shape (2,)" in str(text)
    assert isinstance(good, Message)
    assert "array of shape (3,)" in str(shape)
    assert "turn 3: options: objective: 1 numbers; expected 2" in str(objective)
    assert len(server.requests) == 1


def test_runs_on_ray_give_the_transcripts_of_one_process(ray_cluster: None, tmp_path: Path) -> None:
    with RoundingServer(noise=0.01, malformed=0.25) as server:
        parts, inner = (("w", W), ("u", U)), model(server)
        specs = [{"name": n, "kind": KIND, "model_agent": inner, **p} for n, p in parts]
        specification = {"agents": specs, "openings": {"zeros": 2}, "max_rounds": 3, "repeats": 6}
        specification["sweep"] = {"agents.*.placement": ["worker", "actor"]}
        run = run_experiment(specification, storage=str(tmp_path), workers=1, progress=False)
        pair = [RegressionAgent(n, model_agent=inner, **p) for n, p in parts]
        told = {t.id: t for t in run.transcripts()}
        for cell in "01":
            assert {t.status for id, t in told.items() if id.startswith(cell)} == {"done", "failed"}
        for task in run.experiment.tasks():
            talk = Conversation(pair, opening=np.zeros(2), max_rounds=3, seed=task.seed, id=task.id)
            if told[task.id].status == "failed":
                with pytest.raises(InvalidResponseError) as caught:
                    talk.run()
                assert told[task.id].error == str(caught.value)
                assert CHATTER in told[task.id].error
            else:
                talk.run()
            kept = [(m.sender, m.content.tolist(), m.metadata["raw"], m.usage) for m in told[task.id]]
            assert kept == [(m.sender, m.content.tolist(), m.metadata["raw"], m.usage) for m in talk.transcript]


# --- models that cannot -------------------------------------------------------------------------------------------


def test_a_small_language_model_fails_and_nothing_is_invented() -> None:
    model_agent = HFAgent("tiny", "tiny-llama", max_new_tokens=12)
    examples = [[1.0, 0.0], [0.0, 1.0]]
    agent = RegressionAgent("ann", [1.0, 2.0], model_agent=model_agent, examples=examples, digits=2)
    talk = Conversation([agent], opening=np.zeros(2), max_turns=3, seed=1)
    with pytest.raises(InvalidResponseError, match="no vector in 2 answers of the model") as caught:
        talk.run()
    ask_again = Message("conversation", 1, "", agent.prompt(np.zeros(2)), seed=turn_seed(1, 1))
    said = model_agent.step(ask_again).content  # what it said, as it said it
    assert isinstance(said, str)
    assert said.strip()
    assert repr(" ".join(said.split())) in str(caught.value)
    assert (talk.transcript.status, len(talk.transcript)) == ("failed", 0)


def test_answers_that_are_no_text_or_no_message() -> None:
    vector = RegressionAgent("ann", [1.0, 2.0], model_agent=FunctionAgent("f", lambda _: [1.0, 2.0]))
    with pytest.raises(InvalidResponseError, match="no vector in 2 answers"):
        ask(vector)
    with pytest.raises(InvalidResponseError, match="agent 'f' returned None at turn 3"):
        ask(RegressionAgent("ann", [1.0, 2.0], model_agent=FunctionAgent("f", lambda _: None)))

    def broken(_: str) -> str:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        ask(RegressionAgent("ann", [1.0, 2.0], model_agent=FunctionAgent("f", broken)))


def test_usage_that_cannot_be_added_is_left_out() -> None:
    odd = FunctionAgent("f", lambda m: m.reply("[1, 2]", "f", {"requests": 1, "by": {"a": 2}, "tier": "b"}), "message")
    assert ask(RegressionAgent("ann", [1.0, 2.0], model_agent=odd)).usage == {"requests": 1}


def test_an_answer_cut_off_says_so() -> None:
    cut = FunctionAgent("f", lambda m: m.reply("[1, 2", "f", metadata={"finish_reason": "length"}), "message")
    with pytest.raises(InvalidResponseError, match=r"nothing else \(cut off at the token limit\)"):
        ask(RegressionAgent("ann", [1.0, 2.0], model_agent=cut))


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "key 'model_agent' is missing"),
        ({"model_agent": 5}, "agents.0.model_agent: 5"),
        ({"model_agent": {"model": "m"}}, "agents.0: model_agent: no 'kind'"),
        ({"model_agent": {"kind": "opena"}}, "Did you mean 'openai'"),
        ({"model_agent": {"kind": "openai", "modle": "m"}}, "model_agent.modle: unknown key 'modle'"),
        ({"model_agent": {"kind": "openai", "model": "m", "temperature": -1}}, "model_agent.temperature: -1"),
        ({"model_agent": {"kind": "echo"}, "digits": 0}, "digits: 0; expected 1 to 17"),
        ({"model_agent": {"kind": "echo"}, "step_size": 9.0}, "step_size: 9"),
        ({"model_agent": {"kind": "echo"}, "dim": 3}, "numbers of dimensions differ"),
    ],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        agents.build({"kind": KIND, "name": "ann", "objective": [1.0, 2.0], **settings}, "agents.0")
    assert said in str(caught.value)


def test_an_agent_in_python_is_checked_too() -> None:
    with pytest.raises(ConfigurationError, match="model_agent: 5; expected settings with a kind, or an agent"):
        RegressionAgent("ann", [1.0], model_agent=5)  # type: ignore[arg-type]


def test_placement_and_checks_are_those_of_the_model_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    agent = RegressionAgent("ann", [1.0], model_agent=OpenAIAgent("gpt", "m", api_key_env="NO_SUCH_KEY"))
    assert agent.placement == "actor"
    assert answering("[1, 2]").placement == "worker"
    for start in (agent.check, agent.setup):
        with pytest.raises(ConfigurationError, match="api_key_env: 'NO_SUCH_KEY'"):
            start()
    answering("[1, 2]").check()


def test_a_dry_run_counts_prompts_and_re_asks(server: RoundingServer) -> None:
    inner = model(server, max_tokens=50, instructions="I" * 40, price={"input": 1.0, "output": 10.0})
    specs = [{"name": "w", "kind": "regression", "model_agent": inner, **W}, {"name": "e", "kind": "echo"}]
    told = estimate(Experiment.parse({"agents": specs, "openings": {"zeros": 2}, "max_rounds": 3, "repeats": 2}))
    asks = 2 * 3 * 2  # talks, rounds, and each ask once more
    tokens = asks * (len(RegressionAgent("w", model_agent=inner, **W).prompt()) // 4 + 10)
    assert (told.turns, told.calls, told.input_tokens, told.output_tokens) == (12, 18, tokens, asks * 50)
    assert told.cost == pytest.approx((tokens + 10 * asks * 50) / 1e6)
    assert told.assumed == []


def test_the_example_runs_with_another_server(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: RoundingServer
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    experiment = Experiment.load(ROOT / "examples" / "in_context_regression.yaml")
    experiment.check()
    specification = experiment.to_dict()
    for spec in specification["agents"]:
        spec["model_agent"] |= {"model": MODEL, "base_url": server.url, "api_key_env": None}
    run = run_experiment({**specification, "max_rounds": 30}, storage=str(tmp_path), workers=1, progress=False)
    assert run.summary()["failed"] == 0
    for cell, talk in zip(run.experiment.cells, run.transcripts(), strict=True):
        predicted = settled(*(spec.build() for spec in cell.agents))
        assert np.abs(talk.last.content - predicted.states[1]).max() < 2e-3
