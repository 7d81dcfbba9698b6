"""What a specification says of an agent, and of a budget."""

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
    """A part of a specification; every key of it must be known."""

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        for key in value if isinstance(value, Mapping) else ():
            if key not in cls.model_fields:
                raise ConfigurationError(f"{key}: " + unknown("key", key, cls.model_fields))
        return value


class Price(SpecSection):
    """Money per million tokens, in any one currency."""

    input: float = Field(0.0, ge=0)
    output: float = Field(0.0, ge=0)


class BudgetSpec(SpecSection):
    """The most that a run may take: money (in the currency of the prices), tokens, requests, and seconds of a start."""

    cost: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, ge=1)
    requests: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)


class AnalyzeSpec(SpecSection):
    """What the analysis of equilibria has to know: objectives by agent, margin, and where positions are read from.

    It changes nothing of what is said. See `equilibrium_analyzer.py` and `position_settings.py`.
    """

    objectives: dict[str, float | list[float]] = {}
    margin: float | None = Field(None, gt=0)
    positions: str | dict[str, Any] | None = None

    def check(self, agents: Collection[str]) -> None:
        """Raises ConfigurationError for unknown agents, objectives of differing length and positions that cannot be
        read."""
        from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer

        for name in self.objectives:
            if name not in agents:
                raise ConfigurationError("analyze.objectives: " + unknown("agent", name, agents))
        try:
            EquilibriumAnalyzer(self.objectives, self.margin, self.positions)
        except ConfigurationError as error:
            raise ConfigurationError(f"analyze.{error}") from None


class Resources(SpecSection):
    """What an agent in actors gets: how many processes, what each of them asks Ray for, and how it is called."""

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
                f"scheduling_strategy: {where!r}; expected DEFAULT, SPREAD, or from Python an object of Ray's"
            )
        return self


class CallLimits(SpecSection):
    """What an agent's calls are held to: the first four by all workers together, the others in each process."""

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
"""Where to write what is easily taken for a setting of the agent."""


class AgentSpec(BaseModel):
    """One agent: its name, its kind, where it runs, what limits its calls; every other key is a setting of its kind.

    price: {input, output}, money per million tokens. A kind whose constructor has a `price` gets it as well, and may
    take something else under this name, which is then its setting alone.
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
        """Its price, if it has one."""
        return self.price if isinstance(self.price, Price) else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the agent's kind, its name and kind with them."""
        out = {"kind": self.kind, "name": self.name, **(self.model_extra or {})}
        if self.price is not None and "price" in agent_kinds.keys(self.kind):
            out["price"] = self.price if self.rate is None else self.rate.model_dump()
        for key in self._own_limits:
            if (value := getattr(self.limits, key)) is not None:
                out[key] = value
        return out

    @property
    def _own_limits(self) -> frozenset[str]:
        """The limits that the agent keeps by itself."""
        try:
            return self.traits.own_limits
        except ConfigurationError:  # `build` reports it
            return frozenset()

    @property
    def traits(self) -> AgentTraits:
        """The optional features of its kind. Raises ConfigurationError for an unknown kind."""
        return agent_traits(agent_kinds.get(self.kind))

    @property
    def inner(self) -> AgentSpec:
        """The language model that answers for the agent: the one that its `model_agent` describes, or itself."""
        inner = self.settings.get("model_agent")
        return AgentSpec(**{"name": self.name, **inner}) if isinstance(inner, dict) and "kind" in inner else self

    @property
    def paid(self) -> bool:
        """Whether its calls are logged before they are made: it has a price, or its kind is one that costs money."""
        return any(s.rate is not None or s.traits.paid for s in (self, self.inner))

    @property
    def endpoint_key(self) -> str:
        """Its group of `limits`: `rate_limit_group`, else a server's address and model, else its pool."""
        inner = self.inner
        if group := self.limits.rate_limit_group or inner.limits.rate_limit_group:
            return group
        address = inner.settings.get("base_url"), inner.settings.get("model")
        return " ".join(map(str, address)) if "base_url" in agent_kinds.keys(inner.kind) else self.key()

    @property
    def step_timeout(self) -> float | None:
        """Seconds that a step may take; None where the agent keeps to its `timeout` by itself."""
        return None if "timeout" in self._own_limits else self.limits.timeout

    @property
    def heavy(self) -> bool:
        """Whether the agent works in an actor of its own; one that keeps memory always does."""
        traits = self.traits
        return traits.stateful or (self.placement or traits.placement) == "actor"

    def build(self, where: str = "agent") -> Any:
        """The agent itself, not yet set up. Raises ConfigurationError."""
        self._check_names(where)
        if inspect.isroutine(self.kind) and not agent_kinds.takes(self.kind, "name"):
            name = self.kind.__name__
            raise ConfigurationError(
                f"{where}.kind: the function {name} takes no 'name'; expected a class, or a function that makes an"
                f" agent. To let {name} answer, write kind: function, function: {name}"
            )
        agent = agent_kinds.build(self.settings, where)
        check_part("agent", agent, where)
        return agent

    def _check_names(self, where: str) -> None:
        """Raises ConfigurationError for a key that belongs under `resources` or `limits`, or stands in both places."""
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
        """The settings that can go with each message, so that one loaded model serves all cells of a sweep."""
        allowed = self.traits.turn_options
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
        where = [self.resources.model_dump(), self.limits.timeout, self.limits.max_hung_steps]
        price = None if self.rate is None else self.rate.model_dump()
        return json.dumps([self.pool_settings, where, price], sort_keys=True, default=identity)


def _keys(kind: str | Callable[..., Any]) -> dict[str, bool]:
    """The settings of a kind; none where there is no such kind, which is reported elsewhere."""
    try:
        return agent_kinds.keys(kind)
    except (ConfigurationError, TypeError, ValueError):
        return {}


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
