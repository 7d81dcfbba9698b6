"""An agent with a deadline for each answer."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from contextlib import suppress
from typing import Any

from a2a_ray.core.contracts import Agent
from a2a_ray.core.errors import AgentError
from a2a_ray.core.message import Message

log = logging.getLogger(__name__)


class TimedAgent:
    """An agent whose `step` raises AgentError after `seconds`; itself an `Agent`.

    An asynchronous step is cancelled. Any other step runs in a thread, one call at a time, and does not hold up the
    event loop. One that hangs cannot be stopped: its thread remains, and later calls fail at their deadline.

    The first failure is logged as a warning, because a judge that always fails ends nothing that anybody would notice.
    """

    placement = "worker"

    def __init__(self, agent: Agent, seconds: float) -> None:
        self.name = agent.name
        self._agent, self._seconds = agent, seconds
        self._one_at_a_time = threading.Lock()
        self._reported = False

    async def step(self, message: Message) -> Any:
        """Return the agent's answer. Raises its errors, and AgentError if there is none in time."""
        try:
            return await self._timed(message)
        except Exception as error:
            if not self._reported:
                self._reported = True
                log.warning("agent %r failed, later failures are not logged: %s", self.name, error)
            raise

    async def _timed(self, message: Message) -> Any:
        try:
            async with asyncio.timeout(self._seconds) as limit:
                if inspect.iscoroutinefunction(self._agent.step):
                    return await self._agent.step(message)
                answer = await self._in_thread(message)
                return await answer if inspect.isawaitable(answer) else answer
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise AgentError(f"agent {self.name!r}: no answer within {self._seconds:g} s") from error

    def _in_thread(self, message: Message) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(answer: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(error)

        def work() -> None:
            answer, failure = None, None
            if not self._one_at_a_time.acquire(timeout=self._seconds):
                return  # the caller has given up too
            try:
                if future.done():
                    return
                answer = self._agent.step(message)
            except BaseException as error:
                failure = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
            finally:
                self._one_at_a_time.release()
            with suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(settle, answer, failure)

        # A daemon, unlike the threads of an executor: one that hangs does not keep the program from ending.
        threading.Thread(target=work, name=f"judge {self.name}", daemon=True).start()
        return future
