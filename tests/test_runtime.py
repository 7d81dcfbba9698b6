"""The runtime on a real Ray: equal transcripts wherever agents work, isolated faults, runs that resume."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import a2a_ray
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.core.registry import protocols
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.store.run import Run, create_run, open_run
from a2a_ray.store.run_folder import run_names
from a2a_ray.store.schema import pack, unpack
from tests.test_bad_input import MARK, processes_with


class Counting:
    """Answers with a number that follows from the seed and the context; light or heavy as the test wants."""

    placement = "worker"

    def __init__(self, name: str, wait: float = 0.0, fail_on: str = "") -> None:
        self.name, self.wait, self.fail_on = name, wait, fail_on

    def step(self, message: Message) -> Message:
        return message.reply(
            f"{message.seed % 1000} after {len(message.history)} and {message.content}"[:60], self.name
        )


class Clever(Counting):
    """The same with an asynchronous step, and bids."""

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        return super().step(message)

    def bid(self, message: Message) -> float:
        return message.seed % 7


class Gated(Counting):
    """The same, but each turn after the fifth waits for a file, the gate; two minutes at most."""

    def __init__(self, name: str, gate: str) -> None:
        super().__init__(name)
        self.gate = Path(gate)

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        deadline = time.monotonic() + 120
        while message.turn > 5 and not self.gate.exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return super().step(message)


def content_of(transcripts: Iterable[Transcript]) -> dict[str, list[tuple[Any, ...]]]:
    """Return everything but time stamps, by conversation."""
    return {
        t.id: [(m.seq, m.kind, m.sender, _content(m), m.seed) for m in (t.opening, *t.turns)] + [(t.status, t.reason)]
        for t in transcripts
    }


def _content(message: Message) -> Any:
    return message.content if isinstance(message.content, str) else message.content.tobytes()


def spec(kind: Any = Counting, **more: Any) -> dict[str, Any]:
    protocol = {"kind": "alternating", "context": {"last": 2}}
    agents = [{"name": "ann", "kind": kind}, {"name": "bob", "kind": kind}]
    return {"agents": agents, "protocol": protocol, "max_rounds": 4, "openings": {"first": 9}, "repeats": 2, **more}


def run_here(value: dict[str, Any], storage: Path, **more: Any) -> Run:
    return run_experiment(value, storage=storage, progress=False, **more)


def placed(value: dict[str, Any], **where: Any) -> dict[str, Any]:
    return {**value, "agents": [{**a, **where} for a in value["agents"]]}


def without_ray(value: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the content of the conversations of this specification, each run alone in this process."""
    experiment = Experiment.parse(value)
    done = []
    for task in experiment.tasks():
        cell = experiment.cells[task.cell]
        protocol, agents = protocols.build(cell.protocol, "protocol"), [a.build() for a in cell.agents]
        opening = cell.opening_contents[task.opening]
        done.append(Conversation(agents, protocol, opening, max_turns=cell.limit, seed=task.seed, id=task.id).run())
    return content_of(done)


def mixed() -> dict[str, Any]:
    """Return the usual specification with a synchronous and an asynchronous agent."""
    value = spec()
    value["agents"][1]["kind"] = Clever
    return value


@pytest.fixture(scope="module")
def light(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 18 conversations, with agents in three workers."""
    return run_here(mixed(), tmp_path_factory.mktemp("light"), workers=3)


def test_transcripts_are_equal_for_any_workers_and_placement(light: Run, tmp_path: Path) -> None:
    alone = without_ray(mixed())
    assert len(alone) == 18
    assert content_of(light.transcripts()) == alone
    heavy = placed(mixed(), placement="actor", resources={"replicas": 2, "max_batch_size": 3})
    assert content_of(run_here(heavy, tmp_path, workers=1).transcripts()) == alone


def test_a_transcript_equals_the_one_without_ray(light: Run) -> None:
    first = next(light.transcripts())
    agents = [Counting("ann"), Clever("bob")]
    protocol = a2a_ray.Alternating(context={"last": 2})
    again = Conversation(agents, protocol, first.opening.content, max_rounds=4, seed=first.seed, id=first.id).run()
    assert [(m.turn, m.sender, m.content, m.seed) for m in first] == [
        (m.turn, m.sender, m.content, m.seed) for m in again
    ]


def test_adaptive_turns_with_bids_are_recorded_and_equal_anywhere(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(Clever, protocol={"kind": "adaptive", "by": "bid"}, openings={"first": 2}, repeats=1)
    run = run_here({**value, "sweep": {"agents.*.placement": ["worker", "actor"]}}, tmp_path, workers=1)
    light = list(run.transcripts())[:2]
    turns = [content[:-1] for content in content_of(run.transcripts()).values()]
    assert turns[:2] == turns[2:]
    assert len(light[0].messages) == 8
    assert sum(m.kind == "bid" for m in light[0].turns) == 16


def test_lsa_agents_are_exact_in_workers_and_in_actors(ray_cluster: None, tmp_path: Path) -> None:
    lsa = {"kind": "lsa", "dim": 5, "step_size": 0.4}
    agents = [
        {"name": "w", **lsa, "objective": {"angle": 0.0}, "geometry": {"examples": 11, "condition": 3.0, "seed": 1}},
        {"name": "u", **lsa, "objective": {"angle": 70.0}, "geometry": {"examples": 11, "condition": 3.0, "seed": 2}},
    ]
    openings = [[float(i + j) for j in range(5)] for i in range(30)]
    value = {"agents": agents, "max_rounds": 10, "openings": openings}
    alone = without_ray(value)
    assert alone == content_of(run_here(value, tmp_path, workers=1).transcripts())
    heavy = placed(value, placement="actor", resources={"max_batch_size": 7})
    assert alone == content_of(run_here(heavy, tmp_path, workers=1).transcripts())


def test_replay_reproduces_the_conversation(light: Run, tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    a2a_ray.write_jsonl(light.transcripts(), file)
    agents = [{"name": n, "kind": "replay", "file": str(file)} for n in ("ann", "bob")]
    again = run_here({**spec(), "agents": agents}, tmp_path, workers=1)
    texts = {t.id: [m.content for m in t] for t in light.transcripts()}
    assert {t.id: [m.content for m in t] for t in again.transcripts()} == texts


def test_failed_conversations_continue_on_request(ray_cluster: None, tmp_path: Path) -> None:
    flag = tmp_path / "up"
    value = spec(Flaky, openings={"first": 3}, repeats=1)
    value["agents"] = [{**a, "flag": str(flag)} for a in value["agents"]]
    run = run_here(value, tmp_path, workers=1)
    assert run.summary()["failed"] == 3
    flag.touch()
    assert resume_run(run, workers=1, progress=False).summary()["failed"] == 3
    again = resume_run(run, workers=1, progress=False, retry_failed=True)
    assert again.summary() == {"conversations": 3, "done": 3, "failed": 0, "turns": 24}


class Flaky:
    """Fails from turn 3 on until a file exists."""

    placement = "worker"

    def __init__(self, name: str, flag: str) -> None:
        self.name, self.flag = name, Path(flag)

    def step(self, message: Message) -> Message:
        if message.turn >= 3 and not self.flag.exists():
            raise ConnectionError("the server is down")
        return message.reply(str(message.seed), self.name)


def test_a_lack_of_resources_is_reported(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"agent 'ann'.*64 more GPU \(0 in the cluster"):
        run_here(placed(spec(), placement="actor", resources={"num_gpus": 64}), tmp_path)
    with pytest.raises(PlacementError, match=r"more CPU"):
        run_here(placed(spec(), placement="actor", resources={"num_cpus": 3}), tmp_path)


def test_an_agent_that_cannot_be_set_up_is_reported(ray_cluster: None, tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"RuntimeError: no weights"):
        run_here(placed(spec(Unloadable, openings=["x"]), placement="actor"), tmp_path)


class Unloadable(Counting):
    def setup(self) -> None:
        raise RuntimeError("no weights")


async def test_remote_is_itself_an_agent(ray_cluster: None) -> None:
    bob = a2a_ray.remote(lambda: Counting("bob"), replicas=2, num_cpus=0)
    here = await Conversation([Counting("ann"), Counting("bob")], opening="x", max_rounds=3).run_async()
    there = await Conversation([Counting("ann"), bob], opening="x", max_rounds=3).run_async()
    assert [m.content for m in here] == [m.content for m in there]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"agents": []}, "agents"),
        ({"max_rounds": 0}, "max_rounds: 0"),
        ({"agents": [{"name": "a", "kind": "ecko"}]}, "Did you mean 'echo'"),
        ({"agents": [{"name": "a", "kind": "echo", "prefx": "x"}]}, "Did you mean 'prefix'"),
        ({"protocol": "alternate"}, "Did you mean 'alternating'"),
        ({"max_roundz": 3}, "Did you mean 'max_rounds'"),
        ({"openings": {"first": 51}}, "openings.first: 51; there are 50"),
        ({"sweep": {"protocol.contxt": ["last"]}}, "Did you mean 'context'"),
        ({"sweep": {"agents.carl.prefix": ["x"]}}, "unknown entry 'carl'"),
        ({"agents": [{"name": "a", "kind": "hf", "model": "/no/such/folder"}]}, "/no/such/folder"),
        (
            {"agents": [{"name": "a", "kind": "openai", "model": "m", "api_key_env": "A2A_NO_SUCH_KEY"}]},
            "A2A_NO_SUCH_KEY",
        ),
    ],
)
def test_bad_input_starts_nothing(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    value = {"agents": [{"name": "a", "kind": "echo"}, {"name": "b", "kind": "echo"}], **change}
    with pytest.raises(ConfigurationError) as error:
        run_experiment(value, storage=tmp_path / "runs", progress=False)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_storage_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"storage: .*cannot write there"):
        run_here(spec(), tmp_path / "file")
    with pytest.raises(ConfigurationError, match="not a run"):
        open_run(tmp_path)


def test_a_reader_never_sees_half_a_manifest(tmp_path: Path) -> None:
    experiment = Experiment.parse(spec("echo", openings=["x" * 100_000]))
    with ThreadPoolExecutor(1) as pool:
        creating = [pool.submit(create_run, experiment, tmp_path) for _ in range(100)]
        while not creating[-1].done():
            for name in run_names(tmp_path)[-1:]:
                assert open_run(name).experiment.size() == experiment.size()
    assert len(run_names(tmp_path)) == 100


def test_sweep_makes_one_cell_for_every_combination() -> None:
    sweep = {"agents.*.wait": [0.0, 0.1], "protocol.context": ["last", "all"], "agents.ann.fail_on": ["x"]}
    cells = Experiment.parse(spec(sweep=sweep)).cells
    assert [(c.agents[1].settings["wait"], c.protocol["context"]) for c in cells] == [
        (0.0, "last"),
        (0.0, "all"),
        (0.1, "last"),
        (0.1, "all"),
    ]
    assert cells[0].agents[0].settings["fail_on"] == "x"
    assert "fail_on" not in cells[0].agents[1].settings


@pytest.mark.parametrize("given", [{}, {"max_rounds": 3}, {"max_turns": 5}])
def test_a_swept_limit_replaces_that_of_the_specification(given: dict[str, int]) -> None:
    value = {"agents": [{"name": n, "kind": "echo"} for n in "ab"], "openings": ["x"], **given}
    experiment = Experiment.parse({**value, "sweep": {"max_turns": [4, 9]}})
    again = Experiment.parse(experiment.to_dict())  # as it is read from the manifest of a run
    assert [cell.limit for cell in experiment.cells] == [cell.limit for cell in again.cells] == [4, 9]
    assert again.task("1-0-0").cell == 1


def test_messages_are_equal_after_packing() -> None:
    first = Message("c", 1, "ann", "x", usage={"cost": 0.5})
    question = Message("c", 2, "ann", "y", (first,), 7, {"temperature": 0.1}, metadata={"k": [1]})
    assert unpack(pack([question, first])) == (question, first)
    assert unpack(pack([])) == ()


GATED = """
from a2a_ray.runtime import driver
from a2a_ray.runtime.run_experiment import run_experiment
from tests.test_runtime import gated_spec
import sys
if __name__ == "__main__":
    driver.STOP_SECONDS = 1.0  # the turns in flight would never end
    run_experiment(gated_spec(sys.argv[2]), storage=sys.argv[1], workers=1, progress=False)
"""


def gated_spec(gate: str) -> dict[str, Any]:
    """80 turns, of which 20 need no gate."""
    value = spec("tests.test_runtime:Gated", openings={"first": 2}, repeats=2, max_rounds=10)
    return {**value, "agents": [{**a, "gate": gate} for a in value["agents"]]}


def interrupt(tmp_path: Path, gate: Path, end: int) -> Run:
    """Start a run in a process of its own, end it when it waits at the gate, and await the end of all its processes."""
    root = Path(__file__).parents[1]
    script = tmp_path / "gated.py"
    script.write_text(GATED)
    environment = {**os.environ, "PYTHONPATH": str(root), MARK: str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "cut", gate], env=environment, cwd=root, start_new_session=True
    )
    deadline = time.monotonic() + 300
    count = 0
    while count < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
        names = run_names(tmp_path / "cut")
        count = len(open_run(names[0]).turns) if names else 0
    process.send_signal(end)
    process.wait(300)
    while (left := processes_with(str(tmp_path))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    (name,) = run_names(tmp_path / "cut")
    return open_run(name)


@pytest.mark.chaos
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_ends_as_the_undisturbed_one(ray_cluster: None, tmp_path: Path, end: int) -> None:
    gate = tmp_path / "gate"
    cut = interrupt(tmp_path, gate, end)
    assert len(cut.turns) == 20, "the run must be interrupted in its middle"
    stored = content_of(cut.transcripts())
    gate.touch()
    calm = without_ray(gated_spec(str(gate)))
    for id, turns in stored.items():
        assert turns[:-1] == calm[id][: len(turns) - 1]  # the start of the undisturbed conversation
    assert content_of(resume_run(cut, workers=1, progress=False).transcripts()) == calm
    assert json.loads((Path(cut.path) / "manifest.json").read_text())["experiment"]["max_rounds"] == 10
