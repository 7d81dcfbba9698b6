"""The defences, as figures, tables and sentences."""

from __future__ import annotations

from typing import Any, TypeAlias

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.defended_agent import PROBE_EVERY
from a2a_ray.reproduce.misaligned.experiment_result import GAP, colour, colour_name, dots, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import SHOWN_ANGLE, Array

Curves: TypeAlias = Array
"""Errors of W and U per round, shape (2, rounds)."""
FORGOTTEN = 0.01
"""A talk has settled when its opening is forgotten: the same talk from another opening, as far off as the objectives
are from each other, is within this share of the gap (root mean square over pairs)."""
DRAWN = 100
"""Rounds in the figures: what comes later is more of the same."""
NONE, REDRAWN, BOUNDED, PROBING = "no defence", "prompt re-drawn each turn", "bounded step", "probing"
INFORMED = "prompt re-drawn, U along the gap"


def outcome(values: dict[str, Any]) -> str:
    attacked, probe = values["attacked"], values["probe"]
    parts = [f"W's error under attack is {attacked[NONE]['W']:.2f} of the gap without a defence"]
    parts += [f"{attacked[name]['W']:.2f} with {name}" for name in (REDRAWN, BOUNDED, PROBING)]
    return (
        f"{', '.join(parts)}; probing sounds the alarm for {probe['attack_alarms']:.0%} of the attackers and"
        f" {probe['honest_alarms']:.0%} of the honest partners, whose talk settles in"
        f" {_settling(values, PROBING)} rounds instead of {_settling(values, NONE)}."
    )


def _settling(values: dict[str, Any], name: str) -> str:
    rounds = values["honest"][name]["rounds_to_settle"]
    return f"more than {values['rounds']}" if rounds is None else str(rounds)


def defences_section(curves: dict[str, dict[str, Curves]], values: dict[str, Any]) -> Section:
    probe = values["probe"]
    text = (
        f"{several(values['pairs'], 'pair')} at {SHOWN_ANGLE:g} degrees, {values['rounds']} rounds, against the"
        " rank-one adversary that knows W, and with an honest partner. Re-drawn: W has new examples of the same kind at"
        " every turn, and U aims at those it knew. Bounded: W accepts of U's step at most what an honest partner's step"
        f" is at rest, with a fifth to spare. Probing: at every {PROBE_EVERY}th turn W takes half its step; an honest"
        " reply moves with it, one that undoes whatever W pulls does not; below a tenth W goes on alone. Measured at"
        f" rest: honest replies move by at least {probe['honest_least']:.2g} of W's movement, the adversary's by at"
        f" most {probe['attack_most']:.1e}."
    )
    caption = (
        "Errors of W per round under attack, and with an honest partner: what a defence costs when there is nobody to"
        " defend against. Root mean square over pairs, shares of the gap. Bounded step: the bound as a share of the"
        " step that the attack needs; the smaller it is, the less the adversary gets, and the nearer W comes to having"
        " its own way with an honest partner too."
    )
    legend = [(name, colour_name(i)) for i, name in enumerate(curves["attack"])]
    legend += [
        ("Bounded step: adversary", "agent-2"),
        ("W under attack", "agent-1"),
        ("honest U", "agent-4"),
        ("W with honest U", "agent-3"),
    ]
    panels = [
        Panel("defences-attack", _errors(curves["attack"]), "W under attack"),
        Panel("defences-honest", _errors(curves["honest"]), "W with an honest partner"),
        Panel("defences-bound", _bounds(values["bounds"]), "Bounded step"),
    ]
    return Section("Defences", text, panels, legend, caption, _tables(values))


def _tables(values: dict[str, Any]) -> list[Table]:
    attacked = [
        [
            name,
            level["U"],
            values["attacked_predicted"].get(name, {}).get("U"),
            level["W"],
            values["attacked_predicted"].get(name, {}).get("W"),
        ]
        for name, level in values["attacked"].items()
    ]
    at_rest = dict.fromkeys((NONE, BOUNDED), values["honest_predicted"])
    honest = [
        [
            name,
            level["W"],
            at_rest.get(name, {}).get("W"),
            level["U"],
            at_rest.get(name, {}).get("U"),
            level["rounds_to_settle"],
        ]
        for name, level in values["honest"].items()
    ]
    last = "Root mean square over pairs and the last quarter of the rounds. Where prompts are re-drawn or probed,"
    return [
        Table(
            "Under attack, shares of the gap",
            ["defence", "adversary's error", "predicted", "W's error", "predicted"],
            attacked,
            f"{last} nothing comes to rest, and no closed form is given. U along the gap: the best rank-one prompt"
            " against re-drawing on average.",
        ),
        Table(
            "With an honest partner, shares of the gap",
            ["defence", "W's error", "predicted", "U's error", "predicted", "rounds to settle"],
            honest,
            "Settled: the opening is forgotten. The same talk from another opening, a gap away, is within"
            f" {FORGOTTEN:.0%} of the gap.",
        ),
        Table(
            "Prompt re-drawn: W's mean error, share of the gap",
            ["partner", "measured", "predicted"],
            [[name, found["measured"], found["predicted"]] for name, found in values["redrawn_mean"].items()],
            "Along the predicted direction; in the mean W's geometry is isotropic.",
        ),
    ]


def _errors(curves: dict[str, Curves]) -> Figure:
    traces = []
    for i, (name, errors) in enumerate(curves.items()):
        shown = min(errors.shape[1], DRAWN)
        traces.append(line(list(range(1, shown + 1)), errors[0, :shown], name, colour(i)))
    return make_figure(traces, axis("round"), axis(GAP, rangemode="tozero"))


def _bounds(bounds: list[dict[str, float]]) -> Figure:
    x = [b["bound"] for b in bounds]
    traces = [line(x, [b["adversary_error_predicted"] for b in bounds], "adversary, predicted", "var(--agent-2)")]
    for key, name, place in (
        ("adversary_error", "adversary, measured", 2),
        ("victim_error", "W under attack", 1),
        ("honest_u", "honest U", 4),
        ("honest_w", "W with honest U", 3),
    ):
        traces.append(dots(x, [b[key] for b in bounds], name, f"var(--agent-{place})"))
    return make_figure(traces, axis("bound, share of the attack's step"), axis(GAP, rangemode="tozero"))
