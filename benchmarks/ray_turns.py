"""Turns per second of `run_experiment` on this machine, and how many times that of one awaited actor call per turn.

20 000 conversations x 25 turns of two echo agents, 2 workers. Timed: from the first chunk handed to the workers until
every turn is committed, and read back from the store with its count checked. Not timed: ray.init, actor start.
The peer is what one writes first: 200 conversations at once, every turn one awaited call of a Ray actor, nothing kept.

    python benchmarks/ray_turns.py [--conversations 20000] [--turns 25] [--workers 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time

import ray

from a2a_ray.core.message import Message
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.driver import Driver
from a2a_ray.runtime.plan import Plan
from a2a_ray.store.run import create_run, open_run


def turns_per_second(conversations: int, turns: int, workers: int, storage: str) -> float:
    """Turns/s of the runtime, commits and reading back included."""
    opening = "The old bridge was closed for repairs, so the traders took the longer road."
    agents = [{"name": name, "kind": "echo"} for name in ("ann", "bob")]
    value = {"agents": agents, "max_turns": turns, "openings": [opening], "repeats": conversations}
    experiment = Experiment.parse(value)
    run = create_run(experiment, storage)
    driver = Driver(run.path, experiment, lambda: Plan(experiment), workers)
    started = time.perf_counter()
    driver.run(lambda _: None)
    count = len(open_run(run.path).turns)
    seconds = time.perf_counter() - started
    driver.shutdown()
    if count != conversations * turns:
        raise SystemExit(f"{count} turns were read back; {conversations * turns} were said")
    return count / seconds


@ray.remote
class Echo:
    """The peer's agent."""

    def step(self, message: Message) -> Message:
        """Says what it hears."""
        return message.reply(message.content, "echo")


async def awaited_calls_per_second(conversations: int = 200, turns: int = 25) -> float:
    """Turns/s where each turn is one awaited actor call."""
    agents = [Echo.remote(), Echo.remote()]
    await asyncio.gather(*(a.step.remote(Message("", 1, "", "")) for a in agents))

    async def talk(name: str) -> None:
        message = Message(name, 0, "", "The old bridge was closed for repairs, so the traders took the longer road.")
        for turn in range(1, turns + 1):
            message = await agents[turn % 2].step.remote(Message(name, turn, message.sender, message.content))

    started = time.perf_counter()
    await asyncio.gather(*(talk(str(i)) for i in range(conversations)))
    return conversations * turns / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    connect()
    awaited = asyncio.run(awaited_calls_per_second())
    with tempfile.TemporaryDirectory() as storage:
        rate = turns_per_second(options.conversations, options.turns, options.workers, storage)
    ray.shutdown()
    print(json.dumps({"turns_per_s": round(rate), "x_awaited_calls": round(rate / awaited, 1)}))


if __name__ == "__main__":
    main()
