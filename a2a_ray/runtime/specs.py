"""What a specification says of an agent, and of a budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from a2a_ray.core.errors import BadInput, unknown
from a2a_ray.core.registry import agents as agent_kinds


class Price(BaseModel):
    """Money per million tokens, in any one currency."""

    model_config = ConfigDict(extra="forbid")
    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class BudgetSpec(BaseModel):
    """The most that a run may take: money (in the currency of the prices), tokens, requests, and seconds of a start."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    cost: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, ge=1)
    requests: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)


class AnalyzeSpec(BaseModel):
    """What the analysis of equilibria has to know: objectives by agent, margin, and where positions are read from.

    It changes nothing of what is said. See `analysis/equilibrium_findings.py` and `analysis/position_settings.py`.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    objectives: dict[str, float | list[float]] = {}
    margin: float | None = Field(None, gt=0)
    positions: str | dict[str, Any] | None = None

    def check(self, agents: Collection[str]) -> None:
        """Raises BadInput for unknown agents, objectives of differing length and positions that cannot be read."""
        from a2a_ray.analysis.equilibrium_findings import EquilibriumAnalyzer

        for name in self.objectives:
            if name not in agents:
                raise BadInput("analyze.objectives: " + unknown("agent", name, agents))
        try:
            EquilibriumAnalyzer(self.objectives, self.margin, self.positions)
        except BadInput as error:
            raise BadInput(f"analyze.{error}") from None


class AgentSpec(BaseModel):
    """One agent: its name, its kind, where it runs, what limits its calls; every other key is a setting of its kind."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    name: str
    kind: str | Callable[..., Any]
    placement: Literal["worker", "actor"] | None = None
    replicas: int = Field(1, ge=1)
    num_cpus: float | None = Field(None, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_batch: int = Field(64, ge=1)
    scheduling_strategy: Any = None
    runtime_env: dict[str, Any] | None = None
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False)
    overruns: int = Field(3, ge=1)
    price: Price | None = None
    requests_per_minute: float | None = Field(None, ge=1, allow_inf_nan=False)
    tokens_per_minute: float | None = Field(None, ge=1, allow_inf_nan=False)
    concurrency: int | None = Field(None, ge=1)
    endpoint: str | None = None

    @model_validator(mode="after")
    def _placed(self) -> AgentSpec:
        where = self.scheduling_strategy
        if isinstance(where, str) and where not in ("DEFAULT", "SPREAD"):
            raise BadInput(
                f"scheduling_strategy: {where!r}; expected DEFAULT, SPREAD, or from Python an object of Ray's"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the agent's kind, its name and kind with them."""
        out = {"kind": self.kind, "name": self.name, **(self.model_extra or {})}
        if self.price is not None and "price" in agent_kinds.keys(self.kind):
            out["price"] = self.price.model_dump()
        if self.timeout is not None and "timeout" in agent_kinds.keys(self.kind):
            out["timeout"] = self.timeout
        if self.concurrency is not None and "concurrency" in agent_kinds.keys(self.kind):
            out["concurrency"] = self.concurrency
        return out

    @property
    def inner(self) -> AgentSpec:
        """The language model that answers for the agent: the one that its `model_agent` describes, or itself."""
        inner = self.settings.get("model_agent")
        return AgentSpec(**{"name": self.name, **inner}) if isinstance(inner, dict) and "kind" in inner else self

    @property
    def paid(self) -> bool:
        """Whether its calls are logged before they are made: it has a price, or its kind is one that costs money."""
        return any(s.price is not None or getattr(agent_kinds.get(s.kind), "paid", False) for s in (self, self.inner))

    @property
    def endpoint_key(self) -> str:
        """What it shares its limits with: `endpoint`, else a server's address and model, else its pool."""
        inner = self.inner
        if self.endpoint or inner.endpoint:
            return str(self.endpoint or inner.endpoint)
        address = inner.settings.get("base_url"), inner.settings.get("model")
        return " ".join(map(str, address)) if "base_url" in agent_kinds.keys(inner.kind) else self.key()

    @property
    def step_timeout(self) -> float | None:
        """Seconds that a step may take; None where the agent's kind has a `timeout` of its own."""
        return None if "timeout" in agent_kinds.keys(self.kind) else self.timeout

    @property
    def heavy(self) -> bool:
        """Whether the agent works in an actor of its own; one that keeps memory always does."""
        made = agent_kinds.get(self.kind)
        return bool(getattr(made, "stateful", False)) or (
            (self.placement or getattr(made, "placement", "worker")) == "actor"
        )

    def build(self, where: str = "agent") -> Any:
        """The agent itself, not yet set up. Raises BadInput."""
        return agent_kinds.build(self.settings, where)

    def turn_settings(self) -> dict[str, Any]:
        """The settings that can go with each message, so that one loaded model serves all cells of a sweep."""
        allowed: frozenset[str] = getattr(agent_kinds.get(self.kind), "turn_options", frozenset())
        must = agent_kinds.keys(self.kind)  # what the agent cannot be made without stays with it
        return {k: v for k, v in self.settings.items() if k in allowed and not must.get(k)}

    @property
    def pool_settings(self) -> dict[str, Any]:
        """The settings that do not go with each message."""
        turn = self.turn_settings()
        return {k: v for k, v in self.settings.items() if k not in turn}

    def key(self) -> str:
        """Equal for specifications that one agent, or one pool of actors, can serve. For this process only: functions
        go by identity, since two lambdas have one name."""
        if not self.heavy:
            return json.dumps(self.settings, sort_keys=True, default=identity)
        keys = {"replicas", "num_cpus", "num_gpus", "max_batch", "scheduling_strategy", "runtime_env"}
        keys |= {"timeout", "overruns", "price"}
        return json.dumps([self.pool_settings, self.model_dump(include=keys)], sort_keys=True, default=identity)


def identity(value: Any) -> Any:
    """JSON stand-in that tells functions of one name apart, within this process."""
    return f"{plain(value)}#{id(value)}" if callable(value) else plain(value)


def plain(value: Any) -> Any:
    """JSON stand-in for what a specification in Python can hold besides JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
