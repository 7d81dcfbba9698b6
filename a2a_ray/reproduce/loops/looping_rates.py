"""How often do conversations loop? Rates by temperature and context, tokens per turn, and pair of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from a2a_ray.core.findings import Finding
from a2a_ray.report.page_parts import Cell, Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, Trace, axis, label, make_figure, number
from a2a_ray.report.wilson import wilson_interval
from a2a_ray.reproduce.loops.loop_settings import (
    CONTEXTS,
    LONGEST_CONTEXT,
    PUBLISHED_CONTEXT,
    PUBLISHED_TEMPERATURE,
    PUBLISHED_TOKENS,
    LoopSetting,
    short_name,
)

PUBLISHED_RATE = (35, 50)
"""Looped conversations and all conversations in arXiv 2512.06256 (models of 12 and 13 billion parameters)."""
CAPTION = (
    "Share of conversations in which the loop detector finds a loop, with Wilson's 95 % interval. All settings have the"
    " same openings and seeds."
)


@dataclass(frozen=True, slots=True)
class LoopingRate:
    """The looped conversations of one setting, by one rule."""

    looped: int
    conversations: int

    @property
    def share(self) -> float:
        """Share of the conversations that looped."""
        return self.looped / self.conversations

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        return wilson_interval(self.looped, self.conversations)

    def __str__(self) -> str:
        """Return the rate and its interval, e.g. "83% (55% to 95%)"."""
        low, high = self.interval
        return f"{self.share:.0%} ({low:.0%} to {high:.0%})"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value."""
        low, high = self.interval
        return {
            "looped": self.looped,
            "conversations": self.conversations,
            "rate": self.share,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True, slots=True)
class SettingRates:
    """One setting and its rates, by the loop detector and by the published rule.

    onset: median turn of the detector's onsets; None without a loop.
    """

    setting: LoopSetting
    detector: LoopingRate
    published: LoopingRate
    onset: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {
            "models": list(self.setting.pair),
            "tokens": self.setting.tokens,
            "temperature": self.setting.temperature,
            "context": self.setting.context,
            "detector": self.detector.to_dict(),
            "published_rule": self.published.to_dict(),
            "median_onset": self.onset,
        }


def setting_rates(setting: LoopSetting, detector: Sequence[Finding], paper: Sequence[Finding]) -> SettingRates:
    """Return the rates of one setting. detector, paper: the first finding of each rule in each conversation."""
    onsets = [f.onset_turn for f in detector if f.looped and f.onset_turn is not None]
    return SettingRates(
        setting,
        LoopingRate(sum(f.looped for f in detector), len(detector)),
        LoopingRate(sum(f.looped for f in paper), len(paper)),
        float(median(onsets)) if onsets else None,
    )


def by_context(rates: Sequence[SettingRates]) -> dict[str, list[SettingRates]]:
    """Return context -> rates of the main pair at the published number of tokens, by temperature."""
    main = [r for r in rates if r.setting.pair == _main_pair(rates) and r.setting.tokens == PUBLISHED_TOKENS]
    return {
        context: sorted((r for r in main if r.setting.context == context), key=lambda r: r.setting.temperature)
        for context in CONTEXTS
    }


def by_tokens(rates: Sequence[SettingRates]) -> dict[str, list[SettingRates]]:
    """Return the published setting and its opposite -> rates of the main pair, by tokens per turn."""
    pair = _main_pair(rates)
    return {
        name: sorted((r for r in group if r.setting.pair == pair), key=lambda r: r.setting.tokens)
        for name, group in _published_and_opposite(rates).items()
    }


def by_pair(rates: Sequence[SettingRates]) -> dict[str, list[SettingRates]]:
    """Return the published setting and its opposite -> rates of all pairs, at the published number of tokens."""
    return {
        name: [r for r in group if r.setting.tokens == PUBLISHED_TOKENS]
        for name, group in _published_and_opposite(rates).items()
    }


def rate_sections(rates: Sequence[SettingRates], sizes: Mapping[str, str]) -> list[Section]:
    """Return the three sections about looping rates. sizes: model -> its number of parameters, e.g. "2.1 million"."""
    pairs = by_pair(rates)
    places = {name: i for i, name in enumerate(dict.fromkeys(r.setting.models for g in pairs.values() for r in g))}
    pair_axis = axis("", tickvals=list(places.values()), ticktext=[label(name) for name in places])
    sizes_text = "; ".join(f"{short_name(model)}: {size} parameters" for model, size in sizes.items())
    return [
        _section(
            "Temperature and context",
            "Each model continues its context: the part of the conversation that it sees. Published: only the last"
            " output of the other model, at temperature 0.7.",
            "temperature",
            by_context(rates),
            lambda r: r.setting.temperature,
            axis("temperature"),
        ),
        _section(
            "Tokens per turn",
            "Do longer turns leave more room for new content, or more to repeat? The authors left this open.",
            "tokens",
            by_tokens(rates),
            lambda r: r.setting.tokens,
            axis("limit of tokens per turn"),
        ),
        _section(
            "Pairs of models",
            f"Each model with itself, and with every other model. {sizes_text}.",
            "models",
            pairs,
            lambda r: places[r.setting.models],
            pair_axis,
        ),
    ]


def _main_pair(rates: Sequence[SettingRates]) -> tuple[str, str]:
    """Return the pair with which temperature, tokens and context are varied."""
    return rates[0].setting.pair


def _published_and_opposite(rates: Sequence[SettingRates]) -> dict[str, list[SettingRates]]:
    lowest = min(r.setting.temperature for r in rates)
    return {
        f"last output, temperature {temperature:g}"
        if context == PUBLISHED_CONTEXT
        else f"{context}, temperature {temperature:g}": [
            r for r in rates if (r.setting.temperature, r.setting.context) == (temperature, context)
        ]
        for temperature, context in ((PUBLISHED_TEMPERATURE, PUBLISHED_CONTEXT), (lowest, LONGEST_CONTEXT))
    }


def _section(
    title: str,
    text: str,
    name: str,
    groups: Mapping[str, Sequence[SettingRates]],
    position: Callable[[SettingRates], float],
    x: dict[str, Any],
) -> Section:
    """Return a section with a figure (one line per group) and a table."""
    legend = [(group, f"cell-{i % 6 + 1}") for i, group in enumerate(groups)]
    table = _table([r for group in groups.values() for r in group])
    return Section(title, text, [Panel(name, _figure(groups, position, x))], legend, CAPTION, [table])


def _figure(
    groups: Mapping[str, Sequence[SettingRates]], position: Callable[[SettingRates], float], x: dict[str, Any]
) -> Figure:
    positions = sorted({float(position(r)) for group in groups.values() for r in group})
    step = min((b - a for a, b in pairwise(positions)), default=1.0)
    traces: list[Trace] = []
    for i, (name, group) in enumerate(groups.items()):
        shift = 0.06 * step * (i - (len(groups) - 1) / 2)  # keeps the intervals apart
        color = f"var(--cell-{i % 6 + 1})"
        rates = [r.detector for r in group]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(name),
                "x": [number(float(position(r)) + shift) for r in group],
                "y": [number(r.share) for r in rates],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [number(r.interval[1] - r.share) for r in rates],
                    "arrayminus": [number(r.share - r.interval[0]) for r in rates],
                    "color": color,
                    "thickness": 1.2,
                    "width": 4,
                },
                "marker": {"size": 9, "color": color},
                "line": {"width": 1.5, "color": color},
            }
        )
    y = axis("share of conversations that loop", range=[-0.04, 1.04], tickformat=".0%")
    return make_figure(traces, x, y, height=360)


def _table(rates: Sequence[SettingRates]) -> Table:
    columns = (
        *("models", "tokens", "temperature", "context", "conversations", "looped"),
        *("rate, 95 % interval", "by the published rule", "median onset (turn)"),
    )
    rows: list[list[Cell]] = []
    for r in rates:
        setting: list[Cell] = [r.setting.models, r.setting.tokens, r.setting.temperature, r.setting.context]
        counts = [r.detector.conversations, r.detector.looped]
        rows.append([*setting, *counts, str(r.detector), str(r.published), r.onset])
    return Table("", columns, rows)
