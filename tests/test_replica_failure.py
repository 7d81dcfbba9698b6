"""Replicas that die: which calls are retried, which fail, and that the replica is used again."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError

from a2a_ray.core.errors import LostCall, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.runtime.agents import replica_failure
from a2a_ray.runtime.agents.actor import AgentHost
from a2a_ray.runtime.agents.remote_agent import RemoteAgent
from a2a_ray.runtime.run_experiment import run_experiment
from tests.pool_agents import (
    AsyncAgent,
    BatchingAgent,
    CountingAgent,
    NotingAgent,
    PaidAgent,
    Pools,
    answered,
    call_all,
    converse,
    message_to,
    until,
)


async def kill_and_await_restart(pools: Pools) -> None:
    """Kill the only replica while no call is in flight; return when Ray has restarted it."""
    host = pools.started[0].hosts[0]
    before = await host.ready.remote()
    os.kill(pools.processes()[0], signal.SIGKILL)
    while True:
        try:
            if await host.ready.remote() != before:
                return
        except RayActorError:
            await asyncio.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.parametrize(
    "kind", [BatchingAgent, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (NotingAgent, AsyncAgent))]
)
async def test_a_message_that_kills_its_process_fails_alone(pools: Pools, kind: type[NotingAgent]) -> None:
    agent = pools.agent(kind, sleep=0.01)
    outcomes = await call_all(agent, "x", "x", "poison", "x", "x")
    assert answered(outcomes) == [True, True, False, True, True]
    assert "agent 'ann': its process died 3 times during turn 1 of 'c2'" in str(outcomes[2])
    assert sum(content == "poison 1" for _, _, content in pools.noted("step")) == 3
    sizes = [int(n) for _, _, n in pools.noted("batch")]
    assert sizes == ([] if kind is not BatchingAgent else [5, *sizes[1:]])
    assert max(sizes[1:], default=0) <= 2, "calls in flight at the first death are retried in smaller groups"
    assert all(answered(await call_all(agent, "x", "x")))


@pytest.mark.chaos
async def test_the_other_replica_takes_over_until_a_dead_one_is_back(pools: Pools) -> None:
    agent = pools.agent(NotingAgent, sleep=0.02, replicas=2)
    conversations = asyncio.gather(*(converse(agent, "x", 60, str(i)) for i in range(4)))
    await until(lambda: len(pools.noted("step")) >= 40)
    os.kill(pools.processes()[0], signal.SIGKILL)
    for transcript in await conversations:
        assert [m.content for m in transcript.messages] == [
            f"{t} {turn_seed(transcript.seed, t)}" for t in range(1, 61)
        ]
    while len(pools.processes()) < 3:
        assert all(answered(await call_all(agent, "x", "x")))


@pytest.mark.chaos
async def test_a_replica_that_died_unnoticed_sets_its_agent_up_again(pools: Pools) -> None:
    agent = pools.agent(PaidAgent)
    assert all(answered(await call_all(agent, "x")))
    await kill_and_await_restart(pools)
    assert all(answered(await call_all(agent, "x", "x"))), "nothing was in flight, so no paid call can be lost"
    assert len(pools.noted("step")) == 3


@pytest.mark.chaos
async def test_a_paid_call_in_flight_is_lost_and_not_repeated(pools: Pools) -> None:
    agent = pools.agent(PaidAgent)
    outcomes = await call_all(agent, "poison", "x")
    assert all(isinstance(outcome, LostCall) for outcome in outcomes)
    assert "it is unknown whether the call was made" in str(outcomes[0])
    assert len(pools.noted("step")) == 1
    assert all(answered(await call_all(agent, "x", "x", "x"))), "calls made while the replica is away wait for it"
    assert len(pools.noted("step")) == 4


@pytest.mark.parametrize(("text", "sent"), [("IOError: The actor is restarting.", False), ("RpcError: reset", True)])
async def test_a_paid_call_that_ray_did_not_send_is_retried(tmp_path: Path, text: str, sent: bool) -> None:
    """Which of the two errors Ray raises is a matter of milliseconds; so an `AgentHost` here stands for the actor."""
    host = AgentHost(cloudpickle.dumps(lambda: PaidAgent(tmp_path / "notes")))
    errors = [ActorUnavailableError(f"The actor is temporarily unavailable: {text}", None)]

    async def exchange(*arguments: Any) -> bytes:
        if errors:
            raise errors.pop()
        return await host.exchange(*arguments)

    methods = {"exchange": exchange, "ready": host.ready, "setup": host.setup}
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})
    agent = RemoteAgent("ann", [actor], await host.setup())
    outcomes = await call_all(agent, "x", "x")
    assert answered(outcomes) == [not sent, not sent]
    assert all(isinstance(outcome, LostCall) for outcome in outcomes if sent)
    assert all(answered(await call_all(agent, "x", "x")))


async def test_calls_fail_if_all_replicas_are_gone_for_good(pools: Pools) -> None:
    agent = pools.agent(NotingAgent)
    pools.started[0].end()
    for outcome in await call_all(agent, "x", "x"):
        assert isinstance(outcome, PlacementError), "not the conversation's fault: the run ends, and can be resumed"
        assert "agent 'ann': all of its processes have died" in str(outcome)


class FragileAgent(NotingAgent):
    """Cannot be set up while a file exists."""

    def setup(self) -> None:
        if self.notes.with_suffix(".down").exists():
            raise RuntimeError("no weights")


@pytest.mark.chaos
async def test_calls_fail_if_no_replica_can_be_set_up_for_long(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_failure, "AWAY_SECONDS", 3.0)
    agent = pools.agent(FragileAgent)
    assert all(answered(await call_all(agent, "x")))
    down = pools.notes.with_suffix(".down")
    down.touch()
    await kill_and_await_restart(pools)
    (outcome,) = await call_all(agent, "x")
    assert str(outcome) == (
        "agent 'ann': none of its processes has answered for 3 s:"
        " an agent could not be set up: RuntimeError: no weights"
    )
    down.unlink()
    while not all(answered(await call_all(agent, "x"))):
        await asyncio.sleep(0.1)


# --- state --------------------------------------------------------------------------------------------------------


@pytest.mark.chaos
async def test_a_stateful_agent_continues_in_a_new_process(pools: Pools) -> None:
    agent = pools.agent(CountingAgent, sleep=0.02)
    conversations = asyncio.gather(*(converse(agent, "x", 20, f"c{i}") for i in range(3)))
    await until(lambda: len(pools.noted("step")) >= 10)
    os.kill(pools.processes()[0], signal.SIGKILL)
    for transcript in await conversations:
        assert [m.content for m in transcript.messages] == [f"{t} of {t}" for t in range(1, 21)]
    assert len(pools.processes()) == 2


@pytest.mark.chaos
async def test_a_stateful_agent_gets_its_state_if_its_process_died_between_turns(pools: Pools) -> None:
    agent = pools.agent(CountingAgent)
    assert (await agent.step(message_to("x"))).content == "1 of 1"
    await kill_and_await_restart(pools)
    assert (await agent.step(message_to("x", turn=2))).content == "2 of 2"


# --- runs ---------------------------------------------------------------------------------------------------------


class LateTurnsWait(NotingAgent):
    """Late turns are slow until three processes have worked: so the run lasts until the dead one is back."""

    def step(self, message: Message) -> Message:
        if message.turn > 12 and len({line.split()[0] for line in self.notes.read_text().splitlines()}) < 3:
            time.sleep(0.4)
        return super().step(message)


@pytest.mark.chaos
def test_a_run_whose_replica_dies_equals_an_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    def contents(storage: str, notes: Path, sleep: float) -> dict[str, list[Any]]:
        ann = {"name": "ann", "kind": LateTurnsWait if sleep else NotingAgent, "notes": str(notes), "sleep": sleep}
        value = {
            "agents": [{**ann, "placement": "actor", "resources": {"num_cpus": 0, "replicas": 2}}],
            "max_turns": 25,
            "repeats": 6,
        }
        run = run_experiment({**value, "openings": ["x"]}, storage=tmp_path / storage, progress=False)
        return {t.id: [t.status, *((m.turn, m.content) for m in t.messages)] for t in run.transcripts()}

    undisturbed = contents("undisturbed", tmp_path / "undisturbed.notes", 0.0)
    notes = tmp_path / "notes"
    killer = threading.Thread(target=kill_one, args=(notes,))
    killer.start()
    disturbed = contents("disturbed", notes, 0.02)
    killer.join()
    assert disturbed == undisturbed
    assert len({line.split()[0] for line in notes.read_text().splitlines()}) >= 3


def kill_one(notes: Path) -> None:
    """Kill the process that noted the 40th line."""
    lines: list[str] = []
    while len(lines) < 40:
        time.sleep(0.02)
        lines = notes.read_text().splitlines() if notes.exists() else []
    os.kill(int(lines[39].split()[0]), signal.SIGKILL)
