"""Counts over many findings, made in one pass without keeping the findings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2a_ray.core.findings import NONE, NOT_APPLICABLE, WAITING, Finding
from a2a_ray.core.looped import conversation_looped
from a2a_ray.store.findings_table import Key

COUNTED_FIELDS = (
    *("conversation_id", "number", "status"),
    *("onset_turn", "alarm_turn", "recovered_turn", "tokens_since_onset"),
)
"""Fields of a finding that counting needs."""
EQUILIBRIUM_ANALYZERS = ("equilibrium", "negotiation")
"""Analyzers of the agents' objectives; the others look for loops."""


@dataclass
class FindingCounts:
    """Counts of findings by key (analyzer, version, settings).

    loops: the first loop of each conversation, by id. not_applicable: ids of conversations to which the analyzer does
    not apply. waiting: conversations that poll for an unchanged result. reported: findings that report something.
    """

    loops: dict[Key, dict[str, Finding]] = field(default_factory=dict)
    not_applicable: dict[Key, set[str]] = field(default_factory=dict)
    waiting: dict[Key, int] = field(default_factory=dict)
    reported: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, row: Mapping[str, Any]) -> None:
        """Count one finding. row: its COUNTED_FIELDS."""
        if row["number"] != 1:
            return
        id, status = row["conversation_id"], row["status"]
        if status not in (NONE, NOT_APPLICABLE):
            self.reported[key] = self.reported.get(key, 0) + 1
        if conversation_looped(row["number"], status):
            fields = {name: row[name] for name in COUNTED_FIELDS}
            self.loops.setdefault(key, {})[id] = Finding(analyzer=key[0], analyzer_version=key[1], **fields)
        elif status == NOT_APPLICABLE:
            self.not_applicable.setdefault(key, set()).add(id)
        elif status == WAITING:
            self.waiting[key] = self.waiting.get(key, 0) + 1


def analyzer_titles(keys: Iterable[Key]) -> dict[Key, str]:
    """Return a title for each key: the analyzer's name, and the settings that differ from its first key's settings.

    Titles of equilibrium analyzers have no settings: those are the agents' objectives, which belong to the cell.
    """
    titles: dict[Key, str] = {}
    first: dict[str, dict[str, Any]] = {}
    for key in keys:
        settings = json.loads(key[2])
        usual = first.setdefault(key[0], settings)
        differing = [name for name in settings if settings[name] != usual.get(name) and name != "warn_threshold"]
        if key[0] in EQUILIBRIUM_ANALYZERS:
            differing = []
        text = ", ".join(_setting(name, settings[name]) for name in differing)
        titles[key] = key[0].replace("_", " ") + (f" ({text})" if text else "")
    return titles


def _setting(name: str, value: object) -> str:
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
