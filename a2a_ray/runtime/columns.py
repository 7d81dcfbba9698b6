"""Messages as columns: what crosses between processes (twice as fast as objects), and what is stored."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from a2a_ray.core.contracts import Verdict
from a2a_ray.core.message import EMPTY, Message
from a2a_ray.core.transcript import Transcript

OPENING, END, CALL = "opening", "end", "call"
"""Kinds of row that only the store knows: turn 0; the row after the last turn that says how it ended; a paid call that
is about to be made."""

SCHEMA = pa.schema(
    [
        ("conversation", pa.string()),
        ("turn", pa.int32()),
        ("kind", pa.string()),
        ("sender", pa.string()),
        ("text", pa.string()),  # null for a vector
        ("vector", pa.list_(pa.float64())),  # null for a text
        ("dtype", pa.string()),  # of the vector: float32 or float64
        ("seed", pa.int64()),
        ("usage", pa.string()),  # JSON object, null if empty
        ("metadata", pa.string()),  # JSON object, null if empty
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Columns of the turns table, one row a record; its key is (conversation, turn, kind)."""


def to_batch(rows: Sequence[Message]) -> pa.RecordBatch:
    """Rows of the store; (n rows) x SCHEMA."""
    contents = [m.content for m in rows]
    texts = [c if type(c) is str else None for c in contents]
    vectors = [None if type(c) is str else c for c in contents]
    no_vector = pa.nulls(len(rows), SCHEMA.field("vector").type)
    arrays = [
        pa.array([m.conversation for m in rows], pa.string()),
        pa.array([m.turn for m in rows], pa.int32()),
        pa.array([m.kind for m in rows], pa.string()),
        pa.array([m.sender for m in rows], pa.string()),
        pa.array(texts, pa.string()),
        no_vector if None not in texts else pa.array(vectors, SCHEMA.field("vector").type),
        pa.array([None if v is None else str(v.dtype) for v in vectors], pa.string()),  # type: ignore[union-attr]
        pa.array([m.seed for m in rows], pa.int64()),
        pa.array([json.dumps(m.usage) if m.usage else None for m in rows], pa.string()),
        pa.array([_json(m.metadata) if m.metadata else None for m in rows], pa.string()),
        pa.array([int(m.created_at * 1e6) for m in rows], pa.int64()).cast(SCHEMA.field("created_at").type),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def from_table(table: pa.Table) -> Iterable[Message]:
    """The messages of rows of the store, in the order of the rows."""
    columns = [table.column(name).to_pylist() for name in SCHEMA.names[:-1]]
    times = table.column("created_at").cast(pa.int64()).to_pylist()
    for conversation, turn, kind, sender, text, vector, dtype, seed, usage, metadata, time in zip(
        *columns, times, strict=True
    ):
        content = text if vector is None else np.asarray(vector, dtype=dtype)
        spent = json.loads(usage) if usage else EMPTY
        extra = json.loads(metadata) if metadata else EMPTY
        yield Message(conversation, turn, sender, content, (), seed, EMPTY, spent, extra, time / 1e6, kind)


def opening_row(transcript: Transcript) -> Message:
    """Turn 0 as a row."""
    opening = transcript.opening
    return Message(opening.conversation, 0, "", opening.content, seed=opening.seed, kind=OPENING)


def end_row(transcript: Transcript, time: float) -> Message:
    """How the conversation ended, as a row after its last turn."""
    how: dict[str, Any] = {"status": transcript.status}
    if transcript.error:
        how["error"] = transcript.error
    if transcript.verdicts:
        how["verdicts"] = [[turn, name, verdict_to_dict(v)] for turn, name, v in _changes(transcript)]
    turn = len(transcript) + 1
    return Message(transcript.id, turn, "", transcript.reason, metadata=how, created_at=time, kind=END)


def _changes(transcript: Transcript) -> Iterable[tuple[int, str, Verdict]]:
    """The verdicts worth keeping: those that ask for something, and of a row of equal ones the first and the last."""
    by_name: dict[str, list[tuple[int, str, Verdict]]] = {}
    for entry in transcript.verdicts:
        row = by_name.setdefault(entry[1], [])
        same = [e[2].status == entry[2].status and e[2].action == "record" for e in row[-2:]]
        if len(same) == 2 and all(same):
            row.pop()
        row.append(entry)
    return sorted((entry for row in by_name.values() for entry in row), key=lambda entry: entry[0])


def verdict_to_dict(verdict: Verdict) -> dict[str, Any]:
    """JSON value of a verdict."""
    return {
        "status": verdict.status,
        "action": verdict.action,
        "reason": verdict.reason,
        "scores": dict(verdict.scores),
        "evidence": dict(verdict.evidence),
    }


def pack(messages: Sequence[Message]) -> tuple[list[Any], ...]:
    """Messages as a tuple of columns, for one actor call; histories are packed the same way."""
    if not messages:
        return ()
    rows = [
        (
            m.conversation,
            m.turn,
            m.sender,
            m.content,
            pack(m.history),
            m.seed,
            m.options or None,
            m.usage or None,
            m.metadata or None,
            m.created_at,
            m.kind,
        )
        for m in messages
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


def unpack(columns: tuple[list[Any], ...]) -> tuple[Message, ...]:
    """The messages that were packed."""
    if not columns:
        return ()
    return tuple(
        Message(a, b, c, d, unpack(e), f, g or EMPTY, h or EMPTY, i or EMPTY, j, k)
        for a, b, c, d, e, f, g, h, i, j, k in zip(*columns, strict=True)
    )


def _json(value: Any) -> str:
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v), skipkeys=True)
