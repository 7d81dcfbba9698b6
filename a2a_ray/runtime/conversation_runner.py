"""Runs many conversations at once in one event loop, each with the same loop as in one process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from a2a_ray.analysis.judge.timed_agent import TimedAgent
from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import (
    A2AError,
    AuthenticationError,
    ConfigurationError,
    PlacementError,
    StorageError,
    traceback_of,
)
from a2a_ray.core.message import Message
from a2a_ray.core.registry import observers as observer_kinds
from a2a_ray.core.registry import protocols, terminations
from a2a_ray.core.termination import TerminationCondition
from a2a_ray.core.transcript import FAILED, RUNNING, Transcript
from a2a_ray.experiment.judge_spec import JudgeSpec
from a2a_ray.experiment.spec import Experiment, Task
from a2a_ray.runtime.limits.gate import RunHalted
from a2a_ray.runtime.limits.metered_agent import CallMetering, MeteringSettings
from a2a_ray.runtime.plan import Outcome, WorkerProgress
from a2a_ray.runtime.recorder_client import RecorderClient
from a2a_ray.runtime.telemetry.logs import log_context
from a2a_ray.store.live_findings import live_findings
from a2a_ray.store.schema import end_row, opening_row, unpack

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # not printed in a program without logging: the summary counts failures

CellParts: TypeAlias = "tuple[list[Any], dict[str, Any], Any, TerminationCondition | None, dict[str, Any]]"
"""Agents, judges by name, protocol, termination condition and per-turn options."""
SEND_SECONDS = 0.5
"""The longest time that a turn of a slow conversation waits before it is sent to the recorder."""


class ConversationRunner:
    """Runs conversations. At most `max_in_flight` are in progress; the others wait in order.

    Args:
        name: unique among the runners of a run.
        experiment: the specification.
        recorder: the recorder's handle: its methods are called as `recorder.append.remote(...)`.
        remote: the proxy of each heavy agent, by agent key.
        agent_keys: keys of the agents and judges of each cell, in the order of `Experiment.all_agents`.
        max_in_flight: number of conversations.
        metering: limits, budget and telemetry of calls to agents.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        recorder: Any,
        remote: Mapping[str, Any],
        agent_keys: Sequence[Sequence[str]],
        max_in_flight: int,
        metering: MeteringSettings,
    ) -> None:
        self._cells, self._agent_keys = experiment.cells, agent_keys
        self._recorder = RecorderClient(recorder, name)
        self._calls = CallMetering(metering, self._recorder)
        self._remote = remote
        self._stateful = {key for key, agent in self._remote.items() if agent.stateful}
        self._parts: dict[int, CellParts] = {}
        self._light: dict[str, Any] = {}
        self._places = asyncio.Semaphore(max_in_flight)
        self._stopped = False
        self._refused: AuthenticationError | None = None
        self._messages = self._in_flight = 0
        self._sender: asyncio.Task[None] | None = None
        self._next_send = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def work(self) -> WorkerProgress:
        """The work done so far. Any thread may read it."""
        spent = self._calls.meter.spent
        return WorkerProgress(self._messages, self._in_flight, spent.tokens, spent.cost)

    def halt(self) -> None:
        """Stop all conversations after their turn in flight; they can be resumed. Any thread may call it."""
        self._stopped = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._calls.halt)

    async def run_chunk(
        self, tasks: Sequence[Task], stored: Mapping[str, tuple[list[Any], ...]], *, careful: bool = False
    ) -> list[Outcome]:
        """Run these conversations; return when all of their turns are committed.

        Args:
            stored: packed turns that are in the store, by conversation.
            careful: commit each turn before the next is requested, so that the store shows where the process died.

        Raises StorageError, and AuthenticationError if a server refused an agent's key; all conversations then stop
        after their turn.
        """
        self._loop = asyncio.get_running_loop()
        if self._sender is None:
            self._next_send = time.monotonic() + SEND_SECONDS
            self._sender = asyncio.create_task(self._send_regularly())
        outcomes = await asyncio.gather(*(self._run_task(t, unpack(stored.get(t.id, ())), careful) for t in tasks))
        await self._recorder.flush()
        self._calls.meter.export(self._remote.values())
        await self._calls.flush()
        if self._refused is not None:  # raised here, when all turns are committed
            raise self._refused
        return outcomes

    async def _run_task(self, task: Task, stored: Sequence[Message], careful: bool) -> Outcome:
        """Wait for a place; restore the memory of stateful agents and free it at the end."""
        async with self._places:
            self._in_flight += 1
            stateful = [self._remote[key] for key in self._agent_keys[task.cell] if key in self._stateful]
            for agent in stateful:
                agent.restore(task.id, _newest_state(agent.name, stored))
            try:
                return await self._run_conversation(task, stored, careful)
            finally:
                self._in_flight -= 1
                for agent in stateful:
                    agent.forget(task.id)

    async def _run_conversation(self, task: Task, stored: Sequence[Message], careful: bool) -> Outcome:
        try:
            conversation = self._build_conversation(task, stored)
        except ConfigurationError as error:  # the driver could build all parts
            raise PlacementError(f"on a node: {error}; is the same code, and data, on every node?") from None
        except (Exception, SystemExit) as error:  # an observer that sees stored turns, or an agent's set-up
            return await self._store_failed_start(task, error, stored)
        transcript, recorder = conversation.transcript, self._recorder
        log_context.set(transcript)
        if not stored and not self._stopped and recorder.add(opening_row(transcript)):
            await recorder.send()
        try:
            if not self._stopped:
                async for message in conversation:
                    self._count(message)
                    if recorder.add(message):
                        await recorder.send()
                    if careful:
                        await recorder.flush()
                    if self._stopped:
                        break
                    if time.monotonic() >= self._next_send:  # agents that never wait would keep the sender waiting
                        await asyncio.sleep(0)
        except RunHalted:
            transcript.status = RUNNING  # it continues when the run is resumed
        except AuthenticationError as error:  # the next conversations would fail in the same way
            transcript.status, self._refused = RUNNING, self._refused or error
            self._stopped = True
            self._calls.halt()
        except A2AError as error:
            if transcript.status != FAILED or isinstance(error, (PlacementError, StorageError)):
                transcript.status = RUNNING  # a fault of the cluster or the storage, not of the conversation
                raise
            log.warning("the conversation failed: %s", transcript.error)
        if transcript.status != RUNNING:
            if conversation.observers:
                recorder.add_findings(live_findings(conversation.observers, transcript))
            if recorder.add(end_row(transcript, time.time())):
                await recorder.send()
        return Outcome(task, transcript.status, len(transcript.messages))

    def _count(self, message: Message) -> None:
        if message.kind == "message":
            self._messages += 1
            if self._calls.meter.exports:
                self._calls.meter.turns[message.sender] += 1

    async def _store_failed_start(self, task: Task, error: BaseException, stored: Sequence[Message]) -> Outcome:
        """Store that a conversation failed before its first turn."""
        names = tuple(spec.name for spec in self._cells[task.cell].agents)
        transcript = Transcript(task.id, names, seed=task.seed)
        for message in stored:
            transcript.append(message)
        sentence = str(error) if isinstance(error, A2AError) else f"{type(error).__name__}: {error}"
        transcript.status, transcript.error = FAILED, sentence
        transcript.traceback = traceback_of(error)
        if self._recorder.add(end_row(transcript, time.time())):
            await self._recorder.send()
        return Outcome(task, FAILED, 0)

    def _build_conversation(self, task: Task, stored: Sequence[Message]) -> Conversation:
        cell = self._cells[task.cell]
        agents, judges, protocol, termination, options = self._cell_parts(task.cell)
        names = tuple(a.name for a in agents)
        transcript = Transcript(task.id, names, cell.opening_contents[task.opening], task.seed)
        for message in stored:
            transcript.append(message)
        observers = {name: observer_kinds.build(o, f"observer {name}") for name, o in cell.named_observers.items()}
        for name, spec in cell.judges.items():
            observers[name] = spec.watch(observers[name], judges[spec.name], timed=True)
        return Conversation(
            agents,
            protocol,
            max_turns=cell.limit,
            termination=termination,
            observers=observers,
            options=options,
            transcript=transcript,
        )

    def _cell_parts(self, index: int) -> CellParts:
        """Return the parts of a cell; they are made once."""
        if index not in self._parts:
            cell = self._cells[index]
            agents, judges, options = [], {}, {}
            for (_, spec), key in zip(cell.all_agents, self._agent_keys[index], strict=True):
                if not spec.heavy and key not in self._light:
                    self._light[key] = spec.build()
                    agent_traits(self._light[key]).setup()
                agent = self._remote[key] if spec.heavy else self._light[key]
                if spec.heavy:
                    options[spec.name] = spec.turn_settings()
                if isinstance(spec, JudgeSpec):  # its time does not include the wait for permits and for the ledger
                    judges[spec.name] = self._calls.wrap(TimedAgent(agent, spec.timeout), spec, key)
                else:
                    agents.append(self._calls.wrap(agent, spec, key))
            termination: TerminationCondition | None = None
            for each in cell.termination:
                condition = terminations.build(each, "termination")
                termination = condition if termination is None else termination | condition
            self._parts[index] = (agents, judges, protocols.build(cell.protocol, "protocol"), termination, options)
        return self._parts[index]

    async def _send_regularly(self) -> None:
        while True:
            await asyncio.sleep(SEND_SECONDS)
            await self._recorder.send()
            self._next_send = time.monotonic() + SEND_SECONDS
            self._calls.meter.export(self._remote.values())


def _newest_state(agent: str, stored: Sequence[Message]) -> Any:
    """Return the newest state that a stateful agent gave with its answers, or None."""
    return next((m.metadata.get("state") for m in reversed(stored) if m.sender == agent), None)
