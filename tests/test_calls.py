"""Paid, limited and monitored agents in real runs: ledger, budgets, spans, log records, progress."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.contracts import Agent
from a2a_ray.core.errors import ConfigurationError, LostCall, MissingDependencyError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.spec import AgentSpec, Experiment
from a2a_ray.report.analyze_source import analyze_source
from a2a_ray.report.report_source import report_data
from a2a_ray.runtime import run_actors
from a2a_ray.runtime.limits.budget_keeper import endpoint_limits, spent_before
from a2a_ray.runtime.limits.gate import BudgetGate
from a2a_ray.runtime.limits.metered_agent import CallMetering, MeteredAgent, MeteringSettings
from a2a_ray.runtime.limits.rate_limit import CallEstimate, RateLimits
from a2a_ray.runtime.limits.spent import Spent
from a2a_ray.runtime.plan import Progress
from a2a_ray.runtime.progress import summary
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.runtime.telemetry import logs, tracing
from a2a_ray.runtime.telemetry.metrics import Meter
from a2a_ray.store.run import Run
from a2a_ray.store.schema import CALL
from tests.command_line import call, write_spec

PRICE = {"input": 1000.0, "output": 1000.0}
"""Money per million tokens: one of ten tokens costs 0.01."""

ECHO = {"name": "a", "kind": "echo"}
HERE = {"requests_per_minute": 48, "max_concurrency": 3, "rate_limit_group": "here"}


class Payable:
    """Takes `wait` seconds and ten tokens a call, and writes its calls to a file. Its messages follow from the seed.

    usage: whether its responses carry their tokens. hold_at: calls from this turn on wait for the file "released".
    """

    def __init__(self, name: str, file: str, wait: float = 0.0, usage: bool = True, hold_at: int | None = None) -> None:
        self.name, self.file, self.wait, self.usage, self.hold_at = name, Path(file), wait, usage, hold_at

    async def step(self, message: Message) -> Message:
        with self.file.open("a") as calls:
            calls.write(f"{time.time()} {message.conversation} {message.turn}\n")
        await asyncio.sleep(self.wait)
        while (
            self.hold_at is not None and message.turn >= self.hold_at and not self.file.with_name("released").exists()
        ):
            await asyncio.sleep(0.05)
        with self.file.open("a") as calls:
            calls.write("end\n")
        if "fail" in str(message.content):
            raise ConnectionError("no")
        usage = {"input_tokens": 4, "output_tokens": 6} if self.usage else {}
        return message.reply(str(message.seed % 1000), self.name, usage)

    def bid(self, message: Message) -> float:
        return message.seed % 7


def spec(file: Path, placement: str = "actor", conversations: int = 4, turns: int = 5, **more: Any) -> dict[str, Any]:
    agent = {"kind": Payable, "file": str(file), **more}
    agents = [{"name": "ann", **agent, "placement": placement}, {"name": "bob", **agent}]
    return {"agents": agents, "max_turns": turns, "openings": ["x"], "repeats": conversations}


def start(value: dict[str, Any], storage: Path, *, workers: int = 1, **more: Any) -> Run:
    return run_experiment(value, storage=storage, workers=workers, progress=False, **more)


def received(file: Path) -> Counter[tuple[str, int]]:
    lines = [line.split() for line in file.read_text().splitlines() if line != "end"]
    return Counter((conversation, int(turn)) for _, conversation, turn in lines)


def most_in_flight(file: Path) -> int:
    """The most calls that had started and not ended at the same time."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return max(itertools.accumulate(1 if len(line) == 3 else -1 for line in lines))


def ledger(run: Run) -> list[dict[str, Any]]:
    rows = [row for row in run.rows.to_pylist() if row["kind"] == CALL]
    return [{**row, **json.loads(row["metadata"])} for row in rows]


# --- the ledger ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["worker", "actor"])
def test_a_paid_call_is_in_the_ledger_before_it_is_made(ray_cluster: None, tmp_path: Path, placement: str) -> None:
    run = start(spec(tmp_path / "calls", placement, price=PRICE), tmp_path)
    assert run.summary() == {"conversations": 4, "done": 4, "failed": 0, "turns": 20}
    rows = ledger(run)
    assert Counter((r["conversation_id"], r["seq"]) for r in rows) == received(tmp_path / "calls")
    assert {(r["method"], r["attempt"]) for r in rows} == {("step", 0)}
    times = {
        (c, int(n)): float(t)
        for t, c, n in (x.split() for x in (tmp_path / "calls").read_text().splitlines() if x != "end")
    }
    assert all(r["created_at"].timestamp() <= times[r["conversation_id"], r["seq"]] for r in rows)
    usage = [m.usage for t in run.transcripts() for m in t.messages]
    assert usage == [{"input_tokens": 4, "output_tokens": 6, "requests": 1, "cost": 0.01}] * 20
    assert spent_before(run) == Spent(pytest.approx(0.2), 200, 20)  # type: ignore[arg-type]
    facts = report_data(analyze_source(run.path)).run
    assert facts["paid calls"] == "20; 0 possibly paid twice, 0 without a stored answer"
    assert facts["cost"] == "0.2000"


def test_same_transcripts_paid_or_not(ray_cluster: None, tmp_path: Path) -> None:
    free = start(spec(tmp_path / "a", "worker"), tmp_path / "free")
    paid = start(spec(tmp_path / "b", "actor", price=PRICE, limits={"requests_per_minute": 60_000}), tmp_path / "paid")
    assert not ledger(free)
    texts = [[(m.turn, m.sender, m.content, m.seed) for t in run.transcripts() for m in t] for run in (free, paid)]
    assert texts[0] == texts[1]


def test_bids_of_a_paid_agent_are_in_the_ledger(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(tmp_path / "calls", "worker", 1, 2, price=PRICE) | {"protocol": {"kind": "adaptive", "by": "bid"}}
    rows = ledger(start(value, tmp_path))
    assert [r["method"] for r in rows] == ["bid", "bid", "step"] * 2


def test_a_failed_call_that_is_retried_is_a_second_row_of_the_ledger(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(tmp_path / "calls", "worker", 1, 2, price=PRICE) | {"openings": ["fail", "fine"]}
    run = start(value, tmp_path)
    assert run.summary()["failed"] == 1
    again = resume_run(run, workers=1, progress=False, retry_failed=True)
    rows = [r for r in ledger(again) if r["conversation_id"] == "0-0-0"]
    assert [(r["seq"], r["turn"]) for r in rows] == [(1, None), (1, None)]
    assert len({r["writer"] for r in rows}) == 2
    assert received(tmp_path / "calls")["0-0-0", 1] == 2


class Ledger:
    """A recording that keeps rows in a list; each commit takes a turn of the event loop."""

    def __init__(self) -> None:
        self.rows: list[Message] = []

    async def commit(self, *rows: Message) -> None:
        await asyncio.sleep(0)
        self.rows += rows


class DyingAgent:
    """Its process dies at the first calls."""

    def __init__(self, deaths: int) -> None:
        self.name, self.deaths = "ann", deaths

    async def step(self, message: Message) -> Message:
        self.deaths -= 1
        if self.deaths >= 0:
            raise LostCall("the process died")
        return message.reply("said", self.name, {"requests": 2})


def metered(agent: Any, recording: Any, **more: Any) -> Any:
    calls = CallMetering(MeteringSettings("run"), recording)
    return calls.wrap(agent, AgentSpec(name="ann", kind="echo", price=PRICE, **more), "key")


async def test_a_lost_paid_call_is_retried_at_most_twice() -> None:
    recording = Ledger()
    agent = metered(DyingAgent(2), recording)
    assert isinstance(agent, MeteredAgent)
    assert isinstance(agent, Agent)
    answer = await agent.step(Message("c", 3, "bob", "x"))
    assert answer.usage == {"requests": 4, "unanswered": 2}
    assert [(r.conversation, r.seq, r.sender, r.kind) for r in recording.rows] == [("c", 3, "ann", CALL)] * 3
    assert [r.attempt for r in recording.rows] == [0, 1, 2]
    with pytest.raises(LostCall):
        await metered(DyingAgent(3), recording).step(Message("c", 4, "bob", "x"))
    assert len(recording.rows) == 6


async def test_no_call_is_made_before_its_ledger_row_is_committed() -> None:
    entered, released = asyncio.Event(), asyncio.Event()

    class SlowLedger(Ledger):
        async def commit(self, *rows: Message) -> None:
            entered.set()
            await released.wait()

    agent = DyingAgent(0)
    call = asyncio.create_task(metered(agent, SlowLedger()).step(Message("c", 1, "", "x")))
    await entered.wait()
    await asyncio.sleep(0)
    assert agent.deaths == 0, "not called"
    released.set()
    await call
    assert agent.deaths == -1


def test_only_paid_limited_or_monitored_agents_are_wrapped() -> None:
    agent, calls = object(), CallMetering(MeteringSettings("run"), None)
    assert calls.wrap(agent, AgentSpec(name="ann", kind="echo"), "key") is agent
    assert calls.wrap(agent, AgentSpec(name="ann", kind="echo", placement="actor"), "key") is agent


# --- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["worker", "actor"])
def test_a_spent_budget_ends_a_run_and_a_larger_one_resumes_it(
    ray_cluster: None, tmp_path: Path, placement: str
) -> None:
    calm = start(spec(tmp_path / "calm", placement, price=PRICE, wait=0.01), tmp_path / "undisturbed")
    value = spec(tmp_path / "calls", placement, price=PRICE, wait=0.01)
    run = start({**value, "budget": {"requests": 7}}, tmp_path, workers=2)
    assert run.stopped.startswith("budget of 7 requests spent (7); continue with a larger one: a2a-ray resume ")
    assert len(run.turns) == sum(received(tmp_path / "calls").values()) == 7
    assert run.summary()["failed"] == 0
    assert resume_run(run, progress=False).stopped.startswith("budget of 7 requests spent (7)")
    assert sum(received(tmp_path / "calls").values()) == 7
    more = resume_run(run, progress=False, budget={"requests": 12})
    assert "budget of 12 requests spent (12)" in more.stopped
    assert sum(received(tmp_path / "calls").values()) == 12
    done = resume_run(run, progress=False, budget={"requests": 20})
    assert done.stopped == ""
    said = [[(m.turn, m.content, m.seed) for t in r.transcripts() for m in t] for r in (done, calm)]
    assert said[0] == said[1]
    assert set(received(tmp_path / "calls").values()) == {1}, "no call was made twice"


def test_money(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(tmp_path / "calls", conversations=30, price=PRICE, wait=0.02)
    run = start({**value, "budget": {"cost": 1.2}}, tmp_path)
    spent = spent_before(run)
    # A call is taken to need 500 tokens where its settings give no limit, so the last ones are not begun; it takes 10.
    assert 0.65 < spent.cost < 0.72
    assert run.stopped.startswith(f"budget of 1.20 spent ({spent.cost:.2f}; the next call may cost 0.5)")


def test_a_budget_on_the_command_line(ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each call costs 0.01, and may cost 0.5 as far as is known before."""
    value = spec(tmp_path / "calls", "worker", 1, 8, price=PRICE)
    agents = [{**agent, "kind": "tests.test_calls:Payable"} for agent in value["agents"]]
    path = write_spec(tmp_path, max_rounds=None, **{**value, "agents": agents})
    none = call(capsys, "run", path, "--storage", tmp_path / "runs", "--budget", "0")
    assert none.status == 2
    assert "budget.cost: 0.0; expected more than 0" in none.err
    spent = call(capsys, "run", path, "--storage", tmp_path / "runs", "--budget", "0.53", "--workers", "1", "--json")
    assert spent.status == 1
    assert spent.json["stopped"].startswith("budget of 0.53 spent (0.0")
    assert 0 < spent.json["turns"] < 8
    done = call(capsys, "resume", spent.json["run"], "--budget", "5", "--takeover", "--workers", "1", "--json")
    assert (done.status, done.json["turns"], done.json["ledger"]["calls"]) == (0, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [{}, {"limits": {"requests_per_minute": 30}}])
def test_a_budget_of_seconds_ends_conversations_even_if_they_wait(
    ray_cluster: None, tmp_path: Path, limits: dict[str, Any]
) -> None:
    value = spec(tmp_path / "calls", "worker", conversations=5, turns=1000, wait=0.05, **limits)
    run = start(value, tmp_path, budget={"seconds": 2})
    assert run.stopped.startswith("budget of 2 seconds spent")
    assert len(run.turns) > 0
    assert set(run.statuses().values()) == {"running"}


@pytest.mark.slow
def test_limits_hold_for_all_workers_together(ray_cluster: None, tmp_path: Path) -> None:
    value = spec(tmp_path / "calls", "worker", 8, 4, limits=HERE, wait=0.3)
    for agent in value["agents"]:
        agent |= {"usage": False, "hold_at": 1}
    seen: list[Progress] = []
    most = 0

    def release(now: Progress) -> None:
        nonlocal most
        seen.append(now)
        most = max(most, len(times()))
        if now.in_flight == 8 and most >= 3:
            (tmp_path / "released").touch()

    def times() -> list[float]:
        file = tmp_path / "calls"
        return sorted(float(x.split()[0]) for x in file.read_text().splitlines() if x != "end") if file.exists() else []

    started = time.monotonic()
    run = run_experiment({**value, "budget": {"requests": 12}}, storage=tmp_path, workers=2, progress=release)
    assert len(times()) == len(run.turns) == 12
    assert time.monotonic() - started >= 10, "a twelfth of the minute's requests, 4, in 5 s"
    assert most_in_flight(tmp_path / "calls") == 3


@pytest.mark.slow
def test_a_budget_keeper_that_dies_is_restarted(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    keepers: list[Any] = []
    start_keeper = run_actors.start_budget_keeper

    def kept(*arguments: Any) -> Any:
        keeper, by_key = start_keeper(*arguments)
        keepers.append(keeper)
        return keeper, by_key

    def watch(now: Progress) -> None:
        if now.messages > 4 and keepers:
            ray.kill(keepers.pop(), no_restart=False)

    monkeypatch.setattr(run_actors, "start_budget_keeper", kept)
    value = spec(tmp_path / "calls", "worker", 4, 12, limits={"max_concurrency": 2}, wait=0.1)
    run = run_experiment({**value, "budget": {"requests": 30}}, storage=tmp_path, progress=watch)
    assert not keepers, "one was killed"
    assert run.stopped.startswith("budget of 30 requests spent (30)")
    assert len(run.turns) == sum(received(tmp_path / "calls").values()) == 30


def test_endpoints_and_their_limits() -> None:
    openai = {"kind": "openai", "model": "m", "api_key_env": None}
    agents = [
        {"name": "a", **openai, "limits": {"requests_per_minute": 60, "max_concurrency": 8}},
        {"name": "b", **openai, "limits": {"requests_per_minute": 30}},
        {"name": "c", **openai, "base_url": "http://other/v1"},
        {"name": "d", "kind": "echo", "limits": {"rate_limit_group": "mine", "tokens_per_minute": 10}},
        {"name": "e", "kind": "echo"},
    ]
    experiment = Experiment.parse({"agents": agents})
    limits, by_key = endpoint_limits(experiment)
    assert [by_key.get(a.key()) for a in experiment.agents] == ["None m", "None m", None, "mine", None]
    assert limits == {"None m": RateLimits(30, None, 8), "mine": RateLimits(None, 10, None)}
    assert experiment.agents[0].build().max_concurrency == 8
    total = Experiment.parse({"agents": agents, "budget": {"cost": 5}})
    assert endpoint_limits(total)[0].keys() == {"None m", "http://other/v1 m", "mine"}
    assert [a.paid for a in experiment.agents] == [True, True, True, False, False]
    asked = {"name": "r", "kind": "regression", "dim": 2, "objective": [1.0, 0.0], "model_agent": openai}
    spec = Experiment.parse({"agents": [asked]}).agents[0]
    assert spec.paid
    assert spec.endpoint_key == "None m"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"budget": {"cots": 5}}, "Did you mean 'cost'"),
        ({"budget": {"cost": 0}}, "budget.cost: 0; expected more than 0"),
        ({"agents": [{**ECHO, "limits": {"requests_per_minute": 0}}]}, "requests_per_minute: 0; expected at"),
        ({"agents": [{**ECHO, "limits": {"max_concurrency": 0}}]}, "max_concurrency: 0; expected at least 1"),
    ],
)
def test_invalid_limits_are_refused(value: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Experiment.parse({"agents": [{"name": "a", "kind": "echo"}], **value})


# --- settings, resources and limits -------------------------------------------------------------------------------


class Greedy:
    """Has parameters with the names of runtime settings."""

    def __init__(
        self,
        name: str,
        timeout: float = 1.0,
        endpoint: str = "",
        concurrency: int = 0,
        replicas: int = 0,
        price: float = 0.0,
        max_batch: int = 0,
        num_gpus: int = 0,
        max_concurrency: int = 0,
    ) -> None:
        self.name = name
        self.own = [timeout, endpoint, concurrency, replicas, price, max_batch, num_gpus, max_concurrency]

    def step(self, message: Message) -> Message:
        return message.reply(repr(self.own), self.name)


OWN = {
    "timeout": 7.5,
    "endpoint": "/ask",
    "concurrency": 3,
    "replicas": 9,
    "price": 2.5,
    "max_batch": 4,
    "num_gpus": 99,
    "max_concurrency": 11,
}


@pytest.mark.parametrize("placement", ["worker", "actor"])
def test_an_agent_gets_settings_of_any_name(ray_cluster: None, tmp_path: Path, placement: str) -> None:
    agent = {"name": "ann", "kind": Greedy, "placement": placement, **OWN}
    agent |= {"resources": {"replicas": 1, "num_cpus": 0}, "limits": {"max_concurrency": 5}}
    value = {"agents": [agent], "openings": ["x"], "max_rounds": 1, "sweep": {"agents.ann.replicas": [9, 8]}}
    first, second = start(value, tmp_path).transcripts()
    assert first.messages[0].content == repr(list(OWN.values()))
    assert second.messages[0].content == repr([*list(OWN.values())[:3], 8, *list(OWN.values())[4:]])
    experiment = Experiment.parse({**value, "sweep": {}})
    (spec,) = Experiment.parse(experiment.to_dict() | {"agents": [{**agent, "kind": "tests.test_calls:Greedy"}]}).agents
    assert (spec.rate, spec.paid, spec.step_timeout, spec.resources.replicas) == (None, False, None, 1)
    assert spec.build().own == list(OWN.values())


@pytest.mark.parametrize(
    ("old", "sentence"),
    [
        ({"max_batch": 3}, "agents.0.max_batch: .*put it under resources: as max_batch_size"),
        ({"scheduling_strategy": "SPREAD"}, "put it under resources: as scheduling_strategy"),
        ({"overruns": 3}, "put it under limits: as max_hung_steps"),
        ({"timeout": 3}, "put it under limits: as timeout"),
        ({"concurrency": 3}, "put it under limits: as max_concurrency"),
        ({"tokens_per_minute": 3}, "put it under limits: as tokens_per_minute"),
    ],
)
def test_errors_name_the_new_place_of_a_key_that_moved(old: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Experiment.parse({"agents": [{**ECHO, **old}]}).check()
    with pytest.raises(ConfigurationError, match=sentence):
        Experiment.parse({"agents": [ECHO], "sweep": {f"agents.a.{k}": [v] for k, v in old.items()}}).check()


def test_limits_that_an_agent_enforces_itself_are_passed_to_it() -> None:
    openai = {"name": "a", "kind": "openai", "model": "m", "api_key_env": None}
    (spec,) = Experiment.parse({"agents": [{**openai, "limits": {"timeout": 5, "max_concurrency": 3}}]}).agents
    made = spec.build()
    assert (made.timeout, made.max_concurrency, spec.step_timeout) == (5, 3, None)
    (spec,) = Experiment.parse({"agents": [{**openai, "timeout": 5, "max_concurrency": 3}]}).agents
    assert (spec.build().timeout, spec.build().max_concurrency, spec.limits.max_concurrency) == (5, 3, None)
    both = Experiment.parse({"agents": [{**openai, "timeout": 5, "limits": {"timeout": 6}}]})
    with pytest.raises(
        ConfigurationError, match=r"agents.0.timeout: given here and as limits.timeout; expected it once"
    ):
        both.check()
    with pytest.raises(ConfigurationError, match=r"agents.0.concurrency: .*put it under limits: as max_concurrency"):
        Experiment.parse({"agents": [{**openai, "concurrency": 3}]}).check()


def test_resources_and_limits_can_be_swept() -> None:
    sweep = {"agents.a.resources.num_gpus": [0, 0.5], "agents.*.limits.requests_per_minute": [10, 20]}
    agents = [{**ECHO, "placement": "actor"}, {"name": "b", "kind": "echo", "limits": {"max_concurrency": 2}}]
    cells = Experiment.parse({"agents": agents, "sweep": sweep}).cells
    found = [(c.agents[0].resources.num_gpus, [a.limits.requests_per_minute for a in c.agents]) for c in cells]
    assert found == [(0, [10, 10]), (0, [20, 20]), (0.5, [10, 10]), (0.5, [20, 20])]
    assert all(c.agents[1].limits.max_concurrency == 2 for c in cells)
    again = Experiment.parse(Experiment.parse({"agents": agents, "sweep": sweep}).to_dict()).cells
    assert [c.agents[0].key() for c in again] == [c.agents[0].key() for c in cells]
    assert len({c.agents[0].key() for c in cells}) == 2, "agents that differ in limits per minute share a pool"


# --- the most that a response may take ----------------------------------------------------------------------------


class Terse(Payable):
    """Reports how many tokens its responses take at most."""

    def __init__(self, name: str, file: str = "", most: int | None = 20, **more: Any) -> None:
        super().__init__(name, file, **more)
        self.most = most

    def max_output_tokens(self) -> int | None:
        return self.most


def test_a_dry_run_uses_the_output_limits_of_custom_agents(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paid = {"price": {"input": 1.0, "output": 10.0}}
    agents = [
        {"name": "terse", "kind": "tests.test_calls:Terse", **paid},
        {"name": "long", "kind": "tests.test_calls:Payable", "file": "f", **paid},
        {"name": "open", "kind": "tests.test_calls:Terse", "most": None},
        {"name": "free", "kind": "tests.test_calls:Payable", "file": "f"},
    ]
    spec = write_spec(tmp_path, agents=agents, openings=["x" * 400], max_rounds=1)
    done = call(capsys, "run", spec, "--dry-run", "--json")
    assert done.json["output_tokens"] == 20 + 500 + 500
    assert done.json["input_tokens"] == 100 + 500 + 500  # the opening, then responses of any length
    assert done.json["cost"] == pytest.approx((100 + 500 + 10 * (20 + 500)) / 1e6)
    assert done.json["assumed"] == ["long", "open"]
    assert "500 tokens an answer: long, open" in call(capsys, "run", spec, "--dry-run").out


async def test_budgets_reserve_the_output_limit_of_an_agent() -> None:
    def need(**settings: Any) -> CallEstimate:
        spec = AgentSpec(name="ann", price=PRICE, **settings)
        metered = MeteredAgent(spec.build(), spec, None, Meter("run", False), None, {})
        metered.limit(BudgetGate("w", None), "here")  # type: ignore[arg-type]
        return metered._estimate(Message("c", 1, "", "four" * 10))

    assert need(kind=Terse) == CallEstimate(11 + 20, pytest.approx(0.031))
    assert need(kind=Payable, file="f") == CallEstimate(11 + 500, pytest.approx(0.511))
    assert need(kind="hf", model="tiny-llama", max_new_tokens=30).tokens == 11 + 30


# --- progress and log records -------------------------------------------------------------------------------------


def test_progress_summary() -> None:
    now = Progress(200, 12, 3, 1234, 5000, 100.0, 41, 9000, 1.234)
    assert summary(now) == (
        "12/200 conversations, 3 failed, 41 in flight, 1,234 turns, 12 turns/s, cost 1.23, at most 0:05:05 left"
    )
    assert summary(Progress(2, 2, 0, 4, 4, 2.0)) == "2/2 conversations, 4 turns, 2 turns/s"
    assert summary(Progress(2, 0, 0, 0, 4, 0.0, 2)) == "0/2 conversations, 2 in flight, 0 turns, 0 turns/s"


def test_progress_reports_conversations_in_flight_and_cost(ray_cluster: None, tmp_path: Path) -> None:
    seen: list[Progress] = []

    def release(now: Progress) -> None:
        seen.append(now)
        if now.in_flight == 6 and now.cost > 0:
            (tmp_path / "released").touch()

    value = spec(tmp_path / "calls", "worker", 6, 6, price=PRICE, hold_at=4)
    run_experiment(value, storage=tmp_path, workers=1, progress=release)
    assert max(now.in_flight for now in seen) == 6
    assert seen[-1][:5] == (6, 6, 0, 36, 36)
    assert seen[-1].tokens == 360
    assert seen[-1].cost == pytest.approx(0.36)
    assert any(0 < now.cost < 0.36 for now in seen)


NOTEBOOK = """
from a2a_ray import run_experiment
agents = [{"name": n, "kind": "tests.test_calls:Payable", "file": FILE, "wait": 0.4} for n in ("ann", "bob")]
run = run_experiment({"agents": agents, "max_turns": 4, "openings": ["x"]}, storage=STORAGE)
"""


@pytest.mark.slow
def test_progress_in_a_notebook(tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")
    nbformat = pytest.importorskip("nbformat")
    code = f"FILE, STORAGE = {str(tmp_path / 'calls')!r}, {str(tmp_path)!r}" + NOTEBOOK
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client.NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    shown = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert len(shown) == 1, "one line, which is updated"
    assert "1/1 conversations, 4 turns" in shown[0]["data"]["text/plain"]
    assert '<progress max="1" value="1.0000">' in shown[0]["data"]["text/html"]


def test_log_records_name_run_conversation_and_turn(caplog: pytest.LogCaptureFixture) -> None:
    factory, handlers = logging.getLogRecordFactory(), list(logging.getLogger().handlers)
    try:
        logs.name_records("run-1")
        written = logging.getLogger("elsewhere")
        written.warning("no conversation")
        transcript = Transcript("0-1-2", ("ann",), "x")
        logs.log_context.set(transcript)
        written.warning("a conversation")
        logs.log_context.set(Message("0-1-3", 7, "ann", "y"))
        written.warning("a message")
    finally:
        logging.setLogRecordFactory(factory)
        logging.getLogger().handlers[:] = handlers
        logs.log_context.set(None)
    fields = [(r.run, r.conversation, r.turn, r.where) for r in caplog.records]  # type: ignore[attr-defined]
    assert fields == [
        ("run-1", "", 0, "run-1"),
        ("run-1", "0-1-2", 1, "run-1 0-1-2 1"),
        ("run-1", "0-1-3", 7, "run-1 0-1-3 7"),
    ]


class LoggingAgent(Payable):
    """Writes a log record at each turn."""

    async def step(self, message: Message) -> Message:
        logging.getLogger("mine").warning("I got %s", message.content)
        return await super().step(message)


def test_log_records_of_agents_are_in_the_logs_of_ray(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    value = spec(tmp_path / "calls", "worker", 1, 2)
    value["agents"] = [{**agent, "kind": LoggingAgent} for agent in value["agents"]]
    run = start(value, tmp_path)
    name = Path(run.path).name
    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines: list[str] = []
    while len(lines) < 2:  # Ray writes them in its own time
        texts = [file.read_text(errors="replace") for file in folder.glob("worker-*.err")]
        lines = [line for text in texts for line in text.splitlines() if f"[{name} 0-0-0 " in line]
    assert [line.partition("WARNING ")[2] for line in lines] == [
        f"mine [{name} 0-0-0 1] I got x",
        f"mine [{name} 0-0-0 2] I got {run.transcript('0-0-0').messages[0].content}",
    ]


# --- spans --------------------------------------------------------------------------------------------------------


def test_without_settings_there_are_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (tracing.EXPORTER, *tracing.ENDPOINTS):
        monkeypatch.delenv(key, raising=False)
    assert tracing.settings() == {}
    monkeypatch.setenv(tracing.EXPORTER, "none")
    assert tracing.settings() == {}
    assert tracing.tracing("run", {}) is None


def test_an_exporter_that_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.EXPORTER, "no_such")
    with pytest.raises(MissingDependencyError, match=r"OTEL_TRACES_EXPORTER: 'no_such'.*pip install opentelemetry-sdk"):
        start(spec(tmp_path / "calls"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_spans_of_a_run_have_the_genai_names(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    monkeypatch.setenv(tracing.EXPORTER, "console")
    value = spec(tmp_path / "calls", "worker", 2, 3) | {"openings": ["x", "fail"], "repeats": 1}
    run = start(value, tmp_path)
    spans = [span for span in printed_spans() if span["attributes"].get("a2a_ray.run") == Path(run.path).name]
    good = sorted(
        (s for s in spans if s["status"]["status_code"] != "ERROR"), key=lambda s: s["attributes"]["a2a_ray.turn"]
    )
    (bad,) = (s for s in spans if s["status"]["status_code"] == "ERROR")
    assert [s["name"] for s in good] == ["invoke_agent ann", "invoke_agent bob", "invoke_agent ann"]
    assert good[1]["attributes"] == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "bob",
        "gen_ai.conversation.id": "0-0-0",
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 6,
        "a2a_ray.run": Path(run.path).name,
        "a2a_ray.turn": 2,
        "a2a_ray.method": "step",
    }
    assert len({s["context"]["trace_id"] for s in good}) == 1, "one trace for a conversation"
    assert bad["context"]["trace_id"] != good[0]["context"]["trace_id"]
    assert bad["attributes"]["error.type"] == "ConnectionError"
    assert "ConnectionError" in run.transcript("0-1-0").error


def printed_spans() -> list[dict[str, Any]]:
    """The spans that the console exporter wrote in the workers of the local Ray."""
    import ray

    folder = Path(ray._private.worker._global_node.get_logs_dir_path())
    spans = []
    for file in folder.glob("worker-*.out"):
        text = file.read_text(errors="replace")
        while (begin := text.find('{\n    "name": "invoke_agent')) >= 0:
            span, length = json.JSONDecoder().raw_decode(text[begin:])
            spans.append(span)
            text = text[begin + length :]
    return spans


async def test_a_conversation_that_another_process_resumes_stays_in_its_trace() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    one, two = tracing.Tracing("run"), tracing.Tracing("run")
    one._tracer = two._tracer = provider.get_tracer("a2a_ray")
    for made, turn in ((one, 1), (two, 2)):
        with made.span("ann", "gpt-5-mini", Message("c", turn, "", "x"), "step"):
            pass
    first, second = kept.get_finished_spans()
    assert first.context.trace_id == second.context.trace_id
    assert first.context.span_id != second.context.span_id
    assert second.attributes["gen_ai.request.model"] == "gpt-5-mini"


def test_spans_reach_a_collector(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "opentelemetry-exporter-otlp-proto-http is not installed"
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason=reason)
    got: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            got.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv(tracing.EXPORTER, raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "conversations")
    start(spec(tmp_path / "calls", "worker", 2, 3), tmp_path)
    server.shutdown()
    resources = [r for request in got for r in request.resource_spans]
    assert {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"} == {
        "conversations"
    }
    spans = [span for r in resources for scope in r.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["invoke_agent ann"] * 4 + ["invoke_agent bob"] * 2
    assert len({span.trace_id for span in spans}) == 2
