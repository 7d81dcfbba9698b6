"""Heavy agents in actors: batches, overlap, timeouts, state and options. Deaths: test_replica_failure.py."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.errors import AgentError, ConfigurationError, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.agents.pool import RemoteAgent, ReplicaPool, remote
from a2a_ray.testing import check_agent
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

# --- batches and overlap ------------------------------------------------------------------------------------------


async def test_queued_calls_form_batches_up_to_the_limit(pools: Pools) -> None:
    agent = pools.agent(BatchingAgent, sleep=0.01, max_batch_size=5)
    outcomes = await call_all(agent, *["x"] * 12)
    assert all(answered(outcomes))
    assert [int(n) for _, _, n in pools.noted("batch")] == [5, 5, 2]


async def test_queued_calls_are_divided_among_the_replicas(pools: Pools) -> None:
    agent = pools.agent(BatchingAgent, replicas=2)
    assert all(answered(await call_all(agent, *["x"] * 10)))
    (one, _, first), (other, _, second) = pools.noted("batch")
    assert one != other
    assert first == second == "5"


async def test_messages_of_a_batch_that_fails_go_to_step_one_by_one(pools: Pools) -> None:
    outcomes = await call_all(pools.agent(BatchingAgent), "odd", "fail", "x")
    assert answered(outcomes) == [True, False, True]
    assert str(outcomes[1]) == "agent 'ann' failed at turn 1: RuntimeError: this is too much"


async def test_a_paid_agent_is_called_by_step_alone(pools: Pools) -> None:
    for agent in (pools.agent(PaidAgent), pools.agent(BatchingAgent, paid=True)):
        assert agent.paid
        assert all(answered(await call_all(agent, *["odd"] * 8)))
    assert not pools.noted("batch")
    assert len(pools.noted("step")) == 16


async def test_responses_do_not_wait_for_slower_ones(pools: Pools) -> None:
    agent = pools.agent(AsyncAgent)
    slow = []
    for count in range(1, 4):
        slow.append(asyncio.ensure_future(agent.step(message_to("hang"))))
        await until(lambda count=count: len(pools.noted("step")) == count)  # type: ignore[misc]
    transcript = await converse(agent, "x", 10)
    assert len(transcript.messages) == 10
    assert not any(each.done() for each in slow)
    pools.release()
    assert all(answered(await asyncio.gather(*slow)))


async def test_order_within_each_of_many_conversations_on_one_asynchronous_actor(pools: Pools) -> None:
    agent = pools.agent(AsyncAgent, sleep=0.03)
    transcripts = await asyncio.gather(*(converse(agent, "x", 12, f"c{i}") for i in range(64)))
    for transcript in transcripts:
        contents = [(m.turn, m.content) for m in transcript.messages]
        assert contents == [(t, f"{t} {turn_seed(transcript.seed, t)}") for t in range(1, 13)]
    assert len(pools.noted("step")) == 64 * 12


async def test_a_synchronous_step_does_not_block_its_actor(pools: Pools) -> None:
    agent = pools.agent(NotingAgent)
    busy = asyncio.ensure_future(agent.step(message_to("hang")))
    await until(lambda: bool(pools.noted("step")))
    assert await pools.started[0].hosts[0].ready.remote()
    assert not busy.done()
    pools.release()
    assert isinstance(await busy, Message)


# --- timeouts and errors ------------------------------------------------------------------------------------------


async def test_an_asynchronous_step_ends_at_its_timeout(pools: Pools) -> None:
    agent = pools.agent(AsyncAgent, timeout=1.0)
    outcomes = await call_all(agent, "hang", "x")
    assert answered(outcomes) == [False, True]
    assert "agent 'ann' at turn 1: no response within 1 s" in str(outcomes[0])


async def test_steps_that_hang_fail_alone_and_their_process_is_replaced(pools: Pools) -> None:
    agent = pools.agent(NotingAgent, timeout=1.0, max_hung_steps=2)
    outcomes = await call_all(agent, "x", "hang", "x")
    assert answered(outcomes) == [True, False, True]
    assert "no response within 1 s" in str(outcomes[1])
    outcomes = await call_all(agent, "hang", "x", "x")
    assert answered(outcomes) == [False, True, True]
    first, second = pools.processes()
    assert [int(p) for p, _, content in pools.noted("step") if content == "x 1"] == [first, first, second, second]


async def test_a_step_that_cancels_itself_or_interrupts_fails(pools: Pools) -> None:
    outcomes = await call_all(pools.agent(AsyncAgent), "cancel", "x")
    assert answered(outcomes) == [False, True]
    assert str(outcomes[0]) == "agent 'ann' failed at turn 1: CancelledError: "
    (outcome,) = await call_all(pools.agent(NotingAgent), "interrupt")
    assert str(outcome) == "agent 'ann' failed at turn 1: KeyboardInterrupt: "


class UnpicklableErrorAgent(NotingAgent):
    """Raises an error that no other process can unpickle."""

    def step(self, message: Message) -> Message:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("no key in the answer")

        raise Odd(1, 2)


async def test_an_error_that_cannot_be_unpickled_comes_back_as_text(pools: Pools) -> None:
    (outcome,) = await call_all(pools.agent(UnpicklableErrorAgent), "x")
    assert type(outcome) is AgentError
    assert str(outcome) == "agent 'ann' failed at turn 1: Odd: no key in the answer"


class UnpicklableResponseAgent(NotingAgent):
    """Returns what no other process can get."""

    def step(self, message: Message) -> Message:
        if message.content == "usage":
            return message.reply("x", self.name, usage={"lock": threading.Lock()})
        return message.reply(threading.Lock() if message.content == "content" else "x", self.name)  # type: ignore[arg-type]


async def test_a_response_that_cannot_be_pickled_fails_alone(pools: Pools) -> None:
    outcomes = await call_all(pools.agent(UnpicklableResponseAgent), "x", "usage", "content")
    assert answered(outcomes) == [True, False, False]
    assert "agent 'ann' at turn 1: usage" in str(outcomes[1])
    assert "cannot be sent to another process" in str(outcomes[2])


# --- state --------------------------------------------------------------------------------------------------------


async def test_a_stateful_agent_keeps_each_conversation_in_one_process(pools: Pools) -> None:
    agent = pools.agent(CountingAgent, replicas=2)
    transcripts = await asyncio.gather(*(converse(agent, "x", 6, f"c{i}") for i in range(6)))
    for transcript in transcripts:
        assert [m.content for m in transcript.messages] == [f"{t} of {t}" for t in range(1, 7)]
        assert [m.metadata for m in transcript.messages] == [{"own": True, "state": t} for t in range(1, 7)]
    steps = [process for process, *_ in pools.noted("step")]
    assert sorted(steps.count(process) for process in set(steps)) == [18, 18]
    assert len(pools.noted("state")) == 6, "each state is set once, at the start"


async def test_a_stateful_agent_takes_a_state_from_an_earlier_run_and_forgets(pools: Pools) -> None:
    agent = pools.agent(CountingAgent)
    agent.restore("c", 7)
    assert (await agent.step(message_to("x"))).content == "8 of 1"
    agent.forget("c")
    assert (await agent.step(message_to("x"))).content == "1 of 1"
    agent.forget("c")
    await agent.step(message_to("x", "other"))
    states = [rest for _, _, rest in pools.noted("state")]
    assert states[:3] == ["c 7", "c None", "c None"]
    assert states[3:5] in (["other None", "c None"], ["c None", "other None"])


class ForgetfulAgent(CountingAgent):
    """Returns no state."""

    def get_state(self, conversation: str) -> Any:
        return None


class MixingAgent(CountingAgent):
    """Has one state for all conversations."""

    def step(self, message: Message) -> Message:
        return replace(super().step(replace(message, conversation="c")), conversation=message.conversation)


def test_the_contract_of_stateful_agents(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    check_agent(CountingAgent(notes))
    check_agent(CountingAgent(notes), another=CountingAgent(notes))
    with pytest.raises(AssertionError, match="turn 2 after set_state of turn 1's state"):
        check_agent(ForgetfulAgent(notes))
    with pytest.raises(AssertionError, match=r"set_state|another talk beside it"):
        check_agent(MixingAgent(notes))


# --- factories and options ----------------------------------------------------------------------------------------


def test_a_factory_that_cannot_be_pickled_is_an_error(ray_cluster: None) -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match=r"cannot be sent to another process: .*lock.*setup\(\)"):
        remote(lambda: lock, num_cpus=0)


def test_a_factory_that_a_node_cannot_import_is_an_error(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "only_here_for_a_test.py").write_text("def make():\n    return None\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from only_here_for_a_test import make  # type: ignore[import-not-found]

        with pytest.raises(PlacementError, match=r"No module named 'only_here_for_a_test'.*install the same code"):
            remote(make, num_cpus=0)
    finally:
        sys.path.remove(str(tmp_path))


async def test_options_are_passed_to_ray(ray_cluster: None) -> None:
    class ReportingAgent(NotingAgent):
        def step(self, message: Message) -> Message:
            import ray

            granted = ray.get_runtime_context().get_assigned_resources()
            return message.reply(f"{granted.get('CPU')} {os.environ.get('A2A_TEST_VALUE')}", self.name)

    variables = {"env_vars": {"A2A_TEST_VALUE": "yes"}}
    pool = ReplicaPool("x", lambda: ReportingAgent(Path()), 2, 0.5, 0, "SPREAD", variables)
    agent = RemoteAgent(*pool.remote_agent_arguments(8))
    assert (await agent.step(message_to("x"))).content == "0.5 yes"
    pool.end()


@pytest.mark.parametrize(
    "change", [{"replicas": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"max_hung_steps": 0}]
)
def test_arguments_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        remote(lambda: None, **change)


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("limits", {"timeout": 0}),
        ("limits", {"timeout": "nan"}),
        ("limits", {"max_hung_steps": 0}),
        ("resources", {"scheduling_strategy": "spred"}),
    ],
)
def test_invalid_limits_of_a_specification_are_refused(section: str, value: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(value))}: "):
        Experiment.parse({"agents": [{"name": "ann", "kind": "echo", section: value}]})


def test_a_timeout_needs_an_actor() -> None:
    experiment = Experiment.parse({"agents": [{"name": "ann", "kind": "echo", "limits": {"timeout": 5}}]})
    with pytest.raises(ConfigurationError, match=r"agents\.0\.limits\.timeout: 5; .*add placement: actor"):
        experiment.check()


def test_a_timeout_is_passed_to_a_kind_that_has_its_own() -> None:
    agents = [
        {"name": "ann", "kind": "openai", "model": "m", "limits": {"timeout": 5}},
        {"name": "bob", "kind": "echo", "placement": "actor", "limits": {"timeout": 5}},
    ]
    ann, bob = Experiment.parse({"agents": agents}).agents
    assert (ann.settings["timeout"], ann.step_timeout) == (5, None)
    assert ("timeout" in bob.settings, bob.step_timeout) == (False, 5)
