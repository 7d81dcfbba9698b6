"""Pairs of agents, from findings: where each agent settled, and the closed form (analysis/dynamics/two_agents.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from a2a_ray.analysis.equilibria.equilibrium_analyzer import KIND
from a2a_ray.core.findings import Finding
from a2a_ray.report.report_data import ErrorSeries, PairKind, PlateauPoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

ERROR_CURVES = (0.0, 30.0, 90.0, 150.0)
"""Angles whose error per round is drawn; more curves would hide each other."""


@dataclass(frozen=True)
class Pair:
    """One conversation of two agents with objectives; W is the first, U the second.

    angle: between their objectives, degrees. gap: |u* - w*|. measured, predicted: residual of each agent after its own
    last turn; NaN without a prediction. errors: residuals per round, shape (rounds, 2). settled_round: the first round
    after which no agent moves; None if they still move. status: of the finding.
    """

    id: str
    label: str
    agent_names: tuple[str, str]
    kind: PairKind
    angle: float
    gap: float
    measured: tuple[float, float]
    predicted: tuple[float, float]
    errors: NDArray[np.float64]
    settled_round: int | None
    status: str = ""

    def relative_error(self, i: int) -> float | None:
        """Return |measured - predicted| residual of agent `i` divided by the gap; None without a gap."""
        error = abs(self.measured[i] - self.predicted[i])
        return error / self.gap if self.gap > 1e-12 and math.isfinite(error) else None

    def largest_error(self) -> float | None:
        """Return the larger relative error of the two agents."""
        errors = [e for e in (self.relative_error(0), self.relative_error(1)) if e is not None]
        return max(errors, default=None)

    def points(self) -> list[PlateauPoint]:
        """Return where the two agents settled, for the figure."""
        return [
            PlateauPoint(self.angle, self.agent_names[i], self.measured[i], self.predicted[i], self.kind)
            for i in (0, 1)
        ]

    def series(self) -> list[ErrorSeries]:
        """Return the errors per round, for the figure; empty if the pair is not drawn (see ERROR_CURVES)."""
        if self.kind == "pair" and not any(abs(self.angle - angle) < 1e-6 for angle in ERROR_CURVES):
            return []
        return [
            ErrorSeries(self.label, self.agent_names[i], self.errors[:, i].tolist(), self.predicted[i]) for i in (0, 1)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {
            "id": self.id,
            "label": self.label,
            "kind": self.kind,
            "angle_degrees": self.angle,
            "gap": self.gap,
            "agents": list(self.agent_names),
            "measured_residual": list(self.measured),
            "predicted_residual": list(self.predicted),
            "relative_error": [self.relative_error(0), self.relative_error(1)],
            "settled_round": self.settled_round,
        }


def pairs_of(findings: Iterable[Finding], labels: Mapping[str, str]) -> list[Pair]:
    """Return the pairs among findings: two agents with objectives, and at least one whole round.

    labels: of the settings, by conversation id; a pair without a label is named by its id.
    """
    return [_pair(f, labels.get(f.conversation_id) or f.conversation_id) for f in findings if is_pair(f)]


def is_pair(finding: Finding) -> bool:
    """Return whether the finding is about two agents with objectives and at least one whole round."""
    if finding.kind != KIND or "gap" not in finding.evidence:
        return False
    return all(agent["last_distance"] is not None for agent in finding.evidence["agents"].values())


def _pair(finding: Finding, label: str) -> Pair:
    evidence = finding.evidence
    (first, w), (second, u) = evidence["agents"].items()
    rounds = min(len(w["errors"]), len(u["errors"]))
    return Pair(
        finding.conversation_id,
        label,
        (first, second),
        evidence["kind"],
        evidence["angle"],
        evidence["gap"],
        (w["last_distance"], u["last_distance"]),
        (_known(w["predicted"]), _known(u["predicted"])),
        np.array([w["errors"][:rounds], u["errors"][:rounds]], dtype=np.float64).T,
        evidence["settled_round"],
        finding.status,
    )


def _known(value: float | None) -> float:
    return math.nan if value is None else value
