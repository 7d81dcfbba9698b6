"""Heavy agents in actors: what goes together, what overlaps, and what becomes of it when a process dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, LostCall, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.agents import dispatcher as dispatch
from a2a_ray.runtime.agents.actor import AgentHost
from a2a_ray.runtime.agents.pool import Pool, RemoteAgent, remote
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.testing import check_agent


class Noting:
    """Notes in a file what it is asked, by which process; some words make it sleep, fail or die."""

    def __init__(self, notes: str | Path, sleep: float = 0.0, name: str = "ann") -> None:
        self.name, self.notes, self.sleep = name, Path(notes), sleep

    def note(self, *words: Any) -> None:
        with self.notes.open("a") as file:
            file.write(" ".join(str(w) for w in (os.getpid(), *words)) + "\n")

    def step(self, message: Message) -> Message:
        content = str(message.content)
        self.note("step", content, message.turn)
        time.sleep(30 if "hang" in content else self.sleep)
        if "fail" in content:
            raise RuntimeError("this is too much")
        if "interrupt" in content:
            raise KeyboardInterrupt
        if "poison" in content or ("die once" in content and self.first()):
            time.sleep(0.05)
            os._exit(1)
        return message.reply(f"{message.turn} {message.seed}", self.name)

    def first(self) -> bool:
        """Whether this is the first process to ask."""
        try:
            self.notes.with_suffix(".once").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Batching(Noting):
    """The same in batches; one that holds a message with "odd" fails as a whole."""

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        self.note("batch", len(messages))
        if any("odd" in str(m.content) for m in messages):
            raise ValueError("an odd one")
        return [self.step(m) for m in messages]


class Paid(Batching):
    paid = True


class Waiting(Noting):
    """Takes its time without holding up others."""

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        content = str(message.content)
        self.note("step", content, message.turn)
        if "cancel" in content:
            raise asyncio.CancelledError
        if "block" in content:
            await asyncio.sleep(30)
        await asyncio.sleep(random.Random(message.seed).random() * self.sleep)
        if "poison" in content:
            os._exit(1)
        return message.reply(f"{message.turn} {message.seed}", self.name)


class Stubborn(Noting):
    """Raises what no other process can read."""

    def step(self, message: Message) -> Message:
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("no key in the answer")

        raise Odd(1, 2)


class Counter(Noting):
    """Keeps how often each conversation asked it."""

    stateful = True

    def __init__(self, notes: Path, sleep: float = 0.0) -> None:
        super().__init__(notes, sleep)
        self.counts: dict[str, int] = {}

    def step(self, message: Message) -> Message:
        count = self.counts[message.conversation] = self.counts.get(message.conversation, 0) + 1
        super().step(message)
        return message.reply(f"{count} of {message.turn}", self.name, metadata={"mine": True})

    def get_state(self, conversation: str) -> Any:
        return self.counts.get(conversation)

    def set_state(self, conversation: str, state: Any) -> None:
        self.note("state", conversation, state)
        self.counts.pop(conversation, None)
        if state is not None:
            self.counts[conversation] = state


class Crowd:
    """Makes remote agents for a test, and ends them with it."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        self.pools: list[Pool] = []

    def agent(
        self, kind: type[Noting], sleep: float = 0.0, replicas: int = 1, max_batch_size: int = 64, **limits: Any
    ) -> RemoteAgent:
        notes = self.notes
        pool = Pool("the agent", lambda: kind(notes, sleep), replicas, 0, 0, **limits)
        self.pools.append(pool)
        return RemoteAgent(*pool.parts(max_batch_size))

    def noted(self, what: str) -> list[list[str]]:
        """Notes of one kind: process, what, and more."""
        lines = [line.split(maxsplit=2) for line in self.notes.read_text().splitlines()]
        return [line for line in lines if line[1] == what]

    def processes(self) -> list[int]:
        """In the order in which they were first heard of."""
        return list(dict.fromkeys(int(line.split()[0]) for line in self.notes.read_text().splitlines()))


@pytest.fixture
def crowd(ray_cluster: None, tmp_path: Path) -> Iterator[Crowd]:
    made = Crowd(tmp_path)
    yield made
    for pool in made.pools:
        pool.end()


def question(content: str, conversation: str = "c", turn: int = 1) -> Message:
    return Message(conversation, turn, "", content, seed=turn_seed(3, turn))


async def asked(agent: RemoteAgent, *contents: str) -> list[Any]:
    """What becomes of questions that are asked at once."""
    steps = (agent.step(question(content, f"c{i}")) for i, content in enumerate(contents))
    return await asyncio.gather(*steps, return_exceptions=True)


async def held(agent: RemoteAgent, opening: str, turns: int, id: str = "c") -> Transcript:
    return await Conversation([agent], opening=opening, max_turns=turns, id=id).run_async()


def answers(outcomes: Sequence[Any]) -> list[bool]:
    return [isinstance(outcome, Message) for outcome in outcomes]


async def test_what_waits_goes_together_and_no_call_is_above_the_bound(crowd: Crowd) -> None:
    agent = crowd.agent(Batching, sleep=0.01, max_batch_size=5)
    outcomes = await asked(agent, *["x"] * 12)
    assert all(answers(outcomes))
    assert [int(n) for _, _, n in crowd.noted("batch")] == [5, 5, 2]


async def test_what_waits_is_shared_by_the_replicas(crowd: Crowd) -> None:
    agent = crowd.agent(Batching, sleep=0.02, replicas=2)
    await asyncio.gather(*(held(agent, "x", 4, str(i)) for i in range(10)))
    taken = [int(process) for process, *_ in crowd.noted("step")]
    assert len(set(taken)) == 2
    assert min(taken.count(process) for process in set(taken)) >= 12


async def test_a_batch_that_fails_is_asked_one_by_one(crowd: Crowd) -> None:
    outcomes = await asked(crowd.agent(Batching), "odd", "fail", "x")
    assert answers(outcomes) == [True, False, True]
    assert str(outcomes[1]) == "agent 'ann' failed at turn 1: RuntimeError: this is too much"


async def test_a_paid_agent_is_asked_by_step_alone(crowd: Crowd) -> None:
    for agent in (crowd.agent(Paid), crowd.agent(Batching, paid=True)):
        assert agent.paid
        assert all(answers(await asked(agent, *["odd"] * 8)))
    assert not crowd.noted("batch")
    assert len(crowd.noted("step")) == 16


async def test_answers_do_not_wait_for_slower_ones(crowd: Crowd) -> None:
    agent = crowd.agent(Waiting)
    slow = []
    for _ in range(3):
        slow.append(asyncio.ensure_future(agent.step(question("block"))))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        transcript = await held(agent, "x", 10)
    assert len(transcript.messages) == 10
    for each in slow:
        assert not each.done()
        each.cancel()


async def test_order_within_each_of_many_conversations_on_one_asynchronous_actor(crowd: Crowd) -> None:
    agent = crowd.agent(Waiting, sleep=0.03)
    transcripts = await asyncio.gather(*(held(agent, "x", 12, f"c{i}") for i in range(64)))
    for transcript in transcripts:
        said = [(m.turn, m.content) for m in transcript.messages]
        assert said == [(t, f"{t} {turn_seed(transcript.seed, t)}") for t in range(1, 13)]
    assert len(crowd.noted("step")) == 64 * 12


async def test_a_synchronous_step_does_not_hold_up_the_process(crowd: Crowd) -> None:
    agent = crowd.agent(Noting)
    busy = asyncio.ensure_future(agent.step(question("hang")))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        assert await crowd.pools[0].hosts[0].ready.remote()
    assert not busy.done()
    busy.cancel()


async def test_an_asynchronous_step_ends_with_its_time(crowd: Crowd) -> None:
    agent = crowd.agent(Waiting, timeout=0.3)
    started = time.monotonic()
    outcomes = await asked(agent, "block", "x")
    assert time.monotonic() - started < 5
    assert answers(outcomes) == [False, True]
    assert "agent 'ann' at turn 1: no answer within 0.3 s" in str(outcomes[0])


async def test_steps_that_hang_fail_alone_and_the_process_is_replaced_after_some(crowd: Crowd) -> None:
    agent = crowd.agent(Noting, timeout=0.3, max_hung_steps=2)
    outcomes = await asked(agent, "x", "hang", "x")
    assert answers(outcomes) == [True, False, True]
    assert "no answer within 0.3 s" in str(outcomes[1])
    outcomes = await asked(agent, "hang", "x", "x")
    assert answers(outcomes) == [False, True, True]
    first, second = crowd.processes()
    assert [int(p) for p, _, content in crowd.noted("step") if content == "x 1"] == [first, first, second, second]


@pytest.mark.chaos
@pytest.mark.parametrize("kind", [Noting, Batching, Waiting])
async def test_a_poisonous_question_fails_and_those_beside_it_do_not(crowd: Crowd, kind: type[Noting]) -> None:
    agent = crowd.agent(kind, sleep=0.01)
    outcomes = await asked(agent, "x", "x", "poison", "x", "x")
    assert answers(outcomes) == [True, True, False, True, True]
    assert "agent 'ann': its process died 3 times while it worked on turn 1 of 'c2'" in str(outcomes[2])
    assert sum(content == "poison 1" for _, _, content in crowd.noted("step")) == 3
    together = [int(n) for _, _, n in crowd.noted("batch")]
    assert together == ([] if kind is not Batching else [5, *together[1:]])
    assert max(together[1:], default=0) <= 2, "those in flight at the first death are asked again in smaller groups"
    assert all(answers(await asked(agent, "x", "x")))


@pytest.mark.chaos
async def test_others_get_the_work_while_a_process_is_away(crowd: Crowd) -> None:
    agent = crowd.agent(Noting, sleep=0.02, replicas=2)
    talks = asyncio.gather(*(held(agent, "x", 60, str(i)) for i in range(4)))
    await asyncio.sleep(0.4)
    killed = crowd.processes()[0]
    os.kill(killed, signal.SIGKILL)
    transcripts = await talks
    for transcript in transcripts:
        assert [m.content for m in transcript.messages] == [
            f"{t} {turn_seed(transcript.seed, t)}" for t in range(1, 61)
        ]
    assert len(crowd.processes()) == 3


@pytest.mark.chaos
async def test_a_process_that_died_unnoticed_sets_its_agent_up_again(crowd: Crowd) -> None:
    agent = crowd.agent(Paid)
    assert all(answers(await asked(agent, "x")))
    os.kill(crowd.processes()[0], signal.SIGKILL)
    await asyncio.sleep(4)
    assert all(answers(await asked(agent, "x", "x"))), "nothing was in flight, so no paid call can be lost"
    assert len(crowd.noted("step")) == 3


@pytest.mark.chaos
async def test_a_paid_call_in_flight_is_lost_not_made_again(crowd: Crowd) -> None:
    agent = crowd.agent(Paid)
    outcomes = await asked(agent, "poison", "x")
    assert all(isinstance(outcome, LostCall) for outcome in outcomes)
    assert "whether the call was made is not known" in str(outcomes[0])
    assert len(crowd.noted("step")) == 1
    assert all(answers(await asked(agent, "x", "x", "x"))), "those that come while the process is away wait for it"
    assert len(crowd.noted("step")) == 4


@pytest.mark.parametrize(("said", "sent"), [("IOError: The actor is restarting.", False), ("RpcError: reset", True)])
async def test_a_paid_call_that_ray_did_not_send_is_not_lost(tmp_path: Path, said: str, sent: bool) -> None:
    """Which of the two Ray says depends on some milliseconds; so a host here stands for the actor."""
    host = AgentHost(cloudpickle.dumps(lambda: Paid(tmp_path / "notes")))
    errors = [ActorUnavailableError(f"The actor is temporarily unavailable: {said}", None)]

    async def exchange(*arguments: Any) -> bytes:
        if errors:
            raise errors.pop()
        return await host.exchange(*arguments)

    calls = {"exchange": exchange, "ready": host.ready, "setup": host.setup}
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})
    agent = RemoteAgent("ann", [actor], await host.setup())
    outcomes = await asked(agent, "x", "x")
    assert answers(outcomes) == [not sent, not sent]
    assert all(isinstance(outcome, LostCall) for outcome in outcomes if sent)
    assert all(answers(await asked(agent, "x", "x")))


async def test_processes_that_are_gone_for_good_are_told(crowd: Crowd) -> None:
    agent = crowd.agent(Noting)
    crowd.pools[0].end()
    async with asyncio.timeout(20):
        for outcome in await asked(agent, "x", "x"):
            assert isinstance(outcome, PlacementError), "no fault of the conversation: the run ends, and is resumed"
            assert "agent 'ann': all of its processes have died" in str(outcome)


@pytest.mark.chaos
async def test_processes_that_cannot_set_up_again_are_waited_for_and_told(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "AWAY_SECONDS", 3.0)
    agent = crowd.agent(Fragile)
    assert all(answers(await asked(agent, "x")))
    down = crowd.notes.with_suffix(".down")
    down.touch()
    os.kill(crowd.processes()[0], signal.SIGKILL)
    await asyncio.sleep(3)
    (outcome,) = await asked(agent, "x")
    assert str(outcome) == (
        "agent 'ann': none of its processes has answered for 3 s:"
        " an agent could not be set up: RuntimeError: no weights"
    )
    down.unlink()
    await asyncio.sleep(2.5)
    assert all(answers(await asked(agent, "x")))


class Fragile(Noting):
    def setup(self) -> None:
        if self.notes.with_suffix(".down").exists():
            raise RuntimeError("no weights")


async def test_a_stateful_agent_keeps_each_conversation_in_one_process(crowd: Crowd) -> None:
    agent = crowd.agent(Counter, replicas=2)
    transcripts = await asyncio.gather(*(held(agent, "x", 6, f"c{i}") for i in range(6)))
    for transcript in transcripts:
        assert [m.content for m in transcript.messages] == [f"{t} of {t}" for t in range(1, 7)]
        assert [m.metadata for m in transcript.messages] == [{"mine": True, "state": t} for t in range(1, 7)]
    steps = [process for process, *_ in crowd.noted("step")]
    assert sorted(steps.count(process) for process in set(steps)) == [18, 18]
    assert len(crowd.noted("state")) == 6, "each is told once that it begins"


@pytest.mark.chaos
async def test_a_stateful_agent_goes_on_where_it_was_in_a_new_process(crowd: Crowd) -> None:
    agent = crowd.agent(Counter, sleep=0.02)
    talks = asyncio.gather(*(held(agent, "x", 20, f"c{i}") for i in range(3)))
    await asyncio.sleep(0.5)
    os.kill(crowd.processes()[0], signal.SIGKILL)
    for transcript in await talks:
        assert [m.content for m in transcript.messages] == [f"{t} of {t}" for t in range(1, 21)]
    assert len(crowd.processes()) == 2


@pytest.mark.chaos
async def test_a_stateful_agent_is_told_its_state_where_its_process_died_between_turns(crowd: Crowd) -> None:
    agent = crowd.agent(Counter)
    assert (await agent.step(question("x"))).content == "1 of 1"
    os.kill(crowd.processes()[0], signal.SIGKILL)
    await asyncio.sleep(4)
    assert (await agent.step(question("x", turn=2))).content == "2 of 2"


async def test_a_stateful_agent_takes_a_state_from_an_earlier_run_and_forgets(crowd: Crowd) -> None:
    agent = crowd.agent(Counter)
    agent.restore("c", 7)
    assert (await agent.step(question("x"))).content == "8 of 1"
    agent.forget("c")
    assert (await agent.step(question("x"))).content == "1 of 1"
    agent.forget("c")
    await agent.step(question("x", "other"))
    told = [rest for _, _, rest in crowd.noted("state")]
    assert told[:3] == ["c 7", "c None", "c None"]
    assert told[3:5] in (["other None", "c None"], ["c None", "other None"])


async def test_a_step_that_cancels_itself_or_interrupts_fails(crowd: Crowd) -> None:
    outcomes = await asked(crowd.agent(Waiting), "cancel", "x")
    assert answers(outcomes) == [False, True]
    assert str(outcomes[0]) == "agent 'ann' failed at turn 1: CancelledError: "
    async with asyncio.timeout(20):
        (outcome,) = await asked(crowd.agent(Noting), "interrupt")
    assert str(outcome) == "agent 'ann' failed at turn 1: KeyboardInterrupt: "


async def test_an_error_that_cannot_be_unpickled_comes_back_as_text(crowd: Crowd) -> None:
    (outcome,) = await asked(crowd.agent(Stubborn), "x")
    assert type(outcome) is AgentError
    assert str(outcome) == "agent 'ann' failed at turn 1: Odd: no key in the answer"


async def test_an_answer_that_cannot_be_sent_fails_alone(crowd: Crowd) -> None:
    outcomes = await asked(crowd.agent(Strange), "x", "usage", "content")
    assert answers(outcomes) == [True, False, False]
    assert "agent 'ann' at turn 1: usage" in str(outcomes[1])
    assert "cannot be sent to another process" in str(outcomes[2])


class Strange(Noting):
    def step(self, message: Message) -> Message:
        if message.content == "usage":
            return message.reply("x", self.name, usage={"lock": threading.Lock()})
        return message.reply(threading.Lock() if message.content == "content" else "x", self.name)  # type: ignore[arg-type]


def test_a_factory_that_cannot_be_sent_is_told(ray_cluster: None) -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match=r"cannot be sent to another process: .*lock.*setup\(\)"):
        remote(lambda: lock, num_cpus=0)


def test_a_factory_that_a_node_cannot_import_is_told(ray_cluster: None, tmp_path: Path) -> None:
    (tmp_path / "only_here_for_a_test.py").write_text("def make():\n    return None\n")
    sys.path.insert(0, str(tmp_path))
    try:
        from only_here_for_a_test import make  # type: ignore[import-not-found]

        with pytest.raises(PlacementError, match=r"No module named 'only_here_for_a_test'.*install the same code"):
            remote(make, num_cpus=0)
    finally:
        sys.path.remove(str(tmp_path))


async def test_options_of_ray_are_passed_on(ray_cluster: None) -> None:
    class Telling(Noting):
        def step(self, message: Message) -> Message:
            import ray

            granted = ray.get_runtime_context().get_assigned_resources()
            return message.reply(f"{granted.get('CPU')} {os.environ.get('A2A_TOLD')}", self.name)

    pool = Pool("x", lambda: Telling(Path()), 2, 0.5, 0, "SPREAD", {"env_vars": {"A2A_TOLD": "yes"}})
    agent = RemoteAgent(*pool.parts(8))
    assert (await agent.step(question("x"))).content == "0.5 yes"
    pool.end()


@pytest.mark.parametrize(
    "change", [{"replicas": 0}, {"timeout": 0.0}, {"timeout": float("nan")}, {"max_hung_steps": 0}]
)
def test_limits_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        remote(lambda: None, **change)


class Forgetful(Counter):
    """Its state says nothing."""

    def get_state(self, conversation: str) -> Any:
        return None


class Mixing(Counter):
    """Remembers one conversation as another."""

    def step(self, message: Message) -> Message:
        return replace(super().step(replace(message, conversation="c")), conversation=message.conversation)


def test_the_contract_of_stateful_agents(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    check_agent(Counter(notes))
    check_agent(Counter(notes), another=Counter(notes))
    with pytest.raises(AssertionError, match="turn 2 after set_state of turn 1's state"):
        check_agent(Forgetful(notes))
    with pytest.raises(AssertionError, match=r"set_state|another talk beside it"):
        check_agent(Mixing(notes))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("limits", {"timeout": 0}),
        ("limits", {"timeout": "nan"}),
        ("limits", {"max_hung_steps": 0}),
        ("resources", {"scheduling_strategy": "spred"}),
    ],
)
def test_a_specification_with_limits_that_make_no_sense_is_refused(section: str, value: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(value))}: "):
        Experiment.parse({"agents": [{"name": "ann", "kind": "echo", section: value}]})


def test_a_timeout_is_for_agents_in_actors() -> None:
    experiment = Experiment.parse({"agents": [{"name": "ann", "kind": "echo", "limits": {"timeout": 5}}]})
    with pytest.raises(ConfigurationError, match=r"agents\.0\.limits\.timeout: 5; .*add placement: actor"):
        experiment.check()


def test_a_timeout_goes_to_the_kind_that_has_one() -> None:
    agents = [
        {"name": "ann", "kind": "openai", "model": "m", "limits": {"timeout": 5}},
        {"name": "bob", "kind": "echo", "placement": "actor", "limits": {"timeout": 5}},
    ]
    ann, bob = Experiment.parse({"agents": agents}).agents
    assert (ann.settings["timeout"], ann.step_timeout) == (5, None)
    assert ("timeout" in bob.settings, bob.step_timeout) == (False, 5)


class Lingering(Noting):
    """Late turns take long until three processes have worked: so the run waits for the one that is started again."""

    def step(self, message: Message) -> Message:
        if message.turn > 12 and len({line.split()[0] for line in self.notes.read_text().splitlines()}) < 3:
            time.sleep(0.4)
        return super().step(message)


@pytest.mark.chaos
def test_a_run_with_a_replica_that_dies_is_as_the_undisturbed_one(ray_cluster: None, tmp_path: Path) -> None:
    def said(storage: str, notes: Path, sleep: float) -> dict[str, list[Any]]:
        ann = {"name": "ann", "kind": Lingering if sleep else Noting, "notes": str(notes), "sleep": sleep}
        value = {
            "agents": [{**ann, "placement": "actor", "resources": {"num_cpus": 0, "replicas": 2}}],
            "max_turns": 25,
            "repeats": 6,
        }
        run = run_experiment({**value, "openings": ["x"]}, storage=tmp_path / storage, progress=False)
        return {t.id: [t.status, *((m.turn, m.content) for m in t.messages)] for t in run.transcripts()}

    calm = said("calm", tmp_path / "calm.notes", 0.0)
    notes = tmp_path / "notes"
    killer = threading.Thread(target=kill_one, args=(notes,))
    killer.start()
    disturbed = said("disturbed", notes, 0.02)
    killer.join()
    assert disturbed == calm
    assert len({line.split()[0] for line in notes.read_text().splitlines()}) >= 3


def kill_one(notes: Path) -> None:
    """Ends the process that noted the 40th line."""
    lines: list[str] = []
    while len(lines) < 40:
        time.sleep(0.02)
        lines = notes.read_text().splitlines() if notes.exists() else []
    os.kill(int(lines[39].split()[0]), signal.SIGKILL)
