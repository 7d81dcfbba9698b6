"""The actor that runs one replica of an agent."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.contract_checks import check_part
from a2a_ray.core.errors import A2AError, AgentError, PlacementError, traceback_of
from a2a_ray.core.message import Message
from a2a_ray.runtime.agents.actor_messages import ActorReply, CallBatch
from a2a_ray.runtime.agents.background_tasks import BackgroundTasks
from a2a_ray.runtime.agents.invoke import KEEP_STATE, AgentCall, Invoker
from a2a_ray.runtime.agents.step_thread import NOT_STARTED
from a2a_ray.store.schema import pack, unpack

EXIT_SECONDS = 0.5
"""How long a process that is to be replaced still hands out results."""


class AgentHost:
    """The actor that runs one replica. Its constructor is cheap, so that `ready` returns once the actor is placed.

    A process that Ray restarted sets its agent up by itself, before the first call.

    factory: makes the agent; pickled. timeout, max_hung_steps, paid: see `Invoker`.
    """

    def __init__(
        self, factory: bytes, timeout: float | None = None, max_hung_steps: int = 3, paid: bool = False
    ) -> None:
        gc.freeze()  # see worker.COLLECTIONS
        gc.set_threshold(100_000, 10, 10)
        self._factory = factory
        self._limits = (timeout, max_hung_steps, paid)
        self._executor = ThreadPoolExecutor(1)  # a synchronous agent runs in the thread where it was made
        self._incarnation = uuid.uuid4().hex
        self._invoker: Invoker | None = None
        self._setting_up: asyncio.Future[Invoker] | None = None
        self._callers: dict[str, _Caller] = {}
        self._tasks = BackgroundTasks()
        self._exiting = False

    async def ready(self) -> str:
        """Return the incarnation of this process; empty if it is about to exit."""
        return "" if self._exiting else self._incarnation

    async def setup(self) -> dict[str, Any]:
        """Make the agent, load what is heavy, and return the facts that callers need. Raises A2AError."""
        invoker = await self._set_up()
        return {
            "name": invoker.agent.name,
            "overlaps": invoker.overlaps,
            "bids": agent_traits(invoker.agent).bid is not None,
            "stateful": invoker.stateful,
            "paid": invoker.paid,
        }

    async def exchange(self, caller: str, incarnation: str, sent: bytes) -> bytes:
        """Take calls, and return the results that are ready; wait for at least one if calls are open.

        An earlier exchange of the same caller that still waits returns at once, so that a caller needs only one waiting
        exchange. If the caller means another incarnation of this process ("" for any), no call is started.

        sent: pickled `CallBatch`; returns a pickled `ActorReply`. Bytes cost Ray less than objects (0.2 ms of 0.7 ms a
        call).
        """
        return (await self._exchange(caller, incarnation, CallBatch(*pickle.loads(sent)))).pickled()

    async def _exchange(self, caller: str, incarnation: str, batch: CallBatch) -> ActorReply:
        if self._exiting or incarnation not in ("", self._incarnation):
            # A process that is about to exit still returns results, but only to callers that mean this process.
            known = self._callers.get(caller, _Caller()) if incarnation == self._incarnation else _Caller()
            return known.take(self._incarnation, refused=batch.numbers)
        try:
            invoker = await self._set_up()
        except A2AError as error:
            return ActorReply(self._incarnation, not_started=batch.numbers, problem=str(error))
        current = self._callers.setdefault(caller, _Caller())
        if batch.forget:
            self._tasks.start(invoker.forget(batch.forget))
        if batch.numbers:
            current.open.update(batch.numbers)
            self._tasks.start(self._invoke(invoker, batch, current))
        await current.ready()
        return current.take(self._incarnation, sum(len(c.open) for c in self._callers.values() if c is not current))

    async def _invoke(self, invoker: Invoker, batch: CallBatch, caller: _Caller) -> None:
        states = batch.states
        calls = [
            AgentCall(number, message, states.get(number, KEEP_STATE) if states else KEEP_STATE)
            for number, message in zip(batch.numbers, unpack(batch.columns), strict=True)
        ]
        try:
            await invoker.invoke(batch.method, calls, caller.put)
        except BaseException as error:  # whatever it is, no caller waits forever
            for call in calls:
                if call.number in caller.open:
                    caller.put(call, invoker.failure(call.message, error))
        if invoker.exhausted and not self._exiting:
            self._exiting = True
            # Ray restarts an actor whose process ended; an actor that exits by Ray's own means stays away.
            asyncio.get_running_loop().call_later(EXIT_SECONDS, os._exit, 1)

    async def _set_up(self) -> Invoker:
        if self._invoker is None:
            if self._setting_up is None:
                self._setting_up = asyncio.get_running_loop().run_in_executor(self._executor, self._make)
            setting_up = self._setting_up
            try:
                self._invoker = await asyncio.shield(setting_up)
            finally:
                if self._setting_up is setting_up:
                    self._setting_up = None  # if it failed, the next call tries again
        return self._invoker

    def _make(self) -> Invoker:
        try:
            factory = pickle.loads(self._factory)
        except Exception as error:
            raise PlacementError(
                f"on a node: the agent's factory cannot be loaded: {type(error).__name__}: {error};"
                " install the same code on every node, or send it along: runtime_env: {working_dir: .}"
            ) from None
        try:
            agent = factory()
            check_part("agent", agent, "the factory's result")
            agent_traits(agent).setup()
            return Invoker(agent, *self._limits, executor=self._executor)
        except A2AError:
            raise
        except (Exception, SystemExit) as error:  # other packages' errors may not unpickle in another process
            raise AgentError(f"an agent could not be set up: {type(error).__name__}: {error}") from None


class _Caller:
    """The calls of one caller that are open, and the results that it has not received yet."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self._results: list[tuple[int, Any]] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, call: AgentCall, result: Any) -> None:
        """Keep a result, and wake the exchange that waits."""
        self.open.discard(call.number)
        self._results.append((call.number, result))
        self._wake()

    async def ready(self) -> None:
        """Return when there is a result, no call is open, or a later exchange waits instead."""
        self._wake()
        if self.open and not self._results:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take(self, incarnation: str, other_load: int = 0, refused: Sequence[int] = ()) -> ActorReply:
        """Return all results as a reply."""
        results, self._results = self._results, []
        numbers, messages, not_started = [], [], list(refused)
        bids, failed = {}, {}
        for number, result in results:
            if type(result) is Message:
                numbers.append(number)
                messages.append(result)
            elif result is NOT_STARTED:
                not_started.append(number)
            elif isinstance(result, A2AError):
                failed[number] = (type(result).__name__, str(result), traceback_of(result))
            else:
                bids[number] = result
        return ActorReply(incarnation, numbers, pack(messages), bids, failed, not_started, other_load)
