"""What an observer reports after a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from a2a_ray.core.message import EMPTY


@dataclass(frozen=True, slots=True)
class ObserverVerdict:
    """What an observer says after a message.

    status: "none", "warning", "loop", "recovered", or an observer's own word.
    action: "record", "nudge" (the protocol is asked what to do: `TurnProtocol.nudge`) or "stop".
    reason: one sentence for people; required with "stop".
    scores: how much each agent should get the next turn (adaptive protocols can follow it).
    evidence: what a person can check; JSON.
    """

    status: str = "none"
    action: str = "record"
    reason: str = ""
    scores: Mapping[str, float] = EMPTY
    evidence: Mapping[str, Any] = EMPTY


NOTHING = ObserverVerdict()
"""The verdict of an observer that has nothing to say."""
