"""Parts of plotly figures as plain dictionaries: importing plotly's classes takes a second.

Colours are named, not given: "var(--agent-1)" is resolved by the page from its style sheet, which knows light and dark.
Whatever comes from outside goes through `label`, because plotly reads a subset of HTML in every text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from a2a_ray.report.sanitize import clean_line

Figure: TypeAlias = "dict[str, Any]"
Trace: TypeAlias = "dict[str, Any]"

SYMBOLS = ("circle", "diamond", "square", "triangle-up")
_AGENT_COLOURS = 4
_DASHES = ("solid", "dash", "dot", "dashdot")


def label(text: str, limit: int = 60) -> str:
    """Outside text for a plotly name, title or hover: one line, cleaned, cut, and none of it read as HTML."""
    return clean_line(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def make_figure(traces: list[Trace], x: dict[str, Any], y: dict[str, Any], height: int = 400) -> Figure:
    """A figure of traces; height in pixels, the width is the page's."""
    layout = {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 24, "b": 52},
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,  # the page has its own legends: plotly's squeeze the figure on a phone
        "hovermode": "closest",
        "dragmode": False,
    }
    return {"data": traces, "layout": layout}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis of a figure; `more` are plotly's settings of it."""
    titled = {"text": title, "standoff": 10, "font": {"size": 13}}
    return {"title": titled, "automargin": True, "zeroline": False, **more}


def bare_axis(title: str, span: list[float]) -> dict[str, Any]:
    """An axis without numbers: distances on such a map have no unit."""
    return axis(title, range=span, showticklabels=False, showgrid=False)


def line_trace(x: Sequence[Any], y: Sequence[Any], name: str, color: str, dash: str = "solid") -> Trace:
    """A line through points; what is not finite is a gap."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": [number(v) for v in y],
        "line": {"color": color, "width": 2, "dash": dash},
    }


def marker_trace(x: Sequence[Any], y: Sequence[float | None], name: str, place: int, size: int = 9) -> Trace:
    """Points in the colour and shape of the agent at `place`."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [number(v) for v in x],
        "y": [number(v) for v in y],
        "marker": {"color": agent_colour(place), "size": size, "symbol": SYMBOLS[place % len(SYMBOLS)]},
    }


def agent_colour(place: int) -> str:
    """The colour of the agent at `place`."""
    return f"var(--agent-{place % _AGENT_COLOURS + 1})"


def dash_style(place: int) -> str:
    """Two agents of equal plateau lie on one line: a dashed second one lets the first be seen."""
    return _DASHES[place % len(_DASHES)]


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """As `number`, for each."""
    return [number(v) for v in values]


def number(value: float | None) -> float | None:
    """JSON number with six significant digits; None for what is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def band_trace(x: Sequence[Any], low: Sequence[Any], high: Sequence[Any], name: str, color: str) -> Trace:
    """The area between two lines, faint; all of shape (n,), finite."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [*x, *reversed(x)],
        "y": numbers([*high, *reversed(low)]),
        "fill": "toself",
        "fillcolor": color,
        "line": {"width": 0, "color": color},
        "opacity": 0.2,
        "hoverinfo": "skip",
    }
