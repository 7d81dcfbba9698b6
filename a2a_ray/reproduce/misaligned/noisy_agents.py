"""Noisy agents: the spread of their equilibrium, and the verdicts from one noisy trajectory."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.pair_population import PairPopulation
from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.analysis.dynamics.pair_sources import GivenPairs
from a2a_ray.analysis.dynamics.stationary import stationary
from a2a_ray.analysis.equilibria.assessment import EquilibriumFinding, assess_equilibrium
from a2a_ray.report.page_parts import Panel, Section, Table
from a2a_ray.report.plotly_traces import Figure, axis, make_figure
from a2a_ray.reproduce.misaligned.attackers import white_box
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult, dots, line, several
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    SHOWN_ANGLE,
    Array,
    pair_agents,
    population,
    predicted,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings

CONVERSATIONS, LEFT = 10_000, 1e-6
NOISE_W, NOISE_U = 0.1, 0.05
"""Standard deviations of the noise in each coordinate of an answer; objectives have length 1."""
VERDICT_PAIRS, VERDICT_NOISE = 5, 0.02
TIME_CONSTANTS, FEWEST, MOST = 25, 100, 2000
"""A trajectory has this many times 1 / (1 - spectral radius) rounds, within bounds."""
MARGIN = 0.1
"""An agent has reached its objective within this distance, along the line between the objectives."""
CASES = ("same objective", "misaligned", "adversary")


def run(settings: Settings) -> ExperimentResult:
    """Run the experiment."""
    spread = _spread(settings)
    conversations = {case: _conversations(settings, case) for case in CASES}
    verdicts = {case: [conversation.finding() for conversation in found] for case, found in conversations.items()}
    values = {
        "noise": {"W": NOISE_W, "U": NOISE_U},
        "spread": [{k: v for k, v in reading.items() if k != "axes"} for reading in spread],
        "verdicts": {
            "pairs": len(verdicts["misaligned"]),
            "rounds": {case: len(found[0].positions["w"]) for case, found in conversations.items()},
            "true": {
                case: dict(Counter(conversation.true_status() for conversation in found))
                for case, found in conversations.items()
            },
            "given": {case: dict(Counter(o.status for o in found)) for case, found in verdicts.items()},
            "right": {
                case: sum(
                    conversation.true_status() == o.status
                    for conversation, o in zip(conversations[case], verdicts[case], strict=True)
                )
                for case in CASES
            },
            "reasons": {case: found[0].reason for case, found in verdicts.items()},
        },
    }
    return ExperimentResult(_section(spread, conversations, verdicts, values), _result_sentence(values), values)


def _spread(settings: Settings) -> list[dict[str, Any]]:
    """Compare the covariance over many conversations of one pair, after W's and after U's turn, with the prediction."""
    pair = pair_agents(population(settings, pairs=1), 0)
    agents = agents_of(pair)
    noise = np.stack([sd**2 * np.eye(settings.dim) for sd in (NOISE_W, NOISE_U)])
    theory = stationary(agents, noise)
    rounds = settings.rounds_for(theory.equilibrium.spectral_radius, LEFT)
    objectives = [np.tile(a.objective, (CONVERSATIONS, 1)) for a in pair]
    source = GivenPairs(pair[0].covariance, pair[1].covariance, *objectives)
    states = simulate_pairs(_noisy(settings, source, NOISE_W, NOISE_U), rounds)
    readings = []
    for name, residual, expected in zip("WU", (states.residual_w, states.residual_u), theory.covariances, strict=True):
        measured = np.cov(residual[:, -1].numpy(), rowvar=False)
        variances = np.diagonal(expected)
        standard_error = np.sqrt(
            (np.outer(variances, variances) + expected**2) / (CONVERSATIONS - 1)
        )  # of Gaussian samples
        values, vectors = np.linalg.eigh(expected)
        readings.append(
            {
                "reading": name,
                "measured": float(np.sqrt(np.trace(measured))),
                "predicted": float(np.sqrt(np.trace(expected))),
                "relative_error": float(np.linalg.norm(measured - expected) / np.linalg.norm(expected)),
                "standard_errors": float((np.abs(measured - expected) / standard_error).max()),
                "axes": (np.sqrt(np.einsum("ia,ij,ja->a", vectors, measured, vectors)), np.sqrt(values)),
            }
        )
    return readings


def _noisy(settings: Settings, source: GivenPairs, noise_w: float, noise_u: float) -> PairPopulation:
    step = settings.step_size
    return PairPopulation(
        source, step, step, noise_w=noise_w, noise_u=noise_u, noise_seed=settings.seed, dtype="float64"
    )


@dataclass(frozen=True)
class NoisyConversation:
    """A noisy conversation of w and u: positions after own turns, (rounds, d); objectives and settled means, (d,).

    line: (d,), the gap at SHOWN_ANGLE, along which the verdict is computed.
    """

    positions: dict[str, Array]
    objectives: dict[str, Array]
    settled: dict[str, Array]
    line: Array

    def finding(self) -> EquilibriumFinding:
        """Return the finding from the positions alone."""
        return assess_equilibrium(self.positions, self.objectives, MARGIN, axes=self.line[None])

    def true_status(self) -> str:
        """Return the correct status, from the closed form."""
        line = self.line / np.linalg.norm(self.line)
        reached = [abs(float(line @ (self.settled[k] - self.objectives[k]))) <= MARGIN for k in "wu"]
        return "reached" if all(reached) else "one_sided" if any(reached) else "biased"


def _conversations(settings: Settings, case: str) -> list[NoisyConversation]:
    """Simulate noisy conversations of the first pairs."""
    count = min(VERDICT_PAIRS, settings.pairs)
    w, u = sides(population(settings, pairs=count))
    lines = u.objectives - w.objectives
    if case == "same objective":
        u = replace(u, objectives=w.objectives)
    if case == "adversary":
        u = white_box(w, u.objectives)
    expected = predicted(w, u)
    rounds = settings.rounds or min(MOST, max(FEWEST, math.ceil(TIME_CONSTANTS / (1 - expected.radius))))
    source = GivenPairs(w.covariances, u.covariances, w.objectives, u.objectives)
    states = simulate_pairs(_noisy(settings, source, VERDICT_NOISE, VERDICT_NOISE), rounds, every=1)
    residuals = {"w": states.residual_w.numpy(), "u": states.residual_u.numpy()}
    settled = {"w": expected.residual_w, "u": expected.residual_u}
    conversations = []
    for i in range(count):
        objectives = {"w": w.objectives[i], "u": u.objectives[i]}
        positions, ends = ({k: x[k][i] + objectives[k] for k in "wu"} for x in (residuals, settled))
        conversations.append(NoisyConversation(positions, objectives, ends, lines[i]))
    return conversations


def _result_sentence(values: dict[str, Any]) -> str:
    spread, verdicts = values["spread"], values["verdicts"]
    sizes = ", ".join(
        f"{r['measured']:.4f} after {r['reading']}'s turn ({r['predicted']:.4f} predicted)" for r in spread
    )
    right = ", ".join(f"{n} of {verdicts['pairs']} ({case})" for case, n in verdicts["right"].items())
    return f"The equilibrium spreads by {sizes}. One noisy trajectory gives the right verdict for {right}."


def _section(
    spread: list[dict[str, Any]],
    conversations: dict[str, list[NoisyConversation]],
    verdicts: dict[str, list[EquilibriumFinding]],
    values: dict[str, Any],
) -> Section:
    judged = values["verdicts"]
    text = (
        f"Spread: one pair at {SHOWN_ANGLE:g} degrees whose answers have Gaussian noise (standard deviation"
        f" {NOISE_W:g} per coordinate for W, {NOISE_U:g} for U), {CONVERSATIONS:,} conversations."
        f" Then, with noise of {VERDICT_NOISE:g}, verdicts from one trajectory and the objectives only:"
        f" {several(judged['pairs'], 'pair')} each with the same objective, with objectives at"
        f" {SHOWN_ANGLE:g} degrees, and with the rank-one adversary for U. Reached means: along the line"
        f" between the objectives the settled state lies within {MARGIN:g} of the objective with 95% confidence."
    )
    caption = (
        "Spread: standard deviation of the settled state along the principal axes of the predicted covariance (a"
        " discrete Lyapunov equation), read after each agent's turn; each turn shrinks the other's noise and adds its"
        " own. The other two: one conversation each, its states along the line between the objectives (0 is W's, 1 is"
        " U's); dotted lines are the closed form. An honest pair ends between the two; the adversary stays at"
        " its objective and moves W away from its own."
    )
    legend = [("W", "agent-1"), ("U", "agent-2"), ("● measured", ""), ("line: predicted", "")]
    panels = [
        Panel("noise-spread", _axes(spread), "Spread of the settled state"),
        Panel("noise-misaligned", _trajectory(conversations["misaligned"][0]), "Misaligned pair"),
        Panel("noise-adversary", _trajectory(conversations["adversary"][0]), "Adversary"),
    ]
    return Section("Noise", text, panels, legend, caption, _tables(spread, verdicts, judged))


def _tables(
    spread: list[dict[str, Any]], verdicts: dict[str, list[EquilibriumFinding]], judged: dict[str, Any]
) -> list[Table]:
    spreads = [[r["reading"], r["measured"], r["predicted"], r["relative_error"], r["standard_errors"]] for r in spread]
    rows = [
        [
            case,
            judged["rounds"][case],
            _listed(judged["true"][case]),
            f"{judged['right'][case]} of {judged['pairs']}",
            _listed(judged["given"][case]),
            verdicts[case][0].reason,
        ]
        for case in CASES
    ]
    return [
        Table(
            "Root mean square distance of the settled state from its mean",
            [
                "read after",
                "measured",
                "predicted",
                "relative error of the covariance",
                "largest error of an entry, standard errors",
            ],
            spreads,
        ),
        Table(
            "Verdicts from one trajectory",
            ["pair", "rounds", "true", "right verdict", "given", "reason of the first"],
            rows,
        ),
    ]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{status} {n}" for status, n in counts.items())


def _axes(spread: list[dict[str, Any]]) -> Figure:
    traces = []
    for i, reading in enumerate(spread):
        measured, expected = reading["axes"]
        axes, colour = list(range(1, len(measured) + 1)), f"var(--agent-{i + 1})"
        traces.append(line(axes, expected[::-1], f"{reading['reading']}, predicted", colour))
        traces.append(dots(axes, measured[::-1], f"{reading['reading']}, measured", colour))
    return make_figure(traces, axis("principal axis"), axis("standard deviation", rangemode="tozero"))


def _trajectory(conversation: NoisyConversation) -> Figure:
    origin, gap = conversation.objectives["w"], conversation.objectives["u"] - conversation.objectives["w"]
    traces = []
    for i, name in enumerate("wu"):
        along, settled = (
            (x[name] - origin) @ gap / (gap @ gap) for x in (conversation.positions, conversation.settled)
        )
        label, colour = name.upper(), f"var(--agent-{i + 1})"
        traces.append(dots(range(1, len(along) + 1), along, label, colour, size=4))
        traces.append(line([1, len(along)], [float(settled)] * 2, f"{label}, predicted", colour, "dot"))
    return make_figure(traces, axis("round"), axis("place between the objectives", range=[-0.1, 1.2]))
