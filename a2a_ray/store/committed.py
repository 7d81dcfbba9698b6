"""What of a run is on record, by its keys: which rows are new, which come again, and which would leave a gap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from a2a_ray.core.errors import StorageError
from a2a_ray.store.dataset import last_seqs
from a2a_ray.store.schema import BESIDE, CALL

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_SHIFT = np.int64(1) << 32
_BESIDE = pa.array(BESIDE)


class Committed:
    """The keys of a turns table. About 200 bytes a conversation, more while calls to paid agents are unanswered.

    Records of a conversation are contiguous from 0 (the opening), so the last seq says which are there. Ends and calls
    are known by attempt and writer; a call whose answer is there was acknowledged before it was made, so it is never
    sent again.
    """

    def __init__(self, table: pads.Dataset | None = None) -> None:
        self._last: dict[str, int] = {}
        self._ends: dict[str, tuple[int, int, str]] = {}  # seq, attempt, writer
        self._calls: dict[str, set[tuple[int, int, str]]] = {}
        self._shared: dict[tuple[int, int, str], tuple[int, int, str]] = {}
        if table is not None:
            self._read(table)

    def last(self, conversation: str) -> int:
        """The last seq on record: 0 is the opening; -1 where there is nothing."""
        return self._last.get(conversation, -1)

    def admit(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that are not on record yet, in their order; they count as being there from now on.

        An end that differs from the one on record for the same seq (a failure that was retried) gets the next attempt.
        Raises StorageError, and admits nothing, where a record would not follow its conversation's last one.
        """
        if not len(rows):
            return rows
        ids = rows.column("conversation_id").dictionary_encode()
        codes = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        names = ids.dictionary.to_pylist()
        seqs = rows.column("seq").to_numpy(zero_copy_only=False).astype(np.int64)
        beside = pc.is_in(rows.column("kind"), _BESIDE).to_numpy(zero_copy_only=False)
        before, after = self._running(codes, names, seqs, beside)
        new = beside | (seqs > before)
        calls = pc.equal(rows.column("kind"), CALL).to_numpy(zero_copy_only=False)
        if (gaps := np.flatnonzero(~calls & (seqs > np.where(beside, np.maximum(before, 0), before) + 1))).size:
            raise _gap(names[codes[gaps[0]]], seqs[gaps[0]], before[gaps[0]])
        attempts = self._beside(rows, np.flatnonzero(beside), before, new) if beside.any() else {}
        self._last.update(zip(names, after.tolist(), strict=True))
        if attempts:
            index = rows.schema.get_field_index("attempt")
            column = rows.column(index).to_pylist()
            for place, attempt in attempts.items():
                column[place] = attempt
            rows = rows.set_column(index, rows.schema.field(index), pa.array(column, pa.int32()))
        return rows if new.all() else rows.filter(pa.array(new))

    def _running(self, codes: _Array, names: list[str], seqs: _Array, beside: _Array) -> tuple[_Array, _Array]:
        """The last seq of its conversation before each row, shape (rows,), and after all, shape (conversations,)."""
        last = np.fromiter((self._last.get(name, -1) for name in names), np.int64, len(names))
        order = np.argsort(codes, kind="stable")
        sorted_codes = codes[order]
        # One running maximum serves all conversations: each has a range of numbers of its own, in ascending order.
        base = sorted_codes * _SHIFT
        highest = np.maximum.accumulate(base + np.where(beside, -1, seqs)[order] + 1) - base - 1
        highest = np.maximum(highest, last[sorted_codes])
        first = np.flatnonzero(np.diff(sorted_codes, prepend=-1))
        previous = np.empty_like(highest)
        previous[1:] = highest[:-1]
        previous[first] = last[sorted_codes[first]]
        before = np.empty_like(previous)
        before[order] = previous
        return before, highest[np.append(first[1:], len(order)) - 1]

    def _beside(self, rows: pa.RecordBatch, places: _Array, before: _Array, new: _Array) -> dict[int, int]:
        """Looks at ends and calls: clears `new` of those on record; gives the attempts of ends that must change."""
        attempts: dict[int, int] = {}
        for place, (id, seq, kind, attempt, writer) in zip(places.tolist(), _keys(rows.take(places)), strict=True):
            last = int(before[place])
            if kind == CALL:
                calls = {c for c in self._calls.get(id, ()) if c[0] > last}
                new[place] = (seq, attempt, writer) not in calls
                self._calls[id] = calls | {(seq, attempt, writer)}
                continue
            at, known, whose = self._ends.get(id, (-1, -1, ""))
            if seq <= last or (at == seq and whose == writer and attempt <= known):
                new[place] = False
                continue
            if at == seq and attempt <= known:
                attempt = attempts[place] = known + 1
            self._ends[id] = self._share((seq, attempt, writer))
        return attempts

    def _share(self, key: tuple[int, int, str]) -> tuple[int, int, str]:
        """The key, equal ones as one object: most conversations of a worker end at the same seq."""
        return self._shared.setdefault(key, key)

    def _read(self, table: pads.Dataset) -> None:
        last = last_seqs(table)
        self._last = dict(zip(last.column("conversation_id").to_pylist(), last.column("seq").to_pylist(), strict=True))
        for batch in table.to_batches(columns=_KEY, filter=pc.field("kind").isin(_BESIDE)):
            for id, seq, kind, attempt, writer in _keys(batch):
                key = (seq, attempt, writer)
                if seq <= self._last.get(id, -1):
                    continue
                if kind == CALL:
                    self._calls.setdefault(id, set()).add(key)
                elif key > self._ends.get(id, (-1, -1, "")):
                    self._ends[id] = self._share(key)


_KEY = ["conversation_id", "seq", "kind", "attempt", "writer"]


def _keys(rows: pa.RecordBatch) -> Iterable[tuple[str, int, str, int, str]]:
    return zip(*(rows.column(name).to_pylist() for name in _KEY), strict=True)


def _gap(conversation: str, seq: int, last: int) -> StorageError:
    there = f"its last record there is {last}" if last >= 0 else "nothing of it is there"
    return StorageError(
        f"record {seq} of conversation {conversation!r} was to be stored, but {there}: a record is missing, which is a"
        " fault of a2a-ray; resume the run"
    )
