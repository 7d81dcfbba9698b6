"""The figures of the report, as plotly JSON (see plotly_traces.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean
from typing import Any

from a2a_ray.report.plotly_traces import (
    SYMBOLS,
    Figure,
    Trace,
    agent_colour,
    axis,
    bare_axis,
    dash_style,
    label,
    line_trace,
    make_figure,
    marker_trace,
    number,
    numbers,
)
from a2a_ray.report.report_data import ConversationItem, ErrorSeries, PlateauPoint, TrajectoryPoint

TITLES = {
    "cosine": "cosine of embeddings",
    "jaccard": "Jaccard of word sets",
    "bleu": "BLEU",
    "coherence": "coherence difference",
}
"""Titles of the four published distances; other distances keep their names."""

CELL_COLOURS = 6
"""Colours of settings; more settings reuse the colours with other line styles."""

DASHES = (("solid", ""), ("dash", " (dashed)"), ("dot", " (dotted)"))
MOST_CELLS = CELL_COLOURS * len(DASHES)
"""Settings that one figure can distinguish."""

SMALLEST = 1e-17
"""Smaller errors are zero up to rounding; a logarithmic axis does not show them."""

NO_PLATEAU = 1e-12
"""A predicted plateau below this share of the largest error is zero up to rounding, and is not drawn."""

_DISTANCE_COLOURS = 5


def agents_of(parts: Iterable[PlateauPoint | ErrorSeries]) -> list[str]:
    """Return the agents in the order of their colours."""
    return list(dict.fromkeys(part.agent for part in parts))


def plateau(points: Sequence[PlateauPoint]) -> Figure | None:
    """Draw the plateau against the angle: for each agent the measured (markers) and the predicted one (line)."""
    pairs = [p for p in points if p.kind == "pair"]
    if not pairs:
        return None
    traces: list[Trace] = []
    for place, name in enumerate(agents_of(points)):
        own = sorted((p for p in pairs if p.agent == name), key=lambda p: p.angle_degrees)
        angles = [p.angle_degrees for p in own]
        traces.append(
            line_trace(
                angles, [p.predicted for p in own], f"{label(name)}, predicted", agent_colour(place), dash_style(place)
            )
        )
        traces.append(marker_trace(angles, [p.measured for p in own], f"{label(name)}, measured", place))
    return make_figure(
        traces,
        x=axis("angle between objectives (degrees)", range=[-6, 186], dtick=30),
        y=axis("distance from own objective", range=_from_zero(points)),
    )


def special_pairs(points: Sequence[PlateauPoint]) -> Figure | None:
    """Draw the adversary and the helper pair: measured (markers) and predicted (bars), on the scale of `plateau`."""
    groups: list[tuple[str, float]] = list(dict.fromkeys((p.kind, p.angle_degrees) for p in points if p.kind != "pair"))
    if not groups:
        return None
    names = agents_of(points)
    traces: list[Trace] = []
    for place, name in enumerate(names):
        own = [p for p in points if p.kind != "pair" and p.agent == name]
        shift = 0.32 * (place - (len(names) - 1) / 2)
        x = [groups.index((p.kind, p.angle_degrees)) + shift for p in own]
        predicted = marker_trace(x, [p.predicted for p in own], f"{label(name)}, predicted", place)
        predicted["marker"] = {
            "symbol": "line-ew-open",
            "size": 30,
            "line": {"width": 3, "color": agent_colour(place)},
            "color": agent_colour(place),
        }
        traces += [predicted, marker_trace(x, [p.measured for p in own], f"{label(name)}, measured", place)]
    ticks = [f"{kind}, {angle:.4g}°" for kind, angle in groups]
    return make_figure(
        traces,
        x=axis(
            "pair, angle between its objectives",
            range=[-0.6, len(groups) - 0.4],
            tickvals=list(range(len(groups))),
            ticktext=ticks,
        ),
        y=axis("distance from own objective", range=_from_zero(points)),
    )


def error_per_round(series: Sequence[ErrorSeries]) -> list[tuple[str, Figure]]:
    """Return name and figure of each pair: measured error after each round (markers), predicted plateau (line)."""
    agents = agents_of(series)
    seen = [e for s in series for e in s.errors if math.isfinite(e) and e >= SMALLEST]
    low, high = (math.log10(min(seen)), math.log10(max(seen))) if seen else (-1.0, 0.0)
    room = max(0.08 * (high - low), 0.1)
    figures = []
    for pair in dict.fromkeys(s.pair for s in series):
        traces: list[Trace] = []
        for s in (s for s in series if s.pair == pair):
            place = agents.index(s.agent)
            rounds = list(range(1, len(s.errors) + 1))
            if s.predicted is not None and s.predicted >= NO_PLATEAU * 10**high and rounds:
                traces.append(
                    line_trace(
                        [1, len(rounds)],
                        [s.predicted] * 2,
                        f"{label(s.agent)}, predicted",
                        agent_colour(place),
                        dash_style(place),
                    )
                )
            errors = [e if e >= SMALLEST else None for e in s.errors]
            traces.append(marker_trace(rounds, errors, f"{label(s.agent)}, measured", place, size=5))
        figure = make_figure(
            traces,
            x=axis("round"),
            y=axis("distance from own objective", type="log", range=[low - room, high + room], exponentformat="power"),
            height=300,
        )
        figures.append((pair, figure))
    return figures


def conversation_series(item: ConversationItem, names: Sequence[str]) -> dict[str, Any]:
    """Return the data that the page puts into the two figures of one conversation.

    series: y of the traces of `conversation_template`. step: x between two turns; the last turn of round 3 is at 3.
    scores, threshold: of the loop detector, for `score_template`. onset, alarm: in rounds and turns, with the texts of
    their marks; only if there is a loop.
    """
    series = [numbers(item.distances.get(name, ())) for name in names]
    step = 1 / max(len(item.transcript.agents), 1)
    out: dict[str, Any] = {"series": [*series, numbers(item.drift)], "step": number(step)}
    if item.detector is not None and item.scores:
        out |= {"scores": numbers(item.scores), "threshold": item.detector.threshold}
    for name, turn, text in (
        ("onset", item.onset, "loop begins"),
        ("alarm", item.loop.alarm_turn if item.loop is not None else None, "alarm"),
    ):
        if turn is not None:
            out[name] = {"x": number(item.round_of(turn)), "turn": turn, "text": f"{text}: turn {turn}"}
    return out


def score_template() -> Figure:
    """Return the empty figure of the loop detector's score per turn."""
    trace = line_trace([], [], "score", "var(--cell-1)")
    trace |= {"mode": "lines+markers", "x0": 1, "dx": 1, "marker": {"size": 5}}
    del trace["x"]
    return make_figure(
        [trace],
        x=axis("turn", rangemode="tozero"),
        y=axis("score of the loop detector", rangemode="tozero"),
        height=260,
    )


def conversation_template(names: Sequence[str]) -> Figure:
    """Return the empty figure of one conversation: a trace per distance, and one for the drift from the opening."""
    traces = []
    for place, name in enumerate(names):
        trace = line_trace([], [], label(TITLES.get(name, name)), _distance(place))
        trace |= {"mode": "lines+markers", "x0": 1, "dx": 1}
        trace["marker"] = {"size": 6, "symbol": SYMBOLS[place % len(SYMBOLS)]}
        traces.append(trace)
    traces.append(line_trace([], [], "drift from the opening", "var(--muted-color)", "dot"))
    for trace in traces:
        del trace["x"]
    return make_figure(
        traces,
        x=axis("round", rangemode="tozero"),
        y=axis("distance", rangemode="tozero"),
        height=340,
    )


def distance_names(items: Iterable[ConversationItem]) -> list[str]:
    """Return the names of the conversations' distances: the published four first."""
    names = dict.fromkeys(name for item in items for name in item.distances)
    return [*(n for n in TITLES if n in names), *(n for n in names if n not in TITLES)]


def cell_dash(place: int) -> tuple[str, str]:
    """Return the line style of a setting, and the text about it in the legend."""
    return DASHES[place // CELL_COLOURS]


def mean_distances(items: Sequence[ConversationItem], cells: Sequence[str]) -> list[tuple[str, Figure]]:
    """Return title and figure of each distance: its mean over the conversations of each cell, per round."""
    figures = []
    for name in distance_names(items):
        traces = []
        for place, cell in enumerate(cells):
            means = _means([item.distances[name] for item in items if item.cell == cell and name in item.distances])
            if any(value is not None for value in means):
                rounds = list(range(1, len(means) + 1))
                color, dash = f"var(--cell-{place % CELL_COLOURS + 1})", cell_dash(place)[0]
                traces.append(line_trace(rounds, means, label(cell), color, dash))
        if traces:
            figure = make_figure(
                traces,
                x=axis("round", rangemode="tozero"),
                y=axis("mean distance", rangemode="tozero"),
                height=260,
            )
            figures.append((TITLES.get(name, name), figure))
    return figures


def trajectory(points: Sequence[TrajectoryPoint]) -> list[tuple[str, Figure]]:
    """Return titles and figures of the map of all turns: looped conversations, and the others."""
    if not points:
        return []
    turns = [p.turn for p in points]
    x, y = _padded([p.x for p in points]), _padded([p.y for p in points])
    figures = []
    for looped, title in ((True, "looped"), (False, "did not loop")):
        paths: dict[str, list[TrajectoryPoint]] = {}
        for point in points:
            if point.looped == looped:
                paths.setdefault(point.conversation, []).append(point)
        if paths:
            figure = _map(paths, min(turns), max(turns))
            figure["layout"] |= {
                "meta": looped,
                "xaxis": bare_axis("t-SNE axis 1", x),
                "yaxis": bare_axis("t-SNE axis 2", y),
            }
            figures.append((f"{title} ({len(paths)})", figure))
    return figures


def positions(points: Sequence[TrajectoryPoint], numbers: Mapping[str, int]) -> dict[int, dict[str, Any]]:
    """Return the path over the map of each conversation on the page, by its number; the page draws it in bold."""
    out: dict[int, dict[str, Any]] = {}
    for point in sorted((p for p in points if p.conversation in numbers), key=lambda p: p.turn):
        path = out.setdefault(numbers[point.conversation], {"x": [], "y": [], "looped": point.looped})
        path["x"].append(number(point.x))
        path["y"].append(number(point.y))
    return out


def _map(paths: Mapping[str, list[TrajectoryPoint]], first: int, last: int) -> Figure:
    """Draw one line per conversation; points are coloured by turn, from `first` to `last`."""
    line_x: list[float | None] = []
    line_y: list[float | None] = []
    points: list[TrajectoryPoint] = []
    for path in paths.values():
        path.sort(key=lambda p: p.turn)
        line_x += [*(number(p.x) for p in path), None]
        line_y += [*(number(p.y) for p in path), None]
        points += path
    lines = line_trace(line_x, line_y, "conversation", "var(--muted-color)") | {"hoverinfo": "skip"}
    lines["line"]["width"], lines["opacity"] = 0.7, 0.35
    names = {id: label(id, 40) for id in paths}
    markers: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "turn",
        "x": [number(p.x) for p in points],
        "y": [number(p.y) for p in points],
        "text": [f"{names[p.conversation]}, turn {p.turn}" for p in points],
        "hoverinfo": "text",
        "marker": {
            "size": 6,
            "color": [p.turn for p in points],
            "colorscale": "Viridis",
            "cmin": first,
            "cmax": last,
            "colorbar": {
                "title": {"text": "turn", "side": "top"},
                "orientation": "h",
                "thickness": 8,
                "len": 0.6,
                "y": -0.14,
                "yanchor": "top",
                "outlinewidth": 0,
            },
        },
    }
    chosen = line_trace([], [], "chosen conversation", "var(--ink-color)") | {
        "mode": "lines+markers",
        "hoverinfo": "skip",
    }
    chosen["marker"] = {"size": 9, "symbol": "circle-open"}
    chosen["line"]["width"] = 1.3
    return make_figure([lines, markers, chosen], x={}, y={}, height=460)


def _distance(place: int) -> str:
    return f"var(--distance-{place % _DISTANCE_COLOURS + 1})"


def _from_zero(points: Sequence[PlateauPoint]) -> list[float]:
    top = max((v for p in points for v in (p.measured, p.predicted) if math.isfinite(v)), default=1.0) or 1.0
    return [-0.04 * top, 1.08 * top]


def _padded(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return [low - room, high + room]


def _means(series: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean at each round over the series that reach it."""
    out: list[float | None] = []
    for at in zip_longest(*series, fillvalue=math.nan):
        values = [float(v) for v in at if v is not None and math.isfinite(v)]
        out.append(fmean(values) if values else None)
    return out
