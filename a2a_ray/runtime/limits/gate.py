"""The gate in each worker: calls wait here until the budget permits them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from a2a_ray.runtime.limits.budget import BudgetReply
from a2a_ray.runtime.limits.call_queue import CallQueue, WaitingCall
from a2a_ray.runtime.limits.rate_limit import CallEstimate, EndpointReport
from a2a_ray.runtime.limits.spent import Spent

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.5
"""The longest time between two reports of a worker."""
RETRY_SECONDS = 0.1
"""The longest time between two exchanges while calls wait."""
LOST_SECONDS = 120.0
"""How long the budget's process may be away (Ray restarts it) before the worker halts."""


class RunHalted(BaseException):
    """The run stops, and this call was not made. Not an Exception: the conversation did not fail and can be resumed."""


class BudgetGate:
    """Where the calls of a worker wait.

    A worker requests permits for all queued calls in one message.

    worker: a unique name. exchange: `BudgetKeeper.exchange`.
    """

    def __init__(
        self,
        worker: str,
        exchange: Callable[[str, Spent, Mapping[str, EndpointReport]], Awaitable[BudgetReply]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._send, self._clock = worker, exchange, clock
        self._queues: dict[str, CallQueue] = {}
        self._inside: Counter[str] = Counter()  # calls by conversation, waiting or in flight
        self._started: set[str] = set()  # conversations of which one of these calls has started
        self._spent = Spent()
        self._wake = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._last_reply = clock()
        self._loop: asyncio.Task[None] | None = None
        self.halted = False

    async def enter(self, endpoint: str, estimate: CallEstimate, conversation: str) -> None:
        """Return when the call may start. Raises RunHalted if the run stops first.

        If the agents of a conversation act at the same time and one of their calls has started, the others start too,
        so that its response is not lost.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._exchange_forever())
        queue = self._queues.setdefault(endpoint, CallQueue())
        call = WaitingCall(estimate, asyncio.get_running_loop().create_future(), conversation)
        self._inside[conversation] += 1
        try:
            if self.halted and conversation not in self._started:
                raise RunHalted
            if queue.enter(call):
                self._permit(call)
            else:
                self._wake.set()
            if not await call.permitted:
                raise RunHalted
        except BaseException:
            if call.permitted.done() and not call.permitted.cancelled() and call.permitted.result():
                queue.end(estimate, Spent(requests=1))  # cancelled between the permit and the call
            self._exit(conversation)
            raise

    def leave(self, endpoint: str, estimate: CallEstimate, conversation: str, took: Spent) -> None:
        """Count a call that ended. took.requests: at least 1."""
        queue = self._queues[endpoint]
        queue.end(estimate, took)
        self._spent = self._spent.plus(took._replace(requests=took.requests - 1))
        self._exit(conversation)
        if queue.waiting:
            self._wake.set()

    def halt(self) -> None:
        """Start no further call, except those without which a response would be lost; see `enter`."""
        self.halted = True
        for queue in self._queues.values():
            for call in queue.waiting:
                if call.conversation not in self._started and not call.permitted.done():
                    call.permitted.set_result(False)

    async def report(self) -> None:
        """Report the calls that have ended, so that the last calls of a run are counted."""
        if self._queues:
            await self._exchange()

    def _permit(self, call: WaitingCall) -> None:
        self._started.add(call.conversation)
        self._spent = self._spent.plus(Spent(requests=1))
        call.permitted.set_result(True)

    def _exit(self, conversation: str) -> None:
        self._inside[conversation] -= 1
        if not self._inside[conversation]:
            del self._inside[conversation]
            self._started.discard(conversation)

    async def _exchange_forever(self) -> None:
        while True:
            calls_wait = any(queue.waiting for queue in self._queues.values())
            # Not wait_for: up to Python 3.11 it can swallow a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(RETRY_SECONDS if calls_wait else HEARTBEAT_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(await self._exchange())

    async def _exchange(self) -> float:
        """Exchange once with the budget, and return the seconds to the next exchange."""
        async with self._one_at_a_time:
            reports = {name: queue.report(self._clock(), self.halted) for name, queue in self._queues.items()}
            try:
                reply = await self._send(self._worker, self._spent, reports)
            except Exception as error:  # Ray restarts the process
                log.warning("the process that keeps the budget does not answer: %s", error)
                for name, report in reports.items():
                    self._queues[name].undo_report(report)
                if self._clock() - self._last_reply > LOST_SECONDS:
                    self.halt()
                self._wake.set()
                return HEARTBEAT_SECONDS
            self._last_reply = self._clock()
            for name, count in reply.granted.items():
                for call in self._queues[name].take(count, reports[name], self._last_reply):
                    self._permit(call)
            if reply.over and not self.halted:
                self.halt()
            return reply.pause
