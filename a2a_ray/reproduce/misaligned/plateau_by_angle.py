"""The equilibria of pairs against the angle between their objectives: predicted, and measured with both LSA layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.core.conversation import Conversation
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Trace, axis, band_trace, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult, dots, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    Array,
    Side,
    norms,
    pair_agents,
    population,
    predicted,
    settle,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings

ANGLES = tuple(range(0, 181, 10))
NAMES = ("W", "U")
TURNED = (0.0, 90.0)
"""Degrees by which both objectives of a pair, and of its twin, are rotated in their plane."""
DEGREES = np.array([[(turned, turned + angle) for angle in ANGLES] for turned in TURNED])
TOLERANCE = 1e-9
"""A curve decreases if a value is below the one before it by more than this (objectives have norm 1)."""
UNSETTLED = 1e-6
"""If more than this share of the start is left in the last round, the report adds a sentence about too few rounds."""
TRAINED_LEFT = 1e-9
"""Trained agents have an error of their own: their conversations end when this share of the start is left."""
AT_ONCE = 200
"""Pairs of trained agents in one batch: 38 rows each, with their angles and twins."""
CONVERSATIONS, CONVERSATION_ANGLES = 3, (30, 90, 150)
"""Pairs and angles of the real conversations."""
BAND = (0.05, 0.95)
COLOURS = ("agent-1", "agent-2")


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment. All residuals have the shape (pair and twin, angles, W and U, pairs, d)."""
    w, u = sides(population(settings))
    expected = predicted_residuals(w, u)
    radius = predicted(w, u).radius
    rounds = {
        "analytic": settings.rounds_for(radius),
        "trained": settings.rounds_for(radius, TRAINED_LEFT),
    }
    measured: dict[str, Array] = {"analytic": _analytic(settings, rounds["analytic"])}
    if settings.has_trained:
        measured["trained"] = _trained(w, u, rounds["trained"])
    errors = {name: relative_errors(found, expected) for name, found in measured.items()}
    monotone = {name: bool(not decreases(rms_distance(found)).any()) for name, found in measured.items()}
    differences = {
        name: _conversation_difference(settings, name, rounds[name], found) for name, found in measured.items()
    }
    isotropic = _analytic(replace(settings, condition=1.0), settings.rounds_for((1 - settings.step_size) ** 2))
    values: dict[str, Any] = {
        "angles": list(ANGLES),
        "rounds": rounds,
        "spectral_radius": radius,
        "root_mean_square": {
            name: rms_distance(c).T.tolist() for name, c in {"predicted": expected, **measured}.items()
        },
        "relative_error": {name: _spread(found) for name, found in errors.items()},
        "monotone_in_angle": monotone,
        "conversations_apart": differences,
        "not_monotone": {"anisotropic": _share(measured["analytic"]), "isotropic": _share(isotropic)},
    }
    summary = {
        "max_relative_error_analytic": values["relative_error"]["analytic"]["max"],
        "median_relative_error_trained": values["relative_error"].get("trained", {}).get("median"),
        "monotone_in_angle": all(monotone.values()),
    }
    return ExperimentResult(_section(settings, expected, measured, values), _result_sentence(values), values, summary)


def _spread(errors: Array) -> dict[str, float]:
    return {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95)), "max": float(errors.max())}


def _share(residuals: Array) -> dict[str, float]:
    """Return the share of single pairs whose curve decreases somewhere, for W and for U, without twins."""
    share = decreases(norms(residuals[0])).mean(axis=1)
    return {name: float(s) for name, s in zip(NAMES, share, strict=True)}


def relative_errors(measured: Array, expected: Array) -> Array:
    """Return |measured - predicted| over the gap, (pair and twin, angles - 1, W and U, pairs), for angles above 0."""
    sizes = np.array([objective_distance(angle) for angle in ANGLES[1:]])
    return np.asarray(norms(measured - expected)[:, 1:] / sizes[:, None, None])


def at_angle(w: Side, u: Side, angle: float, turned: float) -> tuple[Side, Side]:
    """Return the pairs, given with objectives at 0 and 90 degrees, with objectives at `turned` and `turned + angle`."""

    def objective(degrees: float) -> Array:
        radians = math.radians(degrees)
        return np.asarray(math.cos(radians) * w.objectives + math.sin(radians) * u.objectives)

    return replace(w, objectives=objective(turned)), replace(u, objectives=objective(angle + turned))


def _grid(w: Side, u: Side) -> list[list[tuple[Side, Side]]]:
    return [[at_angle(w, u, angle, turned) for angle in ANGLES] for turned in TURNED]


def predicted_residuals(w: Side, u: Side, degrees: Array = DEGREES) -> Array:
    """Return the residuals of the closed form, which is linear in the gap, from the gaps e1 and e2 of a pair's plane.

    w, u: with objectives e1 and e2. degrees: of the objectives of W and of U, shape (twins, angles, 2).
    """
    nothing = replace(w, objectives=np.zeros_like(w.objectives))
    basis = [predicted(nothing, replace(u, objectives=e)) for e in (w.objectives, u.objectives)]
    residuals = np.array([(s.residual_w, s.residual_u) for s in basis])
    of_w, of_u = np.moveaxis(np.radians(degrees), -1, 0)
    gaps = np.stack([np.cos(of_u) - np.cos(of_w), np.sin(of_u) - np.sin(of_w)], axis=-1)
    return np.asarray(np.einsum("tak,kibd->taibd", gaps, residuals))


def _analytic(settings: Settings, rounds: int) -> Array:
    """Simulate agents with analytic weights."""
    found = [[simulate_pairs(population(settings, a, twin), rounds) for a in ANGLES] for twin in (False, True)]
    return np.array([[(s.residual_w[:, -1].numpy(), s.residual_u[:, -1].numpy()) for s in row] for row in found])


def _trained(w: Side, u: Side, rounds: int) -> Array:
    """Run agents with trained weights: each turn is a pass of the layer, all angles and twins in one batch."""
    parts = []
    for first in range(0, len(w), AT_ONCE):
        grid = _grid(*(side.part(first, first + AT_ONCE) for side in (w, u)))
        b, d = grid[0][0][0].objectives.shape
        ws, us = (_joined([pair[k] for row in grid for pair in row]) for k in (0, 1))
        after_w, after_u = settle(ws.turn, us.turn, np.zeros_like(ws.objectives), rounds)
        residuals = np.stack([after_w - ws.objectives, after_u - us.objectives])
        parts.append(residuals.reshape(2, 2, len(ANGLES), b, d).transpose(1, 2, 0, 3, 4))
    return np.concatenate(parts, axis=3)


def _joined(some: list[Side]) -> Side:
    return replace(
        some[0],
        examples=np.concatenate([s.examples for s in some]),
        covariances=np.concatenate([s.covariances for s in some]),
        objectives=np.concatenate([s.objectives for s in some]),
        weights="trained",
    )


def _conversation_difference(settings: Settings, weights: str, rounds: int, measured: Array) -> float:
    """Return the largest distance of real conversations of the first pairs from the batches, over the gap."""
    differences = []
    for angle in CONVERSATION_ANGLES:
        drawn = population(settings, angle)
        for i in range(min(CONVERSATIONS, settings.pairs)):
            w, u = pair_agents(drawn, i, weights=weights)
            answers = Conversation([w, u], opening=np.zeros(settings.dim), max_rounds=rounds).run().messages[-2:]
            residuals = np.stack([np.asarray(m.content) - a.objective for m, a in zip(answers, (w, u), strict=True)])
            differences.append(
                norms(residuals - measured[0, ANGLES.index(angle), :, i]).max() / objective_distance(angle)
            )
    return float(max(differences))


def objective_distance(angle: float) -> float:
    """Return the distance between objectives of norm 1: 2 sin(angle / 2)."""
    return 2 * math.sin(math.radians(angle) / 2)


def rms_distance(residuals: Array) -> Array:
    """Return the root mean square distance over pairs and twins, shape (angles, W and U).

    A pair and its twin have gaps D and D' of one length at right angles in one plane. So |E D|^2 + |E D'|^2 is |D|^2
    times a number that does not depend on the angle: this curve never decreases, for any sample of pairs.
    """
    return np.asarray(np.sqrt((residuals**2).sum(axis=-1).mean(axis=(0, 3))))


def decreases(curves: Array) -> Array:
    """Return whether each curve, along the first axis, decreases anywhere."""
    return np.asarray((np.diff(curves, axis=0) < -TOLERANCE).any(axis=0))


def _result_sentence(values: Mapping[str, Any]) -> str:
    errors, monotone = values["relative_error"], values["monotone_in_angle"]
    worst, left = errors["analytic"]["max"], values["spectral_radius"] ** values["rounds"]["analytic"]
    unsettled = (
        f"The conversations have not converged (up to {left:.1g} of the start is left). " if left > UNSETTLED else ""
    )
    sentence = f"{unsettled}Analytic agents end within {worst:.1e} of the closed form (relative to the gap, worst case)"
    if "trained" in errors:
        sentence += f", trained ones within {errors['trained']['median']:.1e} (median)"
    decreasing = [name for name, never in monotone.items() if not never]
    shape = f"decreases somewhere ({', '.join(decreasing)} agents)" if decreasing else "never decreases with the angle"
    share = values["not_monotone"]["anisotropic"]["W"]
    return (
        f"{sentence}. The root mean square over pairs and twins {shape}; the curve of W decreases somewhere for"
        f" {share:.0%} of the single pairs."
    )


def _section(settings: Settings, expected: Array, measured: Mapping[str, Array], values: Mapping[str, Any]) -> Section:
    """All residuals have the shape (pair and twin, angles, W and U, pairs, d)."""
    panels = [Panel(f"plateau-{n.lower()}", _curves(i, expected, measured), n) for i, n in enumerate(NAMES)]
    decreasing = _worst(measured["analytic"])
    if decreasing is not None:
        panels.append(
            Panel(
                "counterexample",
                _single(decreasing, expected, measured["analytic"]),
                "Decreases: W of a pair, and its twin",
            )
        )
    legend = [("W", "agent-1"), ("U", "agent-2"), ("line: closed form", ""), ("\u25cf analytic agents", "")]
    legend += [("\u25c7 trained agents", "")] * ("trained" in measured)
    legend += [("dashed: mean over pairs; shaded: 90% of the pairs", "")]
    rounds = values["rounds"]
    text = (
        "W and U answer each other. Each answer is one gradient step towards the agent's own objective, in context, by"
        " linear self-attention over the examples in its prompt."
        f" {several(settings.pairs, 'pair')} of {settings.dim} dimensions, each with its own geometry (the covariance"
        f" of the examples), condition number {settings.condition:g}, step {settings.step_size:g}; objectives of length"
        " 1 at 19 angles. Each pair also runs as its twin: both objectives rotated by 90 degrees in their plane."
        f" {rounds['analytic']} rounds with analytic weights"
    )
    if "trained" in rounds:
        text += f", {rounds['trained']} with trained ones."
    else:
        text += f"; there are no trained weights for {settings.dim} dimensions, so trained agents are left out."
    return Section(
        "Plateau against the angle",
        text,
        panels,
        legend,
        _caption(values),
        [_table(expected, measured), _shares(values)],
    )


def _caption(values: Mapping[str, Any]) -> str:
    differences = ", ".join(f"{name} {a:.1e}" for name, a in values["conversations_apart"].items())
    return (
        "The distance of each agent from its own objective in equilibrium, after its own turn, in units of an"
        " objective's length. Only at 0 degrees, with equal objectives, do they arrive. Thick line and points: root"
        " mean square over the pairs and their twins, which cannot decrease for any sample. The curve of a single pair"
        " can (last panel, if there is one), because its geometry pulls differently in different directions. Real"
        f" conversations of the first pairs end where the batches do (largest distance over the gap: {differences})."
    )


def _curves(agent: int, expected: Array, measured: Mapping[str, Array]) -> dict[str, Any]:
    colour, name = f"var(--{COLOURS[agent]})", NAMES[agent]
    single = norms(expected[0])[:, agent]  # (angles, pairs)
    low, high = np.quantile(single, BAND, axis=1)
    traces = [
        band_trace(ANGLES, low, high, f"{name}, 90 % of pairs", colour),
        line(ANGLES, single.mean(axis=1), f"{name}, mean, closed form", colour, "dash"),
        line(ANGLES, rms_distance(expected)[:, agent], f"{name}, closed form", colour),
        dots(ANGLES, rms_distance(measured["analytic"])[:, agent], f"{name}, analytic", colour),
    ]
    if "trained" in measured:
        traces.append(
            dots(ANGLES, rms_distance(measured["trained"])[:, agent], f"{name}, trained", colour, "diamond-open", 12)
        )
    return _by_angle(traces)


def _single(pair: int, expected: Array, measured: Array) -> dict[str, Any]:
    traces = []
    for twin, (name, dash) in enumerate((("pair", "solid"), ("twin", "dot"))):
        traces.append(line(ANGLES, norms(expected[twin])[:, 0, pair], f"{name}, closed form", "var(--agent-1)", dash))
        traces.append(dots(ANGLES, norms(measured[twin])[:, 0, pair], f"{name}, analytic", "var(--agent-1)"))
    both = rms_distance(expected[:, :, :, [pair]])[:, 0]
    return _by_angle([*traces, line(ANGLES, both, "both", "var(--cell-2)")])


def _by_angle(traces: list[Trace]) -> dict[str, Any]:
    ticks = {"tickvals": list(range(0, 181, 30)), "range": [-4, 184]}
    return make_figure(
        traces,
        axis("angle between the objectives (degrees)", **ticks),
        axis("distance from own objective", rangemode="tozero"),
    )


def _worst(measured: Array) -> int | None:
    """Return the pair whose W decreases most from one angle to the next, relative to its height; None if none does."""
    curves = norms(measured[0])[:, 0]
    if not decreases(curves).any():
        return None
    return int((np.diff(curves, axis=0).min(axis=0) / curves.max(axis=0)).argmin())


def _table(expected: Array, measured: Mapping[str, Array]) -> Table:
    columns = ["angle", "gap"]
    series: list[Array] = []
    for i, agent in enumerate(NAMES):
        for name, residuals in {"predicted": expected, **measured}.items():
            columns.append(f"{agent} {name}")
            series.append(rms_distance(residuals)[:, i])
    rows = [[angle, objective_distance(angle), *(float(s[k]) for s in series)] for k, angle in enumerate(ANGLES)]
    return Table("Root mean square distance from the own objective, over pairs and twins", columns, rows)


def _shares(values: Mapping[str, Any]) -> Table:
    rows = [[name, *(f"{share[agent]:.0%}" for agent in NAMES)] for name, share in values["not_monotone"].items()]
    note = "Isotropic: condition number 1, every pair's curve is proportional to the gap."
    return Table("Single pairs whose curve decreases somewhere", ["geometry", *NAMES], rows, note)
