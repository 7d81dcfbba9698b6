"""Findings: the one description of a loop or an equilibrium in a conversation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.looped import LOOP as LOOP
from a2a_ray.core.looped import RECOVERED as RECOVERED
from a2a_ray.core.looped import reports_loop
from a2a_ray.core.message import EMPTY

if TYPE_CHECKING:
    import pyarrow as pa

NONE, WARNING, WAITING = "none", "warning", "waiting"
"""`status` of a finding about loops, beside those of looped.py."""
NOT_APPLICABLE = "not applicable"
"""`status` if the analyzer does not apply to the conversation; `reason` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of one analyzer for one conversation, or the report that it found nothing.

    An analyzer returns at least one finding for each conversation. `status` is "none" if it found nothing; `reason`
    explains why it does not apply if it does not.

    Turns are numbered from 1, the first message.

    conversation_id: of the conversation.
    analyzer, analyzer_version, settings: how to reproduce the finding. `settings` is JSON.
    number: 1 for the analyzer's first finding in this conversation, 2 for the next, ...
    through_seq: the last record that the analyzer has read.
    kind: verbatim, template, semantic, courtesy, action or silent for a loop; empty for none.
    status: "none", "warning", "loop", "recovered" or "waiting"; for an equilibrium the verdict (reached, biased, ...).
    reason: one readable sentence.
    onset_turn: the first turn that repeats earlier content. alarm_turn: the turn after which the analyzer first
        reported "loop". recovered_turn: the first turn of new content after a loop. period: in turns.
    score, threshold: the largest score, and the value that it had to exceed.
    p_value, interval: of an estimate; the interval as (low, high). Values that are not finite become None.
    span, earlier_span: the repetition, and what it repeats.
    speakers: the agents that repeat; for an equilibrium those that reached their objectives while others did not.
    tokens_since_onset: tokens from the onset to the end of the loop, or of the conversation.
    evidence: the analyzer's own; JSON.

    Raises ConfigurationError for settings or evidence that are not JSON.
    """

    conversation_id: str
    analyzer: str
    analyzer_version: str = "1"
    settings: Mapping[str, Any] = EMPTY
    number: int = 1
    through_seq: int = 0
    kind: str = ""
    status: str = NONE
    reason: str = ""
    onset_turn: int | None = None
    alarm_turn: int | None = None
    recovered_turn: int | None = None
    period: int | None = None
    score: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    interval: tuple[float, float] | None = None
    span: str = ""
    earlier_span: str = ""
    speakers: tuple[str, ...] = ()
    tokens_since_onset: int | None = None
    evidence: Mapping[str, Any] = EMPTY

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", _json_object(self.settings, "settings"))
        object.__setattr__(self, "evidence", _json_object(self.evidence, "evidence"))
        object.__setattr__(self, "speakers", tuple(self.speakers))
        for name in ("score", "threshold", "p_value"):
            object.__setattr__(self, name, _finite(getattr(self, name)))
        if self.interval is not None:
            low, high = map(_finite, self.interval)
            object.__setattr__(self, "interval", None if low is None or high is None else (low, high))

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return the identity of an analysis: conversation, analyzer, version and settings (as canonical JSON)."""
        return self.conversation_id, self.analyzer, self.analyzer_version, canonical(self.settings)

    @property
    def looped(self) -> bool:
        """Return whether it reports a loop, also one that ended."""
        return reports_loop(self.status)

    def __hash__(self) -> int:
        return hash((*self.key, self.number))

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a JSON value; `from_dict` restores an equal finding."""
        out = {field.name: getattr(self, field.name) for field in fields(self)}
        out["settings"], out["evidence"] = dict(self.settings), dict(self.evidence)
        out["speakers"] = list(self.speakers)
        out["interval"] = None if self.interval is None else list(self.interval)
        return out

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Finding:
        """Return the finding of a JSON value. Raises ConfigurationError for unknown or missing keys."""
        if extra := value.keys() - _FIELDS:
            raise ConfigurationError("finding: " + unknown("key", min(extra), _FIELDS))
        parts = dict(value)
        if parts.get("interval") is not None:
            parts["interval"] = tuple(parts["interval"])
        try:
            return cls(**parts)
        except TypeError as error:
            raise ConfigurationError(f"finding: {error}") from None


_FIELDS = frozenset(field.name for field in fields(Finding))


def as_finding(found: Mapping[str, Any], **who: Any) -> Finding:
    """Return a finding from a mapping of its fields; other keys become evidence. who: further fields."""
    own = {name: value for name, value in found.items() if name in _FIELDS}
    rest = {name: value for name, value in found.items() if name not in _FIELDS}
    return Finding(**{**own, **who}, evidence=rest)


def canonical(settings: Mapping[str, Any]) -> str:
    """Return settings as JSON text, equal for equal settings."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def schema() -> pa.Schema:
    """Return the Arrow schema of findings: the fields in order; `settings` and `evidence` are JSON text."""
    import pyarrow as pa

    text, whole, real = pa.string(), pa.int32(), pa.float64()
    types = {
        **dict.fromkeys(("number", "through_seq", "onset_turn", "alarm_turn", "recovered_turn", "period"), whole),
        **dict.fromkeys(("score", "threshold", "p_value"), real),
        "interval": pa.list_(real),
        "speakers": pa.list_(text),
        "tokens_since_onset": pa.int64(),
    }
    return pa.schema([(field.name, types.get(field.name, text)) for field in fields(Finding)])


def to_arrow(findings: Iterable[Finding]) -> pa.RecordBatch:
    """Return findings as rows of `schema()`; `from_row` restores each."""
    import pyarrow as pa

    rows = [finding.to_dict() for finding in findings]
    for row in rows:
        row["settings"] = canonical(row["settings"])
        row["evidence"] = json.dumps(row["evidence"], ensure_ascii=False) if row["evidence"] else None
    return pa.RecordBatch.from_pylist(rows, schema=schema())


def from_row(row: Mapping[str, Any]) -> Finding:
    """Return the finding of one row of `schema()`."""
    settings, evidence = (json.loads(row[name] or "{}") for name in ("settings", "evidence"))
    return Finding.from_dict({**row, "settings": settings, "evidence": evidence})


def row_as_json(row: Mapping[str, Any]) -> str:
    """Return the JSON text of `Finding.to_dict` from one row of `schema()`, without making the finding."""
    rest = json.dumps({name: value for name, value in row.items() if name not in ("settings", "evidence")})
    return f'{rest[:-1]}, "settings": {row["settings"] or "{}"}, "evidence": {row["evidence"] or "{}"}}}'


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _json_object(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the mapping with JSON values; numbers that JSON cannot represent become None."""
    if not value:
        return EMPTY
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, default=_from_numpy), parse_constant=lambda _: None)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"finding: {name}: {str(value)[:60]}; expected a JSON object: {error}") from None
    return plain


def _from_numpy(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {str(value)[:40]!r}")
