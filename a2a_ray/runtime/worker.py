"""A conversation worker: an actor that holds many conversations at once, each by the same loop as in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

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
from a2a_ray.experiment.spec import Experiment, Task
from a2a_ray.runtime.agents.pool import RemoteAgent
from a2a_ray.runtime.limits.gate import Halted
from a2a_ray.runtime.limits.metered import Calling, MeteredCalls
from a2a_ray.runtime.plan import Outcome, Said
from a2a_ray.runtime.recorder_client import Recording
from a2a_ray.runtime.telemetry import logs
from a2a_ray.store.live_findings import live_findings
from a2a_ray.store.schema import end_row, opening_row, unpack

log = logging.getLogger(__name__)

COLLECTIONS = 100_000, 10, 10
"""Thresholds of the garbage collector. Transcripts are many small objects without cycles: Python's default of a
collection every 700 of them takes a quarter of a light turn."""
CONTROL = "control"
"""Concurrency group of what must be answered while a light agent computes: it has an event loop of its own."""
SEND_SECONDS = 0.5
"""How long a turn of a slow conversation waits at most before it is sent to the recorder."""


class Worker:
    """Actor. `keys` names the agents of each cell; `pools` gives what `RemoteAgent` needs for each heavy one.

    At most `slots` conversations are under way at once; where one ends, the next that waits begins.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        recorder: Any,
        pools: Mapping[str, tuple[Any, ...]],
        keys: Sequence[Sequence[str]],
        slots: int,
        calling: Calling,
    ) -> None:
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        self._cells, self._keys = experiment.cells, keys
        logs.name_records(calling.run)
        self._recording = Recording(recorder, name)
        self._calls = MeteredCalls(calling, self._recording)
        self._remote = {key: RemoteAgent(*parts) for key, parts in pools.items()}
        self._stateful = {key for key, agent in self._remote.items() if agent.stateful}
        self._parts: dict[int, tuple[list[Any], Any, TerminationCondition | None, dict[str, Any]]] = {}
        self._light: dict[str, Any] = {}
        self._slots = asyncio.Semaphore(slots)
        self._stopped = False
        self._refused: AuthenticationError | None = None
        self._said = self._in_flight = 0
        self._sender: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ready(self) -> bool:
        """That the actor lives."""
        return True

    @ray.method(concurrency_group=CONTROL)
    async def said(self) -> Said:
        """What it did so far."""
        meter = self._calls.meter
        return Said(self._said, self._in_flight, meter.spent.tokens, meter.spent.cost)

    @ray.method(concurrency_group=CONTROL)
    async def stop(self) -> None:
        """Ends all conversations after the turns that are under way; they can be resumed."""
        self._stopped = True
        if self._loop is not None:  # this method has an event loop of its own
            self._loop.call_soon_threadsafe(self._calls.halt)

    async def hold(
        self, tasks: Sequence[Task], earlier: Mapping[str, tuple[list[Any], ...]], *, careful: bool = False
    ) -> list[Outcome]:
        """Holds these conversations; returns when all of their turns are committed. Raises StorageError,
        and AuthenticationError if a server refused the key of an agent: all conversations then end after their turn.

        earlier: packed turns that are in the store already, by conversation. careful: every turn is committed before
        the next is asked for, so that the record says where the process died.
        """
        self._loop = asyncio.get_running_loop()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_now_and_then())
        outcomes = await asyncio.gather(*(self._hold(t, unpack(earlier.get(t.id, ())), careful) for t in tasks))
        await self._recording.flush()
        self._calls.meter.export(self._remote.values())
        await self._calls.flush()
        if self._refused is not None:  # told when all that was said is committed
            raise self._refused
        return outcomes

    async def _hold(self, task: Task, earlier: Sequence[Message], careful: bool) -> Outcome:
        async with self._slots:
            self._in_flight += 1
            memories = [self._remote[key] for key in self._keys[task.cell] if key in self._stateful]
            for agent in memories:
                agent.restore(task.id, _state(agent.name, earlier))
            try:
                return await self._held(task, earlier, careful)
            finally:
                self._in_flight -= 1
                for agent in memories:
                    agent.forget(task.id)

    async def _held(self, task: Task, earlier: Sequence[Message], careful: bool) -> Outcome:
        try:
            conversation = self._conversation(task, earlier)
        except ConfigurationError as error:  # the driver could build all parts
            raise PlacementError(f"on a node: {error}; is the same code, and data, on every node?") from None
        except (Exception, SystemExit) as error:  # an observer's first look, or an agent's set-up
            return await self._never_begun(task, error, earlier)
        transcript = conversation.transcript
        logs.about.set(transcript)
        recording, meter = self._recording, self._calls.meter
        counted = meter.turns if meter.exports else None
        if not earlier and not self._stopped and recording.add(opening_row(transcript)):
            await recording.send()
        try:
            if not self._stopped:
                async for message in conversation:
                    if message.kind == "message":
                        self._said += 1
                        if counted is not None:
                            counted[message.sender] += 1
                    if recording.add(message):
                        await recording.send()
                    if careful:
                        await recording.flush()
                    if self._stopped:
                        break
        except Halted:
            transcript.status = RUNNING  # it goes on when the run is resumed
        except AuthenticationError as error:  # the next conversations would fail in the same way
            transcript.status, self._refused = RUNNING, self._refused or error
            self._stopped = True
            self._calls.halt()
        except A2AError as error:
            if transcript.status != FAILED or isinstance(error, (PlacementError, StorageError)):
                transcript.status = RUNNING  # no fault of the conversation but of what it runs on
                raise
            log.warning("the conversation failed: %s", transcript.error)
        if transcript.status != RUNNING:
            if conversation.observers:
                recording.add_findings(live_findings(conversation.observers, transcript))
            if recording.add(end_row(transcript, time.time())):
                await recording.send()
        return Outcome(task, transcript.status, len(transcript.messages))

    async def _never_begun(self, task: Task, error: BaseException, earlier: Sequence[Message]) -> Outcome:
        names = tuple(spec.name for spec in self._cells[task.cell].agents)
        transcript = Transcript(task.id, names, seed=task.seed)
        for message in earlier:
            transcript.append(message)
        sentence = str(error) if isinstance(error, A2AError) else f"{type(error).__name__}: {error}"
        transcript.status, transcript.error = FAILED, sentence
        transcript.traceback = traceback_of(error)
        if self._recording.add(end_row(transcript, time.time())):
            await self._recording.send()
        return Outcome(task, FAILED, 0)

    def _conversation(self, task: Task, earlier: Sequence[Message]) -> Conversation:
        cell = self._cells[task.cell]
        agents, protocol, stop, options = self._parts_of(task.cell)
        names = tuple(a.name for a in agents)
        transcript = Transcript(task.id, names, cell.opening_contents[task.opening], task.seed)
        for message in earlier:
            transcript.append(message)
        observers = {name: observer_kinds.build(o, f"observer {name}") for name, o in cell.named_observers.items()}
        return Conversation(
            agents,
            protocol,
            max_turns=cell.limit,
            termination=stop,
            observers=observers,
            options=options,
            transcript=transcript,
        )

    def _parts_of(self, index: int) -> tuple[list[Any], Any, TerminationCondition | None, dict[str, Any]]:
        """Agents, protocol, stop condition and per-turn options of a cell; made once."""
        if index not in self._parts:
            cell = self._cells[index]
            agents, options = [], {}
            for spec, key in zip(cell.agents, self._keys[index], strict=True):
                if spec.heavy:
                    agents.append(self._calls.wrapped(self._remote[key], spec, key))
                    options[spec.name] = spec.turn_settings()
                    continue
                if key not in self._light:
                    self._light[key] = spec.build()
                    if hasattr(self._light[key], "setup"):
                        self._light[key].setup()
                agents.append(self._calls.wrapped(self._light[key], spec, key))
            stop: TerminationCondition | None = None
            for each in cell.termination:
                condition = terminations.build(each, "termination")
                stop = condition if stop is None else stop | condition
            self._parts[index] = (agents, protocols.build(cell.protocol, "protocol"), stop, options)
        return self._parts[index]

    async def _send_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SEND_SECONDS)
            await self._recording.send()
            self._calls.meter.export(self._remote.values())


def _state(agent: str, earlier: Sequence[Message]) -> Any:
    """The newest state that an agent which keeps memory gave with its answers; None where there is none."""
    return next((m.metadata.get("state") for m in reversed(earlier) if m.sender == agent), None)
