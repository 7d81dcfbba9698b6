"""Plateau and rate by the prompts' geometry: condition number, shared eigenvectors, disjoint support, null space."""

from __future__ import annotations

from typing import Any

import numpy as np

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.pair_population import PairPopulation
from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.analysis.dynamics.rounds import alternating, half_life
from a2a_ray.core.conversation import Conversation
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import (
    GAP,
    ExperimentResult,
    colour,
    colour_name,
    dots,
    line,
    several,
)
from a2a_ray.reproduce.misaligned.lsa_pairs import SHOWN_ANGLE, Array, gaps, norms, population, predicted, sides
from a2a_ray.reproduce.misaligned.study_settings import Settings

CONDITIONS = (1.0, 2.0, 5.0, 10.0, 20.0)
KINDS = ("own eigenvectors", "shared eigenvectors", "disjoint support")
LEFT = 1e-12
PARTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""Openings: distances along the direction that neither agent has examples of."""


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    cells = {kind: [_cell(settings, kind, condition) for condition in CONDITIONS] for kind in KINDS}
    null = _null_space(settings)
    values = {"conditions": list(CONDITIONS), "cells": cells, "common_null_space": null}
    return ExperimentResult(_section(settings, cells, null), _result_sentence(cells, null), values)


def _drawn(settings: Settings, kind: str, condition: float) -> PairPopulation:
    if kind == "own eigenvectors":
        return population(settings, condition=condition)
    if kind == "shared eigenvectors":
        return population(settings, condition=condition, eigenvectors="pair")
    half = (settings.dim + 1) // 2
    w, u = np.zeros(settings.dim), np.zeros(settings.dim)
    w[:half] = np.geomspace(1, 1 / condition, half)
    u[half:] = np.geomspace(1, 1 / condition, settings.dim - half)
    return population(settings, eigenvalues=(w, u), eigenvectors="pair")


def _cell(settings: Settings, kind: str, condition: float) -> dict[str, Any]:
    """Return the root mean square plateaus, shares of the gap, and the slowest pair's half-life."""
    drawn = _drawn(settings, kind, condition)
    w, u = sides(drawn)
    settled, gap = predicted(w, u), gaps(w, u)[:, None]
    states = simulate_pairs(drawn, settings.rounds_for(settled.radius, LEFT))
    measured = np.stack([states.residual_w[:, -1].numpy(), states.residual_u[:, -1].numpy()]) / gap
    expected = np.stack([settled.residual_w, settled.residual_u]) / gap
    return {
        "measured": _root_mean_square(measured),
        "predicted": _root_mean_square(expected),
        "largest_error": float(norms(measured - expected).max()),
        "half_life": half_life(settled.radius),
    }


def _root_mean_square(residuals: Array) -> list[float]:
    return [float(x) for x in np.sqrt((residuals**2).sum(axis=2).mean(axis=1))]


def _null_space(settings: Settings) -> list[dict[str, float]]:
    """Run one pair whose examples share a missing direction: real conversations from several openings."""
    values = np.append(0.0, np.geomspace(1 / settings.condition, 1, settings.dim - 1) if settings.dim > 2 else 1.0)
    drawn = population(settings, pairs=1, eigenvalues=values, eigenvectors="pair")
    w, u = (LSAAgent(name, **how) for name, how in zip("wu", drawn.settings(0), strict=True))
    direction = np.linalg.eigh(w.covariance)[1][:, 0]
    gap = float(np.linalg.norm(u.objective - w.objective))
    rows = []
    for part in PARTS:
        opening = part * direction
        theory = alternating(agents_of([w, u]), start=opening)
        rounds = settings.rounds_for(theory.spectral_radius, LEFT)
        message = Conversation([w, u], opening=opening, max_rounds=rounds).run().messages[-2]
        measured = np.asarray(message.content) - w.objective
        rows.append(
            {
                "start": part,
                "measured": float(np.linalg.norm(measured)) / gap,
                "predicted": float(theory.residual_norms[0]) / gap,
                "error": float(np.linalg.norm(measured - theory.residuals[0])) / gap,
            }
        )
    return rows


def _result_sentence(cells: dict[str, list[dict[str, Any]]], null: list[dict[str, float]]) -> str:
    worst = max(cell["largest_error"] for row in cells.values() for cell in row)
    disjoint = [cell["measured"][0] for cell in cells["disjoint support"]]
    apart = max(row["measured"] for row in null) - min(row["measured"] for row in null)
    return (
        f"All geometries settle within {worst:.1e} of the gap of the closed form; with disjoint support the condition"
        f" number changes W's plateau by {max(disjoint) - min(disjoint):.1e} and only slows it down; with a common"
        f" null space W's settled state depends on the start (by {apart:.2f} of the gap between openings)."
    )


def _section(settings: Settings, cells: dict[str, list[dict[str, Any]]], null: list[dict[str, float]]) -> Section:
    text = (
        f"{several(settings.pairs, 'pair')} at {SHOWN_ANGLE:g} degrees for each cell. The condition number of a"
        " geometry is the ratio of its largest and smallest eigenvalue; the largest is 1. Eigenvectors are drawn for"
        " each agent (own), or once for both (shared); with disjoint support each agent has examples in one half of the"
        " directions only, the other agent in the other half. Common null space: one pair whose examples both leave out"
        " the same direction, from five openings."
    )
    caption = (
        "Plateau of W: with disjoint support the agents do not compete, and the state converges to W's objective"
        " in W's half of the directions and to U's in the other half. Half-life: rounds in which the slowest pair"
        " halves its distance to the equilibrium. Common null space: no turn moves the state along a"
        " direction that neither prompt has examples of, so the opening decides where the conversation ends."
    )
    legend = [(kind, colour_name(i)) for i, kind in enumerate(KINDS)] + [("● measured", ""), ("line: predicted", "")]
    panels = [
        Panel("geometry-plateau", _plateaus(cells), "Plateau of W"),
        Panel("geometry-rate", _rates(cells), "Half-life, predicted"),
        Panel("geometry-null-space", _starts(null), "Common null space"),
    ]
    columns = [
        "geometry",
        "condition",
        "W measured",
        "W predicted",
        "U measured",
        "U predicted",
        "largest error",
        "half-life (rounds)",
    ]
    rows = [
        [
            kind,
            condition,
            c["measured"][0],
            c["predicted"][0],
            c["measured"][1],
            c["predicted"][1],
            c["largest_error"],
            c["half_life"],
        ]
        for kind, row in cells.items()
        for condition, c in zip(CONDITIONS, row, strict=True)
    ]
    starts = [[row["start"], row["measured"], row["predicted"], row["error"]] for row in null]
    tables = [
        Table("Root mean square distance from the own objective, share of the gap", columns, rows),
        Table("Common null space: settled state of W", ["opening along it", "measured", "predicted", "error"], starts),
    ]
    return Section("Geometry of the prompts", text, panels, legend, caption, tables)


def _plateaus(cells: dict[str, list[dict[str, Any]]]) -> Figure:
    traces = []
    for i, (kind, row) in enumerate(cells.items()):
        traces.append(line(CONDITIONS, [c["predicted"][0] for c in row], f"{kind}, predicted", colour(i)))
        traces.append(dots(CONDITIONS, [c["measured"][0] for c in row], f"{kind}, measured", colour(i)))
    return make_figure(traces, _conditions(), axis(GAP, rangemode="tozero"))


def _rates(cells: dict[str, list[dict[str, Any]]]) -> Figure:
    traces = [
        line(CONDITIONS, [c["half_life"] for c in row], kind, colour(i)) for i, (kind, row) in enumerate(cells.items())
    ]
    return make_figure(traces, _conditions(), axis("rounds", rangemode="tozero"))


def _starts(null: list[dict[str, float]]) -> Figure:
    starts = [row["start"] for row in null]
    traces = [
        line(starts, [row["predicted"] for row in null], "predicted", colour(3)),
        dots(starts, [row["measured"] for row in null], "measured", colour(3)),
    ]
    return make_figure(traces, axis("opening along the null direction"), axis(GAP, rangemode="tozero"))


def _conditions() -> dict[str, Any]:
    return axis("condition number", type="log", tickvals=list(CONDITIONS))
