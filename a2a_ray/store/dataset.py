"""The location of a run, and its turns table as a data set that reads only the requested columns and rows."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from a2a_ray.core.errors import StorageError
from a2a_ray.store.schema import BESIDE, SCHEMA

if TYPE_CHECKING:
    from deltalake import DeltaTable


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the pyarrow file system of a folder or URI, and the path in it."""
    if "://" in path:
        fs, root = pafs.FileSystem.from_uri(path)
        return fs, root
    return pafs.LocalFileSystem(), str(Path(path).absolute())


def table_uri(path: str, name: str = "turns") -> str:
    """Return the location of a Delta table of a run, `turns` or `findings`."""
    return f"{path}/{name}" if "://" in path else str(Path(path).absolute() / name)


class Snapshot:
    """The rows of a run that were committed when it was made. Later turns and compactions do not change it.

    files: path, smallest and largest conversation id of each file; None if the table does not have them.
    """

    def __init__(self, uri: str, table: DeltaTable | None) -> None:
        self._uri = uri
        self.files: list[tuple[str, str | None, str | None]] = []
        if table is not None:
            actions = pa.table(table.get_add_actions(flatten=True))
            names = ("path", "min.conversation_id", "max.conversation_id")
            known = (
                actions[name].to_pylist() if name in actions.column_names else [None] * len(actions) for name in names
            )
            self.files = list(zip(*known, strict=True))

    def rows(self, first: str | None = None, last: str | None = None) -> pads.Dataset:
        """Return all rows (SCHEMA); with ids, those of files that can contain conversations from `first` to `last`."""
        names = [
            name
            for name, low, high in self.files
            if (last is None or low is None or low <= last) and (first is None or high is None or high >= first)
        ]
        if not names:
            return pads.dataset(SCHEMA.empty_table())
        # Not by the table's own reader: its file system is a Python object, which Arrow's threads may release after the
        # interpreter has ended. The process would then abort.
        fs, root = filesystem(self._uri)
        return pads.dataset([f"{root}/{name}" for name in names], SCHEMA, "parquet", fs)


def snapshot(path: str) -> Snapshot:
    """Return the rows of a run that are committed now; none if there is no table yet. Raises StorageError."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    uri = table_uri(path)
    try:
        return Snapshot(uri, DeltaTable(uri))
    except TableNotFoundError:
        return Snapshot(uri, None)
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{path}: cannot read its turns: {reason(error)}") from error


def turns_of(path: str, first: str | None = None, last: str | None = None) -> pads.Dataset:
    """Return the rows of a run as a data set; see `Snapshot.rows`.

    first, last: conversation ids. Files that cannot contain any id between them are left out; single rows are not.
    """
    return snapshot(path).rows(first, last)


def last_seqs(rows: pads.Dataset) -> pa.Table:
    """Return the last seq of each conversation, openings included, in columns conversation_id and seq.

    Memory grows with the number of conversations, not of rows.
    """
    records = ~pc.field("kind").isin(BESIDE)
    return _by_id(rows, records, ["conversation_id", "seq", "kind"], ("seq", "hash_max", None, "seq"))


def row_counts(rows: pads.Dataset, which: pc.Expression) -> pa.Table:
    """Return the number of rows of each conversation, in columns conversation_id and rows."""
    options = pc.CountOptions(mode="all")
    return _by_id(rows, which, ["conversation_id", "seq", "kind"], ("seq", "hash_count", options, "rows"))


def _by_id(rows: pads.Dataset, which: pc.Expression, columns: list[str], aggregate: tuple[object, ...]) -> pa.Table:
    from pyarrow import acero

    steps = [
        acero.Declaration("scan", acero.ScanNodeOptions(rows, columns=columns, filter=which)),
        acero.Declaration("filter", acero.FilterNodeOptions(which)),  # the scan leaves out whole row groups only
        acero.Declaration("aggregate", acero.AggregateNodeOptions([aggregate], keys=["conversation_id"])),
    ]
    return acero.Declaration.from_sequence(steps).to_table()


def reason(error: BaseException) -> str:
    """Return why storage failed, in one line. Object stores report many lines, with colours."""
    number = getattr(error, "errno", None)
    if number:
        return os.strerror(number)
    text = re.sub(r"\x1b\[\d*m|↳", "", str(error))
    full = re.search(r"\(os error (\d+)\)", text)
    if full and int(full[1]) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return f"the disk is full, or a limit is reached ({os.strerror(int(full[1]))})"
    text = re.sub(
        r"Failed to parse parquet: External: | in \S+, after \d+ retries.*?retry_timeout:? \S+ -",
        "",
        " ".join(text.split()),
    )
    return text[:300] or type(error).__name__
