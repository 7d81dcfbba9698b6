"""The Delta table `findings` of a run: the findings of each conversation, once per analyzer and settings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import Finding, from_row, schema
from a2a_ray.store.dataset import filesystem, reason, table_uri

if TYPE_CHECKING:
    from deltalake import DeltaTable

T = TypeVar("T")
Key: TypeAlias = "tuple[str, str, str]"
"""Analyzer, version and settings (canonical JSON). Each key analyzes a conversation once."""

APP = "a2a_ray.findings"
"""Application id of the table's transactions."""
TRIES = 20
"""Commits that lose against other writers before this one gives up."""
COMPACT_EVERY = 100
"""Commits between compactions."""
GROUP = 1_000
"""Conversations whose findings are read together."""
_KEY = ["analyzer", "analyzer_version", "settings", "conversation_id", "through_seq"]


class FindingsTable:
    """Reads and writes the findings of one run. Each is written once, even if others write to the same table.

    A conversation that has continued since it was analyzed can be analyzed again. The findings that have read further
    then replace the earlier ones. Each commit carries a transaction number, so that it fails if another writer has
    committed since the keys were read; then they are read again. All methods raise StorageError.
    """

    def __init__(self, path: str) -> None:
        self._path, self._uri = path, table_uri(path, "findings")
        self._table: DeltaTable | None = None
        self._exists = True
        self._version = 0
        self._known: dict[Key, dict[str, int]] = {}

    def known(self) -> dict[Key, dict[str, int]]:
        """Return key -> conversation -> the last record that its findings have read."""
        if self._table is None and self._exists:
            self._stored(self._load)
        return self._known

    def add(self, rows: pa.RecordBatch) -> int:
        """Commit the findings that are not in the table yet, and return their number."""
        if not len(rows):
            return 0
        return self._stored(lambda: self._add(rows))

    def batches(
        self, ids: Collection[str] | None = None, keys: Collection[Key] | None = None, columns: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """Yield the findings of these conversations and keys (all by default), without replaced ones, as batches.

        columns: by default all of them.
        """
        known = self.known()
        if self._table is None:
            return
        wanted = list(columns) or schema().names
        keys = None if keys is None else frozenset(keys)
        chosen: Any = None
        if ids is not None:
            chosen = pc.field("conversation_id").isin(list(ids))
        if keys is not None:
            of_keys = pc.field("analyzer").isin(sorted({key[0] for key in keys}))
            of_keys &= pc.field("settings").isin(sorted({key[2] for key in keys}))
            chosen = of_keys if chosen is None else chosen & of_keys
        read = list(dict.fromkeys([*wanted, *_KEY]))
        few = {"batch_size": 8192, "batch_readahead": 1, "fragment_readahead": 1}  # evidence is long
        for batch in _dataset(self._table, self._uri).to_batches(columns=read, filter=chosen, **few):
            valid = [(keys is None or key[:3] in keys) and known[key[:3]][key[3]] == key[4] for key in _keys_of(batch)]
            if any(valid):
                yield batch.filter(pa.array(valid)).select(wanted)

    def rows(self, ids: Sequence[str], keys: Sequence[Key] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the findings of these conversations as rows, in the order of `ids`, then of `keys`, then of numbers.

        Without keys, they are in the order of the analyzers' names.
        """
        known = self.known()
        keys = sorted(known) if keys is None else [key for key in keys if key in known]
        order = {key: i for i, key in enumerate(keys)}
        for start in range(0, len(ids) if keys else 0, GROUP):
            place = {id: i for i, id in enumerate(ids[start : start + GROUP])}
            found = [row for batch in self.batches(place, keys) for row in batch.to_pylist()]
            found.sort(key=lambda r: (place[r["conversation_id"]], order[_key_of(r)], r["number"]))
            yield from found

    def read(self, ids: Sequence[str], keys: Sequence[Key] | None = None) -> Iterator[Finding]:
        """Yield the rows as findings."""
        return map(from_row, self.rows(ids, keys))

    def _add(self, rows: pa.RecordBatch) -> int:
        from deltalake import DeltaTable, write_deltalake
        from deltalake.exceptions import CommitFailedError
        from deltalake.transaction import CommitProperties, Transaction

        for _ in range(TRIES):
            known = self.known()
            if self._table is None:
                DeltaTable.create(self._uri, schema(), mode="ignore")
                self._load()
                continue
            new = [seq > known.get((a, v, s), {}).get(id, -1) for a, v, s, id, seq in _keys_of(rows)]
            if not any(new):
                return 0
            added = rows.filter(pa.array(new))
            properties = CommitProperties(app_transactions=[Transaction(APP, self._version + 1)])
            try:
                write_deltalake(self._table, pa.table(added), mode="append", commit_properties=properties)
            except CommitFailedError:  # another writer has committed: read the keys again
                self._table = None
                continue
            self._version += 1
            self._note(added)
            if self._version % COMPACT_EVERY == 0:
                self._table.optimize.compact(max_concurrent_tasks=1)
            return len(added)
        raise StorageError(f"{self._path}: {TRIES} commits of findings lost against other writers. Try again")

    def _load(self) -> None:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            table = DeltaTable(self._uri)
        except TableNotFoundError:
            self._exists = False
            return
        self._exists = True
        self._version = table.transaction_version(APP) or 0
        self._known = {}
        for batch in _dataset(table, self._uri).to_batches(columns=_KEY):
            self._note(batch)
        self._table = table

    def _note(self, rows: pa.RecordBatch) -> None:
        for analyzer, version, settings, id, seq in _keys_of(rows):
            of_key = self._known.setdefault((analyzer, version, settings), {})
            if seq > of_key.get(id, -1):
                of_key[id] = seq

    def _stored(self, action: Callable[[], T]) -> T:
        from deltalake.exceptions import DeltaError

        try:
            return action()
        except (DeltaError, OSError, pa.ArrowException) as error:
            self._table, self._exists = None, True
            raise StorageError(f"{self._path}: the table of findings: {reason(error)}") from error


def _key_of(row: Mapping[str, Any]) -> Key:
    return row["analyzer"], row["analyzer_version"], row["settings"]


def _keys_of(rows: pa.RecordBatch) -> Iterator[tuple[str, str, str, str, int]]:
    return zip(*(rows.column(name).to_pylist() for name in _KEY), strict=True)


def _dataset(table: DeltaTable, uri: str) -> pads.Dataset:
    names = pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
    if not names:
        return pads.dataset(schema().empty_table())
    fs, root = filesystem(uri)
    return pads.dataset([f"{root}/{name}" for name in names], schema(), "parquet", fs)
