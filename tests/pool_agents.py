"""Agents for tests of replicas. They write each call to a file, and some words make them wait, fail or die."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.transcript import Transcript
from a2a_ray.runtime.agents.pool import RemoteAgent, ReplicaPool


class NotingAgent:
    """Notes each call with its process. A message with "hang" waits until the test calls `Pools.release`."""

    def __init__(self, notes: str | Path, sleep: float = 0.0, name: str = "ann") -> None:
        self.name, self.notes, self.sleep = name, Path(notes), sleep

    def note(self, *words: Any) -> None:
        with self.notes.open("a") as file:
            file.write(" ".join(str(w) for w in (os.getpid(), *words)) + "\n")

    @property
    def released(self) -> bool:
        return self.notes.with_suffix(".released").exists()

    def step(self, message: Message) -> Message:
        content = str(message.content)
        self.note("step", content, message.turn)
        while "hang" in content and not self.released:
            time.sleep(0.02)
        time.sleep(self.sleep)
        if "fail" in content:
            raise RuntimeError("this is too much")
        if "interrupt" in content:
            raise KeyboardInterrupt
        if "poison" in content:
            time.sleep(0.05)
            os._exit(1)
        return message.reply(f"{message.turn} {message.seed}", self.name)


class BatchingAgent(NotingAgent):
    """Takes batches. A batch that holds a message with "odd" fails as a whole."""

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        self.note("batch", len(messages))
        if any("odd" in str(m.content) for m in messages):
            raise ValueError("an odd one")
        return [self.step(m) for m in messages]


class PaidAgent(BatchingAgent):
    paid = True


class AsyncAgent(NotingAgent):
    """Its calls overlap."""

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        content = str(message.content)
        self.note("step", content, message.turn)
        if "cancel" in content:
            raise asyncio.CancelledError
        while "hang" in content and not self.released:
            await asyncio.sleep(0.02)
        await asyncio.sleep(random.Random(message.seed).random() * self.sleep)
        if "poison" in content:
            os._exit(1)
        return message.reply(f"{message.turn} {message.seed}", self.name)


class CountingAgent(NotingAgent):
    """Counts the messages of each conversation."""

    stateful = True

    def __init__(self, notes: Path, sleep: float = 0.0) -> None:
        super().__init__(notes, sleep)
        self.counts: dict[str, int] = {}

    def step(self, message: Message) -> Message:
        count = self.counts[message.conversation] = self.counts.get(message.conversation, 0) + 1
        super().step(message)
        return message.reply(f"{count} of {message.turn}", self.name, metadata={"own": True})

    def get_state(self, conversation: str) -> Any:
        return self.counts.get(conversation)

    def set_state(self, conversation: str, state: Any) -> None:
        self.note("state", conversation, state)
        self.counts.pop(conversation, None)
        if state is not None:
            self.counts[conversation] = state


class Pools:
    """Starts agents for a test, and reads what they noted."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        self.started: list[ReplicaPool] = []

    def agent(
        self, kind: type[NotingAgent], sleep: float = 0.0, replicas: int = 1, max_batch_size: int = 64, **limits: Any
    ) -> RemoteAgent:
        notes = self.notes
        pool = ReplicaPool("the agent", lambda: kind(notes, sleep), replicas, 0, 0, **limits)
        self.started.append(pool)
        return RemoteAgent(*pool.remote_agent_arguments(max_batch_size))

    def noted(self, kind: str) -> list[list[str]]:
        """Notes of one kind: process, kind, and the rest."""
        lines = [line.split(maxsplit=2) for line in self.notes.read_text().splitlines()]
        return [line for line in lines if line[1] == kind]

    def processes(self) -> list[int]:
        """The processes that noted something, in the order of their first note."""
        return list(dict.fromkeys(int(line.split()[0]) for line in self.notes.read_text().splitlines()))

    def release(self) -> None:
        """Let the calls that hang go on."""
        self.notes.with_suffix(".released").touch()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for an event that the test itself cannot see. The test's own timeout bounds it."""
    while not condition():
        await asyncio.sleep(0.02)


def message_to(content: str, conversation: str = "c", turn: int = 1) -> Message:
    return Message(conversation, turn, "", content, seed=turn_seed(3, turn))


async def call_all(agent: RemoteAgent, *contents: str) -> list[Any]:
    """The responses, or errors, of calls that are made at the same time, each of another conversation."""
    steps = (agent.step(message_to(content, f"c{i}")) for i, content in enumerate(contents))
    return await asyncio.gather(*steps, return_exceptions=True)


async def converse(agent: RemoteAgent, opening: str, turns: int, id: str = "c") -> Transcript:
    return await Conversation([agent], opening=opening, max_turns=turns, id=id).run_async()


def answered(outcomes: Sequence[Any]) -> list[bool]:
    return [isinstance(outcome, Message) for outcome in outcomes]
