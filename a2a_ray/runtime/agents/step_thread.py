"""Runs a synchronous agent in a thread, within its timeout, so that the event loop stays free."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

POLL_SECONDS = 0.05
"""How often a thread is checked: a response waits at most this long for those that come after it."""
NOT_STARTED, TIMED_OUT = object(), object()
"""In place of a result: the call was not started, because the process is about to be replaced; or it took too long."""


class StepThread:
    """Calls an agent in a thread, one call after the other.

    A thread cannot be stopped. If a call takes longer than `timeout` seconds, its thread is left behind and the next
    calls get a new thread. If `max_hung_steps` threads hang at the same time, no further call is started.

    executor: the first thread, if the agent was made in one.
    """

    def __init__(self, timeout: float | None, max_hung_steps: int, executor: ThreadPoolExecutor | None = None) -> None:
        self._timeout, self._max_hung_steps = timeout, max_hung_steps
        self._executor = executor or ThreadPoolExecutor(1)
        self._one_at_a_time = asyncio.Lock()
        self._hanging: set[asyncio.Future[None]] = set()

    @property
    def exhausted(self) -> bool:
        """Return whether enough threads hang for the process to be replaced."""
        return len(self._hanging) >= self._max_hung_steps

    async def run(self, call: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[tuple[Any, Any]]:
        """Yield each item with its result as soon as it is known; or with NOT_STARTED or TIMED_OUT.

        call: must not raise.
        """
        loop = asyncio.get_running_loop()
        done = 0
        while done < len(items):
            async with self._one_at_a_time:
                if self.exhausted:
                    for item in items[done:]:
                        yield item, NOT_STARTED
                    return
                job = _Job(call, items[done:])
                running = loop.run_in_executor(self._executor, job.run)
                first, timed_out = done, False
                while not timed_out and not (running.done() and done - first == len(job.results)):
                    await asyncio.wait([running], timeout=self._poll_seconds())
                    for result in job.results[done - first :]:
                        yield items[done], result
                        done += 1
                    index, started = job.current
                    timed_out = index == done - first and time.monotonic() - started > (self._timeout or float("inf"))
                if running.done():
                    running.result()  # raises errors that are not the agent's
                else:
                    job.abandoned = True
                    self._hanging.add(running)
                    running.add_done_callback(self._hanging.discard)
                    self._executor = ThreadPoolExecutor(1)
                    yield items[done], TIMED_OUT
                    done += 1

    def _poll_seconds(self) -> float:
        return POLL_SECONDS if self._timeout is None else min(POLL_SECONDS, self._timeout / 4)


class _Job:
    """The items that one thread works through. current: index of the item in work, and its start time."""

    def __init__(self, call: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._call, self._items = call, items
        self.results: list[Any] = []
        self.current = (-1, 0.0)
        self.abandoned = False

    def run(self) -> None:
        for index, item in enumerate(self._items):
            self.current = (index, time.monotonic())
            result = self._call(item)
            if self.abandoned:
                return
            self.results.append(result)
