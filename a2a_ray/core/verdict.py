"""The report of an observer after a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from a2a_ray.core.message import EMPTY


@dataclass(frozen=True, slots=True)
class ObserverVerdict:
    """The report of an observer after a message.

    status: "none", "warning", "loop", "recovered", or the observer's own word.
    action: "record", "nudge" (calls `TurnProtocol.nudge`) or "stop".
    reason: one readable sentence; required with "stop".
    scores: a weight for each agent's claim to the next turn; adaptive protocols can use it.
    evidence: facts that a person can check; JSON.
    """

    status: str = "none"
    action: str = "record"
    reason: str = ""
    scores: Mapping[str, float] = EMPTY
    evidence: Mapping[str, Any] = EMPTY


NOTHING = ObserverVerdict()
"""The verdict of an observer that has nothing to report."""
