"""How much does the published rule depend on its thresholds? Figures, tables and a CSV file of the whole grid."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.text.distances import DISTANCES
from a2a_ray.analysis.text.paper_rule import DECIDING, PaperLoopRule
from a2a_ray.analysis.text.threshold_sensitivity import ALL, Curve, critical, curve, sweep
from a2a_ray.core.findings import Finding
from a2a_ray.report.page_parts import Cell, Panel, Section, Table
from a2a_ray.report.plotly_traces import Trace, axis, line_trace, make_figure
from a2a_ray.report.report_data import ConversationItem

FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
"""Multiples of our thresholds: the grid of the sweep over all thresholds together."""
ROUNDS = (2, 3, 4, 5)
NAMES = {
    "cosine": "cosine",
    "jaccard": "Jaccard",
    "bleu": "BLEU",
    "coherence": "coherence difference",
    ALL: "all three",
}
_STEPS = 60

Series: TypeAlias = "Mapping[str, np.ndarray[Any, Any]]"
"""Name of a distance -> its value in each round, shape (n_rounds,), NaN if undefined."""


def paper_finding(item: ConversationItem) -> Finding:
    """Return the finding of the paper's rule."""
    return next(finding for _, finding in item.findings if finding.analyzer == "paper_rule")


def series_of(finding: Finding) -> Series:
    """Return the distances of a conversation, from the finding of the paper's rule."""
    stored = finding.evidence.get("series", {})
    rounds = max((len(values) for values in stored.values()), default=0)
    return {name: np.array(stored.get(name, [None] * rounds), dtype=np.float64) for name in DISTANCES}


def threshold_sections(series: Sequence[Series], looped: Sequence[bool] | None, source: str) -> list[Section]:
    """Return the section on looping shares against thresholds; with labels also ROC and precision-recall curves."""
    rules = [name for name in (*DISTANCES, ALL) if _defined(series, name)]
    criticals = {name: np.array([critical(each, name, _ours(), 3) for each in series]) for name in rules}
    sections = [_shares(criticals, len(series), source)]
    if looped is not None:
        sections.append(_curves([curve(name, criticals[name].tolist(), looped) for name in rules], looped, source))
    return sections


def write_sweep(path: Path, series: Sequence[Series], looped: Sequence[bool] | None) -> list[dict[str, Any]]:
    """Write the rule's whole grid as CSV, one row per setting, and return the rows. Thresholds: FACTORS times ours."""
    grid = {name: [min(f * _ours()[name], 1.0) for f in FACTORS] for name in DECIDING}
    rows = list(sweep(series, looped, grid, ROUNDS))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def all_thresholds_section(rows: Sequence[Mapping[str, Any]], file: str) -> Section:
    """Return the section on the F1 of the rule over the whole grid, for each number of rounds in a row."""
    table: list[list[Cell]] = []
    for k in ROUNDS:
        same_rounds = [row for row in rows if row["rounds"] == k]
        scores = sorted(row["f1"] or 0.0 for row in same_rounds)
        ours = min(same_rounds, key=lambda row: sum(abs(row[name] - _ours()[name]) for name in DECIDING))
        best = max(same_rounds, key=lambda row: row["f1"] or 0.0)
        where = ", ".join(f"{NAMES[name]} {best[name]:.3g}" for name in DECIDING)
        table.append([k, ours["f1"], scores[0], scores[len(scores) // 2], scores[-1], where])
    columns = ("rounds in a row", "F1 at our thresholds", "lowest", "median", "best in hindsight", "best thresholds")
    return Section(
        "All thresholds together",
        f"All combinations of {len(FACTORS)} thresholds each for cosine, Jaccard and BLEU ({FACTORS[0]:g} to"
        f" {FACTORS[-1]:g} times ours) and of {ROUNDS[0]} to {ROUNDS[-1]} rounds in a row: {len(rows):,} settings."
        f" {file} lists all of them.",
        tables=[Table("F1 of the published rule over its settings", columns, table)],
    )


def _shares(criticals: Mapping[str, np.ndarray[Any, Any]], conversations: int, source: str) -> Section:
    at = np.linspace(0, 2, _STEPS + 1)
    traces: list[Trace] = []
    for place, (name, values) in enumerate(criticals.items()):
        unit = 1.0 if name == ALL else _ours()[name]
        share = [(values < f * unit).mean() for f in at]
        traces.append(line_trace(at.tolist(), share, NAMES[name], _colour(place)))
    figure = make_figure(
        traces,
        axis("threshold, as a multiple of ours"),
        axis("share of conversations called loops", range=[-0.04, 1.04], tickformat=".0%"),
        height=360,
    )
    rows: list[list[Cell]] = [
        [
            NAMES[name],
            1.0 if name == ALL else _ours()[name],
            *(_share(values, name, f) for f in (0.5, 0.75, 1, 1.25, 1.5)),
        ]
        for name, values in criticals.items()
    ]
    columns = ("distance", "our threshold", "at half", "at 3/4", "at ours", "at 5/4", "at 3/2")
    return Section(
        "How much the published rule depends on its thresholds",
        "The rule calls a conversation a loop if its distances stay below the thresholds for three rounds in a row."
        " The published thresholds are not known; ours are in analysis/text/paper_rule.py. The figure varies each"
        f" threshold alone, and all three together, for the {conversations} conversations of {source}.",
        [Panel("thresholds", figure)],
        [(NAMES[name], f"cell-{place % 6 + 1}") for place, name in enumerate(criticals)],
        "A flat line means that the threshold does not matter.",
        [Table("Share of conversations called loops", columns, rows)],
    )


def _curves(found: Sequence[Curve], looped: Sequence[bool], source: str) -> Section:
    roc: list[Trace] = [line_trace([0, 1], [0, 1], "chance", "var(--muted-color)", "dot")]
    recall: list[Trace] = []
    for place, one in enumerate(found):
        roc.append(line_trace([0, *one.false_alarm_rate, 1], [0, *one.recall, 1], NAMES[one.which], _colour(place)))
        recall.append(line_trace(one.recall.tolist(), one.precision.tolist(), NAMES[one.which], _colour(place)))
    unit = {"range": [-0.03, 1.03]}
    panels = [
        Panel("roc", make_figure(roc, axis("false-alarm rate", **unit), axis("recall", **unit), height=380), "ROC"),
        Panel(
            "precision-recall",
            make_figure(recall, axis("recall", **unit), axis("precision", **unit), height=380),
            "Precision and recall",
        ),
    ]
    rows: list[list[Cell]] = [[NAMES[c.which], c.area, c.average_precision, c.best_f1, c.best_threshold] for c in found]
    columns = ("distance", "area under ROC", "average precision", "best F1 in hindsight", "at the threshold")
    return Section(
        "Against labels",
        f"{sum(looped)} of the {len(looped)} labelled conversations of {source} loop. Each curve covers all values of a"
        " threshold.",
        panels,
        [(NAMES[c.which], f"cell-{place % 6 + 1}") for place, c in enumerate(found)],
        "The best threshold in hindsight is an upper bound: it can only be chosen with the labels.",
        [Table("", columns, rows, "All three: the threshold is a multiple of ours.")],
    )


def _share(values: np.ndarray[Any, Any], name: str, factor: float) -> str:
    return f"{(values < factor * (1.0 if name == ALL else _ours()[name])).mean():.0%}"


def _defined(series: Sequence[Series], name: str) -> bool:
    """Return whether a distance was measured; cosine and coherence need an embedder."""
    return name == ALL or any(not np.isnan(each[name]).all() for each in series)


def _ours() -> dict[str, float]:
    return PaperLoopRule().thresholds


def _colour(place: int) -> str:
    return f"var(--cell-{place % 6 + 1})"
