"""Checks that a nudge requested by an observer can reach the agents."""

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
    """Raise ConfigurationError if an observer requests nudges that cannot reach the agents.

    observers: pairs of a name for errors and the observer.
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
        # A protocol with its own nudge method may return vectors; a text cannot follow a vector.
        if not isinstance(opening, str) and _says_its_text(protocol):
            raise ConfigurationError(
                f"{name}: action: nudge; expected conversations of texts: a nudge is a text and cannot join a vector,"
                f" and the opening is a vector. To change this, {REMEDY}"
            )


def can_nudge(protocol: TurnProtocol) -> bool:
    """Return whether the protocol has a nudge: its own method, or a text."""
    own = getattr(type(protocol), "nudge", TurnProtocol.nudge) is not TurnProtocol.nudge
    return own or getattr(protocol, "nudge_text", None) is not None


def refusal(protocol: TurnProtocol) -> str:
    """Return why an observer's action is refused, and the remedy."""
    kind = type(protocol).__name__
    if "nudge" in inspect.signature(type(protocol)).parameters:
        remedy = f'give the protocol a text, nudge: {{text: "..."}}, or {REMEDY}'
    else:
        remedy = f"override its method nudge(transcript, verdict), or {REMEDY}"
    return f"action: nudge; protocol {kind} has no nudge, so the agents would never see one. To change this, {remedy}"


def _says_its_text(protocol: TurnProtocol) -> bool:
    return getattr(type(protocol), "nudge", None) is TurnProtocol.nudge
