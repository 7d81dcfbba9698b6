"""Whether what was given as a part of a conversation is one, and whether it answers as its contract says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from a2a_ray.core.contracts import Bids, Next, Say, Stop, Verdict, View
from a2a_ray.core.errors import BadAnswer, BadInput

ACTIONS = ("record", "nudge", "stop")
METHODS = {
    "agent": ("step",),
    "protocol": ("speakers", "view"),
    "observer": ("update",),
    "stop condition": ("check",),
}
"""The methods that a part of each sort must have; an agent has a `name` besides."""
WRAPPERS = {
    "agent": "wrap it: FunctionAgent({name!r}, {name}); in a specification"
    " {{name: ann, kind: function, function: {name}}}",
    "protocol": "make a subclass of TurnProtocol with speakers() and view()",
    "observer": "make a class with update(message) that returns a Verdict",
    "stop condition": "wrap it: StopCondition({name})",
}
"""What to do with a plain function that was given in place of a part."""


def check_part(sort: str, part: object, where: str) -> None:
    """Raises BadInput, naming `where`, the value and the remedy, unless `part` is one of this sort."""
    article = "an" if sort[0] in "ao" else "a"
    missing = [m for m in METHODS[sort] if not callable(getattr(part, m, None))]
    if inspect.isclass(part):
        raise BadInput(f"{where}: the class {part.__name__}; expected {article} {sort}. Make one: {part.__name__}(...)")
    if missing and inspect.isroutine(part):
        name = getattr(part, "__name__", "function")
        remedy = WRAPPERS[sort].format(name="answer" if name == "<lambda>" else name)
        raise BadInput(f"{where}: the function {name}; expected {article} {sort}. To use it, {remedy}")
    needed = " and ".join(f"{m}()" for m in METHODS[sort])
    if sort == "agent" and not hasattr(part, "name"):
        missing = ["name", *missing]
    if missing:
        raise BadInput(
            f"{where}: {shown(part)} has no {' and no '.join(missing)}; expected {article} {sort}, an object with"
            f" {'a name and ' if sort == 'agent' else ''}{needed}"
        )


def check_agents(agents: object) -> None:
    """Raises BadInput unless it is a sequence of agents."""
    if isinstance(agents, (str, Mapping)) or not isinstance(agents, Sequence):
        raise BadInput(f"agents: {shown(agents)}; expected a list of agents, such as [EchoAgent('ann')]")
    for i, agent in enumerate(agents):
        check_part("agent", agent, f"agents.{i}")


def check_verdict(verdict: object, observer: str, turn: int) -> None:
    """Raises BadAnswer for what an observer must not return from `update`."""
    if not isinstance(verdict, Verdict):
        raise BadAnswer(
            f"observer {observer!r} returned {shown(verdict)} at turn {turn}; expected a Verdict"
            " (return NOTHING if there is nothing to report)"
        )
    if verdict.action not in ACTIONS:
        raise BadAnswer(
            f"observer {observer!r} returned action {verdict.action!r} at turn {turn}; expected one of"
            f" {', '.join(ACTIONS)}"
        )


def check_next(chosen: object, protocol: object, turn: int) -> Next:
    """What `speakers` of a protocol returned. Raises BadAnswer if it is none of the things that it may return."""
    names: Any = chosen.speakers if isinstance(chosen, Bids) else chosen
    if isinstance(chosen, (str, Stop, Say)):
        return chosen
    if isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(name, str) for name in names):
        return chosen  # type: ignore[return-value]
    raise BadAnswer(
        f"protocol {type(protocol).__name__} returned {shown(chosen)} from speakers() at turn {turn}; expected a name,"
        " a list of names, Bids, Say or Stop"
    )


def check_view(view: object, protocol: object, turn: int) -> View:
    """What `view` of a protocol returned. Raises BadAnswer if it is no View."""
    if isinstance(view, View):
        return view
    raise BadAnswer(
        f"protocol {type(protocol).__name__} returned {shown(view)} from view() at turn {turn}; expected a View"
        " (return View(sender, content))"
    )


def check_reason(reason: object, condition: object) -> str | None:
    """What a stop condition returned. Raises BadAnswer if it is neither text nor None."""
    if reason is None or isinstance(reason, str):
        return reason
    raise BadAnswer(
        f"stop condition {type(condition).__name__} returned {shown(reason)}; expected the reason as text, or None to"
        " go on"
    )


def shown(value: object) -> str:
    """A value for an error: its type and its beginning."""
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
