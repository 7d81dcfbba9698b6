"""The section on negotiations: how far apart the parties' offers are, and how many negotiations settle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from a2a_ray.analysis.equilibria.negotiation import IN_A_ROW, PARTIES, Status
from a2a_ray.analysis.equilibria.negotiation_analyzer import KIND, NegotiationAnalyzer
from a2a_ray.core.findings import Finding
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, Trace, axis, band_trace, line_trace, make_figure

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS: dict[Status, str] = {"settled": "agent-1", "not settled": "agent-2"}
"""Status -> colour in the style sheet, of the groups that are drawn."""
NEGOTIATIONS = "Negotiations"
"""Title of the table of outcomes."""
FEWEST = 5
"""Smaller groups get no band: quartiles of fewer games mean little."""
NOTE = (
    f"Settled: the last {IN_A_ROW} complete offers are the same deal, made by at least {PARTIES} parties. Abandoned"
    f" deals: {IN_A_ROW} or more offers in a row were the same deal, and a different offer followed. Disagreement: the"
    " share of issues on which the newest offers of two parties differ, averaged over pairs of parties."
)
"""Meaning of the table's columns, with the defaults of the rule."""


def negotiations_of(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings of the negotiation analyzer; empty if none of them is about a negotiation.

    If one is, conversations without offers count as negotiations with too few offers.
    """
    games = [finding for finding in findings if finding.analyzer == NegotiationAnalyzer.name]
    return games if any(game.kind == KIND for game in games) else []


def disagreement_figure(games: Sequence[Finding]) -> Figure | None:
    """Draw disagreement against turn, for settled and other games: mean (line) and middle half of the games (band).

    A turn is drawn if at least half of the group's games have a disagreement at it. None if no turn is drawn.
    """
    traces: list[Trace] = []
    top = 0.0
    for status, colour in COLOURS.items():
        series = [_disagreement(g) for g in games if g.evidence["status"] == status]
        rows = np.full((len(series), max((len(s) for s in series), default=0)), np.nan)
        for row, values in zip(rows, series, strict=True):
            row[: len(values)] = values
        drawn = np.flatnonzero(2 * np.isfinite(rows).sum(axis=0) >= max(len(rows), 1))
        if not len(drawn):
            continue
        turns, rows = (drawn + 1).tolist(), rows[:, drawn]
        low, high = np.nanquantile(rows, (0.25, 0.75), axis=0)
        mean, color = np.nanmean(rows, axis=0), f"var(--{colour})"
        if len(rows) >= FEWEST:
            traces.insert(0, band_trace(turns, low.tolist(), high.tolist(), f"{status}, middle half", color))
        traces.append(line_trace(turns, mean.tolist(), status, color, "solid" if status == "settled" else "dash"))
        top = max(top, float(high.max()), float(mean.max()))
    if not traces:
        return None
    y = axis("issues on which two parties differ", range=[0, min(1.0, 1.1 * top) or 1.0], tickformat=".0%")
    return make_figure(traces, x=axis("turn", rangemode="tozero"), y=y)


def outcome_table(games: Sequence[Finding]) -> Table:
    """Count the games by outcome, and describe their offers."""
    rows = []
    for status in ("settled", "not settled", "too few offers"):
        group = [g for g in games if g.evidence["status"] == status]
        ends = [v[-1] for g in group if len(v := _disagreement(g)) and np.isfinite(v[-1])]
        rows.append(
            (
                status,
                len(group),
                f"{len(group) / len(games):.1%}" if games else None,
                sum(_unanimous(g) for g in group),
                sum(g.evidence["left"] for g in group),
                f"{np.mean(ends):.1%}" if ends else None,
            )
        )
    columns = ("outcome", "games", "share", "all parties agree", "abandoned deals", "disagreement at the end")
    return Table(NEGOTIATIONS, columns, rows, NOTE)


def negotiation_section(games: Sequence[Finding]) -> Section:
    """Return the question with its figure and table, for a report or a page of `report/study_page.py`."""
    figure = disagreement_figure(games)
    counts = {status: sum(g.evidence["status"] == status for g in games) for status in COLOURS}
    settled, judged = counts["settled"], sum(counts.values())
    return Section(
        title="Do the parties settle?",
        text=f"{settled:,} of {judged:,} games with enough offers end with {IN_A_ROW} or more equal offers in a row."
        " The figure shows how far apart the newest offers of two parties are after each turn.",
        panels=[Panel("disagreement", figure, "How far apart the offers are")] if figure else [],
        legend=[(f"{status} ({counts[status]:,})", colour) for status, colour in COLOURS.items()],
        caption="Line: mean over games. Band: middle half of the games. 0 %: all parties offer the same deal.",
        tables=[outcome_table(games)],
    )


def _disagreement(game: Finding) -> NDArray[np.float64]:
    """Return the disagreement after each message, shape (messages,); NaN until two parties have made an offer."""
    return np.array(game.evidence["disagreement"], dtype=np.float64)


def _unanimous(game: Finding) -> bool:
    """Return whether the newest offer of every party is the last deal."""
    return bool(game.evidence["agreeing"] == len(game.evidence["parties"]) > 0)
