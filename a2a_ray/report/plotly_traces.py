"""Parts of plotly figures as plain dictionaries; importing plotly's classes would take a second.

Colours are names such as "var(--agent-1)". The page resolves them with its style sheet, for light and dark mode. Text
from outside must go through `label`, because plotly interprets a subset of HTML in every text.
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
    """Return text from outside for a plotly name, title or hover: one cleaned line with HTML escaped."""
    return clean_line(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def make_figure(traces: list[Trace], x: dict[str, Any], y: dict[str, Any], height: int = 400) -> Figure:
    """Return a figure of traces; height in pixels, the page sets the width."""
    layout = {
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 24, "b": 52},
        "xaxis": x,
        "yaxis": y,
        "showlegend": False,  # the page has its own legends; plotly's take too much room on a phone
        "hovermode": "closest",
        "dragmode": False,
    }
    return {"data": traces, "layout": layout}


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with a title; `more` are plotly settings of it."""
    titled = {"text": title, "standoff": 10, "font": {"size": 13}}
    return {"title": titled, "automargin": True, "zeroline": False, **more}


def bare_axis(title: str, span: list[float]) -> dict[str, Any]:
    """Return an axis without numbers, for a map whose distances have no unit."""
    return axis(title, range=span, showticklabels=False, showgrid=False)


def line_trace(x: Sequence[Any], y: Sequence[Any], name: str, color: str, dash: str = "solid") -> Trace:
    """Return a line through points; values that are not finite are gaps."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": list(x),
        "y": [number(v) for v in y],
        "line": {"color": color, "width": 2, "dash": dash},
    }


def marker_trace(x: Sequence[Any], y: Sequence[float | None], name: str, place: int, size: int = 9) -> Trace:
    """Return markers in the colour and shape of the agent at `place`."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [number(v) for v in x],
        "y": [number(v) for v in y],
        "marker": {"color": agent_colour(place), "size": size, "symbol": SYMBOLS[place % len(SYMBOLS)]},
    }


def agent_colour(place: int) -> str:
    """Return the colour of the agent at `place`."""
    return f"var(--agent-{place % _AGENT_COLOURS + 1})"


def dash_style(place: int) -> str:
    """Return the line style of the agent at `place`: if plateaus are equal, a dashed line leaves both visible."""
    return _DASHES[place % len(_DASHES)]


def numbers(values: Iterable[float | None]) -> list[float | None]:
    """Apply `number` to each value."""
    return [number(v) for v in values]


def number(value: float | None) -> float | None:
    """Return a JSON number with six significant digits; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def band_trace(x: Sequence[Any], low: Sequence[Any], high: Sequence[Any], name: str, color: str) -> Trace:
    """Return the translucent area between two lines. x, low, high: shape (n,), finite."""
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
