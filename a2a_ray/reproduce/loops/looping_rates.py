"""What came out of each cell: rates of looping talks with intervals, by two rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from a2a_ray.core.findings import Finding
from a2a_ray.report.report_page import wilson_interval
from a2a_ray.reproduce.loops.factors import PUBLISHED_TEMPERATURE, PUBLISHED_TOKENS, SHOWN, Setting

PUBLISHED_RATE = (35, 50)
"""Talks that looped, of all, in arXiv 2512.06256 (models of 12 and 13 billion parameters)."""


@dataclass(frozen=True, slots=True)
class LoopingRate:
    """Talks of one cell that looped, by one rule; `low` and `high` are Wilson's 95 % interval of the share."""

    looped: int
    talks: int

    @property
    def share(self) -> float:
        """Of the talks that looped."""
        return self.looped / self.talks

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson."""
        return wilson_interval(self.looped, self.talks)

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        low, high = self.interval
        return {"looped": self.looped, "talks": self.talks, "rate": self.share, "low": low, "high": high}


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting and its rates: `detector` by the streaming detector, `published` by the published rule.

    onset: median turn of the detector's onsets, None without any.
    """

    setting: Setting
    detector: LoopingRate
    published: LoopingRate
    onset: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
        s = self.setting
        return {
            "models": list(s.pair),
            "tokens": s.tokens,
            "temperature": s.temperature,
            "shown": s.shown,
            "detector": self.detector.to_dict(),
            "published_rule": self.published.to_dict(),
            "median_onset": self.onset,
        }


def cell(setting: Setting, detector: Sequence[Finding], paper: Sequence[Finding]) -> Cell:
    """The rates of one cell from the first finding of the detector, and of the paper's rule, in each conversation."""
    from statistics import median

    onsets = [f.onset_turn for f in detector if f.looped and f.onset_turn is not None]
    return Cell(
        setting,
        LoopingRate(sum(f.looped for f in detector), len(detector)),
        LoopingRate(sum(f.looped for f in paper), len(paper)),
        float(median(onsets)) if onsets else None,
    )


def main_pair(cells: Sequence[Cell]) -> tuple[str, str]:
    """The pair that temperature, tokens and what is shown are varied with."""
    return cells[0].setting.pair


def grid(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """What is shown -> the cells of the main pair at the published number of tokens, by temperature."""
    pair = main_pair(cells)
    mine = [c for c in cells if c.setting.pair == pair and c.setting.tokens == PUBLISHED_TOKENS]
    return {
        shown: sorted((c for c in mine if c.setting.shown == shown), key=lambda c: c.setting.temperature)
        for shown in SHOWN
    }


def by_tokens(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The published setting and its opposite -> the cells of the main pair, by tokens per turn."""
    pair = main_pair(cells)
    return {
        name: sorted((c for c in group if c.setting.pair == pair), key=lambda c: c.setting.tokens)
        for name, group in _two_settings(cells).items()
    }


def by_pair(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The published setting and its opposite -> the cells of all pairs, at the published number of tokens."""
    return {
        name: [c for c in group if c.setting.tokens == PUBLISHED_TOKENS] for name, group in _two_settings(cells).items()
    }


def _two_settings(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    coldest = min(c.setting.temperature for c in cells)
    published = [c for c in cells if (c.setting.temperature, c.setting.shown) == (PUBLISHED_TEMPERATURE, "last")]
    opposite = [c for c in cells if (c.setting.temperature, c.setting.shown) == (coldest, "400 characters")]
    return {
        f"last output, temperature {PUBLISHED_TEMPERATURE:g}": published,
        f"400 characters, temperature {coldest:g}": opposite,
    }
