"""What an experiment gives back, and how its figures are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from a2a_ray.report.page_parts import Section
from a2a_ray.report.plotly_traces import Trace, line_trace, numbers

GAP = "share of the gap"
"""The unit of nearly every table and figure: distances relative to |u* - w*|."""
COLOURS = ("cell-1", "cell-2", "cell-3", "cell-4", "cell-5", "cell-6", "agent-2", "agent-1")


@dataclass(frozen=True)
class ExperimentResult:
    """One experiment.

    section: of the report. outcome: one sentence that follows from the numbers. values: everything measured and
    predicted, as JSON. summary: what it adds to the last line of `--json`.
    """

    section: Section
    outcome: str
    values: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)


def line(x: Iterable[float], y: Iterable[float], name: str, color: str, dash: str = "solid") -> Trace:
    """What was predicted; measured points are `dots`."""
    return line_trace(list(x), list(y), name, color, dash)


def dots(x: Iterable[Any], y: Iterable[float], name: str, color: str, symbol: str = "circle", size: int = 7) -> Trace:
    """What was measured."""
    marker = {"color": color, "size": size, "symbol": symbol}
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": numbers(y), "marker": marker}


def colour(place: int) -> str:
    """The colour of the curve at `place`, of eight."""
    return f"var(--{colour_name(place)})"


def colour_name(place: int) -> str:
    """The same, as a section's legend names it."""
    return COLOURS[place % len(COLOURS)]


def several(count: int, what: str) -> str:
    """ "1 pair", "2 pairs"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
