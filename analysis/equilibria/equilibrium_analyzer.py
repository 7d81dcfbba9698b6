"""Equilibria as findings: which agents of a conversation reached their objectives."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_count, check_positive
from a2a_ray.analysis.equilibria.assessment import UNDETERMINED, AgentEquilibrium, assess_equilibrium, together
from a2a_ray.analysis.equilibria.equilibrium_evidence import AgentCase, finite
from a2a_ray.analysis.equilibria.objectives import angle, check_objectives, default_margin, largest_gap
from a2a_ray.analysis.equilibria.own_turns import OwnTurns, own_turns
from a2a_ray.analysis.equilibria.position_settings import NUMBERS, VECTORS, PositionSettings, Unreadable, is_vectors
from a2a_ray.analysis.equilibria.trajectory_fit import NOISY
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import NONE, Finding
from a2a_ray.core.message import MESSAGE
from a2a_ray.core.transcript import Transcript

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

KIND = "equilibrium"
SETTLED = 1e-9
"""Agents have settled if none of them moves by more than this share of the scale (gap or objective) in a round."""


@dataclass(frozen=True)
class Prediction:
    """The positions of the agents at rest by a closed form.

    distances: name -> distance from its own objective after its last turn of a round. Agents without a prediction are
    left out. helped: whether the second agent changes its objective in every turn to help the first.
    """

    distances: Mapping[str, float] = field(default_factory=dict)
    helped: bool = False


class EquilibriumAnalyzer:
    """Assess where the agents of a conversation settle, relative to their objectives.

    objectives: name -> number or (d,), of one length for all. An agent without one is reported as undetermined.
    margin: the distance from the objective, on every axis, that counts as having reached it; by default that of
        `default_margin`. `settings` holds the number.
    positions: the source of the positions, see `PositionSettings`. By default a vector is a position; a text message
        has its last d numbers as position.
    predict: the closed form: name -> distance, or a function of the transcript that gives a `Prediction`, if any.
    every: rounds until an agent answers in the same chain again: the number of agents for simultaneous turns without
        combination, else 1.

    Raises ConfigurationError for invalid settings. A finding reports what its conversation lacks.
    """

    name = "equilibrium"
    version = "1"

    def __init__(
        self,
        objectives: Mapping[str, Any] | None = None,
        margin: float | None = None,
        positions: Any = None,
        predict: Callable[[Transcript], Prediction | None] | Mapping[str, float] | None = None,
        every: int = 1,
    ) -> None:
        self.objectives = check_objectives(objectives or {})
        self.margin = default_margin(self.objectives) if margin is None else float(check_positive(margin, "margin"))
        self.every = check_count(every, "every")
        self.positions = self._positions(positions)
        self.predict = predict

    def _positions(self, value: Any) -> PositionSettings | None:
        if value is None:
            return None
        given = PositionSettings.parse(value)
        dim = self._dim
        if given.source == NUMBERS and dim and "dim" not in given.options:
            return replace(given, options={**given.options, "dim": dim})
        if dim and given.dim not in (None, dim):
            raise ConfigurationError(f"positions: {given.dim} numbers each; expected {dim}, as the objectives have")
        return given

    @property
    def _dim(self) -> int:
        """d; 0 without objectives."""
        return next((len(objective) for objective in self.objectives.values()), 0)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a finding reproducible; JSON."""
        return {
            "objectives": {name: objective.tolist() for name, objective in self.objectives.items()},
            "margin": self.margin if self.objectives else None,
            "positions": self.positions.to_dict() if self.positions else None,
            "every": self.every,
        }

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return the one finding of a conversation. Without objectives its status is "none"."""
        senders = [message.sender for message in transcript.messages if message.kind == MESSAGE]
        names = transcript.agents or tuple(dict.fromkeys(senders))
        if not any(name in self.objectives for name in names):
            who = ", ".join(map(repr, names)) or "any agent: the conversation has no messages"
            return [self._finding(transcript, status=NONE, reason=f"no objectives known for {who}")]
        try:
            reader = self._reader(transcript)
            read = reader.read(transcript)
        except Unreadable as error:
            return [self._finding(transcript, status=UNDETERMINED, reason=str(error))]
        turns = own_turns(senders, names)
        compared, gaps = turns.chain(self.every), reader.missing is not None
        cases = [AgentCase(name, self.objectives.get(name), read[name], compared, transcript, gaps) for name in names]
        judged = {case.name: case.rows for case in cases if case.rows is not None}
        assessed = assess_equilibrium(judged, self.objectives, self.margin).agents if judged else {}
        agents = {case.name: assessed.get(case.name) or AgentEquilibrium(UNDETERMINED, case.problem) for case in cases}
        group = together(agents, self.margin)
        prediction = self._prediction(transcript)
        with np.errstate(over="ignore"):  # agents that diverge
            evidence = {
                "compared": compared.compared,
                "agents": {c.name: c.evidence(agents[c.name], prediction.distances.get(c.name)) for c in cases},
                **self._pair(names, prediction),
                "settled_round": self._settled_round(cases, turns),
            }
        offs = [v for case in cases if (v := case.off(agents[case.name])) is not None]
        return [
            self._finding(
                transcript,
                status=group.status,
                reason=group.reason,
                speakers=group.winners,
                score=max(offs, default=None),
                **_single(agents, self.objectives),
                evidence=evidence,
            )
        ]

    def _finding(self, transcript: Transcript, *, status: str, reason: str, **parts: Any) -> Finding:
        return Finding(
            conversation_id=transcript.id,
            analyzer=self.name,
            analyzer_version=self.version,
            settings=self.settings,
            through_seq=len(transcript),
            kind="" if status == NONE else KIND,
            status=status,
            reason=reason,
            threshold=None if status == NONE else self.margin,
            **parts,
        )

    def _reader(self, transcript: Transcript) -> PositionSettings:
        if self.positions is not None:
            return self.positions
        if is_vectors(transcript):
            return PositionSettings(VECTORS, {})
        return PositionSettings(NUMBERS, {"dim": self._dim})

    def _prediction(self, transcript: Transcript) -> Prediction:
        if self.predict is None:
            return Prediction()
        if isinstance(self.predict, Mapping):
            return Prediction(self.predict)
        return self.predict(transcript) or Prediction()

    def _pair(self, names: tuple[str, ...], prediction: Prediction) -> dict[str, Any]:
        """Return the evidence about a pair of agents; empty for other numbers of agents."""
        if len(names) != 2 or not all(name in self.objectives for name in names):
            return {}
        objectives = np.stack([self.objectives[name] for name in names])
        gap = float(np.linalg.norm(objectives[1] - objectives[0]))
        first, second = (prediction.distances.get(name, math.nan) for name in names)
        kind = "adversary" if gap > 1e-12 and second < 1e-10 * gap < first else "pair"
        return {"gap": gap, "angle": angle(objectives), "kind": "helper" if prediction.helped else kind}

    def _settled_round(self, cases: list[AgentCase], turns: OwnTurns) -> int | None:
        """Return the first round after which no agent moves; None if they still move or there are no rounds."""
        tracks = [case.own[turns.places[case.name]] for case in cases if len(case.own)]
        if not turns.period or len({len(track) for track in tracks}) != 1 or not all(map(finite, tracks)):
            return None
        known = [self.objectives[case.name] for case in cases if case.name in self.objectives]
        scale = max(largest_gap(known), max(float(np.linalg.norm(objective)) for objective in known))
        moved = np.max([np.linalg.norm(np.diff(track, axis=0), axis=1) for track in tracks], axis=0)
        moving = np.flatnonzero(moved > SETTLED * scale)
        first = int(moving[-1]) + 2 if len(moving) else 1
        return first if first < len(tracks[0]) else None


def _single(agents: Mapping[str, AgentEquilibrium], objectives: Mapping[str, Array]) -> dict[str, Any]:
    """Return the interval, and the p-value of the objective, of a single agent in one dimension."""
    (name, found), *others = agents.items()
    if others or found.fit is None or len(found.fit.intervals) != 1:
        return {}
    low, high = found.fit.intervals[0].tolist()
    p_value = found.fit.p_value(objectives[name]) if found.fit.kind == NOISY else None
    return {"interval": (low, high), "p_value": p_value}
