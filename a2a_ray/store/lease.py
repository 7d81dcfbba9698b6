"""One driver per run: a lease in the store that its holder renews, and that another can take when it is dead."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pyarrow as pa

from a2a_ray.core.errors import ConfigurationError, StorageError
from a2a_ray.store.dataset import filesystem, reason

if TYPE_CHECKING:
    from deltalake import DeltaTable

log = logging.getLogger(__name__)

RENEW_SECONDS = 10.0
"""Between two signs of life of a holder."""
EXPIRY_SECONDS = 60.0
"""A holder that has given no sign of life for that long has lost its lease to whoever comes."""
LOG_EVERY = 50
"""Signs of life between two clean-ups of the lease's log."""
_SCHEMA = pa.schema([("nothing", pa.string())])
_KEPT = {"delta.logRetentionDuration": "interval 10 minutes", "delta.enableExpiredLogCleanup": "true"}
_APP = "lease"


class Lease:
    """The right to drive a run. Made by `acquire`; renewed by a thread of its own until `release`.

    epoch: 1, 2, ...: one more each time the run's lease is acquired. lost: whether another has taken it over.

    It is a Delta table without rows beside the turns. Each sign of life is a commit with the transaction ("lease",
    epoch) through the loaded table: of two that want it at once the second fails, on a disk as in an object store, and
    the table's version shows whether the holder lives, whatever its clock says.
    """

    def __init__(self, path: str, table: DeltaTable, epoch: int) -> None:
        self.epoch, self.lost = epoch, False
        self._path, self._table = path, table
        self._who = {**_self(), "token": uuid4().hex, "since": _now()}
        self._ended = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._renewals = 0

    @classmethod
    def acquire(cls, path: str | Path, takeover: bool = False) -> Lease:
        """The lease of the run at a folder or URI; the holder's must have ended, or be expired.

        It is taken at once from a process of this machine that is gone. From another that seems to have expired it is
        taken after watching for EXPIRY_SECONDS by our own clock that it gives no sign of life. takeover: takes it from
        anybody. Raises ConfigurationError where another holds it, StorageError where it cannot be read or written.
        """
        from deltalake.exceptions import CommitFailedError, DeltaError

        location = str(path).rstrip("/")
        try:
            table = _open(location)
            holder = _holder(table, location)
            alive = holder and not takeover and not _gone(holder)
            if holder and alive and (time.time() - holder["renewed"] < EXPIRY_SECONDS or _moves(table)):
                raise _held(location, holder)
            lease = cls(location, table, (table.transaction_version(_APP) or 0) + 1)
            lease._commit("held")
        except CommitFailedError:
            other = _holder(_open(location), location) or {}
            raise _held(location, other) from None
        except (DeltaError, OSError) as error:
            raise StorageError(f"{location}: its lease cannot be written: {reason(error)}") from error
        lease._thread.start()
        return lease

    def renew(self) -> bool:
        """Gives a sign of life. False where another has taken the lease, or took it while this one was silent."""
        from deltalake.exceptions import CommitFailedError

        with self._busy:
            if self.lost or self._ended.is_set():
                return not self.lost
            try:
                self._commit("held")
            except CommitFailedError:  # by another, or by ourselves where the answer got lost
                self._table = _open(self._path)
                holder = _holder(self._table, self._path)
                self.lost = holder is None or holder["token"] != self._who["token"]
        return not self.lost

    def release(self) -> None:
        """Gives the lease back, if it was not lost. What goes wrong is only logged: it expires."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_SECONDS)
        with self._busy:
            if self.lost:
                return
            try:
                self._commit("released")
            except Exception as error:
                log.warning("%s: its lease was not given back: %s", self._path, reason(error))

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                if not self.renew():
                    log.error("%s: another driver has taken the run over", self._path)
                    return
            except Exception as error:  # storage that fails now may not fail in ten seconds
                log.warning("%s: its lease could not be renewed: %s", self._path, reason(error))

    def _commit(self, state: str) -> None:
        from deltalake.transaction import CommitProperties, PostCommitHookProperties, Transaction

        value = json.dumps({**self._who, "state": state, "renewed": time.time()})
        properties = CommitProperties({"lease": value}, app_transactions=[Transaction(_APP, self.epoch)])
        hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        self._table.create_write_transaction(
            [], "append", _SCHEMA, commit_properties=properties, post_commithook_properties=hooks
        )
        self._table.update_incremental()
        self._renewals += 1
        if self._renewals % LOG_EVERY == 0:
            self._table.create_checkpoint()
            self._table.cleanup_metadata()


def _open(path: str) -> DeltaTable:
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(_uri(path))
    except TableNotFoundError:
        return DeltaTable.create(_uri(path), _SCHEMA, mode="ignore", configuration=_KEPT)


def _uri(path: str) -> str:
    return f"{path}/lease" if "://" in path else str(Path(path).absolute() / "lease")


def _holder(table: DeltaTable, path: str) -> dict[str, Any] | None:
    """Who holds the lease by the newest entry of the table's log; None where nobody does."""
    # Not by history(): that finds nothing in a folder with '#' in its name, and entries later than the loaded table.
    fs, root = filesystem(_uri(path))
    with fs.open_input_stream(f"{root}/_delta_log/{table.version():020}.json") as file:
        entries = [json.loads(line) for line in file.read().splitlines()]
    (facts,) = (entry["commitInfo"] for entry in entries if "commitInfo" in entry)
    found: dict[str, Any] = json.loads(facts.get("lease", '{"state": "new"}'))
    return found if found["state"] == "held" else None


def _moves(table: DeltaTable) -> bool:
    """Whether the holder gives a sign of life while we watch, for EXPIRY_SECONDS of our own clock."""
    version = table.version()
    end = time.monotonic() + EXPIRY_SECONDS
    log.warning("the run's driver seems to be dead; watching for %.0f s whether it is", EXPIRY_SECONDS)
    while time.monotonic() < end:
        time.sleep(min(1.0, EXPIRY_SECONDS / 10))
        table.update_incremental()
        if table.version() != version:
            return True
    return False


def _self() -> dict[str, Any]:
    """This process, so that others on the same machine can tell whether it lives."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pid": pid, "started": _started(pid)}


def _gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that has ended; False where that cannot be known."""
    here = bool(holder["boot"]) and (holder["host"], holder["boot"]) == (socket.gethostname(), _boot())
    return here and _started(holder["pid"]) != holder["started"]


def _boot() -> str:
    """This start of this machine, and of its container; empty where the system does not say (without /proc)."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in ticks since boot: a number that was given anew has another. Empty: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _held(path: str, holder: dict[str, Any]) -> ConfigurationError:
    if not holder:
        return ConfigurationError(f"{path}: another driver has just taken and left this run; try again")
    silent = time.time() - holder["renewed"]
    seen = f"{silent:.0f} s ago" if silent >= 0 else f"{-silent:.0f} s ahead of this machine's clock"
    return ConfigurationError(
        f"{path}: process {holder['pid']} on {holder['host']} drives this run since {holder['since']}"
        f" (last sign of life {seen}); wait until it ends, or take the run from it with --takeover"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
