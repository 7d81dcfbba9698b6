"""One driver per run: a lease, and the fencing token that makes it safe.

* The `Lease` decides which driver may start. Its holder renews it. Another driver gets it when the holder has released
  it, has exited, or has not renewed it for EXPIRY_SECONDS. Without a lease, a second driver would stop the first and
  repeat its paid calls.
* The `WriteFence` decides who may write. A lease alone cannot: a driver that was suspended, or a recorder on a node
  that lost its network, does not know that it was replaced and still commits. Each commit to the turns table therefore
  carries a token with the epoch of the lease, and fails if the table has a newer token.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa

from a2a_ray.core.errors import ConfigurationError, StorageError
from a2a_ray.store.dataset import filesystem, reason
from a2a_ray.store.lease_holder import has_exited, this_process
from a2a_ray.store.schema import SCHEMA

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import CommitProperties

log = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
"""Time between two renewals by the holder."""
EXPIRY_SECONDS = 60.0
"""A lease that was not renewed for that long can be taken over."""
CLEAN_UP_EVERY = 50
"""Renewals between two clean-ups of the lease's log."""
LOG_RETENTION = "interval 10 minutes"
"""How long entries of the lease's log are kept."""
LEASE_APP = "lease"
"""Application id of the transactions in the lease's table; the version is the epoch."""
WRITER_APP = "a2a_ray"
"""Application id of the transactions in the turns table; the version is the writer's token."""
_NO_ROWS = pa.schema([("nothing", pa.string())])


class TakenOverError(StorageError):
    """Another writer has taken over the table; this one must never write again."""


class WriteFence:
    """The fencing token of one writer: the epoch of its driver's lease, then its number among that driver's recorders.

    Use it in this order: `check` each time the table is loaded, and `commit_properties` for each commit through it. A
    commit then fails if anybody else has committed a token since the table was loaded.
    """

    def __init__(self, epoch: int) -> None:
        self._epoch, self._token = epoch, 0

    def check(self, table: DeltaTable) -> None:
        """Claim the table the first time; later check that nobody else has. Raises TakenOverError."""
        newest = table.transaction_version(WRITER_APP) or 0
        if not self._token:
            token = max(newest, self._epoch << 32) + 1
            if token >> 32 == self._epoch:
                properties = self._properties(token)
                table.create_write_transaction([], "append", SCHEMA, commit_properties=properties)
                table.update_incremental()
                self._token = token
                newest = table.transaction_version(WRITER_APP) or 0
        if newest != self._token:
            who = "another driver" if newest >> 32 > self._epoch else "a newer recorder"
            raise TakenOverError(f"the run was taken over by {who}, which continues it; this one has stopped")

    def commit_properties(self) -> CommitProperties:
        """Return the properties that put the token into a commit."""
        return self._properties(self._token)

    @staticmethod
    def _properties(token: int) -> CommitProperties:
        from deltalake.transaction import CommitProperties, Transaction

        return CommitProperties(app_transactions=[Transaction(WRITER_APP, token)])


class Lease:
    """The right to drive a run. `acquire` returns it; a thread renews it until `release`.

    It is a Delta table without rows beside the turns. Each renewal is a commit with the transaction ("lease", epoch)
    through the loaded table. Of two processes that commit at once the second fails, on a disk and in an object store,
    and the table's version shows whether the holder is alive, whatever its clock says.

    Attributes:
        epoch: 1 for the first lease of a run, one more each time it is acquired.
        lost: whether another driver has taken it over.
    """

    def __init__(self, path: str, table: DeltaTable, epoch: int) -> None:
        self.epoch, self.lost = epoch, False
        self._path, self._table = path, table
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._holder = {**this_process(), "token": uuid4().hex, "since": since}
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        self._renewals = 0

    @classmethod
    def acquire(cls, path: str | Path, takeover: bool = False) -> Lease:
        """Acquire the lease of the run at a folder or URI.

        A holder on this machine that has exited is replaced at once. One elsewhere whose lease seems to have expired
        is first watched for EXPIRY_SECONDS of our own clock.

        Args:
            takeover: take the lease from any holder, without a check.

        Raises:
            ConfigurationError: another driver holds the lease.
            StorageError: the lease cannot be read or written.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        location = str(path).rstrip("/")
        try:
            table = _open_table(location)
            holder = _read_holder(table, location)
            if holder and not takeover and not has_exited(holder):
                recent = time.time() - holder["renewed"] < EXPIRY_SECONDS
                if recent or _is_renewed(table):
                    raise _held_by(holder, location)
            lease = cls(location, table, (table.transaction_version(LEASE_APP) or 0) + 1)
            lease._commit("held")
        except CommitFailedError:
            raise _held_by(_read_holder(_open_table(location), location), location) from None
        except (DeltaError, OSError) as error:
            raise StorageError(f"{location}: its lease cannot be written: {reason(error)}") from error
        lease._thread.start()
        return lease

    def renew(self) -> bool:
        """Renew the lease. Return False if another driver has taken it over."""
        from deltalake.exceptions import CommitFailedError

        with self._lock:
            if self.lost or self._released.is_set():
                return not self.lost
            try:
                self._commit("held")
            except CommitFailedError:  # another driver's commit, or our own whose response was lost
                self._table = _open_table(self._path)
                holder = _read_holder(self._table, self._path)
                self.lost = holder is None or holder["token"] != self._holder["token"]
        return not self.lost

    def release(self) -> None:
        """Release the lease, unless it was lost. An error is only logged: the lease expires."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_SECONDS)
        with self._lock:
            if self.lost:
                return
            try:
                self._commit("released")
            except Exception as error:
                log.warning("%s: its lease was not released: %s", self._path, reason(error))

    def _renew_regularly(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            try:
                if not self.renew():
                    log.error("%s: another driver has taken over the run", self._path)
                    return
            except Exception as error:  # the storage may work again at the next renewal
                log.warning("%s: its lease could not be renewed: %s", self._path, reason(error))

    def _commit(self, state: str) -> None:
        from deltalake.transaction import CommitProperties, PostCommitHookProperties, Transaction

        value = json.dumps({**self._holder, "state": state, "renewed": time.time()})
        properties = CommitProperties({"lease": value}, app_transactions=[Transaction(LEASE_APP, self.epoch)])
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        self._table.create_write_transaction(
            [], "append", _NO_ROWS, commit_properties=properties, post_commithook_properties=hooks
        )
        self._table.update_incremental()
        self._renewals += 1
        if self._renewals % CLEAN_UP_EVERY == 0:
            self._table.create_checkpoint()
            self._table.cleanup_metadata()


def _open_table(path: str) -> DeltaTable:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(_uri(path))
    except TableNotFoundError:
        kept = {"delta.logRetentionDuration": LOG_RETENTION, "delta.enableExpiredLogCleanup": "true"}
        return DeltaTable.create(_uri(path), _NO_ROWS, mode="ignore", configuration=kept)


def _uri(path: str) -> str:
    return f"{path}/lease" if "://" in path else str(Path(path).absolute() / "lease")


def _read_holder(table: DeltaTable, path: str) -> dict[str, Any] | None:
    """Return the holder in the newest entry of the table's log; None if nobody holds the lease."""
    # Not by history(): it finds nothing in a folder with '#' in its name, and entries later than the loaded table.
    fs, root = filesystem(_uri(path))
    with fs.open_input_stream(f"{root}/_delta_log/{table.version():020}.json") as file:
        entries = [json.loads(line) for line in file.read().splitlines()]
    (commit,) = (entry["commitInfo"] for entry in entries if "commitInfo" in entry)
    holder: dict[str, Any] = json.loads(commit.get("lease", '{"state": "new"}'))
    return holder if holder["state"] == "held" else None


def _is_renewed(table: DeltaTable) -> bool:
    """Watch the lease for EXPIRY_SECONDS of our own clock; return whether its holder renews it."""
    version = table.version()
    deadline = time.monotonic() + EXPIRY_SECONDS
    log.warning("the run's driver may have died; waiting %.0f s for a sign of life", EXPIRY_SECONDS)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, EXPIRY_SECONDS / 10))
        table.update_incremental()
        if table.version() != version:
            return True
    return False


def _held_by(holder: dict[str, Any] | None, path: str) -> ConfigurationError:
    if holder is None:
        return ConfigurationError(f"{path}: another driver has just acquired and released this run; try again")
    silent = time.time() - holder["renewed"]
    seen = f"{silent:.0f} s ago" if silent >= 0 else f"{-silent:.0f} s ahead of this machine's clock"
    return ConfigurationError(
        f"{path}: process {holder['pid']} on {holder['host']} drives this run since {holder['since']}"
        f" (last sign of life {seen}); wait until it ends, or take over the run with --takeover"
    )
