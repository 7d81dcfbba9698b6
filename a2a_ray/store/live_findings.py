"""The findings of the observers of a live conversation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import LOOP, RECOVERED, Finding, as_finding, canonical
from a2a_ray.core.registry import observers as observer_kinds
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from a2a_ray.experiment.spec import Experiment
    from a2a_ray.store.findings_table import Key


def live_findings(observers: Iterable[tuple[str, Any]], transcript: Transcript) -> list[Finding]:
    """Return the findings of all observers of a conversation that has ended. observers: pairs (name, observer)."""
    found: dict[tuple[Any, ...], Finding] = {}
    for name, observer in observers:
        own = getattr(observer, "findings", None)
        findings = own(transcript.id) if own is not None else from_verdicts(name, transcript)
        found.update(((*f.key, f.number), f) for f in findings)  # observers with equal settings have equal findings
    return list(found.values())


def from_verdicts(name: str, transcript: Transcript) -> list[Finding]:
    """Return the finding of an observer without a `findings` method: its first loop, or its newest verdict."""
    verdicts = [(turn, verdict) for turn, observer, verdict in transcript.verdicts if observer == name]
    about: dict[str, Any] = {"conversation_id": transcript.id, "analyzer": name, "through_seq": len(transcript)}
    loops = [(turn, v) for turn, v in verdicts if v.status == LOOP]
    if not loops:
        newest = verdicts[-1][1] if verdicts else None
        if newest is None:
            return [Finding(**about)]
        return [as_finding(_fields(newest.evidence), **about, status=newest.status, reason=newest.reason)]
    recovered = any(v.status == RECOVERED for turn, v in verdicts if turn > loops[0][0])
    first, newest = loops[0], loops[-1][1]
    own = {**_fields(newest.evidence), "alarm_turn": first[0], "status": RECOVERED if recovered else LOOP}
    return [as_finding(own, **about, reason=newest.reason)]


def live_keys(experiment: Experiment) -> list[Key]:
    """Return the keys of the findings of an experiment's observers, without observers that cannot be built here."""
    keys: dict[Key, None] = {}
    for cell in experiment.cells:
        for name, settings in cell.named_observers.items():
            key = _key(name, json.dumps(settings, sort_keys=True, default=str))
            if key is not None:
                keys[key] = None
    return list(keys)


@cache
def _key(name: str, settings: str) -> Key | None:
    try:
        observer = observer_kinds.build(json.loads(settings), f"observer {name}")
    except ConfigurationError:
        return None
    if hasattr(observer, "findings"):
        key: Key = observer.findings("")[0].key[1:]
        return key
    return name, "1", canonical({})


def _fields(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evidence of a custom observer that fills fields of a finding; turn numbers must be integers."""
    whole = ("onset_turn", "recovered_turn", "period", "tokens_since_onset")
    return {
        key: value
        for key, value in evidence.items()
        if key not in ("conversation_id", "analyzer", "analyzer_version", "settings", "through_seq", "number", "status")
        and (key not in whole or (isinstance(value, int) and not isinstance(value, bool)))
    }
