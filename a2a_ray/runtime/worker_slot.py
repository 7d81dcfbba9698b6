"""A worker slot of a run: the worker actor in it now, and the conversations that this worker has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from a2a_ray.runtime.plan import Chunk, WorkerProgress
from a2a_ray.store.schema import pack


class WorkerSlot:
    """One slot, filled by one worker actor after another.

    start_worker: starts a worker actor of the given name and returns its handle.
    """

    def __init__(self, start_worker: Callable[[str], Any]) -> None:
        self._start_worker = start_worker
        self.failed_starts = 0
        """Workers in a row that died before they were ready."""
        self._before = self.progress = WorkerProgress()
        self.fill()

    def fill(self) -> None:
        """Start a worker. Its name is unique: the recorder has to tell it from the one before."""
        self.name = f"worker-{uuid4().hex[:12]}"
        self.actor = self._start_worker(self.name)
        self.starting: Any = self.actor.ready.remote()
        self.chunks: dict[Any, Chunk] = {}
        """Chunks that the worker has, by the pending call."""
        self._progress_call: Any = None
        self._before = self._before.plus(self.progress._replace(in_flight=0))
        self.progress = WorkerProgress()

    @property
    def ready(self) -> bool:
        """Whether the worker has started."""
        return self.starting is None

    def send(self, chunk: Chunk) -> None:
        """Send a chunk to the worker. The stored turns of its conversations go along as columns."""
        turns = {id: pack(t.turns) for id, t in chunk.transcripts.items()}
        self.chunks[self.actor.run_chunk.remote(chunk.tasks, turns, careful=chunk.quarantined)] = chunk

    def request_progress(self) -> None:
        """Ask the worker for its progress, unless a request is pending."""
        if self._progress_call is None and self.ready:
            self._progress_call = self.actor.progress.remote()

    def pending_calls(self) -> list[Any]:
        """Return the calls that the worker has not answered."""
        return [call for call in (self.starting, self._progress_call, *self.chunks) if call is not None]

    def take_result(self, call: Any, result: Any) -> Chunk | None:
        """Take the result of a pending call; return the chunk if it is the result of one."""
        if call is self.starting:
            self.starting, self.failed_starts = None, 0
        elif call is self._progress_call:
            self._progress_call, self.progress = None, result
        else:
            return self.chunks.pop(call)
        return None

    @property
    def total_progress(self) -> WorkerProgress:
        """The work of all workers that this slot has had."""
        return self._before.plus(self.progress)
