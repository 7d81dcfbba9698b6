"""Checks of the parts of a conversation and of what they return."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from a2a_ray.core.errors import ConfigurationError, InvalidResponseError
from a2a_ray.core.turns import BidRequest, Next, ProtocolMessage, Stop, TurnContext
from a2a_ray.core.verdict import ObserverVerdict

ACTIONS = ("record", "nudge", "stop")
METHODS = {
    "agent": ("step",),
    "protocol": ("speakers", "context"),
    "observer": ("update",),
    "termination condition": ("check",),
}
"""The required methods of each sort of part; an agent also has a `name`."""
WRAPPERS = {
    "agent": "wrap it: FunctionAgent({name!r}, {name}); in a specification"
    " {{name: ann, kind: function, function: {name}}}",
    "protocol": "make a subclass of TurnProtocol with speakers() and context()",
    "observer": "make a class with update(message) that returns an ObserverVerdict",
    "termination condition": "wrap it: TerminationCondition({name})",
}
"""The remedy for a plain function in place of a part."""


def check_part(sort: str, part: object, where: str) -> None:
    """Raise ConfigurationError, naming `where`, the value and the remedy, unless `part` is of this sort."""
    article = "an" if sort[0] in "ao" else "a"
    missing = [m for m in METHODS[sort] if not callable(getattr(part, m, None))]
    if inspect.isclass(part):
        raise ConfigurationError(
            f"{where}: the class {part.__name__}; expected {article} {sort}. Make one: {part.__name__}(...)"
        )
    if missing and inspect.isroutine(part):
        name = getattr(part, "__name__", "function")
        remedy = WRAPPERS[sort].format(name="answer" if name == "<lambda>" else name)
        raise ConfigurationError(f"{where}: the function {name}; expected {article} {sort}. To use it, {remedy}")
    needed = " and ".join(f"{m}()" for m in METHODS[sort])
    if sort == "agent" and not hasattr(part, "name"):
        missing = ["name", *missing]
    if missing:
        raise ConfigurationError(
            f"{where}: {shown(part)} has no {' and no '.join(missing)}; expected {article} {sort}, an object with"
            f" {'a name and ' if sort == 'agent' else ''}{needed}"
        )


def check_agents(agents: object) -> None:
    """Raise ConfigurationError unless the value is a sequence of agents."""
    if isinstance(agents, (str, Mapping)) or not isinstance(agents, Sequence):
        raise ConfigurationError(f"agents: {shown(agents)}; expected a list of agents, such as [EchoAgent('ann')]")
    for i, agent in enumerate(agents):
        check_part("agent", agent, f"agents.{i}")


def check_judges(judges: Iterable[tuple[str, str]], agents: Collection[str]) -> None:
    """Raise ConfigurationError unless judges have names of their own, because their records are stored by name.

    judges: pairs of the names of an observer and of its judge.
    """
    names = set(agents)
    for observer, judge in judges:
        where = f"observer {observer}: judge.name: {judge!r}"
        if not isinstance(judge, str) or not judge.isidentifier():
            raise ConfigurationError(f"{where}; expected a Python identifier such as 'judge'")
        if judge in names:
            raise ConfigurationError(f"{where}; an agent or another judge has this name. Give the judge another one")
        names.add(judge)


def check_verdict(verdict: object, observer: str, turn: int) -> None:
    """Raise InvalidResponseError unless an observer's `update` returned a valid verdict."""
    if not isinstance(verdict, ObserverVerdict):
        raise InvalidResponseError(
            f"observer {observer!r} returned {shown(verdict)} at turn {turn}; expected an ObserverVerdict"
            " (return NOTHING if there is nothing to report)"
        )
    if verdict.action not in ACTIONS:
        raise InvalidResponseError(
            f"observer {observer!r} returned action {verdict.action!r} at turn {turn}; expected one of"
            f" {', '.join(ACTIONS)}"
        )


def check_next(chosen: object, protocol: object, turn: int) -> Next:
    """Return the decision of a protocol's `speakers`. Raises InvalidResponseError for an invalid one."""
    names: Any = chosen.speakers if isinstance(chosen, BidRequest) else chosen
    if isinstance(chosen, (str, Stop, ProtocolMessage)):
        return chosen
    if isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names):
        return chosen  # type: ignore[return-value]
    raise InvalidResponseError(
        f"protocol {type(protocol).__name__} returned {shown(chosen)} from speakers() at turn {turn}; expected a name,"
        " a list of names, BidRequest, ProtocolMessage or Stop"
    )


def check_context(context: object, protocol: object, turn: int) -> TurnContext:
    """Return what a protocol's `context` returned. Raises InvalidResponseError unless it is a TurnContext."""
    if isinstance(context, TurnContext):
        return context
    raise InvalidResponseError(
        f"protocol {type(protocol).__name__} returned {shown(context)} from"
        f" context() at turn {turn}; expected a TurnContext"
        " (return TurnContext(sender, content))"
    )


def check_reason(reason: object, condition: object) -> str | None:
    """Return what a termination condition returned. Raises InvalidResponseError unless it is text or None."""
    if reason is None or isinstance(reason, str):
        return reason
    raise InvalidResponseError(
        f"termination condition {type(condition).__name__} returned"
        f" {shown(reason)}; expected the reason as text, or None to"
        " continue"
    )


def shown(value: object) -> str:
    """Return a value for an error: its type and its beginning, or the name of a class."""
    if inspect.isclass(value):
        return f"the class {value.__name__}"
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
