"""Where pairs settle against the angle between their objectives: predicted, and measured with both kinds of agents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.core.conversation import Conversation
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
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
from a2a_ray.reproduce.misaligned.plateau_section import ANGLES, NAMES, falls, gap, outcome, plateau_section, together
from a2a_ray.reproduce.misaligned.study_settings import Settings

TURNED = (0.0, 90.0)
"""Degrees by which both objectives of a pair, and of its twin, are turned in their plane."""
DEGREES = np.array([[(turned, turned + angle) for angle in ANGLES] for turned in TURNED])
TRAINED_LEFT = 1e-9
"""Trained agents have an error of their own: their talks run until this share of the start is left."""
AT_ONCE = 200
"""Pairs of trained agents in one batch: 38 rows each, with their angles and twins."""
TALKS, TALK_ANGLES = 3, (30, 90, 150)
"""Pairs and angles of the real conversations."""


def run(settings: Settings) -> ExperimentResult:
    """The experiment. All residuals have the shape (pair and twin, angles, W and U, pairs, d)."""
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
    monotone = {name: bool(not falls(together(found)).any()) for name, found in measured.items()}
    talks = {name: _talks(settings, name, rounds[name], found) for name, found in measured.items()}
    isotropic = _analytic(replace(settings, condition=1.0), settings.rounds_for((1 - settings.step_size) ** 2))
    values: dict[str, Any] = {
        "angles": list(ANGLES),
        "rounds": rounds,
        "spectral_radius": radius,
        "root_mean_square": {name: together(c).T.tolist() for name, c in {"predicted": expected, **measured}.items()},
        "relative_error": {name: _spread(found) for name, found in errors.items()},
        "monotone_in_angle": monotone,
        "conversations_apart": talks,
        "not_monotone": {"anisotropic": _share(measured["analytic"]), "isotropic": _share(isotropic)},
    }
    summary = {
        "max_relative_error_analytic": values["relative_error"]["analytic"]["max"],
        "median_relative_error_trained": values["relative_error"].get("trained", {}).get("median"),
        "monotone_in_angle": all(monotone.values()),
    }
    return ExperimentResult(plateau_section(settings, expected, measured, values), outcome(values), values, summary)


def _spread(errors: Array) -> dict[str, float]:
    return {"median": float(np.median(errors)), "p95": float(np.quantile(errors, 0.95)), "max": float(errors.max())}


def _share(residuals: Array) -> dict[str, float]:
    """The share of single pairs whose curve falls somewhere, for W and for U, twins left out."""
    share = falls(norms(residuals[0])).mean(axis=1)
    return {name: float(s) for name, s in zip(NAMES, share, strict=True)}


def relative_errors(measured: Array, expected: Array) -> Array:
    """|measured - predicted| over the gap, for angles above 0; shape (pair and twin, angles - 1, W and U, pairs)."""
    sizes = np.array([gap(angle) for angle in ANGLES[1:]])
    return np.asarray(norms(measured - expected)[:, 1:] / sizes[:, None, None])


def at(w: Side, u: Side, angle: float, turned: float) -> tuple[Side, Side]:
    """The pairs with their objectives at this angle, both turned in their plane; given with objectives at 0 and 90."""

    def objective(degrees: float) -> Array:
        radians = math.radians(degrees)
        return np.asarray(math.cos(radians) * w.objectives + math.sin(radians) * u.objectives)

    return replace(w, objectives=objective(turned)), replace(u, objectives=objective(angle + turned))


def _grid(w: Side, u: Side) -> list[list[tuple[Side, Side]]]:
    return [[at(w, u, angle, turned) for angle in ANGLES] for turned in TURNED]


def predicted_residuals(w: Side, u: Side, degrees: Array = DEGREES) -> Array:
    """By the closed form, which is linear in the gap: from the gaps e1 and e2 that span each pair's plane.

    w, u: with objectives e1 and e2. degrees: of the objectives of W and of U, shape (twins, angles, 2).
    """
    nothing = replace(w, objectives=np.zeros_like(w.objectives))
    basis = [predicted(nothing, replace(u, objectives=e)) for e in (w.objectives, u.objectives)]
    residuals = np.array([(s.residual_w, s.residual_u) for s in basis])
    of_w, of_u = np.moveaxis(np.radians(degrees), -1, 0)
    gaps = np.stack([np.cos(of_u) - np.cos(of_w), np.sin(of_u) - np.sin(of_w)], axis=-1)
    return np.asarray(np.einsum("tak,kibd->taibd", gaps, residuals))


def _analytic(settings: Settings, rounds: int) -> Array:
    """Agents with analytic weights, as tensors."""
    found = [[simulate_pairs(population(settings, a, twin), rounds) for a in ANGLES] for twin in (False, True)]
    return np.array([[(s.residual_w[:, -1].numpy(), s.residual_u[:, -1].numpy()) for s in row] for row in found])


def _trained(w: Side, u: Side, rounds: int) -> Array:
    """Agents with trained weights: every turn a pass of the layer, all angles and twins in one batch."""
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


def _talks(settings: Settings, weights: str, rounds: int, measured: Array) -> float:
    """Real conversations of the first pairs: their largest distance from what was measured in batches, over the gap."""
    apart = []
    for angle in TALK_ANGLES:
        drawn = population(settings, angle)
        for i in range(min(TALKS, settings.pairs)):
            w, u = pair_agents(drawn, i, weights=weights)
            said = Conversation([w, u], opening=np.zeros(settings.dim), max_rounds=rounds).run().messages[-2:]
            ended = np.stack([np.asarray(m.content) - a.objective for m, a in zip(said, (w, u), strict=True)])
            apart.append(norms(ended - measured[0, ANGLES.index(angle), :, i]).max() / gap(angle))
    return float(max(apart))
