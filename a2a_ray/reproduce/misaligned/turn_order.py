"""Orders of turns: fixed and simultaneous in real conversations, random in many simulated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import LinearAgents, agents_of
from a2a_ray.analysis.dynamics.random_order import RandomEquilibrium, random_permutation, random_speaker
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium, alternating, half_life, simultaneous
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.experiment_result import GAP, ExperimentResult, dots, several
from a2a_ray.reproduce.misaligned.lsa_pairs import Array, norms, pair_agents, population
from a2a_ray.reproduce.misaligned.study_settings import Settings

PAIRS = 10
LEFT = 1e-12
CONVERSATIONS, RANDOM_LEFT, SMALLEST = 4000, 1e-6, 1e-12
"""Conversations of each pair in random order; the share of the start left at the end, in mean and spread; and the least
standard error, since rounding is larger below it."""


@dataclass(frozen=True)
class Fixed:
    """A fixed order: its protocol, its closed form, and the inner steps of W."""

    protocol: Callable[[], TurnProtocol]
    theory: Callable[[LinearAgents], RoundEquilibrium]
    inner_steps: int = 1


FIXED = {
    "W, then U": Fixed(Alternating, alternating),
    "U, then W": Fixed(lambda: Alternating(order=["u", "w"]), lambda a: alternating(a, (1, 0))),
    "W takes 2 steps a turn": Fixed(Alternating, alternating, 2),
    "W takes 5 steps a turn": Fixed(Alternating, alternating, 5),
    "both at once, averaged": Fixed(lambda: Simultaneous("mean"), lambda a: simultaneous(a, "mean")),
    "both at once, two chains": Fixed(Simultaneous, lambda a: simultaneous(a, None)),
}
PERMUTED = "random order each round"
RANDOM: dict[str, Callable[[LinearAgents], RandomEquilibrium]] = {
    "random speaker each turn": random_speaker,
    PERMUTED: random_permutation,
}


@dataclass(frozen=True)
class Row:
    """The results of one order, as means over the pairs of W and U. Distances are shares of the gap.

    measured, predicted: distance of each agent's (mean) state from its objective. error: largest distance of a
    (mean) state from the predicted one. half_life: of the slowest pair, in rounds of two turns. spread: root mean
    square distance of each agent's state from its mean. standard_errors: by how many the worst coordinate is off.
    """

    name: str
    measured: list[float]
    predicted: list[float]
    error: float
    half_life: float
    spread: list[float] | None = None
    predicted_spread: list[float] | None = None
    standard_errors: float | None = None


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    pairs = [pair_agents(population(settings), i) for i in range(min(PAIRS, settings.pairs))]
    rows = [_fixed(name, how, settings, pairs) for name, how in FIXED.items()]
    rng = np.random.default_rng(settings.seed)
    rows += [_random(name, settings, pairs, rng) for name in RANDOM]
    values = {"pairs": len(pairs), "orders": {row.name: asdict(row) for row in rows}}
    return ExperimentResult(_section(settings, rows, len(pairs)), _result_sentence(rows), values)


def _fixed(name: str, how: Fixed, settings: Settings, pairs: list[tuple[LSAAgent, LSAAgent]]) -> Row:
    """Run real conversations."""
    measured, expected, radii = [], [], []
    for w, u in pairs:
        w.inner_steps = how.inner_steps
        theory = how.theory(agents_of([w, u]))
        rounds = settings.rounds_for(theory.spectral_radius, LEFT)
        messages = Conversation([w, u], how.protocol(), np.zeros(settings.dim), max_rounds=rounds).run().messages
        last = {m.sender: np.asarray(m.content) for m in messages}
        gap = np.linalg.norm(u.objective - w.objective)
        measured.append(np.stack([last[a.name] - a.objective for a in (w, u)]) / gap)
        expected.append(theory.residuals / gap)
        radii.append(theory.spectral_radius)
        w.inner_steps = 1
    found, wanted = np.array(measured), np.array(expected)
    return Row(name, _mean(found), _mean(wanted), float(norms(found - wanted).max()), half_life(max(radii)))


def _random(name: str, settings: Settings, pairs: list[tuple[LSAAgent, LSAAgent]], rng: np.random.Generator) -> Row:
    """Simulate many conversations of each pair, each in its own random order."""
    measured, expected, spreads, deviations, radii = [], [], [], [], []
    for w, u in pairs:
        theory = RANDOM[name](agents_of([w, u]))
        rounds = settings.rounds_for(theory.second_moment_radius, RANDOM_LEFT**2)
        speakers = rng.integers(2, size=(rounds, 2, CONVERSATIONS))
        if name == PERMUTED:
            speakers[:, 1] = 1 - speakers[:, 0]
        read = _conversations((w, u), speakers.reshape(2 * rounds, CONVERSATIONS))
        gap = float(np.linalg.norm(u.objective - w.objective))
        variances = np.diagonal(theory.covariances, axis1=1, axis2=2)  # (2, d)
        measured.append((read.mean(axis=1) - np.stack([w.objective, u.objective])) / gap)
        expected.append(theory.residuals / gap)
        spreads.append(np.sqrt([read.var(axis=1, ddof=1).sum(axis=1), variances.sum(axis=1)]) / gap)
        standard_errors = np.maximum(np.sqrt(variances / CONVERSATIONS) / gap, SMALLEST)
        deviations.append(np.abs(measured[-1] - expected[-1]) / standard_errors)
        radii.append(theory.spectral_radius)
    found, wanted = np.array(measured), np.array(expected)
    spread = np.mean(spreads, axis=0)
    return Row(
        name,
        _mean(found),
        _mean(wanted),
        float(norms(found - wanted).max()),
        half_life(max(radii)),
        spread[0].tolist(),
        spread[1].tolist(),
        float(np.max(deviations)),
    )


def _conversations(agents: tuple[LSAAgent, LSAAgent], speakers: NDArray[np.int64]) -> Array:
    """Return the state after each agent's last turn, (2, n, d), of n conversations; speakers: 0 or 1, (turns, n)."""
    d = len(agents[0].objective)
    state, read = np.zeros((speakers.shape[1], d)), np.zeros((2, speakers.shape[1], d))
    for turn in speakers:
        for i, agent in enumerate(agents):
            own = turn == i
            state[own] -= agent.step_size * (state[own] - agent.objective) @ agent.covariance
            read[i, own] = state[own]
    return read


def _mean(residuals: Array) -> list[float]:
    """Return the mean distance of W and of U over the pairs; residuals: (pairs, 2, d)."""
    return [float(x) for x in norms(residuals).mean(axis=0)]


def _result_sentence(rows: list[Row]) -> str:
    fixed, random = [r for r in rows if r.spread is None], [r for r in rows if r.spread is not None]
    low, high = (f([r.measured[0] for r in fixed]) for f in (min, max))
    sentence = (
        f"In every fixed order the agents settle within {max(r.error for r in fixed):.1e} of the gap of the closed"
        f" form; the order alone moves W's plateau between {low:.2f} and {high:.2f} of the gap"
    )
    most = max(r.standard_errors or 0.0 for r in random)
    return f"{sentence}, and the means of random orders are within {most:.1f} standard errors of the closed form."


def _section(settings: Settings, rows: list[Row], pairs: int) -> Section:
    text = (
        f"{several(pairs, 'pair')} at 90 degrees. Fixed orders run real conversations of the agents. Random orders"
        f" simulate {CONVERSATIONS:,} conversations for each pair and report mean and spread."
    )
    caption = (
        "Each agent's settled distance from its objective after its own turn, as a share of the distance between the"
        " objectives. The equilibrium is the same for either first speaker and for two chains side by side. An agent"
        " that takes more steps in a turn pulls it towards its objective. With a random speaker the mean state is that"
        " of averaged turns; the state itself keeps moving: points are means, bars its spread."
    )
    columns = ["order", "W measured", "W predicted", "U measured", "U predicted", "largest error", "half-life (rounds)"]
    table = Table(
        "Distance from the own objective, mean over pairs, share of the gap",
        columns,
        [[r.name, r.measured[0], r.predicted[0], r.measured[1], r.predicted[1], r.error, r.half_life] for r in rows],
        "For random orders, the distance of the mean state. The half-life is that of the slowest pair, predicted.",
    )
    spreads = Table(
        "Random orders: spread of the state around its mean, share of the gap",
        ["order", "W measured", "W predicted", "U measured", "U predicted", "mean off by, standard errors"],
        [
            [r.name, r.spread[0], r.predicted_spread[0], r.spread[1], r.predicted_spread[1], r.standard_errors]
            for r in rows
            if r.spread and r.predicted_spread
        ],
    )
    legend = [
        ("W", "agent-1"),
        ("U", "agent-2"),
        ("● measured", ""),
        ("— predicted", ""),
        ("bar: spread, random orders", ""),
    ]
    tables = [table, spreads] if spreads.rows else [table]
    return Section("Order of turns", text, [Panel("order", _figure(rows))], legend, caption, tables)


def _figure(rows: list[Row]) -> Figure:
    names, traces = [r.name for r in rows], []
    for i, agent in enumerate("WU"):
        colour = f"var(--agent-{i + 1})"
        predicted = dots(names, [r.predicted[i] for r in rows], f"{agent}, predicted", colour, "line-ew-open", 26)
        measured = dots(names, [r.measured[i] for r in rows], f"{agent}, measured", colour)
        bars = [r.spread[i] if r.spread else 0.0 for r in rows]
        measured["error_y"] = {"type": "data", "array": bars, "color": colour, "thickness": 1.5, "width": 4}
        traces += [predicted, measured]
    return make_figure(traces, axis("", tickangle=-20), axis(GAP, rangemode="tozero"))
