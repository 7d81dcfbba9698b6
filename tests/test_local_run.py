"""Runs in this process: the same turns as on Ray, and nothing of Ray."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from a2a_ray.core.errors import AuthenticationError, ConfigurationError, StorageError
from a2a_ray.core.message import Message
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.executor import LOCAL_CONVERSATIONS, runs_locally
from a2a_ray.runtime.plan import Progress
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.store import lease
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.run import Run, open_run
from a2a_ray.store.run_folder import run_names
from tests.command_line import finish, start
from tests.test_calls import PRICE, most_in_flight
from tests.test_calls import spec as payable
from tests.test_runtime import Clever, Counting, content_of, gated_spec, spec, without_ray

ROOT = Path(__file__).parents[1]


class Fussy(Clever):
    """Fails in some conversations, and reports usage."""

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        await asyncio.sleep(0)
        if message.turn == 3 and message.seed % 3 == 0:
            raise ConnectionError("no route")
        answer = Counting.step(self, message)
        return message.reply(answer.content, self.name, usage={"output_tokens": message.seed % 5})


class Refused(Counting):
    """A server that refuses the key at turn 3 until there is a file."""

    def __init__(self, name: str, key: str) -> None:
        super().__init__(name)
        self.key = Path(key)

    def step(self, message: Message) -> Message:
        if message.turn == 3 and not self.key.exists():
            raise AuthenticationError(f"agent {self.name!r}: the key is refused")
        return super().step(message)


class Busy:
    """Computes without a pause, until it finds turns of its own run in the store."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder

    def step(self, message: Message) -> Message:
        time.sleep(0.001)
        stored = message.turn % 100 == 0 and len(open_run(run_names(self.folder)[0]).turns) > 0
        return message.reply("stored" if stored else "busy", self.name)


class Usurper(Counting):
    """Lets another driver take over its run at turn 3."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self.folder = folder

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        if message.turn == 3:
            await asyncio.to_thread(lambda: lease.Lease.acquire(run_names(self.folder)[0], takeover=True).release())
        await asyncio.sleep(0.01)
        return super().step(message)


def run_local(value: dict[str, Any], storage: Path, **more: Any) -> Run:
    return run_experiment(value, storage=storage, executor="local", **{"progress": False} | more)


def findings_of(run: Run) -> list[dict[str, Any]]:
    rows = [row for batch in FindingsTable(run.path).batches() for row in batch.to_pylist()]
    keys = ("conversation_id", "analyzer", "number")
    return sorted(
        ({k: v for k, v in row.items() if k != "created_at"} for row in rows), key=lambda r: [r[k] for k in keys]
    )


def ends_of(run: Run) -> dict[str, tuple[Any, ...]]:
    return {
        t.id: (t.status, t.reason, t.error, t.stopped_by, t.traceback, [m.usage for m in t.messages])
        for t in run.transcripts()
    }


def test_both_executors_store_the_same(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(Fussy, observers=[{"kind": "loops"}], max_rounds=6)
    value["agents"][1] = {"name": "bob", "kind": "echo"}
    adaptive = {"kind": "adaptive", "by": "bid"}
    value["agents"].append({"name": "carl", "kind": Clever})
    value["sweep"] = [{"label": "turns"}, {"label": "bids", "protocol": adaptive, "agents.bob.kind": Clever}]
    local = run_local(value, tmp_path / "local")
    on_ray = run_experiment(value, storage=tmp_path / "ray", executor="ray", workers=1, progress=False)
    assert 0 < local.summary()["failed"] < local.summary()["done"]
    assert local.summary() == on_ray.summary()
    assert content_of(local.transcripts()) == content_of(on_ray.transcripts())
    assert ends_of(local) == ends_of(on_ray)
    assert findings_of(local) == findings_of(on_ray)
    assert len(findings_of(local)) == 36
    assert local.rows.schema == on_ray.rows.schema


WITHOUT_RAY = """
import sys
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
agents = [{"name": n, "kind": "echo", "price": {"input": 1, "output": 1}} for n in ("ann", "bob")]
value = {"agents": agents, "openings": ["x", "y"], "max_rounds": 2}
run = run_experiment(value, storage=sys.argv[1], budget={"requests": 3}, progress=False)
print(run.summary()["turns"], run.stopped.partition(";")[0])
run = resume_run(run, budget={"requests": 9}, progress=False)
print(run.summary()["turns"], "ray" in sys.modules)
"""


def test_a_small_experiment_imports_no_ray(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("3 budget of 3 requests spent (3)\n8 False\n", "")


def test_auto_takes_this_process_for_few_conversations_of_light_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("a2a_ray.runtime.executor._connected", lambda: False)
    light, heavy = Experiment.parse(spec()), Experiment.parse(spec())
    heavy.agents[1].placement = "actor"
    most = LOCAL_CONVERSATIONS
    assert runs_locally("auto", light, most, None, None)
    assert not runs_locally("auto", light, most + 1, None, None)
    assert not runs_locally("auto", heavy, 1, None, None)
    assert not runs_locally("auto", light, 1, 2, None)
    assert not runs_locally("auto", light, 1, None, "local")
    assert not runs_locally("ray", light, 1, None, None)
    assert runs_locally("local", light, most + 1, None, None)
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    assert not runs_locally("auto", light, 1, None, None)
    assert runs_locally("local", light, 1, None, None)


def test_auto_uses_a_ray_that_this_process_uses_already(ray_cluster: None) -> None:
    assert not runs_locally("auto", Experiment.parse(spec()), 1, None, None)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"executor": "cloud"}, "executor: unknown executor 'cloud'. .*auto, local, ray"),
        ({"executor": "local", "workers": 2}, "executor: 'local' .*workers=2"),
        ({"executor": "local", "address": "auto"}, "executor: 'local' .*address=auto"),
        ({"executor": "local", "placement": "actor"}, "executor: 'local', but agent 'ann' .*Use executor ray or auto"),
    ],
)
def test_what_a_local_run_cannot_do_is_refused(tmp_path: Path, more: dict[str, Any], sentence: str) -> None:
    value = spec()
    value["agents"] = [{**agent, "placement": more.pop("placement", "worker")} for agent in value["agents"]]
    with pytest.raises(ConfigurationError, match=sentence):
        run_experiment(value, storage=tmp_path, progress=False, **more)
    assert not run_names(tmp_path)


async def test_it_runs_below_a_running_event_loop_and_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def state() -> list[Any]:
        root = logging.getLogger()
        loggers = logging.getLogRecordFactory(), list(root.handlers), root.level, logging.getLogger("a2a_ray").level
        signals = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        return [*loggers, gc.get_threshold(), gc.get_freeze_count(), *signals, threading.active_count()]

    before = state()
    assert asyncio.get_running_loop().is_running()
    run = run_local(spec(Clever), tmp_path)
    assert run.summary()["done"] == 18
    assert state() == before


KILLED = """
import sys
from tests.test_local_run import run_local
from tests.test_runtime import gated_spec
from pathlib import Path
run_local(gated_spec(sys.argv[2]), Path(sys.argv[1]))
"""


@pytest.mark.chaos
@pytest.mark.parametrize(("end", "executor"), [(signal.SIGKILL, "local"), (signal.SIGTERM, "ray")])
def test_either_executor_resumes_a_run_that_was_killed(
    ray_cluster: None, tmp_path: Path, end: int, executor: Any
) -> None:
    gate = tmp_path / "gate"
    first = "from a2a_ray.runtime import local_driver; local_driver.STOP_SECONDS = 1.0\n"
    process = subprocess.Popen(
        [sys.executable, "-c", first + KILLED, tmp_path / "runs", gate],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        names = run_names(tmp_path / "runs")
        if names and len(open_run(names[0]).turns) >= 20:
            break
        time.sleep(0.1)
    process.send_signal(end)
    assert "KeyboardInterrupt" in process.communicate(timeout=120)[1] or end == signal.SIGKILL
    (name,) = run_names(tmp_path / "runs")
    assert len(open_run(name).turns) == 20, "the run must be interrupted in its middle"
    gate.touch()
    resumed = resume_run(name, executor=executor, progress=False)
    assert content_of(resumed.transcripts()) == without_ray(gated_spec(str(gate)))


def test_ctrl_c_stores_the_turns_in_flight(tmp_path: Path) -> None:
    """Every agent waits at turn 4 for a file that appears after the signal."""
    value = payable(tmp_path / "calls", "worker", 3, 6, hold_at=4)
    value["agents"] = [{**agent, "kind": "tests.test_calls:Payable"} for agent in value["agents"]]
    experiment = Experiment.parse(value)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(experiment.to_dict()))
    process = start("run", "spec.yaml", "--executor", "local", "--storage", "runs", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
        if calls.count(" 4\n") == 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    (tmp_path / "released").touch()
    done = finish(process)
    (name,) = run_names(tmp_path / "runs")
    path = f"runs/{Path(name).name}"
    assert done.status == 130
    assert done.err == f"Interrupted. All stored turns are kept. Resume with: a2a-ray resume {path}\n"
    assert {len(t.messages) for t in open_run(name).transcripts()} <= {4, 5, 6}
    assert resume_run(name, executor="local", progress=False).summary()["turns"] == 18
    assert (tmp_path / "calls").read_text().count("end") == 18, "no call was made twice"


def test_turns_of_agents_that_never_pause_are_stored_as_they_come(tmp_path: Path) -> None:
    agents = [{"name": "ann", "kind": Busy, "folder": str(tmp_path)}]
    ends = [{"kind": "text_mention", "phrase": "stored"}]
    run = run_local({"agents": agents, "max_turns": 20_000, "openings": ["x"], "termination": ends}, tmp_path)
    assert run.transcript("0-0-0").messages[-1].content == "stored"


def test_an_error_of_the_progress_function_stops_the_run(tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        if now.messages:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_local(payable(tmp_path / "calls", "worker", 4, 400, wait=0.01), tmp_path, progress=stop)
    (name,) = run_names(tmp_path)
    assert open_run(name).summary()["turns"] < 1600
    assert (tmp_path / "calls").read_text().count("end") == open_run(name).summary()["turns"]


def test_a_refused_key_stops_the_run_and_fails_no_conversation(tmp_path: Path) -> None:
    value = spec(Refused)
    value["agents"] = [{**agent, "key": str(tmp_path / "key")} for agent in value["agents"]]
    with pytest.raises(AuthenticationError, match="no conversation failed because of it"):
        run_local(value, tmp_path)
    (name,) = run_names(tmp_path)
    assert open_run(name).summary()["failed"] == 0
    (tmp_path / "key").touch()
    resumed = resume_run(name, executor="local", progress=False)
    assert content_of(resumed.transcripts()) == without_ray(value)


@pytest.mark.parametrize(
    ("budget", "more", "sentence"),
    [
        ({"requests": 7}, {"requests": 99}, r"budget of 7 requests spent \(7\)"),
        ({"cost": 0.55}, {"cost": 9}, r"budget of 0.55 spent \(0.0\d; the next call may cost 0.5\)"),
        ({"tokens": 550}, {"tokens": 9999}, r"budget of 550 tokens spent \(\d0; the next call may take 50\d\)"),
        ({"seconds": 0.1}, {"seconds": 99}, "budget of 0.1 seconds spent"),
    ],
)
def test_a_spent_budget_stops_a_local_run(
    tmp_path: Path, budget: dict[str, float], more: dict[str, float], sentence: str
) -> None:
    """Calls from turn 4 on wait for a file, so that the run cannot end before its budget."""

    def release(now: Progress) -> None:
        if now.seconds > 0.2 or "seconds" not in budget:
            (tmp_path / "released").touch()

    value = payable(tmp_path / "calls", "worker", 4, 6, price=PRICE, hold_at=4)
    run = run_local(value, tmp_path, budget=budget, progress=release)
    assert re.match(sentence + "; continue with a larger one: a2a-ray resume", run.stopped), run.stopped
    assert run.summary()["done"] < 4
    done = resume_run(run, budget=more, executor="local", progress=False)
    assert (done.summary()["turns"], done.stopped) == (24, "")
    assert (tmp_path / "calls").read_text().count("end") == 24, "no call was made twice"


def test_limits_hold_in_a_local_run(tmp_path: Path) -> None:
    limits = {"max_concurrency": 3, "rate_limit_group": "here"}
    run = run_local(payable(tmp_path / "calls", "worker", 8, 4, limits=limits, wait=0.01), tmp_path)
    assert run.summary()["turns"] == 32
    assert most_in_flight(tmp_path / "calls") == 3


def test_a_run_that_was_taken_over_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    value = {"agents": [{"name": "ann", "kind": Usurper, "folder": str(tmp_path)}], "openings": ["x"]}
    with pytest.raises(StorageError, match="another driver"):
        run_local({**value, "max_turns": 100_000}, tmp_path)
