"""The evidence about one agent in one conversation: its assessed positions, and the numbers for reports."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.equilibria.assessment import BIASED, REACHED, UNDETERMINED, AgentEquilibrium, overflows
from a2a_ray.analysis.equilibria.own_turns import OwnTurns
from a2a_ray.analysis.equilibria.positions import Positions
from a2a_ray.analysis.equilibria.trajectory_fit import check_positions, plain
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.transcript import Transcript

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

DIGITS = 12
"""Significant digits of the distances after each turn: enough for a curve."""


class AgentCase:
    """One agent in one conversation: its assessed positions, or the reason why it cannot be assessed.

    own: positions after all its own turns, (T, d), NaN if it took none. rows: the compared ones, None if it cannot be
    assessed; problem: the reason. gaps: whether compared positions may be missing.
    """

    def __init__(
        self,
        name: str,
        objective: Array | None,
        read: Positions,
        turns: OwnTurns,
        transcript: Transcript,
        gaps: bool,
    ) -> None:
        self.name, self.objective, self.own = name, objective, read.values
        compared = self.own[turns.places[name]]
        if gaps:
            compared = compared[~np.isnan(compared).any(axis=1)]
        self.problem = self._problem(compared, read, transcript, gaps)
        self.rows = None if self.problem else compared

    def _problem(self, compared: Array, read: Positions, transcript: Transcript, gaps: bool) -> str:
        if self.objective is None:
            return "no objective known"
        if not len(self.own):
            return "it has no messages"
        if self.own.shape[1] != len(self.objective):
            return f"its positions have {self.own.shape[1]} numbers, its objective {len(self.objective)}"
        if np.isnan(self.own).any(axis=1).all():
            return f"none of its {len(self.own)} messages states a position"
        if read.missing and not gaps:  # turn 1 is the first message; `message.turn` also counts bids and the like
            number = {message.turn: i for i, message in enumerate(transcript.messages, 1)}
            turns = ", ".join(str(number[turn]) for turn in read.missing[:6])
            return f"positions missing in turns {turns}{', ...' if len(read.missing) > 6 else ''}"
        if not len(compared):
            return "fewer than one round"
        try:
            check_positions(compared)
        except ConfigurationError as error:
            return "" if overflows(compared) else str(error)
        return ""

    def off(self, found: AgentEquilibrium) -> float | None:
        """Return the largest distance from the objective along one axis."""
        at = self.at(found)
        return None if at is None or self.objective is None else float(np.abs(at - self.objective).max())

    def at(self, found: AgentEquilibrium) -> Array | None:
        """Return the fixed point if the trajectory has one, else the last position; None if neither is known."""
        if self.rows is None:
            return None
        settled = found.status in (REACHED, BIASED, UNDETERMINED) and found.fit is not None
        at = found.fit.fixed_point if settled and found.fit else self.rows[-1]
        return at if finite(at) else self.rows[-1]

    def evidence(self, found: AgentEquilibrium, predicted: float | None) -> dict[str, Any]:
        """Return a JSON value. `position` and `distance` from the objective are at rest.

        `last_distance` is after the last compared turn; `errors` are the distances after each own turn.
        """
        out: dict[str, Any] = {
            "status": found.status,
            "reason": found.reason,
            "objective": None if self.objective is None else plain(self.objective),
            "position": None,
            "distance": None,
            "last_distance": None,
            "predicted": plain(predicted),
            "interval": None,
            "rounds": 0 if self.rows is None else len(self.rows),
            "rounds_needed": plain(found.rounds_needed),
            "errors": [],
        }
        at = self.at(found)
        if at is not None:
            out["position"] = plain(at)
        if found.fit is not None:
            pairs = found.fit.intervals.tolist()
            out["interval"] = [pair if all(map(math.isfinite, pair)) else None for pair in pairs]
        if self.objective is not None and self.own.shape[1] == len(self.objective):
            out["errors"] = [_rounded(float(v)) for v in np.linalg.norm(self.own - self.objective, axis=1)]
            if at is not None and self.rows is not None:
                out["distance"] = plain(float(np.linalg.norm(at - self.objective)))
                out["last_distance"] = plain(float(np.linalg.norm(self.rows - self.objective, axis=1)[-1]))
        return out


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def finite(values: Array) -> bool:
    """Return whether all values are finite."""
    return bool(np.isfinite(values).all())
