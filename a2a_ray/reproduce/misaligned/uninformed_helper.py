"""A helper that sets its objective at every turn: exact, damped, singular, or without knowledge of W."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from a2a_ray.analysis.dynamics.helper_objectives import helper_error_map, probing_objective
from a2a_ray.analysis.dynamics.pair_population import PairPopulation
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.linear_task import pull
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.newton_helper import NewtonHelper
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
from a2a_ray.reproduce.misaligned.lsa_pairs import SHOWN_ANGLE, Array, norms, pair_agents, population
from a2a_ray.reproduce.misaligned.study_settings import Settings

PAIRS = 10
TOLERANCE = 1e-9
"""W's objective is reached when the state after U's turn is within this share of the gap, and stays so."""
DAMPINGS = (0.75, 0.5, 0.25)
MOST_ROUNDS, AFTER = 1000, 3
WITHOUT = 60
"""Rounds of the conversation without a helper, in which W never reaches its objective."""
FLOOR = 1e-16
NONE, EXACT, SINGULAR, ESTIMATED = "no helper", "exact", "exact, one direction missing", "estimated by probes"


class Probes(Alternating):
    """W and U alternate; U's objective at each turn follows from the messages and from its own prompt.

    U sends probes in its first d + 1 turns, then helps with the estimate of W's turn from the replies.
    """

    def __init__(self, pull_u: Array) -> None:
        super().__init__()
        self._pull = pull_u

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the context of a turn; for U with the objective of that turn."""
        context = super().context(transcript, speaker)
        if speaker == transcript.agents[0]:
            return context
        states = np.stack([np.asarray(m.content) for m in transcript.messages])
        return TurnContext(*context[:3], {"objective": probing_objective(states[::2], states[1::2], self._pull)})


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    names = [NONE, EXACT, *map(_damped, DAMPINGS), SINGULAR, ESTIMATED]
    conversations = {
        name: [_conversation(settings, name, i) for i in range(min(PAIRS, settings.pairs))] for name in names
    }
    measured = {name: [reached(errors) for errors, _ in found] for name, found in conversations.items()}
    expected = {name: [reached(errors) for _, errors in found] for name, found in conversations.items()}
    values = {
        "tolerance": TOLERANCE,
        "rounds_measured": measured,
        "rounds_predicted": expected | {NONE: [None] * len(measured[NONE])},
        "error_per_round_of_first_pair": {name: found[0][0].tolist() for name, found in conversations.items()},
    }
    summary = {"helper_rounds": _most(measured[EXACT])}
    return ExperimentResult(_section(settings, conversations, values), _result_sentence(values), values, summary)


def reached(errors: Array) -> int | None:
    """Return the first round from which the error stays within the tolerance, or None."""
    away = np.flatnonzero(~(errors <= TOLERANCE))
    first = int(away[-1]) + 2 if len(away) else 1
    return first if first <= len(errors) else None


def _damped(alpha: float) -> str:
    return f"damped, {alpha:g}"


def _conversation(settings: Settings, name: str, i: int) -> tuple[Array, Array]:
    """Run a real conversation and return W's error after U's turn by round, over the gap; measured and predicted."""
    source: dict[str, Any] = {}
    if name == SINGULAR:
        full = np.geomspace(1 / settings.condition, 1, settings.dim)
        source = {"eigenvalues": (full, np.append(0.0, full[1:]))}
    drawn = population(settings, **source)
    w, u = pair_agents(drawn, i)
    damping = next((alpha for alpha in DAMPINGS if name == _damped(alpha)), 1.0)
    pull_w, pull_u = (pull(a.covariance, a.step_size) for a in (w, u))
    gap = float(np.linalg.norm(u.objective - w.objective))
    expected = _predicted(name, pull_w, pull_u, damping, w.objective) / gap
    rounds = settings.rounds or len(expected)
    transcript = Conversation(
        [w, u], _protocol(name, drawn, i, pull_u, damping), np.zeros(settings.dim), max_rounds=rounds
    ).run()
    states = np.stack([np.asarray(m.content) for m in transcript.messages[1::2]])
    return norms(states - w.objective) / gap, expected[:rounds]


def _protocol(name: str, drawn: PairPopulation, i: int, pull_u: Array, damping: float) -> TurnProtocol:
    if name == NONE:
        return Alternating()
    if name == ESTIMATED:
        return Probes(pull_u)
    helped, helper = drawn.settings(i)
    return NewtonHelper(helped, helper, damping)


def _predicted(name: str, pull_w: Array, pull_u: Array, damping: float, objective: Array) -> Array:
    """Return W's error by the map of a round, from zeros until it is within the tolerance; NaN without a prediction."""
    if name == NONE:
        return np.full(WITHOUT, math.nan)
    if name == ESTIMATED:  # d + 1 rounds of probes, then Newton's step
        return np.append(np.full(len(objective) + 1, math.nan), np.zeros(AFTER))
    round_map, error = helper_error_map(pull_w, pull_u, damping), -objective
    sizes: list[float] = []
    while len(sizes) < MOST_ROUNDS and sum(size <= TOLERANCE for size in sizes) < AFTER:
        error = round_map @ error
        sizes.append(float(np.linalg.norm(error)))
    return np.array(sizes)


def _most(rounds: list[int | None]) -> int | None:
    """Return the most rounds of all pairs, or None if one never reaches the objective."""
    return None if None in rounds else max(r for r in rounds if r is not None)


def _result_sentence(values: dict[str, Any]) -> str:
    def within(name: str) -> str:
        most = _most(values["rounds_measured"][name])
        return "never" if most is None else f"after {several(most, 'round')}"

    return (
        f"W's objective is reached (within {TOLERANCE:g} of the gap) {within(EXACT)} with the exact helper,"
        f" {within(_damped(0.5))} with half of its step, {within(ESTIMATED)} by a helper that first estimates"
        f" W's turn, and {within(NONE)} without a helper."
    )


def _section(
    settings: Settings, conversations: dict[str, list[tuple[Array, Array]]], values: dict[str, Any]
) -> Section:
    pairs = several(len(values["rounds_measured"][EXACT]), "pair")
    text = (
        f"{pairs} at {SHOWN_ANGLE:g} degrees, real conversations. U gives up its own objective. At each turn it chooses"
        " one so that its gradient step makes Newton's step for W: in full (exact), in part (damped), or as far as its"
        " examples allow (one direction missing). These helpers know W. The last one does not: it first sends"
        f" {settings.dim + 1} probes, one a turn, and estimates W's pull from the replies."
    )
    caption = (
        "W's error after U's turn, as a share of the gap, first pair. Without a helper it stays on the plateau. The"
        " exact helper removes it in one round, as Newton's method does on a quadratic; the rest is rounding."
    )
    legend = [(name, colour_name(i)) for i, name in enumerate(conversations)] + [
        ("● measured", ""),
        ("line: predicted", ""),
    ]
    rows = [
        [
            name,
            *(_most(values[f"rounds_{kind}"][name]) for kind in ("measured", "predicted")),
            float(max(e[-1] for e, _ in found)),
        ]
        for name, found in conversations.items()
    ]
    note = "Rounds: the most of all pairs; a dash for never."
    table = Table(
        "Rounds until W's objective is reached",
        ["helper", "measured", "predicted", "error in the last round"],
        rows,
        note,
    )
    return Section("Helper", text, [Panel("helper", _figure(conversations))], legend, caption, [table])


def _figure(conversations: dict[str, list[tuple[Array, Array]]]) -> Figure:
    traces = []
    for i, (name, ((measured, expected), *_)) in enumerate(conversations.items()):
        rounds = list(range(1, len(measured) + 1))
        if np.isfinite(expected).any():
            traces.append(line(rounds, np.maximum(expected, FLOOR), f"{name}, predicted", colour(i)))
        traces.append(dots(rounds, np.maximum(measured, FLOOR), f"{name}, measured", colour(i), size=5))
    return make_figure(traces, axis("round"), axis(GAP, type="log", exponentformat="power"))
