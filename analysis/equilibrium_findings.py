"""Equilibria as findings: from one conversation and the agents' objectives to who reached what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.assessment import (
    BIASED,
    REACHED,
    UNDETERMINED,
    AgentEquilibrium,
    assess_equilibrium,
    overflows,
    together,
)
from a2a_ray.analysis.checks import check_array, check_count, check_positive
from a2a_ray.analysis.inference import NOISY, check_positions, plain
from a2a_ray.analysis.own_turns import OwnTurns, own_turns
from a2a_ray.analysis.position_settings import NUMBERS, VECTORS, PositionSettings, Unreadable, is_vectors
from a2a_ray.analysis.positions import Positions
from a2a_ray.core.errors import BadInput
from a2a_ray.core.findings import NONE, Finding
from a2a_ray.core.message import MESSAGE
from a2a_ray.core.transcript import Transcript

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]

KIND = "equilibrium"
MARGIN = 0.01
"""The default margin, as a share of the largest distance between two objectives: what counts as reached depends on how
far the agents are apart. Near 0 every agent would be biased, since none settles at its objective to the last digit;
1 % of the gap is too little to see in a figure."""
SETTLED = 1e-9
"""Agents have settled if none of them moves by more than this share of the scale (gap or objective) in a round."""
DIGITS = 12
"""Significant digits of the distances after each turn: enough for a curve."""


@dataclass(frozen=True)
class Prediction:
    """Where a closed form puts the agents.

    distances: name -> distance from its own objective, read after its own last turn of a round; agents of which nothing
    is known are left out. helped: whether the second agent sets its objective anew in every turn to help the first.
    """

    distances: Mapping[str, float] = field(default_factory=dict)
    helped: bool = False


class EquilibriumAnalyzer:
    """Assess where the agents of a conversation settle, beside their objectives.

    objectives: name -> number or (d,), of one length for all. An agent without one is reported as undetermined.
    margin: the distance from the objective, on every axis, that counts as having reached it. By default MARGIN of the
        largest distance between two objectives; of the largest objective's own size if all coincide or there is one
        agent; MARGIN itself if that is 0. `settings` holds the number.
    positions: where they are read from, see `PositionSettings`. By default vectors are positions, and of text the last
        d numbers of a message.
    predict: the closed form: name -> distance, or a function of the transcript that gives a `Prediction`, if any.
    every: rounds until an agent answers in the same chain again: the number of agents for simultaneous turns without
        combination, else 1.

    Raises BadInput for settings that are wrong. What a conversation lacks is said in its finding.
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
            raise BadInput(f"positions: {given.dim} numbers each; expected {dim}, as the objectives have")
        return given

    @property
    def _dim(self) -> int:
        """d; 0 without objectives."""
        return next((len(objective) for objective in self.objectives.values()), 0)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a finding reproducible, as JSON."""
        return {
            "objectives": {name: objective.tolist() for name, objective in self.objectives.items()},
            "margin": self.margin if self.objectives else None,
            "positions": self.positions.to_dict() if self.positions else None,
            "every": self.every,
        }

    def findings(self, transcript: Transcript) -> list[Finding]:
        """The one finding of a conversation. Without objectives its status is "none"."""
        names = transcript.agents or tuple(dict.fromkeys(m.sender for m in transcript.messages))
        if not any(name in self.objectives for name in names):
            who = ", ".join(map(repr, names)) or "anybody: no agent speaks"
            return [self._finding(transcript, status=NONE, reason=f"no objectives known for {who}")]
        try:
            reader = self._reader(transcript)
            read = reader.read(transcript)
        except Unreadable as error:
            return [self._finding(transcript, status=UNDETERMINED, reason=str(error))]
        turns = own_turns([m.sender for m in transcript.messages if m.kind == MESSAGE], names)
        gaps = reader.missing is not None
        cases = [_Case(self, transcript, name, read[name], turns, gaps) for name in names]
        judged = {case.name: case.rows for case in cases if case.rows is not None}
        assessed = assess_equilibrium(judged, self.objectives, self.margin).agents if judged else {}
        agents = {case.name: assessed.get(case.name) or AgentEquilibrium(UNDETERMINED, case.problem) for case in cases}
        group = together(agents, self.margin)
        prediction = self._prediction(transcript)
        with np.errstate(over="ignore"):  # agents that diverge
            evidence = {
                "compared": turns.chain(self.every).compared,
                "agents": {case.name: case.evidence(agents[case.name], prediction) for case in cases},
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
        """What is said of two agents."""
        if len(names) != 2 or not all(name in self.objectives for name in names):
            return {}
        objectives = np.stack([self.objectives[name] for name in names])
        gap = float(np.linalg.norm(objectives[1] - objectives[0]))
        first, second = (prediction.distances.get(name, math.nan) for name in names)
        kind = "adversary" if gap > 1e-12 and second < 1e-10 * gap < first else "pair"
        return {"gap": gap, "angle": angle(objectives), "kind": "helper" if prediction.helped else kind}

    def _settled_round(self, cases: list[_Case], turns: OwnTurns) -> int | None:
        """The first round after which no agent moves any more; None if they still move, or there are no rounds."""
        tracks = [case.own[turns.places[case.name]] for case in cases if len(case.own)]
        if not turns.period or len({len(track) for track in tracks}) != 1 or not all(map(_finite, tracks)):
            return None
        known = [self.objectives[case.name] for case in cases if case.name in self.objectives]
        scale = max(largest_gap(known), max(float(np.linalg.norm(objective)) for objective in known))
        moved = np.max([np.linalg.norm(np.diff(track, axis=0), axis=1) for track in tracks], axis=0)
        moving = np.flatnonzero(moved > SETTLED * scale)
        first = int(moving[-1]) + 2 if len(moving) else 1
        return first if first < len(tracks[0]) else None


class _Case:
    """One agent in one conversation: what it is judged by, or why it cannot be judged.

    own: positions after all its own turns, (T, d), NaN where it took none. rows: those that are compared, None if it
    cannot be judged; problem: why. gaps: whether compared positions may be missing.
    """

    def __init__(
        self,
        analyzer: EquilibriumAnalyzer,
        transcript: Transcript,
        name: str,
        read: Positions,
        turns: OwnTurns,
        gaps: bool,
    ) -> None:
        self.name, self.own = name, read.values
        self.objective = analyzer.objectives.get(name)
        compared = self.own[turns.chain(analyzer.every).places[name]]
        if gaps:
            compared = compared[~np.isnan(compared).any(axis=1)]
        self.rows: Array | None = None
        self.problem = self._problem(compared, read, transcript, gaps)
        if not self.problem:
            self.rows = compared

    def _problem(self, compared: Array, read: Positions, transcript: Transcript, gaps: bool) -> str:
        if self.objective is None:
            return "no objective known"
        if not len(self.own):
            return "it never speaks"
        if self.own.shape[1] != len(self.objective):
            return f"its positions have {self.own.shape[1]} numbers, its objective {len(self.objective)}"
        if np.isnan(self.own).any(axis=1).all():
            return f"none of its {len(self.own)} messages states a position"
        if read.missing and not gaps:  # turn 1 is the first message; the log counts bids and the like, too
            number = {message.turn: i for i, message in enumerate(transcript.messages, 1)}
            turns = ", ".join(str(number[turn]) for turn in read.missing[:6])
            return f"positions missing in turns {turns}{', ...' if len(read.missing) > 6 else ''}"
        if not len(compared):
            return "fewer than one round"
        try:
            check_positions(compared)
        except BadInput as error:
            return "" if overflows(compared) else str(error)
        return ""

    def off(self, found: AgentEquilibrium) -> float | None:
        """The largest distance from the objective along one axis."""
        at = self.at(found)
        return None if at is None or self.objective is None else float(np.abs(at - self.objective).max())

    def at(self, found: AgentEquilibrium) -> Array | None:
        """The fixed point if the trajectory has one, else the last position; None if nothing is known."""
        if self.rows is None:
            return None
        settled = found.status in (REACHED, BIASED, UNDETERMINED) and found.fit is not None
        at = found.fit.fixed_point if settled and found.fit else self.rows[-1]
        return at if _finite(at) else self.rows[-1]

    def evidence(self, found: AgentEquilibrium, prediction: Prediction) -> dict[str, Any]:
        """JSON value: `position` at rest, and `distance` from the objective; `last_distance` and `errors` are read
        after own turns, the last compared one and all of them."""
        out: dict[str, Any] = {
            "status": found.status,
            "reason": found.reason,
            "objective": None if self.objective is None else plain(self.objective),
            "position": None,
            "distance": None,
            "last_distance": None,
            "predicted": plain(prediction.distances.get(self.name)),
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


def check_objectives(objectives: Any, where: str = "objectives") -> dict[str, Array]:
    """Name -> (d,), float64, of one length. Raises BadInput."""
    if not isinstance(objectives, Mapping):
        raise BadInput(f"{where}: {type(objectives).__name__}; expected a mapping from agent names to objectives")
    found = {}
    for name, value in objectives.items():
        given = [value] if isinstance(value, (int, float, np.number)) else value
        found[str(name)] = check_array(given, f"{where}.{name}", ("d",))
    sizes = {name: len(objective) for name, objective in found.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise BadInput(f"{where}: lengths {said}; expected one length for all agents")
    return found


def default_margin(objectives: Mapping[str, Array]) -> float:
    """MARGIN of the largest distance between two objectives; see `EquilibriumAnalyzer`."""
    known = list(objectives.values())
    sizes = [largest_gap(known), *(float(np.linalg.norm(objective)) for objective in known)]
    size = sizes[0] or max(sizes)
    return MARGIN * (size or 1.0)


def largest_gap(objectives: list[Array]) -> float:
    """The largest distance between two of them; 0 for one."""
    return max((float(np.linalg.norm(a - b)) for i, a in enumerate(objectives) for b in objectives[:i]), default=0.0)


def angle(objectives: Array) -> float:
    """The angle between two objectives, (2, d), in degrees, to nine decimals; 0 if one of them is 0."""
    norms = np.linalg.norm(objectives, axis=1)
    if not norms.all():
        return 0.0
    a, b = objectives / norms[:, None]
    # the half-angle form stays exact near 0 and 180 degrees, where the cosine does not
    return round(float(np.degrees(2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b)))), 9)


def _single(agents: Mapping[str, AgentEquilibrium], objectives: Mapping[str, Array]) -> dict[str, Any]:
    """The interval, and the p-value of the objective, of a single agent in one dimension."""
    (name, found), *others = agents.items()
    if others or found.fit is None or len(found.fit.intervals) != 1:
        return {}
    low, high = found.fit.intervals[0].tolist()
    p_value = found.fit.p_value(objectives[name]) if found.fit.kind == NOISY else None
    return {"interval": (low, high), "p_value": p_value}


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
