"""The runtime's parts on this machine, one JSON object: what many conversations reach against agents in actors.

remote_turns_per_s: 500 conversations of 100 turns in one process against ONE remote echo actor, at most 125 in a call.
x_awaiting_each: how many times that of 500 concurrent loops which await one actor call per turn, in the same process.
async_share_of_ideal: 512 conversations against an asynchronous agent that takes 50 ms a call, all of them in flight:
turns/s over 512 / 0.05 s.

Sides alternate, and the median of the repetitions counts; figures need an idle machine (two cores: one for the
conversations, one for the actor). Actor start is not timed.

    python benchmarks/cluster.py [--repetitions 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
from typing import Any

import ray

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import Message
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.pool import remote

OPENING = "The old bridge was closed for repairs, so the traders took the longer road."
SECONDS = 0.05


class Slow:
    """Answers after 50 ms, and does not hold up others."""

    name = "slow"

    async def step(self, message: Message) -> Message:
        """Says what it hears."""
        await asyncio.sleep(SECONDS)
        return message.reply(message.content, self.name)


async def held(agent: Any, conversations: int, turns: int) -> float:
    """Turns/s of conversations that the agent holds with itself."""
    talks = [Conversation([agent], opening=OPENING, turns=turns, id=str(i)) for i in range(conversations)]
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
    agent = remote(lambda: EchoAgent("echo"), num_cpus=0, max_batch=125)
    actor = ray.remote(EchoAgent).options(num_cpus=0).remote("echo")  # type: ignore[attr-defined]
    asyncio.run(held(agent, 500, 5))
    asyncio.run(awaited(actor, 500, 1))
    ours, theirs = [], []
    for _ in range(repetitions):
        ours.append(asyncio.run(held(agent, 500, 100)))
        theirs.append(asyncio.run(awaited(actor, 500, 8)))
    rate = statistics.median(ours)
    return {"remote_turns_per_s": round(rate), "x_awaiting_each": round(rate / statistics.median(theirs), 1)}


def async_share(repetitions: int) -> dict[str, float]:
    """`async_share_of_ideal`."""
    agent = remote(Slow, num_cpus=0)
    asyncio.run(held(agent, 512, 3))
    rates = [asyncio.run(held(agent, 512, 40)) for _ in range(repetitions)]
    return {"async_share_of_ideal": round(statistics.median(rates) / (512 / SECONDS), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    connect()
    # As in a worker: transcripts are many small objects without cycles.
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)
    result: dict[str, float] = {}
    for measure in (remote_turns, async_share):
        result |= measure(repetitions)
    ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
