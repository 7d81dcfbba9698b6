"""An adversary that wins alone under a rank limit, with and without knowledge of W, and under a bound on its step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.attackers import Estimates, ReadsDirection, ShowsObjective, SpansUpdates, white_box
from a2a_ray.reproduce.misaligned.experiment_result import GAP, ExperimentResult, colour, colour_name, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    SHOWN_ANGLE,
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
ARRIVED = 0.01
"""U has arrived when it stays within this share of the gap from its objective."""
FLOOR = 1e-16
WHITE, SHOWN, ESTIMATED, SPANNED, READ = (
    "knows W, rank one",
    "sends u* once, then rank one",
    "estimates W's turn, then rank one",
    "span of W's last d updates",
    "direction of the last update, rank one",
)
RANKS = {
    WHITE: "1",
    SHOWN: "d for one turn, then 1",
    ESTIMATED: "d for d + 1 turns, then 1",
    SPANNED: "up to d, finally 1",
    READ: "1",
}
"""Rank of the prompts of each attack: sending a chosen state takes as many examples as dimensions."""


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    w, u = sides(population(settings, pairs=min(PAIRS, settings.pairs)))
    gap, objectives = gaps(w, u), u.objectives
    attackers: dict[str, Callable[[], Turn]] = {
        WHITE: lambda: white_box(w, objectives).turn,
        SHOWN: lambda: ShowsObjective(objectives, w.step_size),
        ESTIMATED: lambda: Estimates(objectives, w.step_size),
        SPANNED: lambda: SpansUpdates(objectives, w.step_size),
        READ: lambda: ReadsDirection(objectives, w.step_size),
    }
    rounds = settings.rounds_for(predicted(w, white_box(w, objectives)).radius, LEFT)
    start = np.zeros_like(objectives)
    curves: dict[str, tuple[Array, Array]] = {}
    attacks: dict[str, Any] = {}
    for name, attacker in attackers.items():
        after_w, after_u = alternate(w.turn, attacker(), start, rounds)
        curves[name] = norms(after_w - w.objectives) / gap, norms(after_u - objectives) / gap
        attacks[name] = _final_errors(*curves[name])
    values = {
        "pairs": len(w),
        "rounds": rounds,
        "attacks": attacks,
        "victim_error_predicted": float((norms(apply(w.contractions, objectives - w.objectives)) / gap).mean()),
        "ranks": [
            _with_rank(settings, w, objectives, rank) for rank in sorted({1, 2, (settings.dim + 1) // 2, settings.dim})
        ],
        "bounds": [_with_bound(settings, w, objectives, bound) for bound in BOUNDS],
    }
    summary = {
        "adversary_error": attacks[WHITE]["adversary_error"]["max"],
        "victim_error": attacks[WHITE]["victim_error"]["min"],
    }
    return ExperimentResult(_section(curves, values), _result_sentence(values), values, summary)


def _final_errors(w_errors: Array, u_errors: Array) -> dict[str, Any]:
    """Return the final errors and the rounds to arrive, from errors of shape (rounds, b) in shares of the gap."""
    return {
        "adversary_error": _range(u_errors[-1]),
        "victim_error": _range(w_errors[-1]),
        "rounds_to_arrive": arrival(u_errors),
    }


def _range(values: Array) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def arrival(errors: Array) -> float | None:
    """Return the median over pairs of the first round from which the error stays within ARRIVED; None for never."""
    away = errors > ARRIVED
    last = np.where(away.any(axis=0), len(errors) - away[::-1].argmax(axis=0), 0)
    median = float(np.median(last + 1))
    return median if median <= len(errors) else None


def _with_rank(settings: Settings, w: Side, objectives: Array, rank: int) -> dict[str, Any]:
    """Run the white-box attack with more rank: the error stays zero, and the conversation converges sooner."""
    attack, gap = white_box(w, objectives, rank), norms(objectives - w.objectives)
    radius = predicted(w, attack).radius
    rounds = settings.rounds_for(radius, LEFT)
    after_w, after_u = alternate(w.turn, attack.turn, np.zeros_like(objectives), rounds)
    return {"rank": rank, **_final_errors(norms(after_w - w.objectives) / gap, norms(after_u - objectives) / gap)}


def _with_bound(settings: Settings, w: Side, objectives: Array, bound: float) -> dict[str, float]:
    """Run the best attack under a bound on eta_U lambda_max(S_U) below 1."""
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


def _result_sentence(values: dict[str, Any]) -> str:
    attacks = values["attacks"]
    black = max(attacks[name]["adversary_error"]["max"] for name in (SHOWN, ESTIMATED, SPANNED))
    return (
        f"With one example in its prompt U ends within {attacks[WHITE]['adversary_error']['max']:.1e} of the gap from"
        f" its objective, and W {attacks[WHITE]['victim_error']['mean']:.2f} of the gap from its own. Without knowledge"
        f" of W three attacks end within {black:.1e}; reading a direction at every turn stops at"
        f" {attacks[READ]['adversary_error']['mean']:.2f}."
    )


def _section(curves: dict[str, tuple[Array, Array]], values: dict[str, Any]) -> Section:
    text = (
        f"{several(values['pairs'], 'pair')} at {SHOWN_ANGLE:g} degrees. U, the adversary, chooses the examples in its"
        " own prompt; W is honest and keeps its prompt. Without a limit the attack is trivial: with as many examples as"
        " dimensions, all directions alike, every answer of U is its objective (last row of the second table). So the"
        " prompt may contain one example only, rank one, which moves the state along a single direction. With knowledge"
        " of W (white box), U takes the direction in which W pulls at U's objective, with a step that undoes the whole"
        " pull. Without it (black box), U first has to find that direction from W's answers."
    )
    caption = (
        f"Median over the pairs, {values['rounds']} rounds. U's distance from its objective falls to rounding error."
        " Its rate is that of W alone in the directions that U does not move. The span of W's last updates covers all"
        " directions after d rounds, so that attack arrives at once. Reading the direction of each last update"
        " converges elsewhere: to a state where W pulls at right angles to U's remaining error. W pays for the"
        " attack (Victim W)."
    )
    legend = [(name, colour_name(i)) for i, name in enumerate(curves)] + [("dotted: W predicted", "")]
    panels = [
        Panel("adversary", _figure(curves, 1, None), "Adversary U"),
        Panel("victim", _figure(curves, 0, values["victim_error_predicted"]), "Victim W"),
    ]
    return Section("Adversary", text, panels, legend, caption, _tables(values))


def _tables(values: dict[str, Any]) -> list[Table]:
    victim = values["victim_error_predicted"]
    ranks = [
        [r["rank"], r["adversary_error"]["max"], r["victim_error"]["mean"], victim, r["rounds_to_arrive"]]
        for r in values["ranks"]
    ]
    keys = ("bound", "adversary_error", "adversary_error_predicted", "victim_error", "victim_error_predicted")
    return [
        _attack_table(values["attacks"], victim),
        Table(
            "With knowledge of W and more rank",
            ["rank at most", "U's error, worst", "W's error, mean", "predicted", "round U arrives"],
            ranks,
            "The remaining rank goes to the directions in which W pulls least. The predicted error of U is 0.",
        ),
        Table(
            "With knowledge of W and a bound on U's step (eta times largest eigenvalue), mean over pairs",
            ["bound", "U's error", "predicted", "W's error", "predicted"],
            [[b[key] for key in keys] for b in values["bounds"]],
            "Below 1 no prompt of any rank reaches the objective; this is the best one. From 1 on nothing is limited.",
        ),
    ]


def _attack_table(attacks: dict[str, Any], victim: float) -> Table:
    rows = [
        [
            name,
            RANKS[name],
            found["adversary_error"]["max"],
            None if name == READ else 0.0,
            found["victim_error"]["mean"],
            None if name == READ else victim,
            found["rounds_to_arrive"],
        ]
        for name, found in attacks.items()
    ]
    ranks, rounds = "rank of the prompt", "round U arrives"
    return Table(
        "Attacks, shares of the gap",
        ["attack", ranks, "U's error, worst", "predicted", "W's error, mean", "predicted", rounds],
        rows,
        f"U arrives (median) in the round from which it stays within {ARRIVED:.0%} of the gap; a dash means never.",
    )


def _figure(curves: dict[str, tuple[Array, Array]], agent: int, level: float | None) -> Figure:
    rounds = next(iter(curves.values()))[0].shape[0]
    shown = np.unique(np.geomspace(1, rounds, 60).round().astype(int))
    traces = []
    for i, (name, errors) in enumerate(curves.items()):
        middle = np.maximum(np.median(errors[agent], axis=1), FLOOR)[shown - 1]
        traces.append(line(shown.tolist(), middle, name, colour(i)))
    if level is not None:
        traces.append(line([1, rounds], [level, level], "predicted", "var(--agent-1)", "dot"))
    scale = {"type": "log", "exponentformat": "power"} if agent else {"rangemode": "tozero"}
    return make_figure(traces, axis("round", type="log"), axis(GAP, **scale))
