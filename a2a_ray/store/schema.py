"""Messages as columns: for sending between processes (twice as fast as objects), and for storing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from a2a_ray.core.message import ASIDE, EMPTY, Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript

OPENING, CALL, ENDS = "opening", "call", (DONE, FAILED)
"""Kinds of row that only the store has: the opening, seq 0; a call to a paid agent, stored in the ledger before it is
sent; and how the conversation ended, after its last turn."""
BESIDE = (CALL, *ENDS)
"""Kinds of row beside the records of a conversation; see `Beside`."""
NOT_SAID = (OPENING, *BESIDE)
"""Kinds of row that are no record of a conversation."""
_UNNUMBERED = pa.array([*BESIDE, *sorted(ASIDE)])

SCHEMA = pa.schema(
    [
        ("conversation_id", pa.string()),
        ("seq", pa.int32()),  # position in the conversation; the opening is 0
        ("turn", pa.int32()),  # number of the message, 1 for the first; null for bids and the like, ends and calls
        ("kind", pa.string()),
        ("sender", pa.string()),  # of an end: the observer that stopped the conversation
        ("text", pa.string()),  # null for a vector; of an end: the reason, or the error
        ("vector", pa.list_(pa.float64())),  # null for a text
        ("dtype", pa.string()),  # of the vector: float32 or float64
        ("seed", pa.int64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cost", pa.float64()),
        ("requests", pa.int64()),  # to the model's server, retries included
        ("usage", pa.string()),  # JSON object, the rest of the usage; null if empty
        ("attempt", pa.int32()),  # of ends and calls, else null
        ("writer", pa.string()),  # of ends and calls, else null
        ("metadata", pa.string()),  # JSON object, null if empty
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Columns of the turns table, one row per record. The key of an opening or a record is (conversation_id, seq).
There can be several ends and calls of one seq: attempt and writer tell them apart."""

COUNTED = {"input_tokens": (int,), "output_tokens": (int,), "cost": (int, float), "requests": (int,)}
"""Keys of `usage` that have a column, and the types of the values that go there."""


@dataclass(frozen=True, slots=True, eq=False)
class Beside(Message):
    """A row that is no record: how the conversation ended, or a call that is about to be made.

    attempt: 0, 1, ... writer: unique, so that a repeated row differs from another writer's first one.
    """

    attempt: int = 0
    writer: str = ""


def to_batch(rows: Sequence[Message]) -> pa.RecordBatch:
    """Return rows of the store as a record batch with SCHEMA."""
    count = len(rows)
    contents = [m.content for m in rows]
    texts = [c if type(c) is str else None for c in contents]
    vectors = [None if type(c) is str else c for c in contents]
    seq = pa.array([m.seq for m in rows], pa.int32())
    kinds = pa.array([m.kind for m in rows], pa.string())
    numbers = pc.subtract(seq, pa.array([m.asides for m in rows], pa.int32()))
    plain = all(type(m) is Message for m in rows)
    arrays = [
        pa.array([m.conversation for m in rows], pa.string()),
        seq,
        pc.if_else(pc.is_in(kinds, _UNNUMBERED), pa.scalar(None, pa.int32()), numbers),
        kinds,
        pa.array([m.sender for m in rows], pa.string()),
        pa.array(texts, pa.string()),
        _nulls(count, "vector") if None not in texts else pa.array(vectors, SCHEMA.field("vector").type),
        pa.array([None if v is None else str(v.dtype) for v in vectors], pa.string()),  # type: ignore[union-attr]
        pa.array([m.seed for m in rows], pa.int64()),
        *_usage_columns([m.usage for m in rows]),
        _nulls(count, "attempt") if plain else pa.array([getattr(m, "attempt", None) for m in rows], pa.int32()),
        _nulls(count, "writer") if plain else pa.array([getattr(m, "writer", None) for m in rows], pa.string()),
        pa.array([_json(m.metadata) if m.metadata else None for m in rows], pa.string()),
        pa.array([int(m.created_at * 1e6) for m in rows], pa.int64()).cast(SCHEMA.field("created_at").type),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _usage_columns(usages: Sequence[Mapping[str, Any]]) -> list[pa.Array]:
    """Return a column for each key of COUNTED, and one for the rest of the usage. Other types stay with the rest."""
    if not any(usages):
        return [_nulls(len(usages), name) for name in (*COUNTED, "usage")]
    rest = [dict(usage) if usage else None for usage in usages]
    columns: list[pa.Array] = []
    for name, kinds in COUNTED.items():
        values: list[Any] = [None] * len(rest)
        for i, usage in enumerate(rest):
            value: Any = usage.get(name) if usage else None
            if usage and type(value) in kinds and 0 <= value < 2**53:
                values[i] = usage.pop(name)
        columns.append(pa.array(values, SCHEMA.field(name).type))
    return [*columns, pa.array([json.dumps(usage) if usage else None for usage in rest], pa.string())]


def _nulls(count: int, name: str) -> pa.Array:
    return pa.nulls(count, SCHEMA.field(name).type)


def from_table(table: pa.Table) -> Iterable[Message]:
    """Return the messages of rows of the store, in the order of the rows."""
    names = ("conversation_id", "seq", "turn", "kind", "sender", "text", "vector", "dtype", "seed", "metadata")
    columns = [table.column(name).to_pylist() for name in names]
    times = table.column("created_at").cast(pa.int64()).to_pylist()
    for id, seq, turn, kind, sender, text, vector, dtype, seed, metadata, usage, time in zip(
        *columns, _usages(table), times, strict=True
    ):
        content = text if vector is None else np.asarray(vector, dtype=dtype)
        extra = json.loads(metadata) if metadata else EMPTY
        asides = 0 if turn is None else seq - turn
        yield Message(id, seq, sender, content, (), seed, EMPTY, usage, extra, time / 1e6, kind, asides)


def _usages(table: pa.Table) -> Iterable[Mapping[str, Any]]:
    """Return the usage of each row, put together from its columns."""
    rest = table.column("usage")
    counted = [table.column(name) for name in COUNTED]
    if all(column.null_count == len(table) for column in (rest, *counted)):
        return [EMPTY] * len(table)
    out: list[Mapping[str, Any]] = []
    for text, *values in zip(rest.to_pylist(), *(column.to_pylist() for column in counted), strict=True):
        usage = {name: value for name, value in zip(COUNTED, values, strict=True) if value is not None}
        out.append(usage | json.loads(text) if text else usage or EMPTY)
    return out


def opening_row(transcript: Transcript) -> Message:
    """Return the opening as a row."""
    opening = transcript.opening
    return Message(opening.conversation, 0, "", opening.content, seed=opening.seed, kind=OPENING)


def end_row(transcript: Transcript, time: float) -> Beside:
    """Return how the conversation ended, as a row after its last turn."""
    more = {"traceback": transcript.traceback} if transcript.traceback else EMPTY
    status, text = transcript.status, transcript.error if transcript.status == FAILED else transcript.reason
    by, seq = transcript.stopped_by, len(transcript) + 1
    return Beside(transcript.id, seq, by, text, metadata=more, created_at=time, kind=status)


def call_row(message: Message, agent: str, method: str, attempt: int, time: float) -> Beside:
    """Return the ledger's row of a call to a paid agent. method: "step" or "bid"; attempt: 0, 1, ... in this worker."""
    id, metadata = message.conversation, {"method": method}
    return Beside(id, message.seq, agent, "", (), message.seed, EMPTY, EMPTY, metadata, time, CALL, attempt=attempt)


def pack(messages: Sequence[Message]) -> tuple[list[Any], ...]:
    """Return messages as a tuple of columns, for one actor call; histories are packed the same way."""
    if not messages:
        return ()
    rows = [
        (
            m.conversation,
            m.seq,
            m.sender,
            m.content,
            pack(m.history),
            m.seed,
            m.options or None,
            m.usage or None,
            m.metadata or None,
            m.created_at,
            m.kind,
            m.asides,
        )
        for m in messages
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


def unpack(columns: tuple[list[Any], ...]) -> tuple[Message, ...]:
    """Return the messages that were packed."""
    if not columns:
        return ()
    return tuple(
        Message(a, b, c, d, unpack(e), f, g or EMPTY, h or EMPTY, i or EMPTY, j, k, n)
        for a, b, c, d, e, f, g, h, i, j, k, n in zip(*columns, strict=True)
    )


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v), skipkeys=True)
