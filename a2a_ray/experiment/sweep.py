"""Change one setting of a plain specification by its dotted name."""

from __future__ import annotations

from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown

SECTIONS = ("resources", "limits", "price", "nudge", "budget")
"""Mappings in which a sweep can set a key even if the specification omits them."""


def change(value: Any, path: list[str], setting: Any, where: str) -> None:
    """Set one dotted setting in a plain specification; an agent is given by name, number, or `*` for all."""
    key, rest = path[0], path[1:]
    if isinstance(value, list):
        names = [v.get("name") if isinstance(v, dict) else None for v in value]
        if key == "*":
            chosen = list(range(len(value)))
        elif key in names:
            chosen = [names.index(key)]
        elif key.isdigit() and int(key) < len(value):
            chosen = [int(key)]
        else:
            there = ["*", *(n for n in names if n), *map(str, range(len(value)))]
            raise ConfigurationError(f"{where}: " + unknown("entry", key, there))
        for i in chosen:
            if rest:
                change(value[i], rest, setting, where)
            else:
                value[i] = setting
        return
    if not isinstance(value, dict):
        raise ConfigurationError(f"{where}: {key!r} lies inside {value!r}, which has no settings")
    if not rest:
        value[key] = setting
        return
    if value.get(key) is None and key in SECTIONS:
        value[key] = {}
    if key not in value:
        raise ConfigurationError(f"{where}: " + unknown("key", key, value))
    change(value[key], rest, setting, where)
