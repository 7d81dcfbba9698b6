"""The recorder of a run: an actor that commits the batches of all workers in groups, in each worker's own order."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TypeAlias

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.writer import Writer

PAUSE_FACTOR, MAX_PAUSE_SECONDS = 3.0, 0.2
"""The pause after a commit, as a multiple of its time, and its maximum. A commit costs 7 ms whatever its size, so large
groups are cheaper: without the pause, commits took half of the time of a run at full speed."""

_Waiting: TypeAlias = "tuple[pa.RecordBatch | None, pa.RecordBatch | None, asyncio.Future[None]]"
"""Rows, findings, and the future that is resolved when both are committed."""


class Recorder:
    """Actor. When `append` returns, its batch is committed. Batches that arrive during a commit share the next one.

    It can be killed at any moment and restarted: it reads the keys that are committed, so it recognises rows that are
    sent again, however they are grouped.

    Args:
        uri: of the turns table; absolute, since an actor's working folder need not be the driver's.
        epoch: of the driver's lease. The table refuses recorders of older epochs from now on.
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
        """Return when the table is open. Raises StorageError if it cannot be opened or another driver has the run."""
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
        self, worker: str, epoch: int, number: int, batch: pa.RecordBatch, findings: pa.RecordBatch | None = None
    ) -> None:
        """Return when this batch, and all of the worker's batches before it, are committed. Raises StorageError.

        Async actors see calls out of order. The numbers restore the worker's order, so the stored part of a
        conversation has no gap.

        Args:
            worker: name of the worker.
            epoch: how often the worker has reconnected. It then sends again what was not committed.
            number: of the batch, from 0 in each epoch.
            batch: rows of the turns table.
            findings: rows of `core.findings.schema()`.
        """
        self._check()
        if worker in self._fenced:
            raise StorageError(f"{worker} was declared dead; another worker runs its conversations")
        stream = self._streams.setdefault(worker, _Stream(epoch))
        if epoch > stream.epoch:
            stream.refuse(f"{worker} has sent this batch again")
            stream = self._streams[worker] = _Stream(epoch)
        elif epoch < stream.epoch:
            raise StorageError(f"{worker} has sent this batch again")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stream.early[number] = (batch, findings, future)
        while stream.due in stream.early:
            self._ready.append(stream.early.pop(stream.due))
            stream.due += 1
        self._start_commits()
        await future

    async def fence(self, worker: str) -> None:
        """Refuse later batches of a dead worker; return when all that arrived before are committed.

        Call it before another worker gets its conversations: batches that it sent may still be in flight. Raises
        StorageError.
        """
        self._check()
        self._fenced.add(worker)
        if worker in self._streams:
            self._streams.pop(worker).refuse(f"{worker} was declared dead")
        await self._all_committed()

    async def stats(self) -> dict[str, float]:
        """Return the numbers of rows, commits and duplicate rows, and the seconds of commits, with compactions."""
        writer = self._writer
        counts = {"rows": writer.rows, "commits": writer.commits, "duplicates": writer.duplicates}
        return {**counts, "seconds": self._seconds}

    async def close(self) -> None:
        """Compact the table when all batches are committed; refuse later ones."""
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
        self._start_commits()
        await future

    def _start_commits(self) -> None:
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
                    sent = [(batch, findings) for batch, findings, _ in group if batch is not None]
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
            await asyncio.sleep(min(PAUSE_FACTOR * took, MAX_PAUSE_SECONDS))
        self._committing = None

    def _write(self, sent: list[tuple[pa.RecordBatch, pa.RecordBatch | None]]) -> list[StorageError | None]:
        """Commit the rows, then the findings of conversations that end with them.

        In this order a finding never refers to a turn that is not stored. If this process dies in between, the worker
        sends both again. If the worker has died too, an analysis of the run adds the missing findings.
        """
        refused = self._writer.write([batch for batch, _ in sent])
        findings = [f for (_, f), error in zip(sent, refused, strict=True) if f is not None and error is None]
        if findings:
            self._findings.add(pa.concat_batches(findings))
        return refused

    def _fail(self, error: StorageError, group: list[_Waiting]) -> None:
        """Fail for good: no later turn may be stored if an earlier one is missing."""
        self._error = error
        for *_, future in (*group, *self._ready):
            _settle(future, error)
        for stream in self._streams.values():
            stream.refuse(str(error))
        self._ready = []


class _Stream:
    """The batches of one worker: the number that is due, and the batches that arrived early."""

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
