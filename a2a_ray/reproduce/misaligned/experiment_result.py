"""The result of an experiment, and the style of its figures."""

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

    section: of the report. outcome: one sentence computed from the numbers. values: all measured and
    predicted values, as JSON. summary: the keys it adds to the last line of `--json`.
    """

    section: Section
    outcome: str
    values: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)


def line(x: Iterable[float], y: Iterable[float], name: str, color: str, dash: str = "solid") -> Trace:
    """Return a curve of predicted values; `dots` draws measured ones."""
    return line_trace(list(x), list(y), name, color, dash)


def dots(x: Iterable[Any], y: Iterable[float], name: str, color: str, symbol: str = "circle", size: int = 7) -> Trace:
    """Return points of measured values."""
    marker = {"color": color, "size": size, "symbol": symbol}
    return {"type": "scatter", "mode": "markers", "name": name, "x": list(x), "y": numbers(y), "marker": marker}


def colour(place: int) -> str:
    """Return the CSS colour of the curve at `place`; colours repeat after eight."""
    return f"var(--{colour_name(place)})"


def colour_name(place: int) -> str:
    """Return the name of that colour in a section's legend."""
    return COLOURS[place % len(COLOURS)]


def several(count: int, noun: str) -> str:
    """Return the count and the noun, with an s for the plural: "1 pair", "2 pairs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
