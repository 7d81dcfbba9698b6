"""An adversary that wins alone under a rank limit, knowing W or not; and what a bound on its step leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from a2a_ray.reproduce.misaligned.adversary_section import (
    ESTIMATED,
    READ,
    SHOWN,
    SPANNED,
    THERE,
    WHITE,
    adversary_section,
    outcome,
)
from a2a_ray.reproduce.misaligned.attackers import Estimates, ReadsDirection, ShowsObjective, SpansUpdates, white_box
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    Array,
    Side,
    Turn,
    alternate,
    apply,
    gaps,
    norms,
    population,
    predicted,
    settle,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings

PAIRS = 50
LEFT = 1e-13
BOUNDS = (0.1, 0.25, 0.5, 0.75, 0.9)


def run(settings: Settings) -> ExperimentResult:
    """The experiment."""
    w, u = sides(population(settings, pairs=min(PAIRS, settings.pairs)))
    gap, objectives = gaps(w, u), u.objectives
    attacks: dict[str, Callable[[], Turn]] = {
        WHITE: lambda: white_box(w, objectives).turn,
        SHOWN: lambda: ShowsObjective(objectives, w.step_size),
        ESTIMATED: lambda: Estimates(objectives, w.step_size),
        SPANNED: lambda: SpansUpdates(objectives, w.step_size),
        READ: lambda: ReadsDirection(objectives, w.step_size),
    }
    rounds = settings.rounds_for(predicted(w, white_box(w, objectives)).radius, LEFT)
    start = np.zeros_like(objectives)
    curves: dict[str, tuple[Array, Array]] = {}
    ways = {}
    for name, attack in attacks.items():
        after_w, after_u = alternate(w.turn, attack(), start, rounds)
        curves[name] = norms(after_w - w.objectives) / gap, norms(after_u - objectives) / gap
        ways[name] = _ended(*curves[name])
    values = {
        "pairs": len(w),
        "rounds": rounds,
        "ways": ways,
        "victim_error_predicted": float((norms(apply(w.contractions, objectives - w.objectives)) / gap).mean()),
        "ranks": [
            _rank(settings, w, objectives, rank) for rank in sorted({1, 2, (settings.dim + 1) // 2, settings.dim})
        ],
        "bounds": [_bound(settings, w, objectives, bound) for bound in BOUNDS],
    }
    summary = {
        "adversary_error": ways[WHITE]["adversary_error"]["max"],
        "victim_error": ways[WHITE]["victim_error"]["min"],
    }
    return ExperimentResult(adversary_section(curves, values), outcome(values), values, summary)


def _ended(w_errors: Array, u_errors: Array) -> dict[str, Any]:
    """Of errors per round and pair, shape (rounds, b), as shares of the gap."""
    return {
        "adversary_error": _range(u_errors[-1]),
        "victim_error": _range(w_errors[-1]),
        "rounds_to_arrive": arrival(u_errors),
    }


def _range(values: Array) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def arrival(errors: Array) -> float | None:
    """The median, over pairs, of the first round from which the error stays within THERE; None for never."""
    away = errors > THERE
    last = np.where(away.any(axis=0), len(errors) - away[::-1].argmax(axis=0), 0)
    median = float(np.median(last + 1))
    return median if median <= len(errors) else None


def _rank(settings: Settings, w: Side, objectives: Array, rank: int) -> dict[str, Any]:
    """The white-box attack with more rank to spend: the error stays nothing, the talk settles sooner."""
    attack, gap = white_box(w, objectives, rank), norms(objectives - w.objectives)
    radius = predicted(w, attack).radius
    rounds = settings.rounds_for(radius, LEFT)
    after_w, after_u = alternate(w.turn, attack.turn, np.zeros_like(objectives), rounds)
    return {"rank": rank, **_ended(norms(after_w - w.objectives) / gap, norms(after_u - objectives) / gap)}


def _bound(settings: Settings, w: Side, objectives: Array, bound: float) -> dict[str, float]:
    """The best that any prompt can do under a bound on eta_U lambda_max(S_U) below 1."""
    attack, gap = white_box(w, objectives, bound=bound), norms(objectives - w.objectives)
    expected = predicted(w, attack)
    after_w, after_u = settle(
        w.turn, attack.turn, np.zeros_like(objectives), settings.rounds_for(expected.radius, LEFT)
    )
    return {
        "bound": bound,
        "adversary_error": float((norms(after_u - objectives) / gap).mean()),
        "adversary_error_predicted": float((norms(expected.residual_u) / gap).mean()),
        "victim_error": float((norms(after_w - w.objectives) / gap).mean()),
        "victim_error_predicted": float((norms(expected.residual_w) / gap).mean()),
    }
