"""A text that a protocol puts into a conversation when an observer asks for a nudge."""

from __future__ import annotations

import inspect
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from a2a_ray.core.contracts import Say, TurnProtocol, Verdict
from a2a_ray.core.errors import BadInput, unknown
from a2a_ray.core.message import NUDGE

PLACEHOLDERS = ("onset_turn", "span")
"""What the text can take from the evidence of the verdict: the turn where the loop began, and the repeated words."""
REMEDY = "use action: record or stop"


class NudgeText:
    """What `nudge: {text: ..., sender: moderator}` of a protocol says.

    text: may hold the placeholders {onset_turn} and {span}; a literal brace is written twice.
    sender: who says it; not the name of an agent.
    Raises BadInput for unknown keys and placeholders.
    """

    def __init__(self, text: str, sender: str = "moderator") -> None:
        for key, value in (("text", text), ("sender", sender)):
            if not isinstance(value, str) or not value.strip():
                raise BadInput(f"nudge.{key}: {value!r}; expected text that is not empty")
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise BadInput(f"nudge.text: {text!r}; {error}. Write a literal brace twice: {{{{ or }}}}") from None
        for _, name, spec, conversion in parts:
            if name is None:
                continue
            if name not in PLACEHOLDERS:
                raise BadInput(f"nudge.text: {unknown('placeholder', name, PLACEHOLDERS)} Write a literal brace twice")
            if spec or conversion:
                raise BadInput(f"nudge.text: placeholder {name!r} has a format; expected {{{name}}} alone")
        self.text, self.sender = text, sender
        self._needed = [name for _, name, _, _ in parts if name]

    @classmethod
    def parse(cls, value: Mapping[str, Any] | None) -> NudgeText | None:
        """The text of a specification's `nudge:`; None for None. Raises BadInput."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise BadInput(f"nudge: {value!r}; expected a mapping with text and, if you like, sender")
        for key in value:
            if key not in ("text", "sender"):
                raise BadInput(f"nudge.{key}: " + unknown("key", key, ("text", "sender")))
        if "text" not in value:
            raise BadInput("nudge: key 'text' is missing; expected what the agents are to be shown")
        return cls(**value)

    def say(self, verdict: Verdict) -> Say:
        """What is recorded for a verdict. Raises BadInput if its evidence lacks what the text needs."""
        for name in self._needed:
            if name not in verdict.evidence:
                known = ", ".join(verdict.evidence) or "nothing"
                raise BadInput(
                    f"nudge.text: placeholder {name!r}; the observer's evidence has no such key (it has {known});"
                    " leave the placeholder out"
                )
        return Say(self.sender, self.text.format(**{n: verdict.evidence[n] for n in self._needed}), NUDGE)


def check_nudges(
    protocol: TurnProtocol, observers: Iterable[tuple[str, Any]], agents: Sequence[str], opening: Any
) -> None:
    """Raises BadInput if an observer will ask for nudges that cannot reach the agents.

    observers: (name for errors, observer).
    """
    text = getattr(protocol, "nudge_text", None)
    if text is not None and text.sender in agents:
        raise BadInput(f"nudge.sender: {text.sender!r} is an agent; expected another name, such as 'moderator'")
    for name, observer in observers:
        if getattr(observer, "action", None) != NUDGE:
            continue
        if not can_nudge(protocol):
            raise BadInput(f"{name}: {refusal(protocol)}")
        # A protocol with a nudge method of its own may say vectors; a text cannot follow one.
        if not isinstance(opening, str) and _says_its_text(protocol):
            raise BadInput(
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
