"""The equilibrium analyzer of one cell of a run: objectives, margin and closed form from the specification alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from a2a_ray.analysis.dynamics.affine import LinearAgents, agents_of
from a2a_ray.analysis.dynamics.rounds import RoundEquilibrium, alternating, simultaneous
from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer, Prediction
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import LinearTask, make_task
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.validation import check_settings
from a2a_ray.experiment.agent_spec import AgentSpec, AnalyzeSpec, identity, plain

GRADIENT = frozenset(
    {"lsa", "regression", "a2a_ray.agents.lsa.lsa_agent:LSAAgent", "a2a_ray.agents.lsa.regression:RegressionAgent"}
)
"""Kinds of agent that take gradient steps towards their own objective, on a task given by their settings."""
MOST_CELLS = 4096
_analyzers: dict[str, EquilibriumAnalyzer] = {}


class AnalyzedCell(Protocol):
    """The parts of an experiment that its equilibrium analyzer depends on."""

    @property
    def agents(self) -> Sequence[AgentSpec]:
        """Specifications of the agents, in order."""
        ...

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Settings of the protocol, with its `kind`."""
        ...

    @property
    def analyze(self) -> AnalyzeSpec | None:
        """The `analyze` section."""
        ...


def equilibrium_analyzer(cell: AnalyzedCell) -> EquilibriumAnalyzer:
    """Return the analyzer of a cell's conversations, one object for equal cells. Builds no agent and loads no model.

    Objectives come from `analyze: objectives`, and for LSA and regression agents from their own settings.
    """
    parts = [[spec.model_dump() for spec in cell.agents], cell.protocol, cell.analyze and cell.analyze.model_dump()]
    key = json.dumps(parts, sort_keys=True, default=identity)
    if key not in _analyzers:
        if len(_analyzers) >= MOST_CELLS:
            _analyzers.clear()
        _analyzers[key] = _made(cell)
    return _analyzers[key]


def _made(cell: AnalyzedCell) -> EquilibriumAnalyzer:
    names = [spec.name for spec in cell.agents]
    prompts = {spec.name: prompt_of(spec) for spec in cell.agents if plain_kind(spec) in GRADIENT}
    own = {name: prompt.objective for name, prompt in prompts.items()}
    protocol = cell.protocol
    chains = protocol.get("kind") == "simultaneous" and protocol.get("combine") is None
    closed = None
    given = cell.analyze.objectives if cell.analyze else {}
    if len(prompts) == len(names) and not given:
        closed = ClosedForm(tuple(names), tuple(prompts.values()), protocol)
    return EquilibriumAnalyzer(
        {**own, **given},
        cell.analyze.margin if cell.analyze else None,
        cell.analyze.positions if cell.analyze else None,
        predict=closed,
        every=len(names) if chains else 1,
    )


def plain_kind(spec: AgentSpec) -> str:
    """Return the name of the kind, also if the kind is a class."""
    return spec.kind if isinstance(spec.kind, str) else str(plain(spec.kind))


def prompt_of(spec: AgentSpec) -> LinearTask:
    """Return the linear task of an LSA or regression agent, from its settings."""
    known = set(inspect.signature(make_task).parameters)
    settings = {key: value for key, value in spec.settings.items() if key in known}
    return make_task(**check_settings(make_task, settings, f"agent {spec.name!r}", set()))


@dataclass(frozen=True)
class ClosedForm:
    """The predicted equilibrium of gradient agents under a built-in protocol, as a function of the transcript."""

    names: tuple[str, ...]
    prompts: tuple[LinearTask, ...]
    protocol: Mapping[str, Any]

    def __call__(self, transcript: Transcript) -> Prediction | None:
        """Return the distances from the agents' objectives; None without a closed form or without convergence."""
        if transcript.agents != self.names:
            return None
        agents = agents_of(self.prompts)
        if self.protocol.get("kind") == "newton_helper":
            # the helper brings the first agent to its objective, where both stay
            gap = float(((agents.objectives[1] - agents.objectives[0]) ** 2).sum() ** 0.5)
            return Prediction(dict(zip(self.names, (0.0, gap), strict=True)), helped=True)
        opening = transcript.opening.content
        start = None if isinstance(opening, str) or len(opening) != agents.dim else opening
        try:
            settled = self._settled(agents, start)
        except ConfigurationError:  # no single fixed point: a common null space without a start, or steps that diverge
            return None
        if settled is None or not settled.converges:
            return None
        return Prediction(dict(zip(self.names, settled.residual_norms.tolist(), strict=True)))

    def _settled(self, agents: LinearAgents, start: Any) -> RoundEquilibrium | None:
        kind, order = self.protocol.get("kind"), self.protocol.get("order")
        if kind == "alternating":
            return alternating(agents, [self.names.index(name) for name in order] if order else None, start)
        if kind == "simultaneous" and self.protocol.get("combine") in ("mean", None):
            return simultaneous(agents, self.protocol.get("combine"), start)
        return None
