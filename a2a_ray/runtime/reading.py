"""Where a run lies, and its turns table as a data set that gives only the columns and rows that are asked for."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from a2a_ray.core.errors import StorageError
from a2a_ray.runtime.columns import SCHEMA

if TYPE_CHECKING:
    from deltalake import DeltaTable


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a folder or URI, and the path in it."""
    if "://" in path:
        fs, root = pafs.FileSystem.from_uri(path)
        return fs, root
    return pafs.LocalFileSystem(), str(Path(path).absolute())


def table_uri(path: str) -> str:
    """Where the Delta table of a run lies."""
    return f"{path}/turns" if "://" in path else str(Path(path).absolute() / "turns")


def turns_of(path: str) -> pads.Dataset:
    """The committed rows of a run, SCHEMA of columns.py; empty where nothing is there yet. Raises StorageError.

    It reads the files that the table had when it was asked for: neither later turns nor a compaction change it.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return dataset(DeltaTable(table_uri(path)), table_uri(path))
    except TableNotFoundError:
        return pads.dataset(SCHEMA.empty_table())
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{path}: cannot read its turns: {reason(error)}") from error


def dataset(table: DeltaTable, uri: str) -> pads.Dataset:
    """The rows of a loaded table. uri: where it was loaded from."""
    names = pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
    # Not by the table's own reader: its file system is a Python object, which Arrow's threads may still let go of
    # when the interpreter has ended; the process is aborted then.
    fs, root = filesystem(uri)
    files = [f"{root}/{name}" for name in names]
    return pads.dataset(files, SCHEMA, "parquet", fs) if files else pads.dataset(SCHEMA.empty_table())


def reason(error: BaseException) -> str:
    """Why storage failed, in one line: what object stores report has many, with colours."""
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
