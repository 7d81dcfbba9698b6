"""The sections of a specification for agents, budgets and the analysis."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from a2a_ray.core.base_agent import AgentTraits, agent_traits
from a2a_ray.core.contract_checks import check_part
from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.registry import agents as agent_kinds


class SpecSection(BaseModel):
    """A section of a specification; unknown keys are errors."""

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in cls.model_fields:
                raise ConfigurationError(f"{key}: " + unknown("key", key, cls.model_fields))
        return value


class Price(SpecSection):
    """The price of a million tokens, in any currency."""

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class BudgetSpec(SpecSection):
    """The limits of a run: cost (in the currency of the prices), tokens, requests, and seconds of one start."""

    cost: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, ge=1)
    requests: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)


class AnalyzeSpec(SpecSection):
    """The settings of the equilibrium analysis: objectives by agent, margin, and the source of positions.

    They do not affect the conversations. See `equilibrium_analyzer.py` and `position_settings.py`.
    """

    objectives: dict[str, float | list[float]] = {}
    margin: float | None = Field(None, gt=0)
    positions: str | dict[str, Any] | None = None

    def check(self, agents: Collection[str]) -> None:
        """Check agents, objectives and positions.

        Raises ConfigurationError for unknown agents, objectives of different lengths and invalid positions.
        """
        from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer

        for name in self.objectives:
            if name not in agents:
                raise ConfigurationError("analyze.objectives: " + unknown("agent", name, agents))
        try:
            EquilibriumAnalyzer(self.objectives, self.margin, self.positions)
        except ConfigurationError as error:
            raise ConfigurationError(f"analyze.{error}") from None


class Resources(SpecSection):
    """The resources of an agent in actors: number of processes, Ray resources of each, and batch size."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    replicas: int = Field(1, ge=1)
    num_cpus: float | None = Field(None, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_batch_size: int = Field(64, ge=1)
    scheduling_strategy: Any = None
    runtime_env: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _placed(self) -> Resources:
        where = self.scheduling_strategy
        if isinstance(where, str) and where not in ("DEFAULT", "SPREAD"):
            raise ConfigurationError(
                f"scheduling_strategy: {where!r}; expected DEFAULT, SPREAD, or in Python a Ray strategy object"
            )
        return self


class CallLimits(SpecSection):
    """The limits of an agent's calls: the first four apply to all workers together, the others to each process."""

    requests_per_minute: float | None = Field(None, ge=1)
    tokens_per_minute: float | None = Field(None, ge=1)
    max_concurrency: int | None = Field(None, ge=1)
    rate_limit_group: str | None = None
    timeout: float | None = Field(None, gt=0)
    max_hung_steps: int = Field(3, ge=1)


MOVED = {
    **{key: ("resources", key) for key in Resources.model_fields},
    **{key: ("limits", key) for key in CallLimits.model_fields},
    "max_batch": ("resources", "max_batch_size"),
    "concurrency": ("limits", "max_concurrency"),
    "endpoint": ("limits", "rate_limit_group"),
    "overruns": ("limits", "max_hung_steps"),
}
"""The right place of keys that are easily taken for settings of the agent."""


class AgentSpec(BaseModel):
    """One agent: name, kind, placement, price, resources and limits; every other key is a setting of its kind.

    price: {input, output} per million tokens. A kind whose constructor has a parameter `price` receives it too. Such a
    kind may take another type under this name, which is then only its setting.
    """

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    name: str
    kind: str | Callable[..., Any]
    placement: Literal["worker", "actor"] | None = None
    price: Price | None = None
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    limits: CallLimits = Field(default_factory=lambda: CallLimits.model_validate({}))

    @field_validator("price", mode="wrap")
    @classmethod
    def _priced(cls, value: Any, check: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kind = info.data.get("kind")
        own = not isinstance(value, (Mapping, Price, type(None))) and kind is not None and "price" in _keys(kind)
        return value if own else check(value)

    @field_serializer("price")
    def _plain_price(self, value: Any) -> Any:
        return value.model_dump(exclude_unset=True) if isinstance(value, Price) else value

    @property
    def rate(self) -> Price | None:
        """Return the agent's price, or None."""
        return self.price if isinstance(self.price, Price) else None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the agent's kind, with its name and kind."""
        out = {"kind": self.kind, "name": self.name, **(self.model_extra or {})}
        if self.price is not None and "price" in agent_kinds.keys(self.kind):
            out["price"] = self.price if self.rate is None else self.rate.model_dump()
        for key in self._own_limits:
            if (value := getattr(self.limits, key)) is not None:
                out[key] = value
        return out

    @property
    def _own_limits(self) -> frozenset[str]:
        """Return the limits that the agent enforces itself."""
        try:
            return self.traits.own_limits
        except ConfigurationError:  # `build` reports it
            return frozenset()

    @property
    def traits(self) -> AgentTraits:
        """Return the optional features of its kind. Raises ConfigurationError for an unknown kind."""
        return agent_traits(agent_kinds.get(self.kind))

    @property
    def inner(self) -> AgentSpec:
        """Return the language model behind the agent: that of `model_agent`, or the agent itself."""
        inner = self.settings.get("model_agent")
        return AgentSpec(**{"name": self.name, **inner}) if isinstance(inner, dict) and "kind" in inner else self

    @property
    def paid(self) -> bool:
        """Return whether calls are logged before they are made: it has a price, or its kind costs money."""
        return any(s.rate is not None or s.traits.paid for s in (self, self.inner))

    @property
    def endpoint_key(self) -> str:
        """Return the rate limit group: `rate_limit_group`, else the server's address and model, else its pool."""
        inner = self.inner
        if group := self.limits.rate_limit_group or inner.limits.rate_limit_group:
            return group
        address = inner.settings.get("base_url"), inner.settings.get("model")
        return " ".join(map(str, address)) if "base_url" in agent_kinds.keys(inner.kind) else self.key()

    @property
    def step_timeout(self) -> float | None:
        """Return the limit of a step in seconds; None if the agent enforces its `timeout` itself."""
        return None if "timeout" in self._own_limits else self.limits.timeout

    @property
    def heavy(self) -> bool:
        """Return whether the agent runs in its own actor; a stateful agent always does."""
        traits = self.traits
        return traits.stateful or (self.placement or traits.placement) == "actor"

    def build(self, where: str = "agent") -> Any:
        """Return the agent, not yet set up. Raises ConfigurationError."""
        self._check_names(where)
        if inspect.isroutine(self.kind) and not agent_kinds.takes(self.kind, "name"):
            name = self.kind.__name__
            raise ConfigurationError(
                f"{where}.kind: the function {name} takes no 'name'; expected a class, or a function that returns an"
                f" agent. To use {name} for the answers, write kind: function, function: {name}"
            )
        agent = agent_kinds.build(self.settings, where)
        check_part("agent", agent, where)
        return agent

    def _check_names(self, where: str) -> None:
        """Raise ConfigurationError for a key that belongs under `resources` or `limits`, or is given twice."""
        wrong = (self.model_extra or {}).keys() & {*MOVED, *self._own_limits}
        known = _keys(self.kind)
        for key in sorted(wrong) if known else ():
            if key in self._own_limits and getattr(self.limits, key) is not None:
                raise ConfigurationError(f"{where}.{key}: given here and as limits.{key}; expected it once")
            if key not in known and not agent_kinds.takes(self.kind, key):
                section, name = MOVED[key]
                raise ConfigurationError(
                    f"{where}.{key}: not a setting of this kind of agent; put it under {section}: as {name}"
                    f" ({section}: {{{name}: ...}})"
                )

    def turn_settings(self) -> dict[str, Any]:
        """Return the settings that messages can carry, so that one loaded model serves all cells of a sweep."""
        allowed = self.traits.turn_options
        must = agent_kinds.keys(self.kind)  # required settings stay with the agent
        return {k: v for k, v in self.settings.items() if k in allowed and not must.get(k)}

    @property
    def pool_settings(self) -> dict[str, Any]:
        """Return the settings that are not sent with each message."""
        turn = self.turn_settings()
        return {k: v for k, v in self.settings.items() if k not in turn}

    def key(self) -> str:
        """Return a key that is equal for specifications that one agent, or one pool of actors, can serve.

        It is valid in this process only: functions count by identity, because two lambdas have the same name.
        """
        if not self.heavy:
            return json.dumps(self.settings, sort_keys=True, default=identity)
        where = [self.resources.model_dump(), self.limits.timeout, self.limits.max_hung_steps]
        price = None if self.rate is None else self.rate.model_dump()
        return json.dumps([self.pool_settings, where, price], sort_keys=True, default=identity)


def _keys(kind: str | Callable[..., Any]) -> dict[str, bool]:
    """Return the settings of a kind; none for an unknown kind, which is reported elsewhere."""
    try:
        return agent_kinds.keys(kind)
    except (ConfigurationError, TypeError, ValueError):
        return {}


def identity(value: Any) -> Any:
    """Return a JSON value that distinguishes functions of the same name, within this process."""
    return f"{plain(value)}#{id(value)}" if callable(value) else plain(value)


def plain(value: Any) -> Any:
    """Return a JSON value for an object that a Python specification can contain besides JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if callable(value):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)
