"""Rows of the turns table, across conversations: their order, the newest end of each, and groups of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from a2a_ray.store.dataset import Snapshot, last_seqs, row_counts
from a2a_ray.store.schema import CALL, ENDS, OPENING

GROUP_ROWS = 200_000
"""Rows that are read into memory at once. One conversation may have more."""
_RANKED = pa.array([OPENING, CALL, *ENDS])
"""Kinds of row that come before the record of the same seq."""
_RANKS = pa.array([0, 1, 2, 2, 3], pa.int64())
"""Their order; 3 is the record."""


def last_ends(table: pads.Dataset) -> pa.Table:
    """Return the conversations that have ended, in columns conversation_id and kind (newest end: "done" or "failed").

    A failed conversation that was retried continues after its end: it has ended if no record follows the end.
    """
    key = ["conversation_id", "seq", "attempt"]
    ends = table.to_table([*key, "kind"], filter=pc.field("kind").isin(ENDS))
    ends = ends.sort_by([(name, "ascending") for name in key])
    newest = ends.group_by("conversation_id", use_threads=False).aggregate([("seq", "last"), ("kind", "last")])
    both = newest.join(last_seqs(table), "conversation_id", join_type="left outer")
    over = both.filter(pc.field("seq_last") > pc.coalesce(pc.field("seq"), pc.scalar(-1)))
    return over.select(["conversation_id", "kind_last"]).rename_columns(["conversation_id", "kind"])


def row_groups(turns: Snapshot, ids: Sequence[str] | None) -> Iterator[list[str]]:
    """Yield the ids in order, all or these, in groups of conversations that have about GROUP_ROWS rows together."""
    which = pc.field("kind") != CALL
    if ids is not None:
        which &= pc.field("conversation_id").isin(ids)
    counts = row_counts(turns.rows(*((ids[0], ids[-1]) if ids else ())), which).sort_by("conversation_id")
    numbers = (np.cumsum(counts.column("rows").to_numpy()) - 1) // GROUP_ROWS
    found = counts.column("conversation_id").to_pylist()
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(found)]
    yield from (found[a:b] for a, b in pairwise(cuts) if b > a)


def sort_rows(table: pa.Table) -> pa.Table:
    """Sort rows in the order of events. Of rows with equal keys (older versions stored some twice), keep the newest.

    Within one seq: opening, calls, end (a conversation can continue after it), record. Ends are ordered by attempt, not
    by time.
    """
    if len(table) < 2:
        return table
    ids = table.column("conversation_id").combine_chunks().dictionary_encode()
    place = np.empty(len(ids.dictionary), np.int64)
    place[pc.sort_indices(ids.dictionary).to_numpy()] = np.arange(len(place))
    kind = pc.fill_null(pc.index_in(table.column("kind"), _RANKED), len(_RANKED))
    rank = _RANKS.take(kind.combine_chunks()).to_numpy()
    seq = table.column("seq").to_numpy().astype(np.int64)
    key = place[ids.indices.to_numpy()] << 34 | seq << 2 | rank
    attempt = pc.fill_null(table.column("attempt"), 0).to_numpy()
    order = np.lexsort((table.column("created_at").cast(pa.int64()).to_numpy(), attempt, key))
    equal = (np.diff(key[order]) == 0) & (np.diff(attempt[order]) == 0) & (rank[order][1:] != 1)
    return table.take(pa.array(order[np.append(~equal, True)]))
