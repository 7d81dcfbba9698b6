"""The runtime's parts on this machine, one JSON object: what many conversations reach against agents in actors.

remote_turns_per_s: 500 conversations of 100 turns in one process against ONE remote echo actor, at most 125 in a call.
x_awaiting_each: how many times that of 500 concurrent loops which await one actor call per turn, in the same process.
Both with the garbage collector as a worker sets it, since that is where conversations live.
async_share_of_ideal: a run of 512 conversations, all in flight in one worker, with an asynchronous agent of 50 ms
a call, every turn committed: turns/s over 512 / 0.05 s. async_share_remote: the same agent in an actor, at most 64 in a
call, from one process without a store.
x_two_workers: `run_experiment`'s runtime with light agents that use 200 us of CPU a turn, two workers against one.
queue_memory_growth: MB by which the driver grows over idle while 100 000 conversations are queued, over the same for
10 000.
commit_share: seconds of commits over seconds of a run of echo agents at full speed, 20 000 conversations of 25 turns.

Sides alternate, and the median of the repetitions counts; figures need an idle machine (two cores: one for the
conversations, one for the actor). Actor start is not timed.

    python benchmarks/cluster.py [--repetitions 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import Message
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.agents.pool import remote
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.driver import Driver
from a2a_ray.runtime.plan import Plan
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.runtime.worker import COLLECTIONS
from a2a_ray.store.run import create_run, open_run

# Actors find the agents of this file by its name, `benchmarks.cluster`.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OPENING = "The old bridge was closed for repairs, so the traders took the longer road."
SECONDS = 0.05


class Slow:
    """Answers after 50 ms, and does not hold up others."""

    placement = "worker"

    def __init__(self, name: str = "slow") -> None:
        self.name = name

    async def step(self, message: Message) -> Message:
        """Says what it hears."""
        await asyncio.sleep(SECONDS)
        return message.reply(message.content, self.name)


class Waiting(Slow):
    """Takes 0.2 s: conversations queue behind it."""

    async def step(self, message: Message) -> Message:
        """Says what it hears."""
        await asyncio.sleep(0.2)
        return message.reply(message.content, self.name)


class Busy:
    """A light agent that uses the CPU for 200 us a turn."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        """Says what it hears, after its computation."""
        end = time.thread_time() + 200e-6
        while time.thread_time() < end:
            pass
        return message.reply(message.content, self.name)


async def held(agent: Any, conversations: int, turns: int) -> float:
    """Turns/s of conversations that the agent holds with itself."""
    talks = [Conversation([agent], opening=OPENING, max_turns=turns, id=str(i)) for i in range(conversations)]
    started = time.perf_counter()
    await asyncio.gather(*(talk.run_async() for talk in talks))
    return conversations * turns / (time.perf_counter() - started)


async def awaited(actor: Any, conversations: int, turns: int) -> float:
    """Turns/s where each turn is one awaited actor call: the peer, what one writes first."""

    async def talk(name: str) -> None:
        message = Message(name, 0, "", OPENING)
        for turn in range(1, turns + 1):
            message = await actor.step.remote(Message(name, turn, message.sender, message.content))

    started = time.perf_counter()
    await asyncio.gather(*(talk(str(i)) for i in range(conversations)))
    return conversations * turns / (time.perf_counter() - started)


def remote_turns(repetitions: int) -> dict[str, float]:
    """`remote_turns_per_s` and `x_awaiting_each`."""
    agent = remote(lambda: EchoAgent("echo"), num_cpus=0, max_batch_size=125)
    actor = ray.remote(EchoAgent).options(num_cpus=0).remote("echo")  # type: ignore[attr-defined]
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)
    asyncio.run(held(agent, 500, 5))
    asyncio.run(awaited(actor, 500, 1))
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(asyncio.run(held(agent, 500, 100)))
        theirs.append(asyncio.run(awaited(actor, 500, 8)))
    rate = statistics.median(ours)
    return {"remote_turns_per_s": round(rate), "x_awaiting_each": round(rate / statistics.median(theirs), 1)}


def async_share(repetitions: int) -> dict[str, float]:
    """`async_share_of_ideal` and `async_share_remote`."""
    agent = remote(Slow, num_cpus=0, max_batch_size=64)
    asyncio.run(held(agent, 512, 3))
    ideal = 512 / SECONDS
    away = statistics.median(asyncio.run(held(agent, 512, 40)) / ideal for _ in range(repetitions))
    here = statistics.median(
        512 * 100 / run_seconds("benchmarks.cluster:Slow", 512, 100, 1)[0] / ideal for _ in range(repetitions)
    )
    return {"async_share_of_ideal": round(here, 3), "async_share_remote": round(away, 3)}


def run_seconds(kind: str, conversations: int, turns: int, workers: int) -> tuple[float, float]:
    """Seconds until all is said and committed, and seconds of commits in them."""
    agents = [{"name": name, "kind": kind} for name in ("ann", "bob")]
    value = {"agents": agents, "max_turns": turns, "openings": [OPENING], "repeats": conversations}
    experiment = Experiment.parse(value)
    with tempfile.TemporaryDirectory() as storage:
        run = create_run(experiment, storage)
        driver = Driver(run.path, experiment, lambda: Plan(experiment), workers)
        try:
            started = time.perf_counter()
            driver.run(lambda _: None)
            seconds = time.perf_counter() - started
            committing = driver.recorder_stats()["seconds"]
        finally:
            driver.shutdown()
        count = open_run(run.path).summary()["turns"]
    if count != conversations * turns:
        raise SystemExit(f"{count} turns were read back; {conversations * turns} were said")
    return seconds, committing


def two_workers(repetitions: int) -> dict[str, float]:
    """`x_two_workers`."""
    pairs = [[run_seconds("benchmarks.cluster:Busy", 1000, 25, n)[0] for n in (1, 2)] for _ in range(repetitions)]
    return {"x_two_workers": round(statistics.median(one / two for one, two in pairs), 2)}


def commit_share(repetitions: int) -> dict[str, float]:
    """`commit_share`."""
    runs = [run_seconds("echo", 20_000, 25, 2) for _ in range(repetitions)]
    return {"commit_share": round(statistics.median(committing / seconds for seconds, committing in runs), 3)}


def queue_memory(repetitions: int) -> dict[str, float]:
    """`queue_memory_growth`; each measurement in a process of its own, with a Ray of its own."""

    def growth(conversations: int) -> float:
        command = [sys.executable, __file__, "--queue", str(conversations)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    pairs = [[growth(n) for n in (10_000, 100_000)] for _ in range(repetitions)]
    return {"queue_memory_growth": round(statistics.median(many / few for few, many in pairs), 2)}


def queued(conversations: int) -> float:
    """MB by which this process grows while so many conversations wait for agents that take 0.2 s, within 10 s."""
    import psutil

    def spec(repeats: int, turns: int) -> dict[str, Any]:
        agents = [{"name": name, "kind": "benchmarks.cluster:Waiting"} for name in ("ann", "bob")]
        return {"agents": agents, "max_turns": turns, "openings": [OPENING], "repeats": repeats}

    connect()
    process, peak = psutil.Process(), 0
    with tempfile.TemporaryDirectory() as storage:
        run_experiment(spec(10, 2), storage=storage, progress=False)  # so that everything is imported
        gc.collect()
        idle = process.memory_info().rss
        end = time.monotonic() + 10

        def watch(_: object) -> None:
            nonlocal peak
            peak = max(peak, process.memory_info().rss)
            if time.monotonic() > end:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            run_experiment(spec(conversations, 1000), storage=storage, progress=watch)
    ray.shutdown()
    return (peak - idle) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--queue", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.queue:
        print(queued(options.queue))
        return
    result = queue_memory(options.repetitions)
    connect()
    # As in a worker: transcripts are many small objects without cycles.
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)
    for measure in (remote_turns, async_share, two_workers, commit_share):
        result |= measure(options.repetitions)
    ray.shutdown()
    order = ("remote_turns_per_s", "x_awaiting_each", "x_two_workers", "async_share_of_ideal", "queue_memory_growth")
    print(json.dumps({key: result[key] for key in (*order, "commit_share", "async_share_remote")}))


if __name__ == "__main__":
    main()
