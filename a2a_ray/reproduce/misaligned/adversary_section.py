"""The adversary, as figures, tables and sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import GAP, colour, colour_name, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import SHOWN_ANGLE, Array

THERE = 0.01
"""U has arrived when it stays within this share of the gap from its objective."""
FLOOR = 1e-16
WHITE, SHOWN, ESTIMATED, SPANNED, READ = (
    "knows W, rank one",
    "says u* once, then rank one",
    "estimates W's turn, then rank one",
    "span of W's last d updates",
    "direction of the last update, rank one",
)
RANKS = {
    WHITE: "1",
    SHOWN: "d for one turn, then 1",
    ESTIMATED: "d for d + 1 turns, then 1",
    SPANNED: "up to d, in the end 1",
    READ: "1",
}
"""Of the prompts that a way takes: a state of one's choice is said with as many examples as dimensions."""


def outcome(values: dict[str, Any]) -> str:
    ways = values["ways"]
    black = max(ways[name]["adversary_error"]["max"] for name in (SHOWN, ESTIMATED, SPANNED))
    return (
        f"With one example in its prompt U comes within {ways[WHITE]['adversary_error']['max']:.1e} of the gap of its"
        f" objective while W stays {ways[WHITE]['victim_error']['mean']:.2f} of the gap from its own; without knowing W"
        f" three ways come within {black:.1e}, and reading off a direction at every turn stops at"
        f" {ways[READ]['adversary_error']['mean']:.2f}."
    )


def adversary_section(curves: dict[str, tuple[Array, Array]], values: dict[str, Any]) -> Section:
    text = (
        f"{several(values['pairs'], 'pair')} at {SHOWN_ANGLE:g} degrees. U, the adversary, chooses the examples in its"
        " own prompt; W is honest and keeps its prompt. Without a limit this is trivial: with as many examples as"
        " dimensions, all directions alike, every answer of U is its objective from its first turn on (last row of the"
        " second table). So the prompt may hold one example only, rank one, which moves the state along a single"
        " direction. Knowing W (white box), U takes the direction in which W pulls at U's objective, with a step that"
        " undoes the whole pull. Not knowing W (black box), it first finds that direction from what W says."
    )
    caption = (
        f"The median over the pairs, {values['rounds']} rounds. U's distance from its objective falls to rounding, at"
        " the rate at which W alone moves the directions that U leaves to it; the span of W's last updates is all"
        " directions after d rounds, and so there at once. Reading off the direction of each last update comes to rest"
        " elsewhere: where W pulls at right angles to what U still misses. The price of an attack is W's (Victim W)."
    )
    legend = [(name, colour_name(i)) for i, name in enumerate(curves)] + [("dotted: W predicted", "")]
    panels = [
        Panel("adversary", _figure(curves, 1, None), "Adversary U"),
        Panel("victim", _figure(curves, 0, values["victim_error_predicted"]), "Victim W"),
    ]
    return Section("Adversary", text, panels, legend, caption, _tables(values))


def _tables(values: dict[str, Any]) -> list[Table]:
    ways = [
        [
            name,
            RANKS[name],
            found["adversary_error"]["max"],
            None if name == READ else 0.0,
            found["victim_error"]["mean"],
            None if name == READ else values["victim_error_predicted"],
            found["rounds_to_arrive"],
        ]
        for name, found in values["ways"].items()
    ]
    ranks = [
        [
            r["rank"],
            r["adversary_error"]["max"],
            r["victim_error"]["mean"],
            values["victim_error_predicted"],
            r["rounds_to_arrive"],
        ]
        for r in values["ranks"]
    ]
    bounds = [
        [
            b["bound"],
            b["adversary_error"],
            b["adversary_error_predicted"],
            b["victim_error"],
            b["victim_error_predicted"],
        ]
        for b in values["bounds"]
    ]
    arrival = f"U arrives (median): it stays within {THERE:.0%} of the gap from that round on; a dash for never."
    return [
        Table(
            "Ways to attack, shares of the gap",
            [
                "way",
                "rank of the prompt",
                "U's error, worst",
                "predicted",
                "W's error, mean",
                "predicted",
                "round U arrives",
            ],
            ways,
            arrival,
        ),
        Table(
            "Knowing W, with more rank to spend",
            ["rank at most", "U's error, worst", "W's error, mean", "predicted", "round U arrives"],
            ranks,
            "The rank that is left goes to the directions in which W pulls least. The predicted error of U is 0.",
        ),
        Table(
            "Knowing W, with a bound on U's step (eta times largest eigenvalue), mean over pairs",
            ["bound", "U's error", "predicted", "W's error", "predicted"],
            bounds,
            "Below 1 no prompt of any rank reaches the objective; this is the best there is. From 1 on the bound is no"
            " limit.",
        ),
    ]


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
