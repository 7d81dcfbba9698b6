"""Figures and tables of the loop study, from the rates of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Trace, axis, label, make_figure, number
from a2a_ray.reproduce.loops.looping_rates import Cell, LoopingRate, by_pair, by_tokens, grid

SHARE = axis("share of talks that loop", range=[-0.04, 1.04], tickformat=".0%")


def rate_sections(cells: Sequence[Cell], sizes: Mapping[str, str]) -> list[Section]:
    """Rate against temperature and what is shown, against tokens per turn, and for equal and unequal models.

    sizes: model -> its number of parameters in words.
    """
    shown, tokens, pairs = grid(cells), by_tokens(cells), by_pair(cells)
    names = list(
        dict.fromkeys(" + ".join(_short(m) for m in c.setting.pair) for group in pairs.values() for c in group)
    )
    places = {name: place for place, name in enumerate(names)}

    def at_pair(c: Cell) -> float:
        return places[" + ".join(_short(m) for m in c.setting.pair)]

    caption = (
        "Share of the talks that the streaming detector calls a loop, with Wilson's 95 % interval. Every cell has the"
        " same openings and seeds."
    )
    sized = "; ".join(f"{_short(model)}: {size} parameters" for model, size in sizes.items())
    return [
        Section(
            "Temperature and what is shown",
            "Each model continues what it is shown of the talk. Published: only the other's last output, at 0.7.",
            [Panel("temperature", _rates(shown, lambda c: c.setting.temperature, axis("temperature")))],
            _legend(shown),
            caption,
            [_table([c for group in shown.values() for c in group])],
        ),
        Section(
            "Tokens per turn",
            "Does a longer answer leave more room for something new, or more to repeat? Left open by the authors.",
            [Panel("tokens", _rates(tokens, lambda c: c.setting.tokens, axis("most tokens of an answer")))],
            _legend(tokens),
            caption,
            [_table([c for group in tokens.values() for c in group])],
        ),
        Section(
            "Which models talk",
            f"A model with itself, and with another. {sized}.",
            [
                Panel(
                    "models",
                    _rates(
                        pairs, at_pair, axis("", tickvals=list(places.values()), ticktext=[label(n) for n in names])
                    ),
                )
            ],
            _legend(pairs),
            caption,
            [_table([c for group in pairs.values() for c in group])],
        ),
    ]


def _rates(groups: Mapping[str, Sequence[Cell]], at: Any, x: dict[str, Any]) -> dict[str, Any]:
    values = sorted({float(at(c)) for group in groups.values() for c in group})
    step = min((b - a for a, b in pairwise(values)), default=1.0)
    traces: list[Trace] = []
    for place, (name, group) in enumerate(groups.items()):
        shift = 0.06 * step * (place - (len(groups) - 1) / 2)  # so that intervals do not hide each other
        rates = [c.detector for c in group]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name),
                "x": [number(float(at(c)) + shift) for c in group],
                "y": [number(r.share) for r in rates],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [number(r.interval[1] - r.share) for r in rates],
                    "arrayminus": [number(r.share - r.interval[0]) for r in rates],
                    "color": _colour(place),
                    "thickness": 1.2,
                    "width": 4,
                },
                "marker": {"size": 9, "color": _colour(place)},
                "line": {"width": 1.5, "color": _colour(place)},
            }
        )
    return make_figure(traces, x, SHARE, height=360)


def _colour(place: int) -> str:
    return f"var(--cell-{place % 6 + 1})"


def _legend(groups: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, f"cell-{place % 6 + 1}") for place, name in enumerate(groups)]


def _table(cells: Sequence[Cell]) -> Table:
    columns = (
        "models",
        "tokens",
        "temperature",
        "shown",
        "talks",
        "looped",
        "rate, 95 % interval",
        "by the published rule",
        "median onset (turn)",
    )
    rows: list[list[str | int | float | None]] = []
    for c in cells:
        s = c.setting
        rows.append(
            [
                " + ".join(_short(m) for m in s.pair),
                s.tokens,
                s.temperature,
                s.shown,
                c.detector.talks,
                c.detector.looped,
                in_words(c.detector),
                in_words(c.published),
                c.onset,
            ]
        )
    return Table("", columns, rows)


def in_words(rate: LoopingRate) -> str:
    """A rate and its interval, e.g. "83% (55% to 95%)"."""
    low, high = rate.interval
    return f"{rate.share:.0%} ({low:.0%} to {high:.0%})"


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]
