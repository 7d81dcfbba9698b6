"""Pairs of LSA agents: where each settled, beside the closed form (see analysis/equilibria.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from a2a_ray.analysis.equilibria import two_agent_equilibrium
from a2a_ray.core.transcript import Transcript
from a2a_ray.interface.report_data import ErrorSeries, PairKind, PlateauPoint
from a2a_ray.runtime.experiment import Experiment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from a2a_ray.runtime.store import Run

SETTLED = 1e-9
"""A pair has settled where no agent moves by more than this share of its scale (gap or objective) in a round."""
ERROR_CURVES = (0.0, 30.0, 90.0, 150.0)
"""Angles whose error per round is drawn; all of them would hide each other."""


@dataclass(frozen=True)
class Pair:
    """One conversation of two LSA agents, the first one W, the second U.

    angle: between their objectives, degrees. gap: |u* - w*|. measured, predicted: residual of each after its own last
    turn. errors: residuals per round, shape (rounds, 2). settled_round: the first round after which no agent moves by
    more than SETTLED of the scale; None where they still move.
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

    def relative_error(self, i: int) -> float | None:
        """|measured - predicted| residual of agent `i` over the gap; None without a gap."""
        error = abs(self.measured[i] - self.predicted[i])
        return error / self.gap if self.gap > 1e-12 and math.isfinite(error) else None

    def largest_error(self) -> float | None:
        """The larger relative error of the two agents."""
        errors = [e for e in (self.relative_error(0), self.relative_error(1)) if e is not None]
        return max(errors, default=None)

    def points(self) -> list[PlateauPoint]:
        """Where the two settled, for the figure."""
        return [
            PlateauPoint(self.angle, self.agent_names[i], self.measured[i], self.predicted[i], self.kind)
            for i in (0, 1)
        ]

    def series(self) -> list[ErrorSeries]:
        """Error per round, for the figure; empty for most of the plain pairs."""
        if self.kind == "pair" and not any(abs(self.angle - angle) < 1e-6 for angle in ERROR_CURVES):
            return []
        return [
            ErrorSeries(self.label, self.agent_names[i], self.errors[:, i].tolist(), self.predicted[i]) for i in (0, 1)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON value."""
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


def pairs_of(run: Run, transcripts: list[Transcript]) -> list[Pair]:
    """Every conversation of two alternating LSA agents in a run that has at least one whole round."""
    from a2a_ray.interface.results import cell_label

    found = []
    agents: dict[int, tuple[Any, Any]] = {}
    for transcript in transcripts:
        index = transcript.metadata["cell"]
        cell = run.experiment.cells[index]
        if not _is_pair(cell) or len(transcript.messages) < 2 or isinstance(transcript.messages[0].content, str):
            continue
        if index not in agents:
            agents[index] = (cell.agents[0].build(), cell.agents[1].build())
        label = cell_label(run.experiment.changes[index]) or transcript.id
        found.append(_pair(transcript, label, cell.protocol["kind"] == "helper", *agents[index]))
    return found


def _is_pair(cell: Experiment) -> bool:
    known = len(cell.agents) == 2 and all(spec.kind in ("lsa", "regression") for spec in cell.agents)
    return known and cell.protocol["kind"] in ("alternating", "helper") and "order" not in cell.protocol


def _pair(transcript: Transcript, label: str, helped: bool, w: Any, u: Any) -> Pair:
    objectives = np.stack([w.objective, u.objective])
    whole = len(transcript.messages) // 2 * 2
    said = np.stack([np.asarray(m.content, dtype=np.float64) for m in transcript.messages[:whole]]).reshape(
        -1, 2, objectives.shape[1]
    )
    errors = np.linalg.norm(said - objectives, axis=2)
    gap = float(np.linalg.norm(objectives[1] - objectives[0]))
    if helped:  # the helper's turn-wise objective brings W to its own; U then stands there too
        predicted, kind = (0.0, gap), "helper"
    else:
        predicted = _predicted(w, u)
        kind = "adversary" if gap > 1e-12 and predicted[1] < 1e-10 * gap < predicted[0] else "pair"
    moved = np.linalg.norm(np.diff(said, axis=0), axis=2).max(axis=1)
    scale = max(gap, float(np.linalg.norm(objectives, axis=1).max()))
    moving = np.flatnonzero(moved > SETTLED * scale)
    first = 1 if not len(moving) else int(moving[-1]) + 2
    return Pair(
        transcript.id,
        label,
        (transcript.agents[0], transcript.agents[1]),
        kind,  # type: ignore[arg-type]
        _angle(objectives),
        gap,
        (float(errors[-1, 0]), float(errors[-1, 1])),
        predicted,
        errors,
        first if first < len(said) else None,
    )


def _predicted(w: Any, u: Any) -> tuple[float, float]:
    """Residuals of the closed form; NaN where there is no single fixed point (a common null space)."""
    sizes = (w.step_size, u.step_size, w.inner_steps, u.inner_steps)
    try:
        settled = two_agent_equilibrium(w.covariance, u.covariance, w.objective, u.objective, *sizes)
    except ValueError:
        return math.nan, math.nan
    return settled.residual_norm_w, settled.residual_norm_u


def _angle(objectives: NDArray[np.float64]) -> float:
    """Between two objectives, in degrees, to nine decimals; 0 where one of them is 0."""
    norms = np.linalg.norm(objectives, axis=1)
    if not norms.all():
        return 0.0
    a, b = objectives / norms[:, None]
    # the half-angle form stays exact near 0 and 180 degrees, where the cosine does not
    return round(float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))), 9)
