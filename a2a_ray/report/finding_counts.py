"""What is counted of many findings, without keeping them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2a_ray.core.findings import LOOP, NONE, NOT_APPLICABLE, RECOVERED, WAITING, Finding
from a2a_ray.store.findings_table import Key

COUNTED = ("conversation_id", "number", "status", "onset_turn", "alarm_turn", "recovered_turn", "tokens_since_onset")
"""Fields that counting needs."""


OF_AGENTS = ("equilibrium", "negotiation")
"""Analyzers of what agents want, not of what is repeated."""


@dataclass
class Counts:
    """What is counted of findings, by key."""

    loops: dict[Key, dict[str, Finding]] = field(default_factory=dict)  # the first loop of each conversation
    mute: dict[Key, set[str]] = field(default_factory=dict)  # conversations to which the analyzer does not apply
    waiting: dict[Key, int] = field(default_factory=dict)
    said: dict[Key, int] = field(default_factory=dict)  # findings that say something

    def add(self, key: Key, row: Mapping[str, Any]) -> None:
        """Takes in one finding. row: its fields COUNTED."""
        if row["number"] != 1:
            return
        id, status = row["conversation_id"], row["status"]
        if status not in (NONE, NOT_APPLICABLE):
            self.said[key] = self.said.get(key, 0) + 1
        if status in (LOOP, RECOVERED):
            named = {name: row[name] for name in COUNTED}
            self.loops.setdefault(key, {})[id] = Finding(analyzer=key[0], analyzer_version=key[1], **named)
        elif status == NOT_APPLICABLE:
            self.mute.setdefault(key, set()).add(id)
        elif status == WAITING:
            self.waiting[key] = self.waiting.get(key, 0) + 1


def titles_of(keys: Iterable[Key]) -> dict[Key, str]:
    """Each analyzer in words: its name, and how its settings differ from those of the first one of that name.

    The settings of an equilibrium are its agents' objectives, which belong to the cell and not to the name.
    """
    titles: dict[Key, str] = {}
    first: dict[str, dict[str, Any]] = {}
    for key in keys:
        own = json.loads(key[2])
        usual = first.setdefault(key[0], own)
        differing = [name for name in own if own[name] != usual.get(name) and name != "warn_threshold"]
        if key[0] in OF_AGENTS:
            differing = []
        settings = ", ".join(
            f"{name.replace('_', ' ')} {own[name]:g}"
            if isinstance(own[name], float)
            else f"{name.replace('_', ' ')} {own[name]}"
            for name in differing
        )
        titles[key] = key[0].replace("_", " ") + (f" ({settings})" if settings else "")
    return titles
