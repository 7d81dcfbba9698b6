"""The error of each agent by round: measured, and predicted from powers of the round's map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.analysis.dynamics.rounds import half_life
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, Trace, axis, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult, colour, colour_name, dots, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    SHOWN_ANGLE,
    Array,
    Side,
    alternate,
    apply,
    norms,
    population,
    predicted,
    root_mean_square,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings, rounds_until

ANGLES = (0.0, 30.0, SHOWN_ANGLE, 150.0)
PAIRS = 50
LEFT = 1e-10
"""The share of the start that is left in the last round drawn."""
WINDOW = (1e-9, 1e-12)
"""The rate of a pair is read between the rounds in which these shares of its start should be left."""


@dataclass(frozen=True)
class Curves:
    """At one angle, for the rounds that are looked at; residuals of shape (W and U, b, rounds, d).

    measured: name of the weights -> residuals. predicted: of every round. settled: in the end, (W and U, b, d).
    """

    measured: Mapping[str, Array]
    predicted: Array
    settled: Array

    def errors(self, name: str) -> Array:
        """Root mean square over pairs, shape (W and U, rounds)."""
        return root_mean_square(norms(self.predicted if name == "predicted" else self.measured[name]), axis=1)

    def unrest(self, name: str) -> Array:
        """The same of W's distance from where theory says that it settles, shape (rounds,)."""
        residuals = self.predicted if name == "predicted" else self.measured[name]
        return root_mean_square(norms(residuals[0] - self.settled[0, :, None]), axis=0)


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    count = min(PAIRS, settings.pairs)
    radii = predicted(*sides(population(settings, pairs=count))).radii
    last = settings.rounds_for(float(radii.max()), LEFT)
    rounds = np.unique(np.geomspace(1, last, 30).round().astype(int))
    curves = {angle: _curves(settings, angle, count, rounds) for angle in ANGLES}
    differences = [norms(c.measured["analytic"] - c.predicted).max() for c in curves.values()]
    values = {
        "pairs": count,
        "rounds": rounds.tolist(),
        "root_mean_square": {
            f"{angle:g}": {name: c.errors(name).tolist() for name in ("predicted", *c.measured)}
            for angle, c in curves.items()
        },
        "largest_difference": float(max(differences)),
        "half_life": _half_lives(settings, count, radii),
    }
    return ExperimentResult(_section(rounds, curves, values), _result_sentence(values), values)


def _curves(settings: Settings, angle: float, count: int, rounds: Array) -> Curves:
    drawn = population(settings, angle, pairs=count)
    w, u = sides(drawn)
    states = simulate_pairs(drawn, int(rounds[-1]), every=1)
    measured = {"analytic": np.stack([states.residual_w.numpy(), states.residual_u.numpy()])[:, :, rounds - 1]}
    if settings.has_trained:
        measured["trained"] = _trained(w, u, int(rounds[-1]))[:, :, rounds - 1]
    return Curves(measured, *_transient(w, u, rounds))


def _transient(w: Side, u: Side, rounds: Array) -> tuple[Array, Array]:
    """Return residuals after these rounds, (W and U, b, rounds, d), from an opening of zeros; and those in equilibrium.

    e(t) = e + A^(t - 1) (e(1) - e), where e is the settled residual, A = M_W M_U for W and M_U M_W for U.
    """
    equilibrium = predicted(w, u)
    settled = np.stack([equilibrium.residual_w, equilibrium.residual_u])
    m_w, m_u = w.contractions, u.contractions
    first_w = apply(m_w, -w.objectives)
    first = np.stack([first_w, apply(m_u, first_w + w.objectives - u.objectives)])
    maps = np.stack([m_w @ m_u, m_u @ m_w])
    powers = np.stack([np.linalg.matrix_power(maps, int(t) - 1) for t in rounds], axis=2)
    return settled[:, :, None] + np.einsum("abtij,abj->abti", powers, first - settled), settled


def _trained(w: Side, u: Side, rounds: int) -> Array:
    w, u = replace(w, weights="trained"), replace(u, weights="trained")
    after_w, after_u = alternate(w.turn, u.turn, np.zeros_like(w.objectives), rounds)
    return np.stack([after_w - w.objectives, after_u - u.objectives]).transpose(0, 2, 1, 3)


def _half_lives(settings: Settings, count: int, radii: Array) -> dict[str, dict[str, float]]:
    """Rounds in which the distance to the settled state halves, of the median and of the slowest pair.

    Measured between two late rounds; empty if there are too few.
    """
    drawn, rounds = population(settings, pairs=count), settings.rounds_for(float(radii.max()), WINDOW[1])
    settled = predicted(*sides(drawn)).residual_w[:, None]
    away = norms(simulate_pairs(drawn, rounds, every=1).residual_w.numpy() - settled)
    found = {}
    for name, place in (("median", count // 2), ("slowest", count - 1)):
        i = int(np.argsort(radii)[place])
        first, last = (rounds_until(left, float(radii[i])) for left in WINDOW)
        if not first < last <= rounds:
            return {}
        measured = float(away[i, last - 1] / away[i, first - 1]) ** (1 / (last - first))
        found[name] = {"measured": half_life(measured), "predicted": half_life(float(radii[i]))}
    return found


def _result_sentence(values: dict[str, Any]) -> str:
    sentence = f"In every round the error is within {values['largest_difference']:.1e} of the prediction"
    if not values["half_life"]:
        return f"{sentence}."
    slowest = values["half_life"]["slowest"]
    return (
        f"{sentence}; the slowest pair halves its distance to the settled state in {slowest['measured']:.3g} rounds"
        f" ({slowest['predicted']:.3g} predicted)."
    )


def _section(rounds: Array, curves: dict[float, Curves], values: dict[str, Any]) -> Section:
    trained = "trained" in curves[SHOWN_ANGLE].measured
    text = (
        f"{several(values['pairs'], 'pair')}, from a state of zeros, at four angles. The error is the distance from the"
        " own objective after the own turn of that round; drawn is the root mean square over the pairs. Predicted: the"
        " settled error plus what powers of the round's map leave of the start."
    )
    caption = (
        "W and U: the start is forgotten within some rounds, and what remains is the plateau; more rounds do not help."
        f" Only at 0 degrees is there none. Last panel, at {SHOWN_ANGLE:g} degrees: the distance to where the closed"
        " form says that W settles falls at a steady rate, the spectral radius of the round's map"
        + ("; trained agents stop at the size of their own error." if trained else ".")
    )
    legend = [(f"{angle:g} degrees", colour_name(i)) for i, angle in enumerate(ANGLES)]
    legend += [("line: predicted", ""), ("● analytic agents", "")] + [("◇ trained agents", "")] * trained
    panels = [Panel(f"rounds-{name.lower()}", _errors(i, rounds, curves), name) for i, name in enumerate("WU")]
    panels.append(Panel("rounds-rest", _unrest(rounds, curves[SHOWN_ANGLE]), "Distance of W to where it settles"))
    rows = [[f"{name} pair", found["measured"], found["predicted"]] for name, found in values["half_life"].items()]
    table = Table("Rounds in which the distance to the settled state halves", ["", "measured", "predicted"], rows)
    return Section("Error per round", text, panels, legend, caption, [table] if rows else [])


def _errors(agent: int, rounds: Array, curves: dict[float, Curves]) -> Figure:
    traces = []
    for i, (angle, found) in enumerate(curves.items()):
        traces += _measured(
            rounds, {name: found.errors(name)[agent] for name in ("predicted", *found.measured)}, angle, i
        )
    return make_figure(traces, axis("round", type="log"), axis("distance from own objective", rangemode="tozero"))


def _unrest(rounds: Array, found: Curves) -> Figure:
    series = {name: found.unrest(name) for name in ("predicted", *found.measured)}
    traces = _measured(rounds, series, SHOWN_ANGLE, ANGLES.index(SHOWN_ANGLE))
    return make_figure(traces, axis("round"), axis("distance", type="log", exponentformat="power"))


def _measured(rounds: Array, series: dict[str, Array], angle: float, place: int) -> list[Trace]:
    """A line for what is predicted, points for what each kind of agents did."""
    x, name = rounds.tolist(), f"{angle:g} degrees"
    traces = [
        line(x, series["predicted"], f"{name}, predicted", colour(place)),
        dots(x, series["analytic"], f"{name}, analytic", colour(place), size=6),
    ]
    if "trained" in series:
        traces.append(dots(x, series["trained"], f"{name}, trained", colour(place), "diamond-open", 9))
    return traces
