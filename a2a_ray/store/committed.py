"""The keys of all committed rows: which rows of a batch are new, which are duplicates, which would leave a gap."""

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


class CommittedRows:
    """The keys of the rows of a turns table.

    It takes about 200 bytes a conversation, and more while calls to paid agents are unanswered. The seq of a
    conversation's records is contiguous from 0, the opening, so its last seq tells which are stored. Ends and calls
    have attempt and writer in their key. A call is committed before it is made, so a call with a stored answer is never
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
        """Return the last committed seq of a conversation: 0 is the opening, -1 means that nothing is stored."""
        return self._last.get(conversation, -1)

    def add_new(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows that are not committed, in their order, and count them as committed from now on.

        An end that differs from the stored one of the same seq (a failure that was retried) gets the next attempt.
        Raises StorageError, and adds nothing, if a record does not follow the last one of its conversation.
        """
        if not len(rows):
            return rows
        ids = rows.column("conversation_id").dictionary_encode()
        codes = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        names = ids.dictionary.to_pylist()
        seqs = rows.column("seq").to_numpy(zero_copy_only=False).astype(np.int64)
        beside = pc.is_in(rows.column("kind"), _BESIDE).to_numpy(zero_copy_only=False)
        before, after = self._last_seqs(codes, names, seqs, beside)
        new = beside | (seqs > before)
        calls = pc.equal(rows.column("kind"), CALL).to_numpy(zero_copy_only=False)
        if (gaps := np.flatnonzero(~calls & (seqs > np.where(beside, np.maximum(before, 0), before) + 1))).size:
            raise _gap(names[codes[gaps[0]]], seqs[gaps[0]], before[gaps[0]])
        attempts = self._mark_stored_ends_and_calls(rows, np.flatnonzero(beside), before, new) if beside.any() else {}
        self._last.update(zip(names, after.tolist(), strict=True))
        if attempts:
            index = rows.schema.get_field_index("attempt")
            column = rows.column(index).to_pylist()
            for place, attempt in attempts.items():
                column[place] = attempt
            rows = rows.set_column(index, rows.schema.field(index), pa.array(column, pa.int32()))
        return rows if new.all() else rows.filter(pa.array(new))

    def _last_seqs(self, codes: _Array, names: list[str], seqs: _Array, beside: _Array) -> tuple[_Array, _Array]:
        """Return the conversation's last seq before each row, shape (rows,), and after all, shape (conversations,)."""
        last = np.fromiter((self._last.get(name, -1) for name in names), np.int64, len(names))
        order = np.argsort(codes, kind="stable")
        sorted_codes = codes[order]
        # One running maximum serves all conversations: each has its own range of numbers, in ascending order.
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

    def _mark_stored_ends_and_calls(
        self, rows: pa.RecordBatch, places: _Array, before: _Array, new: _Array
    ) -> dict[int, int]:
        """Clear `new` for ends and calls that are stored; return the attempts of ends that must change, by row."""
        attempts: dict[int, int] = {}
        for place, (id, seq, kind, attempt, writer) in zip(places.tolist(), _keys(rows.take(places)), strict=True):
            last = int(before[place])
            if kind == CALL:
                calls = {c for c in self._calls.get(id, ()) if c[0] > last}
                new[place] = (seq, attempt, writer) not in calls
                self._calls[id] = calls | {(seq, attempt, writer)}
                continue
            end_seq, end_attempt, end_writer = self._ends.get(id, (-1, -1, ""))
            if seq <= last or (end_seq == seq and end_writer == writer and attempt <= end_attempt):
                new[place] = False
                continue
            if end_seq == seq and attempt <= end_attempt:
                attempt = attempts[place] = end_attempt + 1
            self._ends[id] = self._share((seq, attempt, writer))
        return attempts

    def _share(self, key: tuple[int, int, str]) -> tuple[int, int, str]:
        """Return one object for equal keys, which saves memory: most conversations of a worker end at the same seq."""
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
    stored = str(last) if last >= 0 else "none"
    return StorageError(
        f"conversation {conversation!r}: got record {seq}, but the last stored record is {stored}; expected no gap. A"
        " record is missing, which is a bug in a2a-ray. Resume the run."
    )
