"""The one writer of a run: takes batches from all workers and commits them in groups, in each worker's own order."""

from __future__ import annotations

import asyncio
from typing import Any

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.core.message import Message
from a2a_ray.runtime.columns import SCHEMA, to_batch

COMPACT_EVERY = 100
"""Commits between compactions: a commit stays at 8-11 ms then, else it takes 24 ms after 400."""


class Recorder:
    """Actor. When `append` returns, its batch is committed; what arrives during a commit goes into one next commit."""

    def __init__(self, uri: str) -> None:
        self._uri = uri  # absolute: an actor's working folder need not be the driver's
        self._next: dict[str, int] = {}
        self._early: dict[tuple[str, int], tuple[pa.RecordBatch, asyncio.Future[None]]] = {}
        self._ready: list[tuple[pa.RecordBatch, asyncio.Future[None]]] = []
        self._committing: asyncio.Task[None] | None = None
        self._error: str | None = None
        self._commits = self._rows = 0
        self._seconds = 0.0

    async def ready(self) -> bool:
        """That the actor lives."""
        return True

    async def append(self, worker: str, number: int, batch: pa.RecordBatch) -> None:
        """Returns when the worker's batch of this number, and all before it, are committed. Raises StorageError.

        Async actors see calls out of order, so batches are put in the worker's own order by their numbers: what is
        committed of a conversation has no gap.
        """
        if self._error:
            raise StorageError(self._error)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early[worker, number] = (batch, future)
        due = self._next.get(worker, 0)
        while (worker, due) in self._early:
            self._ready.append(self._early.pop((worker, due)))
            due += 1
        self._next[worker] = due
        if self._committing is None and self._ready:
            self._committing = asyncio.create_task(self._commit_all())
        await future

    async def stats(self) -> dict[str, float]:
        """Rows and commits so far, and the seconds that commits took."""
        return {"rows": self._rows, "commits": self._commits, "seconds": self._seconds}

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ready:
            group, self._ready = self._ready, []
            started = loop.time()
            try:
                await asyncio.to_thread(self._commit, [batch for batch, _ in group])
            except Exception as error:
                reason = str(error).splitlines()[0][:300]
                self._error = f"the turns cannot be written: {reason}; mend the storage, then resume"
                waiting = [f for _, f in (*group, *self._ready, *self._early.values())]
                for future in waiting:
                    future.set_exception(StorageError(self._error))
                self._ready, self._early = [], {}
                break
            self._seconds += loop.time() - started
            for batch, future in group:
                self._rows += batch.num_rows
                future.set_result(None)
        self._committing = None

    def _commit(self, batches: list[pa.RecordBatch]) -> None:
        from deltalake import DeltaTable, write_deltalake

        write_deltalake(self._uri, pa.Table.from_batches(batches, SCHEMA), mode="append")
        self._commits += 1
        if self._commits % COMPACT_EVERY == 0:
            DeltaTable(self._uri).optimize.compact()


class Recording:
    """A worker's side of the recorder: collects rows and sends them in batches, a bounded number of them unanswered."""

    def __init__(self, recorder: Any, worker: str, rows: int = 5000, unanswered: int = 12) -> None:
        self._recorder, self._worker, self._limit = recorder, worker, rows
        self._rows: list[Message] = []
        self._number = 0
        self._pending: set[asyncio.Future[None]] = set()
        self._unanswered = unanswered
        self._error: BaseException | None = None

    def add(self, row: Message) -> bool:
        """Keeps the row; True when it is time to `send`."""
        self._rows.append(row)
        return len(self._rows) >= self._limit

    async def send(self) -> None:
        """Sends what was collected; waits only while too many batches are unanswered. Raises StorageError."""
        if self._rows:
            rows, self._rows = self._rows, []
            batch = to_batch(rows)  # before the number is taken: the recorder waits for every number
            number, self._number = self._number, self._number + 1
            call = self._recorder.append.remote(self._worker, number, batch)
            self._pending.add(asyncio.ensure_future(_answer(call)))
        if len(self._pending) >= self._unanswered:
            await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        self._collect()

    async def flush(self) -> None:
        """Sends what is left and waits until everything sent so far is committed. Raises StorageError."""
        await self.send()
        if self._pending:
            await asyncio.wait(set(self._pending))
        self._collect()

    async def commit(self, *rows: Message) -> None:
        """Adds the rows and returns when they, and everything added before, are committed. Raises StorageError."""
        self._rows.extend(rows)
        await asyncio.sleep(0)  # what other conversations add now goes along
        await self.flush()

    def _collect(self) -> None:
        done = {f for f in self._pending if f.done()}
        self._pending -= done
        for future in done:
            self._error = self._error or future.exception()
        if self._error is not None:  # once failed, for good: whoever sends or flushes next must know
            raise self._error


async def _answer(call: Any) -> None:
    from ray.exceptions import RayActorError, RayTaskError

    try:
        await call
    except RayTaskError as error:
        raise StorageError(str(error.cause)) from None
    except RayActorError as error:
        raise StorageError(f"the recorder process died: {str(error).splitlines()[0]}") from None
