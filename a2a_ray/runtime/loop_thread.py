"""An event loop in a thread of its own, and handles of objects in it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

END_SECONDS = 10.0
"""How long the thread may take to end. It is a daemon: a step that hangs does not keep the program alive."""

_Result = TypeVar("_Result")


class LoopThread:
    """Runs coroutines while its maker waits: also below a running event loop, and with signals in the main thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="a2a_ray", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Start a coroutine and return its future result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def end(self) -> None:
        """Cancel what still runs and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join(END_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._ended.wait())


class LocalActor:
    """Stands in for the handle of a Ray actor: `handle.method.remote(...)` runs the method in this event loop."""

    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> _LocalMethod:
        return _LocalMethod(getattr(self._instance, name))


class _LocalMethod:
    def __init__(self, method: Any) -> None:
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """Start the coroutine method and return its task."""
        return asyncio.get_running_loop().create_task(self._method(*args, **kwargs))
