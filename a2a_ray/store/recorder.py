"""The one writer of a run: takes batches from all workers and commits them in groups, in each worker's own order."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeAlias

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.writer import Writer

PAUSE, MOST_PAUSE = 3.0, 0.2
"""After a commit the next one waits: so many times as long as it took, at most so many seconds. Groups grow, and a
commit costs 7 ms whatever its size: without the pause, commits took half of the time of a run at full speed."""

_Waiting: TypeAlias = "tuple[pa.RecordBatch | None, pa.RecordBatch | None, asyncio.Future[None]]"
"""Rows, findings, and what is told when both are committed."""


class Recorder:
    """Actor. When `append` returns, its batch is committed; what arrives during a commit goes into one next commit.

    uri: of the turns table, absolute: an actor's working folder need not be the driver's.
    epoch: of the driver's lease; a recorder of an older epoch is refused by the table from then on.

    It can be killed at any moment and started again: a new one reads which keys are on record, so rows that are sent
    again are recognised, in whatever groups they come.
    """

    def __init__(self, uri: str, epoch: int = 0) -> None:
        self._writer = Writer(uri, epoch)
        self._findings = FindingsTable(uri.removesuffix("/turns"))
        self._writing = asyncio.Lock()
        self._opened = False
        self._streams: dict[str, _Stream] = {}
        self._fenced: set[str] = set()
        self._ready: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._error: StorageError | None = None
        self._seconds = 0.0

    async def ready(self) -> bool:
        """Returns when the table is open. Raises StorageError where it cannot be, or another driver has the run."""
        self._check()
        if not self._opened:
            async with self._writing:
                try:
                    await asyncio.to_thread(self._writer.open)
                except StorageError as error:
                    self._error = error
                    raise
            self._opened = True
        return True

    async def append(
        self, worker: str, epoch: int, number: int, batch: pa.RecordBatch, found: pa.RecordBatch | None = None
    ) -> None:
        """Returns when the worker's batch of this number, and all before it, are committed. Raises StorageError.

        Async actors see calls out of order, so batches are put in the worker's own order by their numbers: what is
        committed of a conversation has no gap. A worker that lost a recorder sends again what was not acknowledged,
        with a higher epoch of its own and numbers from 0. found: findings, rows of `core.findings.schema()`.
        """
        self._check()
        if worker in self._fenced:
            raise StorageError(f"{worker} was given up for dead; its conversations were given to another worker")
        stream = self._streams.setdefault(worker, _Stream(epoch))
        if epoch > stream.epoch:
            stream.refuse(f"{worker} has sent it again")
            stream = self._streams[worker] = _Stream(epoch)
        elif epoch < stream.epoch:
            raise StorageError(f"{worker} has sent it again")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.early[number] = (batch, found, future)
        while stream.due in stream.early:
            self._ready.append(stream.early.pop(stream.due))
            stream.due += 1
        self._go_on()
        await future

    async def fence(self, worker: str) -> None:
        """Returns when all that came from the worker is committed; what comes from it later is refused.

        For a dead worker, before its conversations are given to another: what it had sent may still be on its way.
        Raises StorageError.
        """
        self._check()
        self._fenced.add(worker)
        if worker in self._streams:
            self._streams.pop(worker).refuse(f"{worker} was given up for dead")
        await self._all_committed()

    async def stats(self) -> dict[str, float]:
        """Rows and commits so far, rows that came again, and the seconds that commits took (compactions included)."""
        writer = self._writer
        return {"rows": writer.rows, "commits": writer.commits, "again": writer.again, "seconds": self._seconds}

    async def close(self) -> None:
        """Compacts the table, once all that came is committed; nothing can be written afterwards."""
        if self._error is None:
            with contextlib.suppress(StorageError):
                await self._all_committed()
        async with self._writing:
            self._error = self._error or StorageError("the run has ended; its recorder is closed")
            await asyncio.to_thread(self._writer.close)

    def _check(self) -> None:
        if self._error is not None:
            raise StorageError(str(self._error))

    async def _all_committed(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.append((None, None, future))
        self._go_on()
        await future

    def _go_on(self) -> None:
        if self._committing is None and self._ready:
            self._committing = asyncio.create_task(self._commit_all())

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ready:
            group, self._ready = self._ready, []
            started = loop.time()
            try:
                async with self._writing:
                    self._check()
                    sent = [(batch, found) for batch, found, _ in group if batch is not None]
                    refused = iter(await asyncio.to_thread(self._write, sent) if sent else ())
            except Exception as error:
                if not isinstance(error, StorageError):
                    error = StorageError(f"the recorder failed: {error!r}")
                self._fail(error, group)
                break
            took = loop.time() - started
            self._seconds += took
            for batch, _, future in group:
                _settle(future, None if batch is None else next(refused))
            await asyncio.sleep(min(PAUSE * took, MOST_PAUSE))
        self._committing = None

    def _write(self, sent: list[tuple[pa.RecordBatch, pa.RecordBatch | None]]) -> list[StorageError | None]:
        """Commits the rows, then what observers found in conversations that ended with them.

        In this order findings never speak of turns that are not stored. If this process dies in between, the worker
        sends both again; if the worker is dead too, an analysis finds what is missing.
        """
        refused = self._writer.write([batch for batch, _ in sent])
        found = [f for (_, f), error in zip(sent, refused, strict=True) if f is not None and error is None]
        if found:
            self._findings.add(pa.concat_batches(found))
        return refused

    def _fail(self, error: StorageError, group: list[_Waiting]) -> None:
        """Once failed, for good: nobody may believe that later turns are kept where earlier ones are not."""
        self._error = error
        for *_, future in (*group, *self._ready):
            _settle(future, error)
        for stream in self._streams.values():
            stream.refuse(str(error))
        self._ready = []


class _Stream:
    """What came from one worker: the number that is due, and batches that came before their turn."""

    def __init__(self, epoch: int) -> None:
        self.epoch, self.due = epoch, 0
        self.early: dict[int, _Waiting] = {}

    def refuse(self, sentence: str) -> None:
        for *_, future in self.early.values():
            _settle(future, StorageError(sentence))
        self.early = {}


def _settle(future: asyncio.Future[None], error: StorageError | None) -> None:
    if future.done():  # its caller has gone
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
