"""Faulty agents: a fault stays in its own conversation and is reported."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import a2a_ray
from a2a_ray import ConfigurationError, Conversation, EchoAgent, Message, PlacementError
from a2a_ray.agents.openai.openai_agent import OpenAIAgent
from a2a_ray.core.errors import AuthenticationError
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.store.run import Run, open_run
from a2a_ray.store.run_folder import run_names
from tests.command_line import call, write_spec


class Odd:
    """Answers correctly, except for openings that name a fault."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False

    def setup(self) -> None:
        self.ready = True

    def step(self, message: Message) -> Message:
        text = str(message.content)
        if text == "exit":
            sys.exit("enough")
        if text == "none":
            return None  # type: ignore[return-value]
        if text == "bomb" and message.turn == 3:
            raise RuntimeError("this opening is too much")
        if text == "die":
            os._exit(1)
        if text == "numpy":
            return message.reply("ok", self.name, usage={"output_tokens": np.int64(3)}, metadata={"p": np.ones(2)})
        if text == "tuple":
            return message.reply("ok", self.name, metadata={(1, 2): 3})  # type: ignore[dict-item]
        if text == "end":
            return message.reply("ok", self.name, kind="done")
        if text == "seed":
            return Message(message.conversation, message.seq, self.name, "ok", seed=2**64)
        return message.reply(text if text == "bomb" else str(self.ready), self.name)


class Waiting:
    """Answers after a while, asynchronously; it has no step_batch."""

    def __init__(self, name: str, seconds: float = 0.2) -> None:
        self.name, self.seconds = name, seconds

    async def step(self, message: Message) -> Message:
        await asyncio.sleep(self.seconds)
        return message.reply("done", self.name)


def run_odd(openings: list[str], storage: Path, **more: Any) -> Run:
    agents = [{"name": "odd", "kind": Odd, **more}, {"name": "bob", "kind": "echo"}]
    value = {"agents": agents, "openings": openings, "max_rounds": 2}
    return run_experiment(value, storage=storage, workers=1, progress=False)


@pytest.mark.parametrize("placement", ["worker", "actor"])
def test_a_faulty_answer_fails_only_its_own_conversation(ray_cluster: None, tmp_path: Path, placement: str) -> None:
    run = run_odd(["fine", "exit", "numpy", "tuple", "end", "seed", "bomb", "none"], tmp_path, placement=placement)
    fine, left, numpy, tuple_, end, seed, bomb, none = run.transcripts()
    assert fine.status == numpy.status == seed.status == "done"
    assert fine.messages[0].content == "True", "setup is called wherever an agent works"
    assert numpy.messages[0].usage == {"output_tokens": 3}
    assert numpy.messages[0].metadata == {"p": [1.0, 1.0]}
    assert seed.messages[0].seed < 2**63
    assert seed.messages[0].created_at > 0
    assert left.error == "agent 'odd' failed at turn 1: SystemExit: enough"
    assert "metadata is not JSON" in tuple_.error
    assert "kind 'done', which is reserved" in end.error
    assert bomb.error == "agent 'odd' failed at turn 3: RuntimeError: this opening is too much"
    assert len(bomb.messages) == 2, "earlier messages are kept"
    assert "agent 'odd' returned None at turn 1; expected a Message" in none.error
    assert run.summary() == {"conversations": 8, "done": 3, "failed": 5, "turns": 14}


@pytest.mark.chaos
def test_a_replica_that_dies_takes_only_its_batch_with_it(ray_cluster: None, tmp_path: Path) -> None:
    resources = {"replicas": 2, "max_batch_size": 1}
    run = run_odd(["fine"] * 5 + ["die"] + ["fine"] * 4, tmp_path, placement="actor", resources=resources)
    assert [t.id for t in run.transcripts() if t.status == "failed"] == ["0-5-0"]
    assert "its process died" in run.transcript("0-5-0").error


@pytest.mark.chaos
def test_conversations_of_a_pool_without_replicas_fail_and_the_run_ends(ray_cluster: None, tmp_path: Path) -> None:
    run = run_odd(["die"] + ["fine"] * 5, tmp_path, placement="actor", resources={"max_batch_size": 1})
    assert run.summary()["failed"] >= 1
    assert run.summary()["done"] + run.summary()["failed"] == 6


def test_functions_of_one_name_are_two_agents(ray_cluster: None, tmp_path: Path) -> None:
    functions = [lambda text: "one", lambda text: "two"]

    def value(placement: str) -> dict[str, Any]:
        agent = {"name": "ann", "kind": "function", "function": functions[0], "placement": placement}
        return {"agents": [agent], "openings": ["x"], "max_rounds": 1, "sweep": {"agents.ann.function": functions}}

    heavy = run_experiment(value("actor"), storage=tmp_path / "actor", workers=1, progress=False)
    light = run_experiment(value("worker"), storage=tmp_path / "worker", workers=1, progress=False)
    for run in (heavy, light):
        assert [t.messages[0].content for t in run.transcripts()] == ["one", "two"]
    with pytest.raises(ConfigurationError, match="experiment="):
        resume_run(light, progress=False)
    assert resume_run(light, experiment=value("worker"), workers=1, progress=False).summary()["done"] == 2


def test_a_remote_agent_survives_a_cancelled_conversation(ray_cluster: None) -> None:
    agent = a2a_ray.remote(lambda: Waiting("slow", 1.0), num_cpus=0)

    async def cut() -> None:
        await asyncio.wait_for(Conversation([agent], opening="x", max_rounds=3).run_async(), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(cut())
    assert Conversation([agent], opening="x", max_rounds=1).run().last.content == "done"


class Meeting:
    """Answers when `size` steps are in progress at the same time; two minutes after the first step in any case."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.present = 0
        self.deadline = 0.0

    async def step(self, message: Message) -> Message:
        self.present += 1
        self.deadline = self.deadline or time.monotonic() + 120
        while self.present < self.size and time.monotonic() < self.deadline:
            await asyncio.sleep(0.01)
        return message.reply(f"{self.present} met", self.name)


def test_asynchronous_steps_overlap_in_an_actor(ray_cluster: None, tmp_path: Path) -> None:
    agents = [{"name": "ann", "kind": Meeting, "size": 40, "placement": "actor"}]
    value = {"agents": agents, "openings": ["x"], "max_rounds": 1, "repeats": 40}
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    assert {t.messages[0].content for t in run.transcripts()} == {"40 met"}


def test_a_cluster_that_does_not_answer_is_reported_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        with pytest.raises(PlacementError, match="already"):
            connect("127.0.0.1:1")
        return
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray itself would try for minutes"))
    with pytest.raises(PlacementError, match="nothing answers there"):
        connect("127.0.0.1:1")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": {"kind": "alternating", "order": ["ann", "carl"]}}, "protocol.order: unknown agent 'carl'"),
        ({"protocol": {"kind": "newton_helper", "helped": {"objective": [1.0]}, "helper": {}}}, "1 agents; expected 2"),
        ({"openings": [[0.0, float("nan")]]}, "openings.0: content has NaN"),
        ({"openings": [[]]}, "openings.0: content has shape (0,)"),
        (
            {"agents": [{"name": "ann", "kind": "tests.test_faults:Broken"}]},
            "cannot be made: RuntimeError: no such luck",
        ),
    ],
)
def test_errors_that_can_be_known_are_raised_before_the_start(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    value = {"agents": [{"name": "ann", "kind": "echo"}], "max_rounds": 1, **change}
    with pytest.raises(ConfigurationError) as error:
        run_experiment(value, storage=tmp_path / "runs", progress=False)
    assert sentence in str(error.value)
    assert not (tmp_path / "runs").exists()


class Broken(EchoAgent):
    def __init__(self, name: str) -> None:
        raise RuntimeError("no such luck")


# --- a server that refuses the key or answers garbage ------------------------------------------------------------


class Picky(BaseHTTPRequestHandler):
    """Answers chat completions to clients with the right key; garbage: every third response has no answer."""

    seen: list[str]
    garbage = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(str(self.headers["Authorization"]))
        status, body = 200, '{"choices": [{"message": {"content": "Well."}, "finish_reason": "stop"}]}'
        if self.seen[-1] != "Bearer right":
            status, body = 401, '{"error": {"message": "wrong key"}}'
        elif self.garbage and len(self.seen) % 3 == 0:
            body = '{"choices": []}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(**settings: Any) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """Yield the settings of an agent for a server on the loopback, and the Authorization headers that it saw."""
    seen: list[str] = []
    handler = type("Handler", (Picky,), {"seen": seen, **settings})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        yield {"kind": "openai", "model": "m", "base_url": url, "api_key_env": "A2A_TEST_KEY", "backoff": 0.0}, seen
        server.shutdown()


def test_a_wrong_key_stops_the_run_which_is_resumed_with_the_right_one(ray_cluster: None, tmp_path: Path) -> None:
    with served() as (openai, seen):
        env = tmp_path / "key"
        agent = {"name": "ann", **openai, "kind": Keyed, "file": str(env), "placement": "actor"}
        agent |= {"limits": {"max_concurrency": 4}}
        env.write_text("wrong")
        agents = [agent, {"name": "bob", "kind": "echo"}]
        value = {"agents": agents, "openings": ["Hello."], "repeats": 40, "max_rounds": 2}
        with pytest.raises(AuthenticationError) as error:
            run_experiment(value, storage=tmp_path, workers=1, progress=False)
        sentence = str(error.value)
        assert "agent 'ann'" in sentence
        assert "check the key in the environment variable A2A_TEST_KEY" in sentence
        assert "a2a-ray resume " in sentence
        assert 1 <= len(seen) <= 4 * 2, "no more than the requests in flight in each process that has the agent"
        (path,) = run_names(tmp_path)
        assert path in sentence
        assert open_run(path).summary() == {"conversations": 40, "done": 0, "failed": 0, "turns": 0}
        env.write_text("right")
        done = resume_run(path, workers=1, progress=False)
        assert done.summary() == {"conversations": 40, "done": 40, "failed": 0, "turns": 160}
        assert seen.count("Bearer right") == 80


class Keyed(OpenAIAgent):
    """Takes its key from a file, so that a test can change it for running processes."""

    def __init__(self, name: str, model: str, file: str, **settings: Any) -> None:
        super().__init__(name, model, **settings)
        self._file = file

    def _key(self) -> str:
        return Path(self._file).read_text()


def test_the_command_line_reports_a_wrong_key_in_one_sentence(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served() as (openai, seen):
        (tmp_path / "key").write_text("wrong")
        agent = {"name": "ann", **openai, "kind": "tests.test_faults:Keyed", "file": str(tmp_path / "key")}
        agent |= {"limits": {"max_concurrency": 4}}
        spec = write_spec(tmp_path, agents=[agent], openings=["x"], repeats=40, max_rounds=2)
        done = call(capsys, "run", spec, "--storage", tmp_path / "runs", "--workers", "2")
        assert (done.status, done.out) == (1, "")
        assert 1 <= len(seen) <= 4 * 2, "no more than the requests in flight in each worker"
        (line,) = [line for line in done.err.splitlines() if line.startswith("Error: ")]
        assert "A2A_TEST_KEY" in line
        assert "a2a-ray resume" in line
        (path,) = run_names(tmp_path / "runs")
        assert open_run(path).summary() == {"conversations": 40, "done": 0, "failed": 0, "turns": 0}
        (tmp_path / "key").write_text("right")
        assert call(capsys, "resume", path, "--workers", "1").status == 0
        assert open_run(path).summary() == {"conversations": 40, "done": 40, "failed": 0, "turns": 80}
        assert seen.count("Bearer right") == 80


def test_responses_without_an_answer_fail_no_conversation(ray_cluster: None, tmp_path: Path) -> None:
    with served(garbage=True) as (openai, seen):
        (tmp_path / "key").write_text("right")
        agent = {"name": "ann", **openai, "kind": Keyed, "file": str(tmp_path / "key")}
        value = {"agents": [agent], "openings": ["x"], "max_rounds": 3, "repeats": 10}
        run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
        assert run.summary() == {"conversations": 10, "done": 10, "failed": 0, "turns": 30}
        assert len(seen) > 30
        assert sum(m.usage.get("retries", 0) for t in run.transcripts() for m in t) == len(seen) - 30


# --- objects that are not valid parts -----------------------------------------------------------------------------


class Talker:
    """An observer that returns something else from some turn on."""

    def __init__(self, value: Any = None, turn: int = 2) -> None:
        self.value, self.turn = value, turn

    def update(self, message: Message) -> Any:
        return ObserverVerdict() if message.turn < self.turn else self.value


def test_an_observer_that_returns_no_verdict_fails_its_conversations_by_name(ray_cluster: None, tmp_path: Path) -> None:
    values: list[Any] = [True, None, "loop"]
    cells = [{"label": str(value), "observers": [{"kind": Talker, "value": value}]} for value in values]
    spec = {"agents": [ANN], "openings": ["x"], "max_rounds": 3, "repeats": 3, "sweep": cells}
    run = run_experiment(spec, storage=tmp_path, workers=1, progress=False)
    again = resume_run(run, workers=1, retry_failed=True, progress=False)  # fails on stored turns as well
    for transcripts in (list(run.transcripts()), list(again.transcripts())):
        assert len(transcripts) == 9
        for transcript, value in zip(transcripts, np.repeat(np.array(values, object), 3), strict=True):
            assert transcript.status == "failed"
            assert "returned " in transcript.error
            assert str(value) in transcript.error
            assert len(transcript.messages) == 2, "earlier messages are kept"
            assert transcript.error.endswith(
                "at turn 2; expected an ObserverVerdict (return NOTHING if there is nothing to report)"
            )


def answer(text: str) -> str:
    return text


class Speechless:
    """Has a name, but no method."""

    def __init__(self, name: str = "ann") -> None:
        self.name = name


ANN = {"name": "ann", "kind": "echo"}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"agents": [answer]}, r"agents\.0: function .*answer.*Write \{name: ann, kind: function, function: answer\}"),
        ({"agents": [EchoAgent]}, r"agents\.0: the class EchoAgent; .*Write \{name: ann, kind: EchoAgent\}"),
        ({"agents": [EchoAgent("ann")]}, r"agents\.0: EchoAgent .*Write \{name: ann, kind: EchoAgent\}"),
        ({"agents": [{"name": "ann", "kind": answer}]}, r"agents\.0\.kind: the function answer .*function: answer"),
        ({"agents": [{**ANN, "kind": Speechless}]}, r"agents\.0: Speechless .* has no step; expected an agent"),
        ({"observers": [{"kind": Speechless}]}, r"observers\.0: Speechless .* has no update; expected an observer"),
        ({"observers": [answer]}, r"observers\.0: the value function .*; expected settings with a kind"),
        ({"observers": [Talker()]}, r"observers\.0: the value Talker .*; expected settings with a kind"),
        (
            {"termination": [{"kind": Speechless}]},
            r"termination\.0: Speechless .* has no check; expected a termination condition",
        ),
        ({"protocol": {"kind": Speechless}}, r"protocol: Speechless .* has no speakers and no context"),
    ],
)
def test_an_invalid_part_is_named(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Experiment.parse({"agents": [ANN], "openings": ["x"], **value}).check()


def test_a_factory_must_make_an_agent(ray_cluster: None) -> None:
    with pytest.raises(ConfigurationError, match="the factory's result: the class EchoAgent; expected an agent"):
        a2a_ray.remote(lambda: EchoAgent, num_cpus=0)
