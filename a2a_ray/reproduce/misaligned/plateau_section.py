"""The plateau against the angle, as figures, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Trace, axis, band_trace, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import dots, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import Array, norms
from a2a_ray.reproduce.misaligned.study_settings import Settings

ANGLES = tuple(range(0, 181, 10))
NAMES = ("W", "U")
TOLERANCE = 1e-9
"""A curve falls where a value is below the one before it by more than this (objectives have norm 1)."""
UNSETTLED = 1e-6
"""More than this share of the start left in the last round is worth a sentence: the user allowed too few rounds."""
BAND = (0.05, 0.95)
COLOURS = ("agent-1", "agent-2")


def gap(angle: float) -> float:
    """Between objectives of norm 1: 2 sin(angle / 2)."""
    return 2 * math.sin(math.radians(angle) / 2)


def together(residuals: Array) -> Array:
    """Root mean square distance over pairs and twins, shape (angles, W and U).

    A pair and its twin have gaps D and D' of one length at right angles in one plane, so that |E D|^2 + |E D'|^2 is
    |D|^2 times what does not depend on the angle: this curve never falls, whatever the sample of pairs.
    """
    return np.asarray(np.sqrt((residuals**2).sum(axis=-1).mean(axis=(0, 3))))


def falls(curves: Array) -> Array:
    """Whether each curve, along the first axis, falls anywhere."""
    return np.asarray((np.diff(curves, axis=0) < -TOLERANCE).any(axis=0))


def outcome(values: Mapping[str, Any]) -> str:
    """In one sentence."""
    errors, monotone = values["relative_error"], values["monotone_in_angle"]
    worst, left = errors["analytic"]["max"], values["spectral_radius"] ** values["rounds"]["analytic"]
    unsettled = f"The talks have not settled (up to {left:.1g} of the start is left). " if left > UNSETTLED else ""
    sentence = (
        f"{unsettled}Analytic agents rest within {worst:.1e} of the closed form (relative to the gap, worst case)"
    )
    if "trained" in errors:
        sentence += f", trained ones within {errors['trained']['median']:.1e} (median)"
    falling = [name for name, never in monotone.items() if not never]
    shape = f"falls somewhere ({', '.join(falling)} agents)" if falling else "never falls as the angle grows"
    share = values["not_monotone"]["anisotropic"]["W"]
    return (
        f"{sentence}; the root mean square over pairs and twins {shape}, though the curve of W falls somewhere for"
        f" {share:.0%} of the single pairs."
    )


def plateau_section(
    settings: Settings, expected: Array, measured: Mapping[str, Array], values: Mapping[str, Any]
) -> Section:
    """All residuals have the shape (pair and twin, angles, W and U, pairs, d)."""
    panels = [Panel(f"plateau-{n.lower()}", _curves(i, expected, measured), n) for i, n in enumerate(NAMES)]
    fallen = _worst(measured["analytic"])
    if fallen is not None:
        panels.append(
            Panel("counterexample", _single(fallen, expected, measured["analytic"]), "Falls: W of a pair, and its twin")
        )
    legend = [("W", "agent-1"), ("U", "agent-2"), ("line: closed form", ""), ("\u25cf analytic agents", "")]
    legend += [("\u25c7 trained agents", "")] * ("trained" in measured)
    legend += [("dashed: mean over pairs; shaded: 90% of the pairs", "")]
    rounds = values["rounds"]
    text = (
        "W and U answer each other, each with one gradient step towards its own objective, in context, by linear"
        f" self-attention over the examples in its prompt. {several(settings.pairs, 'pair')} of {settings.dim}"
        " dimensions, each with a geometry (the covariance of the examples) of its own, condition number"
        f" {settings.condition:g}, step {settings.step_size:g}; objectives of length 1 at 19 angles. Each pair also"
        f" runs as its twin: both objectives turned by 90 degrees in their plane. {rounds['analytic']} rounds with"
        " analytic weights"
        + (
            f", {rounds['trained']} with trained ones."
            if "trained" in rounds
            else f"; there are no trained weights for {settings.dim} dimensions, so trained agents are left out."
        )
    )
    return Section(
        "Plateau against the angle",
        text,
        panels,
        legend,
        _caption(values),
        [_table(expected, measured), _shares(values)],
    )


def _caption(values: Mapping[str, Any]) -> str:
    apart = ", ".join(f"{name} {a:.1e}" for name, a in values["conversations_apart"].items())
    return (
        "How far each agent rests from its own objective, read after its own turn, in units of an objective's length."
        " Only at 0 degrees, where both want the same, do they arrive. Thick line and points: root mean square over the"
        " pairs and their twins, which cannot fall for any sample. A single pair's curve can (last panel, where there"
        " is one), because its geometry pulls differently in different directions. Real conversations of the first"
        f" pairs end where the batches do (largest distance over the gap: {apart})."
    )


def _curves(agent: int, expected: Array, measured: Mapping[str, Array]) -> dict[str, Any]:
    colour, name = f"var(--{COLOURS[agent]})", NAMES[agent]
    single = norms(expected[0])[:, agent]  # (angles, pairs)
    low, high = np.quantile(single, BAND, axis=1)
    traces = [
        band_trace(ANGLES, low, high, f"{name}, 90 % of pairs", colour),
        line(ANGLES, single.mean(axis=1), f"{name}, mean, closed form", colour, "dash"),
        line(ANGLES, together(expected)[:, agent], f"{name}, closed form", colour),
        dots(ANGLES, together(measured["analytic"])[:, agent], f"{name}, analytic", colour),
    ]
    if "trained" in measured:
        traces.append(
            dots(ANGLES, together(measured["trained"])[:, agent], f"{name}, trained", colour, "diamond-open", 12)
        )
    return _by_angle(traces)


def _single(pair: int, expected: Array, measured: Array) -> dict[str, Any]:
    traces = []
    for twin, (name, dash) in enumerate((("pair", "solid"), ("twin", "dot"))):
        traces.append(line(ANGLES, norms(expected[twin])[:, 0, pair], f"{name}, closed form", "var(--agent-1)", dash))
        traces.append(dots(ANGLES, norms(measured[twin])[:, 0, pair], f"{name}, analytic", "var(--agent-1)"))
    both = together(expected[:, :, :, [pair]])[:, 0]
    return _by_angle([*traces, line(ANGLES, both, "both together", "var(--cell-2)")])


def _by_angle(traces: list[Trace]) -> dict[str, Any]:
    ticks = {"tickvals": list(range(0, 181, 30)), "range": [-4, 184]}
    return make_figure(
        traces,
        axis("angle between the objectives (degrees)", **ticks),
        axis("distance from own objective", rangemode="tozero"),
    )


def _worst(measured: Array) -> int | None:
    """The pair whose W falls furthest from one angle to the next, relative to its height; None where none falls."""
    curves = norms(measured[0])[:, 0]
    if not falls(curves).any():
        return None
    return int((np.diff(curves, axis=0).min(axis=0) / curves.max(axis=0)).argmin())


def _table(expected: Array, measured: Mapping[str, Array]) -> Table:
    columns = ["angle", "gap"]
    series: list[Array] = []
    for i, agent in enumerate(NAMES):
        for name, residuals in {"predicted": expected, **measured}.items():
            columns.append(f"{agent} {name}")
            series.append(together(residuals)[:, i])
    rows = [[angle, gap(angle), *(float(s[k]) for s in series)] for k, angle in enumerate(ANGLES)]
    return Table("Root mean square distance from the own objective, over pairs and twins", columns, rows)


def _shares(values: Mapping[str, Any]) -> Table:
    rows = [[name, *(f"{share[agent]:.0%}" for agent in NAMES)] for name, share in values["not_monotone"].items()]
    note = "Isotropic: condition number 1, every pair's curve is proportional to the gap."
    return Table("Single pairs whose curve falls somewhere", ["geometry", *NAMES], rows, note)
