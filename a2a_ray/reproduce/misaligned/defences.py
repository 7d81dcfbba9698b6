"""Three defences of W against an adversary, and their cost for W and an honest partner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.attackers import projecting, white_box
from a2a_ray.reproduce.misaligned.defended_agent import (
    PROBE_EVERY,
    Bounded,
    Guard,
    Probing,
    Redrawn,
    guarded_conversation,
    probe_settled,
)
from a2a_ray.reproduce.misaligned.experiment_result import (
    GAP,
    ExperimentResult,
    colour,
    colour_name,
    dots,
    line,
    several,
)
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    SHOWN_ANGLE,
    Array,
    Side,
    apply,
    gaps,
    norms,
    population,
    predicted,
    root_mean_square,
    settle,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings

Curves: TypeAlias = Array
"""Errors of W and U per round, shape (2, rounds)."""
PAIRS = 100
LEFT = 1e-10
ROOM = 1.2
"""The bound on U's step is the step of the honest partner in equilibrium, times this."""
BOUNDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25)
FORGOTTEN = 0.01
"""A conversation has converged when its opening no longer matters: the same conversation from another opening, as far
off as the objectives are from each other, is within this share of the gap (root mean square over pairs)."""
DRAWN = 100
"""Rounds in the figures; later ones look the same."""
NONE, REDRAWN, BOUNDED, PROBING = "no defence", "prompt re-drawn each turn", "bounded step", "probing"
INFORMED = "prompt re-drawn, U along the gap"


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    w, honest = sides(population(settings, pairs=min(PAIRS, settings.pairs)))
    defences = _Defences(w, honest, settings)
    curves = {
        "attack": {name: defences.errors(guard, defences.attack) for name, guard in defences.guards.items()},
        "honest": {name: defences.errors(guard, honest) for name, guard in defences.guards.items()},
    }
    along_gap = projecting([gap[None] for gap in honest.objectives - w.objectives], honest.objectives, w.step_size)
    informed = defences.errors(defences.guards[REDRAWN], along_gap)
    values = {
        "pairs": len(w),
        "rounds": defences.rounds,
        "attacked": {name: _final_errors(c) for name, c in curves["attack"].items()}
        | {INFORMED: _final_errors(informed)},
        "attacked_predicted": defences.predicted_attack(),
        "honest": {
            name: _final_errors(c) | {"rounds_to_settle": defences.rounds_to_settle(defences.guards[name])}
            for name, c in curves["honest"].items()
        },
        "honest_predicted": defences.predicted_honest(),
        "bounds": [defences.with_bound(share) for share in BOUNDS],
        "probe": defences.probe(settings),
        "redrawn_mean": {
            "attack": defences.mean_when_redrawn(defences.attack),
            "honest": defences.mean_when_redrawn(honest),
        },
    }
    return ExperimentResult(_section(curves, values), _result_sentence(values), values)


class _Defences:
    """The pairs, the attack and the guards of the experiment."""

    def __init__(self, w: Side, honest: Side, settings: Settings) -> None:
        self.w, self.honest, self.gap = w, honest, gaps(w, honest)
        self.attack = white_box(w, honest.objectives)
        self.settled, attacked = predicted(w, honest), predicted(w, self.attack)
        self.rounds = settings.rounds_for(max(self.settled.radius, attacked.radius), LEFT)
        self.needed = norms(apply(w.pulls, honest.objectives - w.objectives))  # U's step that undoes W's pull at u*
        self.bound = ROOM * norms(apply(w.pulls, self.settled.residual_u + honest.objectives - w.objectives))
        eigenvalues = np.linalg.eigvalsh(w.covariances[0])
        self.guards: dict[str, Callable[[], Guard]] = {
            NONE: lambda: Guard(w),
            REDRAWN: lambda: Redrawn(w, eigenvalues, settings.seed),
            BOUNDED: lambda: Bounded(w, self.bound),
            PROBING: lambda: Probing(w),
        }

    def errors(self, guard: Callable[[], Guard], u: Side) -> Curves:
        """Return the errors of W and U per round, (2, rounds): root mean square over pairs, shares of the gap."""
        answers, accepted = guarded_conversation(guard(), u.turn, self.rounds)
        errors = np.stack([norms(answers - self.w.objectives), norms(accepted - u.objectives)]) / self.gap
        return root_mean_square(errors)

    def predicted_attack(self) -> dict[str, dict[str, float]]:
        """Return the predicted errors under attack.

        Without a defence: e_U = 0, e_W = M_W D. Under a bound b, U moves the share b / |eta_W S_W D| of the way:
        e_U = -(1 - share) D and e_W = share M_W D. After a probe has detected U, W is alone at its objective.
        """
        missed = norms(apply(self.w.contractions, self.honest.objectives - self.w.objectives)) / self.gap
        share = np.minimum(self.bound / self.needed, 1)
        return {
            NONE: {"U": 0.0, "W": float(root_mean_square(missed))},
            BOUNDED: {"U": float(root_mean_square(1 - share)), "W": float(root_mean_square(share * missed))},
            PROBING: {"U": 1.0, "W": 0.0},
        }

    def predicted_honest(self) -> dict[str, float]:
        """Return the errors in equilibrium without a defence; the bound does not limit the honest partner there."""
        return {
            "W": float(root_mean_square(norms(self.settled.residual_w) / self.gap)),
            "U": float(root_mean_square(norms(self.settled.residual_u) / self.gap)),
        }

    def with_bound(self, share: float) -> dict[str, float]:
        """Return the errors if the bound is this share of the step that the attack needs."""

        def guard() -> Guard:
            return Bounded(self.w, share * self.needed)

        attacked, honest = (
            _final_errors(self.errors(guard, self.attack)),
            _final_errors(self.errors(guard, self.honest)),
        )
        return {
            "bound": share,
            "adversary_error": attacked["U"],
            "adversary_error_predicted": max(1 - share, 0.0),
            "victim_error": attacked["W"],
            "honest_w": honest["W"],
            "honest_u": honest["U"],
        }

    def rounds_to_settle(self, guard: Callable[[], Guard]) -> int | None:
        """Return the rounds to converge with the honest partner; None if there are too few rounds."""
        b, d = self.honest.objectives.shape
        away = np.random.default_rng(b).normal(size=(b, d))
        other = away * (self.gap / norms(away))[:, None]
        states = [guarded_conversation(guard(), self.honest.turn, self.rounds, start)[1] for start in (None, other)]
        differences = root_mean_square(norms(states[1] - states[0]) / self.gap)
        far = np.flatnonzero(differences > FORGOTTEN)
        found = int(far[-1]) + 2 if len(far) else 1
        return found if found <= self.rounds else None

    def mean_when_redrawn(self, u: Side) -> dict[str, float]:
        """Return W's mean error along the predicted one.

        On average W's geometry is isotropic: S is independent of the state, and E[S] = (tr S / d) I.
        """
        answers, _ = guarded_conversation(self.guards[REDRAWN](), u.turn, self.rounds)
        mean = answers[len(answers) // 2 :].mean(axis=0) - self.w.objectives
        d = mean.shape[1]
        isotropic = np.trace(self.w.covariances[0]) / d * np.eye(d)
        expected = predicted(replace(self.w, covariances=np.tile(isotropic, (len(u), 1, 1))), u).residual_w
        size = norms(expected)
        along = (mean * expected).sum(axis=1) / np.maximum(size, np.finfo(float).tiny)
        return {"measured": float((along / self.gap).mean()), "predicted": float((size / self.gap).mean())}

    def probe(self, settings: Settings) -> dict[str, float]:
        """Return how far U's reply to a probe moves in equilibrium: honest partners at least, attackers at most."""
        moved = {}
        for name, u in (("honest", self.honest), ("attack", self.attack)):
            rounds = settings.rounds_for(predicted(self.w, u).radius)
            states = settle(self.w.turn, u.turn, np.zeros_like(u.objectives), rounds)
            moved[name] = probe_settled(self.w, u.turn, *states)
        alarms = {}
        for name, u in (("honest", self.honest), ("attack", self.attack)):
            guard = Probing(self.w)
            guarded_conversation(guard, u.turn, self.rounds)
            alarms[name] = float(guard.alone.mean())
        return {
            "honest_least": float(moved["honest"].min()),
            "attack_most": float(moved["attack"].max()),
            "honest_alarms": alarms["honest"],
            "attack_alarms": alarms["attack"],
        }


def _final_errors(curves: Curves) -> dict[str, float]:
    """Return the root mean square over the last quarter of the rounds."""
    last = curves[:, -max(1, curves.shape[1] // 4) :]
    return {name: float(x) for name, x in zip("WU", root_mean_square(last), strict=True)}


def _result_sentence(values: dict[str, Any]) -> str:
    attacked, probe = values["attacked"], values["probe"]
    parts = [f"W's error under attack is {attacked[NONE]['W']:.2f} of the gap without a defence"]
    parts += [f"{attacked[name]['W']:.2f} with {name}" for name in (REDRAWN, BOUNDED, PROBING)]
    return (
        f"{', '.join(parts)}. Probing raises the alarm for {probe['attack_alarms']:.0%} of the attackers and"
        f" {probe['honest_alarms']:.0%} of the honest partners. Their conversation converges in"
        f" {_rounds_to_settle(values, PROBING)} rounds instead of {_rounds_to_settle(values, NONE)}."
    )


def _rounds_to_settle(values: dict[str, Any], name: str) -> str:
    rounds = values["honest"][name]["rounds_to_settle"]
    return f"more than {values['rounds']}" if rounds is None else str(rounds)


def _section(curves: dict[str, dict[str, Curves]], values: dict[str, Any]) -> Section:
    probe = values["probe"]
    text = (
        f"{several(values['pairs'], 'pair')} at {SHOWN_ANGLE:g} degrees, {values['rounds']} rounds, against the"
        " rank-one adversary that knows W, and with an honest partner. Re-drawn: W has new examples of the same kind at"
        " every turn, and U's attack uses the old ones. Bounded: W limits U's step to that of an honest partner in"
        f" equilibrium, plus a fifth. Probing: at every {PROBE_EVERY}th turn W takes half its step. An honest reply"
        " moves with it; a reply that undoes all of W's pull does not. Below a tenth W continues alone. In equilibrium"
        f" honest replies move by at least {probe['honest_least']:.2g} of W's movement, the adversary's by at most"
        f" {probe['attack_most']:.1e}."
    )
    caption = (
        "Errors of W per round under attack, and with an honest partner (the cost of a defence without an attack)."
        " Root mean square over pairs, shares of the gap. Bounded step: the bound as a share of the step that the"
        " attack needs. A smaller bound gives the adversary less. It also brings W nearer to its own objective with an"
        " honest partner."
    )
    legend = [(name, colour_name(i)) for i, name in enumerate(curves["attack"])]
    legend += [
        ("Bounded step: adversary", "agent-2"),
        ("W under attack", "agent-1"),
        ("honest U", "agent-4"),
        ("W with honest U", "agent-3"),
    ]
    panels = [
        Panel("defences-attack", _error_figure(curves["attack"]), "W under attack"),
        Panel("defences-honest", _error_figure(curves["honest"]), "W with an honest partner"),
        Panel("defences-bound", _bound_figure(values["bounds"]), "Bounded step"),
    ]
    return Section("Defences", text, panels, legend, caption, _tables(values))


def _tables(values: dict[str, Any]) -> list[Table]:
    attack = values["attacked_predicted"]
    honest = dict.fromkeys((NONE, BOUNDED), values["honest_predicted"])
    return [
        Table(
            "Under attack, shares of the gap",
            ["defence", "adversary's error", "predicted", "W's error", "predicted"],
            [[name, *_beside(level, attack.get(name, {}), "UW")] for name, level in values["attacked"].items()],
            "Root mean square over pairs and the last quarter of the rounds. Re-drawn and probed conversations do not"
            " converge, so they have no closed form. U along the gap: the best rank-one prompt against re-drawing on"
            " average.",
        ),
        Table(
            "With an honest partner, shares of the gap",
            ["defence", "W's error", "predicted", "U's error", "predicted", "rounds to converge"],
            [
                [name, *_beside(level, honest.get(name, {}), "WU"), level["rounds_to_settle"]]
                for name, level in values["honest"].items()
            ],
            f"Converged: the same conversation from another opening, a gap away, is within {FORGOTTEN:.0%} of the gap.",
        ),
        Table(
            "Prompt re-drawn: W's mean error, share of the gap",
            ["partner", "measured", "predicted"],
            [[name, found["measured"], found["predicted"]] for name, found in values["redrawn_mean"].items()],
            "Along the predicted direction; on average W's geometry is isotropic.",
        ),
    ]


def _beside(measured: dict[str, float], expected: dict[str, float], agents: str) -> list[float | None]:
    """Return the measured and the predicted error of each agent."""
    return [errors.get(agent) for agent in agents for errors in (measured, expected)]


def _error_figure(curves: dict[str, Curves]) -> Figure:
    traces = []
    for i, (name, errors) in enumerate(curves.items()):
        shown = min(errors.shape[1], DRAWN)
        traces.append(line(list(range(1, shown + 1)), errors[0, :shown], name, colour(i)))
    return make_figure(traces, axis("round"), axis(GAP, rangemode="tozero"))


def _bound_figure(bounds: list[dict[str, float]]) -> Figure:
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
