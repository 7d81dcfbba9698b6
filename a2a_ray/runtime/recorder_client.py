"""The worker's side of the recorder: sends rows in batches, and sends them again if the recorder dies."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import Finding, to_arrow
from a2a_ray.core.message import Message
from a2a_ray.store.schema import Beside, to_batch

RECORDER_SECONDS = 120.0
"""How long a worker waits for a recorder that does not respond."""


class RecorderClient:
    """Collects rows and sends them in batches, with a limited number of batches in flight.

    It keeps each batch until the recorder has committed it, and sends it again, in the same order, to a recorder that
    was restarted. For use in one event loop. After a failure every method raises the same StorageError.

    Args:
        recorder: the recorder's actor handle.
        worker: name of this worker.
        batch_rows: rows at which `add` reports that a batch is full.
        max_in_flight: batches that may wait for their commit before `send` waits.
    """

    def __init__(self, recorder: Any, worker: str, batch_rows: int = 5000, max_in_flight: int = 12) -> None:
        self._recorder, self._worker = recorder, worker
        self._batch_rows, self._max_in_flight = batch_rows, max_in_flight
        self._writer = uuid4().hex[:12]
        self._rows: list[Message] = []
        self._findings: list[Finding] = []
        self._in_flight: deque[_Batch] = deque()
        self._epoch = self._number = 0
        # Numbers of rows: added so far; that `commit` waits for; committed (always the first ones of those added).
        self._added = self._requested = self._committed = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._pushing: asyncio.Task[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._error: StorageError | None = None

    def add(self, row: Message) -> bool:
        """Add a row to the next batch; return whether the batch is full, so that it is time to `send` it."""
        self._rows.append(replace(row, writer=self._writer) if type(row) is Beside else row)
        self._added += 1
        return len(self._rows) >= self._batch_rows

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add the findings of a conversation; they are sent with the next row, the end of the conversation."""
        self._findings.extend(findings)

    async def send(self) -> None:
        """Send the collected rows. Wait only while too many batches are in flight. Raises StorageError."""
        self._send_batch()
        if len(self._in_flight) >= self._max_in_flight:
            await self._wait_until_committed(self._in_flight[-self._max_in_flight].last_row)
        self._raise_error()

    async def flush(self) -> None:
        """Send the collected rows; return when all rows are committed. Raises StorageError."""
        self._send_batch()
        await self._wait_until_committed(self._added)

    async def commit(self, *rows: Message) -> None:
        """Add rows; return when they, and all rows before them, are committed. Raises StorageError.

        Many callers may wait at once: rows that are added while a batch is in flight share the next batch.
        """
        for row in rows:
            self.add(row)
        self._requested = self._added
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._push())
        await self._wait_until_committed(self._added)

    async def _push(self) -> None:
        """Send batches, one at a time, until all rows that `commit` waits for are committed."""
        try:
            while self._requested > self._committed:
                await asyncio.sleep(0)  # callers that commit in this round of the event loop share the batch
                self._send_batch()
                await self._wait_until_committed(self._requested)
        except StorageError:
            pass  # raised in each caller of `commit`
        finally:
            self._pushing = None

    def _send_batch(self) -> None:
        """Make a batch of the collected rows and send it; while the recorder is away, keep it for later."""
        self._raise_error()
        if self._rows:
            rows, self._rows = self._rows, []
            findings, self._findings = self._findings, []
            self._in_flight.append(_Batch(to_batch(rows), to_arrow(findings) if findings else None, self._added))
            if self._reconnecting is None:
                self._append_to_recorder(self._in_flight[-1])

    def _append_to_recorder(self, batch: _Batch) -> None:
        call = self._recorder.append.remote(self._worker, self._epoch, self._number, batch.rows, batch.findings)
        self._number += 1
        task = asyncio.ensure_future(self._await_commit(call, batch, self._epoch))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _await_commit(self, call: Any, batch: _Batch, epoch: int) -> None:
        """Wait until the batch is committed. If the recorder dies, reconnect, which sends the batch again."""
        response = asyncio.ensure_future(_response(call))
        try:
            if not (await asyncio.wait({response}, timeout=RECORDER_SECONDS / 2))[0]:
                await self._check_alive(RECORDER_SECONDS / 2)
                # It is alive, so the call may be lost. A batch that arrives twice does no harm: rows have keys.
                self._reconnect(epoch)
                return
            response.result()
        except StorageError as error:
            if epoch == self._epoch:
                self._fail(error)
        except Exception as error:
            if _process_died(error):
                self._reconnect(epoch)
            else:
                self._fail(StorageError(f"the recorder failed: {type(error).__name__}: {error}"))
        else:
            batch.committed = True
            while self._in_flight and self._in_flight[0].committed:
                self._committed = self._in_flight.popleft().last_row
            self._wake_waiting()

    async def _check_alive(self, seconds: float) -> None:
        """Return if the recorder responds within that time. Raises StorageError."""
        try:
            async with asyncio.timeout(seconds):
                await _response(self._recorder.ready.remote())
        except TimeoutError:
            raise StorageError(f"the recorder has not responded for {RECORDER_SECONDS:.0f} s; resume the run") from None

    def _reconnect(self, epoch: int) -> None:
        """Start to reconnect, once for all calls of an epoch."""
        if epoch == self._epoch and self._reconnecting is None:
            self._reconnecting = asyncio.create_task(self._wait_and_send_again())

    async def _wait_and_send_again(self) -> None:
        """Wait until the recorder is restarted, and send all batches that are not committed."""
        from ray.exceptions import ActorDiedError, RayActorError

        deadline = time.monotonic() + RECORDER_SECONDS
        while True:
            try:
                await self._check_alive(max(deadline - time.monotonic(), 0.1))
                break
            except StorageError as error:
                self._fail(error)
                return
            except RayActorError as error:
                if isinstance(error, ActorDiedError) or time.monotonic() > deadline:
                    self._fail(StorageError(f"the recorder process died: {str(error).splitlines()[0]}"))
                    return
            await asyncio.sleep(0.1)
        self._epoch, self._number, self._reconnecting = self._epoch + 1, 0, None
        for batch in self._in_flight:
            if not batch.committed:
                self._append_to_recorder(batch)

    async def _wait_until_committed(self, rows: int) -> None:
        """Return when the first `rows` rows are committed. Raises StorageError."""
        self._raise_error()
        if rows > self._committed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((rows, future))
            await future

    def _wake_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for rows, future in waiting:
            if rows > self._committed:
                self._waiting.append((rows, future))
            elif not future.done():
                future.set_result(None)

    def _fail(self, error: StorageError) -> None:
        """Fail for good: every later call raises the error."""
        self._error = self._error or error
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(StorageError(str(error)))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise StorageError(str(self._error))


class _Batch:
    """A batch in flight: its rows and findings, and the number of its last row among all rows of this client."""

    __slots__ = ("committed", "findings", "last_row", "rows")

    def __init__(self, rows: pa.RecordBatch, findings: pa.RecordBatch | None, last_row: int) -> None:
        self.rows, self.findings, self.last_row, self.committed = rows, findings, last_row, False


async def _response(call: Any) -> Any:
    """Return the response of an actor; raise an error of its own code as StorageError."""
    try:
        return await call
    except Exception as error:
        from ray.exceptions import RayTaskError  # imported late: a recorder in this process needs no Ray

        if isinstance(error, RayTaskError):
            raise StorageError(str(error.cause)) from None
        raise


def _process_died(error: Exception) -> bool:
    from ray.exceptions import RayActorError

    return isinstance(error, RayActorError)
