"""Whether a nudge that an observer asks for can reach the agents."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import NUDGE

REMEDY = "use action: record or stop"


def check_nudges(
    protocol: TurnProtocol, observers: Iterable[tuple[str, Any]], agents: Sequence[str], opening: Any
) -> None:
    """Raises ConfigurationError if an observer will ask for nudges that cannot reach the agents.

    observers: (name for errors, observer).
    """
    text = getattr(protocol, "nudge_text", None)
    if text is not None and text.sender in agents:
        raise ConfigurationError(
            f"nudge.sender: {text.sender!r} is an agent; expected another name, such as 'moderator'"
        )
    for name, observer in observers:
        if getattr(observer, "action", None) != NUDGE:
            continue
        if not can_nudge(protocol):
            raise ConfigurationError(f"{name}: {refusal(protocol)}")
        # A protocol with a nudge method of its own may say vectors; a text cannot follow one.
        if not isinstance(opening, str) and _says_its_text(protocol):
            raise ConfigurationError(
                f"{name}: action: nudge; the opening is a vector, and a nudge is a text that an agent would be shown"
                f" with it: {REMEDY}"
            )


def can_nudge(protocol: TurnProtocol) -> bool:
    """Whether the protocol says something when it is asked for a nudge."""
    own = getattr(type(protocol), "nudge", TurnProtocol.nudge) is not TurnProtocol.nudge
    return own or getattr(protocol, "nudge_text", None) is not None


def refusal(protocol: TurnProtocol) -> str:
    """Why an observer's action is refused, and what to do."""
    kind = type(protocol).__name__
    if "nudge" in inspect.signature(type(protocol)).parameters:
        remedy = f'give the protocol a text, nudge: {{text: "..."}}, or {REMEDY}'
    else:
        remedy = f"override its method nudge(transcript, verdict), or {REMEDY}"
    return f"action: nudge; protocol {kind} has no nudge, so the agents would never see one. To change this, {remedy}"


def _says_its_text(protocol: TurnProtocol) -> bool:
    return getattr(type(protocol), "nudge", None) is TurnProtocol.nudge
