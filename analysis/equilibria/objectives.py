"""Objectives of agents: their validation, their distances, and the default margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array
from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

MARGIN = 0.01
"""The default margin, as a share of the largest distance between two objectives. With a margin near 0 every agent would
be biased, because none settles at its objective to the last digit; 1 % of the gap is too small to see in a figure."""


def check_objectives(objectives: Any, where: str = "objectives") -> dict[str, Array]:
    """Return name -> (d,), float64, of one length. Raises ConfigurationError."""
    if not isinstance(objectives, Mapping):
        raise ConfigurationError(
            f"{where}: {type(objectives).__name__}; expected a mapping from agent names to objectives"
        )
    found = {}
    for name, value in objectives.items():
        given = [value] if isinstance(value, (int, float, np.number)) else value
        found[str(name)] = check_array(given, f"{where}.{name}", ("d",))
    sizes = {name: len(objective) for name, objective in found.items()}
    if len(set(sizes.values())) > 1:
        lengths = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ConfigurationError(f"{where}: lengths {lengths}; expected one length for all agents")
    return found


def default_margin(objectives: Mapping[str, Array]) -> float:
    """Return MARGIN times the largest distance between two objectives.

    If all coincide or there is only one, the size of the largest objective replaces the distance, or 1 if it is 0.
    """
    known = list(objectives.values())
    size = largest_gap(known) or max((float(np.linalg.norm(objective)) for objective in known), default=0.0)
    return MARGIN * (size or 1.0)


def largest_gap(objectives: Sequence[Array]) -> float:
    """Return the largest distance between two objectives; 0 for one."""
    return max((float(np.linalg.norm(a - b)) for i, a in enumerate(objectives) for b in objectives[:i]), default=0.0)


def angle(objectives: Array) -> float:
    """Return the angle between two objectives, (2, d), in degrees, to nine decimals; 0 if one of them is 0."""
    norms = np.linalg.norm(objectives, axis=1)
    if not norms.all():
        return 0.0
    a, b = objectives / norms[:, None]
    # the half-angle form stays exact near 0 and 180 degrees, where the cosine does not
    return round(float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))), 9)
