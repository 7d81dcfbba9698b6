"""Writes the turns table: each row once, through conflicts and failing storage."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from a2a_ray.core.errors import StorageError
from a2a_ray.store.committed import CommittedRows
from a2a_ray.store.dataset import Snapshot, reason
from a2a_ray.store.lease import WriteFence
from a2a_ray.store.schema import SCHEMA

if TYPE_CHECKING:
    from deltalake import DeltaTable

T = TypeVar("T")
log = logging.getLogger(__name__)

COMPACT_EVERY = 100
"""Commits between compactions: a commit slows down with the number of files, from 8 ms to 24 ms after 400."""
COMPACT_BYTES = 32 * 2**20
"""Size of a compacted file. A compaction rewrites two to three times as much, however large the table is."""
RETRY_SECONDS = 60.0
"""How long an object store may fail before the run ends."""
READER_HOURS = 24
"""How long files that a compaction has replaced are kept, for readers that have the run open."""


class Writer:
    """The writer of one turns table.

    Every commit goes through the loaded table with this writer's fencing token (see `WriteFence`), so it fails if
    anybody else has committed since. After a conflict, and after any error (the commit may have succeeded all the
    same), table and keys are read again, and rows that are stored are left out.

    Args:
        uri: of the table.
        epoch: of the driver's lease.

    Attributes:
        commits, rows: committed by this writer.
        duplicates: rows that were sent to it although they are stored.
    """

    def __init__(self, uri: str, epoch: int = 0) -> None:
        self._uri, self._fence = uri, WriteFence(epoch)
        # Our own retries are bounded by time and look at the table in between; the store's own would take minutes.
        remote = "://" in uri and not uri.startswith("file:")
        self._options = {"max_retries": "3", "retry_timeout": "10s"} if remote else None
        self._table: DeltaTable | None = None
        self._committed = CommittedRows()
        self.commits = self.rows = self.duplicates = 0

    def open(self) -> None:
        """Claim the table from earlier writers and read its keys. Raises StorageError."""
        self._with_retries(lambda: None)

    def write(self, batches: Sequence[pa.RecordBatch]) -> list[StorageError | None]:
        """Commit the new rows of all batches in one transaction.

        Returns for each batch None, or why it was refused.

        Raises:
            StorageError: the rows cannot be committed; at once for a local disk, after RETRY_SECONDS for an object
                store.
            TakenOverError: another writer has taken over the table.
        """
        before = self.commits
        refused = self._with_retries(lambda: self._write(batches))
        if self.commits > before and self.commits % COMPACT_EVERY == 0:
            self.compact()
        return refused

    def compact(self) -> None:
        """Join small files. An error does no harm and is only logged."""
        if self._table is None:
            return
        try:
            self._table.optimize.compact(target_size=COMPACT_BYTES, max_concurrent_tasks=1)
        except Exception as error:
            self._table = None
            log.warning("%s: not compacted: %s", self._uri, reason(error))

    def close(self) -> None:
        """Compact the table, and delete files that were replaced more than READER_HOURS ago."""
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
                new.append(self._committed.add_new(batch))
                refused.append(None)
            except StorageError as error:
                refused.append(error)
        rows = pa.Table.from_batches(new, SCHEMA)
        if len(rows):
            self._append(rows)
            self.commits += 1
            self.rows += len(rows)
        accepted = sum(len(batch) for batch, error in zip(batches, refused, strict=True) if error is None)
        self.duplicates += accepted - len(rows)
        return refused

    def _append(self, rows: pa.Table) -> None:
        from deltalake import write_deltalake

        assert self._table is not None
        write_deltalake(self._table, rows, mode="append", commit_properties=self._fence.commit_properties())

    def _with_retries(self, action: Callable[[], T]) -> T:
        """Run the action with the table open; run it again after a conflict, or while an object store fails."""
        from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

        def attempt() -> T:
            try:
                if self._table is None:
                    self._load()
                return action()
            except BaseException as error:
                self._table = None  # read again what was committed, and by whom
                if type(error).__name__ == "PanicException":  # of deltalake; it is a BaseException
                    raise OSError(str(error)) from error
                raise

        retry = retry_if_exception(self._is_temporary)
        wait = wait_random_exponential(0.1, 5.0)
        try:
            return Retrying(stop=stop_after_delay(RETRY_SECONDS), wait=wait, retry=retry, reraise=True)(attempt)
        except StorageError:
            raise
        except Exception as error:
            why = f"the turns cannot be written: {reason(error)}; repair the storage, then resume the run"
            raise StorageError(why) from error

    def _is_temporary(self, error: BaseException) -> bool:
        """Whether a retry can help: after a conflict, or an error of an object store. A disk does not repair itself."""
        from deltalake.exceptions import CommitFailedError, DeltaError

        temporary = isinstance(error, DeltaError | OSError) if self._options else isinstance(error, CommitFailedError)
        if temporary:
            log.warning("%s: retrying: %s", self._uri, reason(error))
        return temporary

    def _load(self) -> None:
        """Read the table and its keys. Raises TakenOverError."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            table = DeltaTable(self._uri, storage_options=self._options)
        except TableNotFoundError:
            table = DeltaTable.create(self._uri, SCHEMA, mode="ignore", storage_options=self._options)
        self._fence.check(table)
        self._committed, self._table = CommittedRows(Snapshot(self._uri, table).rows()), table
