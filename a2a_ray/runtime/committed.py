"""What of a run is on record, by its keys: which rows are new, which come again, and which would leave a gap."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from a2a_ray.core.errors import StorageError
from a2a_ray.runtime.columns import CALL, END, MARK

_Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
_SHIFT = np.int64(1) << 32
BESIDE = pa.array([END, CALL])
"""Kinds of row that stand beside the turns of a conversation."""


class Committed:
    """The keys of a turns table. About 200 bytes a conversation, more while calls to paid agents are unanswered.

    Turns of a conversation are contiguous from 0 (the opening), so its last one says which are there. Ends and calls
    are known by their marks; a call whose turn is there was acknowledged before it was made, so it is never sent
    again.
    """

    def __init__(self, table: pads.Dataset | None = None) -> None:
        self._last: dict[str, int] = {}
        self._ends: dict[str, tuple[int, int, str]] = {}  # turn, attempt, by
        self._calls: dict[str, set[tuple[int, int, str]]] = {}
        self._shared: dict[tuple[int, int, str], tuple[int, int, str]] = {}
        if table is not None:
            self._read(table)

    def last(self, conversation: str) -> int:
        """The last turn on record: 0 is the opening; -1 where there is nothing."""
        return self._last.get(conversation, -1)

    def admit(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that are not on record yet, in their order; they count as being there from now on.

        An end that differs from the one on record for the same turn (a failure that was retried) gets the next attempt.
        Raises StorageError, and admits nothing, where a turn would not follow its conversation's last one.
        """
        if not len(rows):
            return rows
        ids = rows.column("conversation").dictionary_encode()
        codes = ids.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        names = ids.dictionary.to_pylist()
        turns = rows.column("turn").to_numpy(zero_copy_only=False).astype(np.int64)
        beside = pc.is_in(rows.column("kind"), BESIDE).to_numpy(zero_copy_only=False)
        before, after = self._running(codes, names, turns, beside)
        new = beside | (turns > before)
        calls = pc.equal(rows.column("kind"), CALL).to_numpy(zero_copy_only=False)
        if (gaps := np.flatnonzero(~calls & (turns > np.where(beside, np.maximum(before, 0), before) + 1))).size:
            raise _gap(names[codes[gaps[0]]], turns[gaps[0]], before[gaps[0]])
        attempts = self._marks(rows, np.flatnonzero(beside), before, new) if beside.any() else {}
        self._last.update(zip(names, after.tolist(), strict=True))
        if attempts:
            rows = _with_attempts(rows, attempts)
        return rows if new.all() else rows.filter(pa.array(new))

    def _running(self, codes: _Array, names: list[str], turns: _Array, beside: _Array) -> tuple[_Array, _Array]:
        """The last turn of its conversation before each row, shape (rows,), and after all, shape (conversations,)."""
        last = np.fromiter((self._last.get(name, -1) for name in names), np.int64, len(names))
        order = np.argsort(codes, kind="stable")
        sorted_codes = codes[order]
        # One running maximum serves all conversations: each has a range of numbers of its own, in ascending order.
        base = sorted_codes * _SHIFT
        highest = np.maximum.accumulate(base + np.where(beside, -1, turns)[order] + 1) - base - 1
        highest = np.maximum(highest, last[sorted_codes])
        first = np.flatnonzero(np.diff(sorted_codes, prepend=-1))
        previous = np.empty_like(highest)
        previous[1:] = highest[:-1]
        previous[first] = last[sorted_codes[first]]
        before = np.empty_like(previous)
        before[order] = previous
        return before, highest[np.append(first[1:], len(order)) - 1]

    def _marks(self, rows: pa.RecordBatch, places: _Array, before: _Array, new: _Array) -> dict[int, int]:
        """Looks at ends and calls: clears `new` of those on record; gives the attempts of ends that must change."""
        attempts: dict[int, int] = {}
        for place, (id, turn, kind, attempt, by) in zip(places.tolist(), _parts(rows.take(places)), strict=True):
            last = int(before[place])
            if kind == CALL:
                calls = {c for c in self._calls.get(id, ()) if c[0] > last}
                new[place] = (turn, attempt, by) not in calls
                self._calls[id] = calls | {(turn, attempt, by)}
                continue
            at, known, whose = self._ends.get(id, (-1, -1, ""))
            if turn <= last or (at == turn and whose == by and attempt <= known):
                new[place] = False
                continue
            if at == turn and attempt <= known:
                attempt = attempts[place] = known + 1
            self._ends[id] = self._share((turn, attempt, by))
        return attempts

    def _share(self, mark: tuple[int, int, str]) -> tuple[int, int, str]:
        """The mark, equal ones as one object: most conversations of a worker end at the same turn."""
        return self._shared.setdefault(mark, mark)

    def _read(self, table: pads.Dataset) -> None:
        for batch in table.to_batches(columns=["conversation", "turn"], filter=~pc.field("kind").isin(BESIDE)):
            if not len(batch):
                continue
            grouped = pa.table(batch).group_by("conversation").aggregate([("turn", "max")])
            for id, turn in zip(*(grouped.column(c).to_pylist() for c in ("conversation", "turn_max")), strict=True):
                if turn > self._last.get(id, -1):
                    self._last[id] = turn
        columns = ["conversation", "turn", "kind", "metadata"]
        for batch in table.to_batches(columns=columns, filter=pc.field("kind").isin(BESIDE)):
            for id, turn, kind, attempt, by in _parts(batch):
                mark = (turn, attempt, by)
                if turn <= self._last.get(id, -1):
                    continue
                if kind == CALL:
                    self._calls.setdefault(id, set()).add(mark)
                elif mark > self._ends.get(id, (-1, -1, "")):
                    self._ends[id] = self._share(mark)


def attempts(metadata: pa.Array) -> pa.StructArray:
    """The marks in the metadata of ends and calls, fields `attempt` and `by` (text); null where there is none."""
    return pc.extract_regex(metadata, pattern=MARK)


def _parts(rows: pa.RecordBatch) -> Iterable[tuple[str, int, str, int, str]]:
    marks = attempts(rows.column("metadata")).to_pylist()
    keys = (rows.column(name).to_pylist() for name in ("conversation", "turn", "kind"))
    for id, turn, kind, mark in zip(*keys, marks, strict=True):
        yield (id, turn, kind, int(mark["attempt"]), mark["by"]) if mark else (id, turn, kind, 0, "")


def _with_attempts(rows: pa.RecordBatch, changed: dict[int, int]) -> pa.RecordBatch:
    index = rows.schema.get_field_index("metadata")
    texts = rows.column(index).to_pylist()
    for place, attempt in changed.items():
        texts[place] = json.dumps({"attempt": 0} | json.loads(texts[place]) | {"attempt": attempt})
    return rows.set_column(index, rows.schema.field(index), pa.array(texts, pa.string()))


def _gap(conversation: str, turn: int, last: int) -> StorageError:
    there = f"its last turn on record is {last}" if last >= 0 else "nothing of it is on record"
    return StorageError(
        f"turn {turn} of conversation {conversation!r} was to be recorded, but {there}: a turn is missing, which is a"
        " fault of a2a-ray; resume the run"
    )
