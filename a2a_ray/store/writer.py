"""The turns table as its one writer sees it: each key is written once, through conflicts and failing storage."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.store.committed import Committed
from a2a_ray.store.dataset import Snapshot, reason
from a2a_ray.store.schema import SCHEMA

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import CommitProperties

T = TypeVar("T")
log = logging.getLogger(__name__)

COMPACT_EVERY = 100
"""Commits between compactions: a commit slows down with the number of files, from 8 ms to 24 ms after 400."""
COMPACT_BYTES = 32 * 2**20
"""Size of a compacted file. A compaction rewrites two to three times as much, however large the table is."""
RETRY_SECONDS = 60.0
"""How long an object store may fail before the run ends."""
READER_HOURS = 24
"""Files that a compaction has replaced stay that long, for readers that have the run open."""
APP = "a2a_ray"
"""Application id of the table's transactions; the version says which driver, and which of its recorders, writes."""


class TakenOver(StorageError):
    """Another writer has the table; this one must never write again."""


class Writer:
    """The writer of one table, made in the order of `epoch` (one per driver); the newest one is the only one.

    Every commit carries the transaction (APP, reign) and goes through the loaded table, so that it fails where anybody
    else has committed one since. Then, and after any error (the commit may have happened all the same), table and keys
    are read again and what is on record is left out. A writer that finds another's reign gives up for good.
    """

    def __init__(self, uri: str, epoch: int = 0) -> None:
        self._uri, self._epoch = uri, epoch
        # Our own retries are bounded by time and look at the table in between; the store's own would take minutes.
        remote = "://" in uri and not uri.startswith("file:")
        self._options = {"max_retries": "3", "retry_timeout": "10s"} if remote else None
        self._table: DeltaTable | None = None
        self._reign = 0
        self._committed = Committed()
        self.commits = self.rows = self.again = 0

    def open(self) -> None:
        """Takes the table over from earlier writers and reads its keys. Raises StorageError."""
        self._retried(lambda: None)

    def write(self, batches: Sequence[pa.RecordBatch]) -> list[StorageError | None]:
        """Commits what is new of the batches in one transaction; then says per batch why it was refused, mostly None.

        Raises StorageError where it cannot be committed, at once for a local disk, after RETRY_SECONDS for an object
        store; TakenOver where another writer has the table.
        """
        before = self.commits
        refused = self._retried(lambda: self._write(batches))
        if self.commits > before and self.commits % COMPACT_EVERY == 0:
            self.compact()
        return refused

    def compact(self) -> None:
        """Joins small files. What goes wrong here does no harm and is only logged."""
        if self._table is None:
            return
        try:
            self._table.optimize.compact(target_size=COMPACT_BYTES, max_concurrent_tasks=1)
        except Exception as error:
            self._table = None
            log.warning("%s: not compacted: %s", self._uri, reason(error))

    def close(self) -> None:
        """Compacts, and takes away files that were replaced more than READER_HOURS ago."""
        self.compact()
        if self._table is not None:
            with contextlib.suppress(Exception):
                self._table.vacuum(READER_HOURS, dry_run=False, enforce_retention_duration=False)
        self._table = None

    def _write(self, batches: Sequence[pa.RecordBatch]) -> list[StorageError | None]:
        refused: list[StorageError | None] = []
        new = []
        for batch in batches:
            try:
                new.append(self._committed.admit(batch))
                refused.append(None)
            except StorageError as error:
                refused.append(error)
        rows = pa.Table.from_batches(new, SCHEMA)
        if len(rows):
            self._append(rows)
            self.commits += 1
            self.rows += len(rows)
        self.again += sum(len(b) for b, r in zip(batches, refused, strict=True) if r is None) - len(rows)
        return refused

    def _append(self, rows: pa.Table) -> None:
        from deltalake import write_deltalake

        assert self._table is not None
        write_deltalake(self._table, rows, mode="append", commit_properties=self._transaction(self._reign))

    def _transaction(self, reign: int) -> CommitProperties:
        from deltalake.transaction import CommitProperties, Transaction

        return CommitProperties(app_transactions=[Transaction(APP, reign)])

    def _retried(self, action: Callable[[], T]) -> T:
        """The result of the action with the table open; after a conflict, or while an object store fails, again."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        def once() -> T:
            try:
                if self._table is None:
                    self._load()
                return action()
            except BaseException as error:
                self._table = None  # what was committed, and by whom, must be looked up
                if type(error).__name__ == "PanicException":  # deltalake's; Python takes it for no Exception
                    raise OSError(str(error)) from error
                raise

        retry = retry_if_exception(self._passes)
        wait = wait_random_exponential(0.1, 5.0)
        try:
            return Retrying(stop=stop_after_delay(RETRY_SECONDS), wait=wait, retry=retry, reraise=True)(once)
        except StorageError:
            raise
        except Exception as error:
            why = f"the turns cannot be written: {reason(error)}; mend the storage, then resume"
            raise StorageError(why) from error

    def _passes(self, error: BaseException) -> bool:
        """Whether to try again: after a conflict, or what an object store reports. A disk does not mend itself."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        passes = isinstance(error, DeltaError | OSError) if self._options else isinstance(error, CommitFailedError)
        if passes:
            log.warning("%s: trying again: %s", self._uri, reason(error))
        return passes

    def _load(self) -> None:
        """Reads table and keys; the first time, this writer becomes the newest one. Raises TakenOver."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            table = DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            table = DeltaTable.create(self._uri, SCHEMA, mode="ignore", storage_options=self._options)
        if not self._reign:
            seen = table.transaction_version(APP) or 0
            reign = max(seen, self._epoch << 32) + 1
            if reign >> 32 == self._epoch:
                table.create_write_transaction([], "append", SCHEMA, commit_properties=self._transaction(reign))
                table.update_incremental()
                self._reign = reign
        seen = table.transaction_version(APP) or 0
        if seen != self._reign:
            whose = "another driver" if seen >> 32 > self._epoch else "a newer recorder"
            raise TakenOver(f"the run was taken over by {whose}, which goes on with it; this one has stopped")
        self._committed, self._table = Committed(Snapshot(self._uri, table).rows()), table
