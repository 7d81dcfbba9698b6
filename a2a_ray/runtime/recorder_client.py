"""A worker's side of the recorder: rows go in, and come back as committed, whatever happens to the recorder."""

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
"""How long a worker waits for a recorder that gives no sign of life."""


class Recording:
    """Collects rows and sends them in batches, a bounded number of them unanswered.

    What is not acknowledged is kept, and sent again in the same order when the recorder was started anew. For one
    event loop. Once it has failed, every call raises the same StorageError.
    """

    def __init__(self, recorder: Any, worker: str, rows: int = 5000, unanswered: int = 12) -> None:
        self._recorder, self._worker, self._limit, self._unanswered = recorder, worker, rows, unanswered
        self._writer = uuid4().hex[:12]
        self._rows: list[Message] = []
        self._found: list[Finding] = []
        self._sent: deque[_Sent] = deque()
        self._epoch = self._number = 0
        # Counts of rows: added here, asked for by `commit`, and acknowledged, which is of all the first ones.
        self._added = self._wanted = self._committed = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._pushing: asyncio.Task[None] | None = None
        self._finding: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._error: StorageError | None = None

    def add(self, row: Message) -> bool:
        """Keeps the row; True when it is time to `send`."""
        self._rows.append(replace(row, writer=self._writer) if type(row) is Beside else row)
        self._added += 1
        return len(self._rows) >= self._limit

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Keeps what observers found in a conversation; it goes with the next row, its end."""
        self._found.extend(findings)

    async def send(self) -> None:
        """Sends what was collected; waits only while too many batches are unanswered. Raises StorageError."""
        self._cut()
        if len(self._sent) >= self._unanswered:
            await self._until(self._sent[-self._unanswered].rows)
        self._check()

    async def flush(self) -> None:
        """Sends what is left and returns when everything added so far is committed. Raises StorageError."""
        self._cut()
        await self._until(self._added)

    async def commit(self, *rows: Message) -> None:
        """Adds the rows; returns when they, and everything added before, are committed. Raises StorageError.

        Many may wait at once: what comes while a batch is on its way goes with the next.
        """
        for row in rows:
            self.add(row)
        self._wanted = self._added
        if self._pushing is None:
            self._pushing = asyncio.create_task(self._push())
        await self._until(self._added)

    async def _push(self) -> None:
        try:
            while self._wanted > self._committed:
                await asyncio.sleep(0)  # whoever else is about to commit in this round of the loop comes along
                self._cut()
                await self._until(self._wanted)
        except StorageError:
            pass  # those who wait have it
        finally:
            self._pushing = None

    def _cut(self) -> None:
        """Makes a batch of what was collected and sends it, or leaves it for when there is a recorder again."""
        self._check()
        if self._rows:
            rows, self._rows = self._rows, []
            found, self._found = self._found, []
            self._sent.append(_Sent(to_batch(rows), to_arrow(found) if found else None, self._added))
            if self._finding is None:
                self._deliver(self._sent[-1])

    def _deliver(self, sent: _Sent) -> None:
        call = self._recorder.append.remote(self._worker, self._epoch, self._number, sent.batch, sent.found)
        self._number += 1
        task = asyncio.ensure_future(self._answer(call, sent, self._epoch))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _answer(self, call: Any, sent: _Sent, epoch: int) -> None:
        """Waits for one batch to be committed; where the recorder has died, sees to it that it is sent again."""
        from ray.exceptions import RayActorError

        answer = asyncio.ensure_future(_plain(call))
        try:
            if not (await asyncio.wait({answer}, timeout=RECORDER_SECONDS / 2))[0]:
                await self._alive(RECORDER_SECONDS / 2)
                # It lives and does not answer: the call may be lost. Sent again it does no harm, by its keys.
                if epoch == self._epoch and self._finding is None:
                    self._finding = asyncio.create_task(self._find())
                return
            answer.result()
        except RayActorError:
            if epoch == self._epoch and self._finding is None:
                self._finding = asyncio.create_task(self._find())
        except StorageError as error:
            if epoch == self._epoch:
                self._fail(error)
        except Exception as error:
            self._fail(StorageError(f"the recorder failed: {type(error).__name__}: {error}"))
        else:
            sent.committed = True
            while self._sent and self._sent[0].committed:
                self._committed = self._sent.popleft().rows
            self._wake()

    async def _alive(self, seconds: float) -> None:
        """Returns if the recorder gives a sign of life within that time. Raises StorageError."""
        try:
            async with asyncio.timeout(seconds):
                await _plain(self._recorder.ready.remote())
        except TimeoutError:
            raise StorageError(f"the recorder has given no sign of life for {RECORDER_SECONDS:.0f} s") from None

    async def _find(self) -> None:
        """Waits for the recorder that is started in the dead one's place, and sends all that is not acknowledged."""
        from ray.exceptions import ActorDiedError, RayActorError

        deadline = time.monotonic() + RECORDER_SECONDS
        while True:
            try:
                await self._alive(max(deadline - time.monotonic(), 0.1))
                break
            except StorageError as error:
                self._fail(error)
                return
            except RayActorError as error:
                if isinstance(error, ActorDiedError) or time.monotonic() > deadline:
                    self._fail(StorageError(f"the recorder process died: {str(error).splitlines()[0]}"))
                    return
            await asyncio.sleep(0.1)
        self._epoch, self._number, self._finding = self._epoch + 1, 0, None
        for sent in self._sent:
            if not sent.committed:
                self._deliver(sent)

    async def _until(self, rows: int) -> None:
        """Returns when that many rows are committed. Raises StorageError."""
        self._check()
        if rows > self._committed:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((rows, future))
            await future

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for rows, future in waiting:
            if rows > self._committed:
                self._waiting.append((rows, future))
            elif not future.done():
                future.set_result(None)

    def _fail(self, error: StorageError) -> None:
        """Once failed, for good: whoever adds or waits next must know."""
        self._error = self._error or error
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                future.set_exception(StorageError(str(error)))

    def _check(self) -> None:
        if self._error is not None:
            raise StorageError(str(self._error))


class _Sent:
    """A batch that is not acknowledged yet, its findings, and how many rows there were up to its end."""

    __slots__ = ("batch", "committed", "found", "rows")

    def __init__(self, batch: pa.RecordBatch, found: pa.RecordBatch | None, rows: int) -> None:
        self.batch, self.found, self.rows, self.committed = batch, found, rows, False


async def _plain(call: Any) -> Any:
    """The answer of an actor; an error of its own code as the StorageError it is."""
    from ray.exceptions import RayTaskError

    try:
        return await call
    except RayTaskError as error:
        raise StorageError(str(error.cause)) from None
