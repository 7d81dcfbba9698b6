"""A text that a protocol puts into a conversation when an observer asks for a nudge."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import NUDGE
from a2a_ray.core.turns import ProtocolMessage
from a2a_ray.core.verdict import ObserverVerdict

PLACEHOLDERS = ("onset_turn", "span")
"""What the text can take from the evidence of the verdict: the turn where the loop began, and the repeated words."""


class NudgeText:
    """What `nudge: {text: ..., sender: moderator}` of a protocol says.

    text: may hold the placeholders {onset_turn} and {span}; a literal brace is written twice.
    sender: who says it; not the name of an agent.
    Raises ConfigurationError for unknown keys and placeholders.
    """

    def __init__(self, text: str, sender: str = "moderator") -> None:
        for key, value in (("text", text), ("sender", sender)):
            if not isinstance(value, str) or not value.strip():
                raise ConfigurationError(f"nudge.{key}: {value!r}; expected text that is not empty")
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(
                f"nudge.text: {text!r}; {error}. Write a literal brace twice: {{{{ or }}}}"
            ) from None
        for _, name, spec, conversion in parts:
            if name is None:
                continue
            if name not in PLACEHOLDERS:
                raise ConfigurationError(
                    f"nudge.text: {unknown('placeholder', name, PLACEHOLDERS)} Write a literal brace twice"
                )
            if spec or conversion:
                raise ConfigurationError(f"nudge.text: placeholder {name!r} has a format; expected {{{name}}} alone")
        self.text, self.sender = text, sender
        self._needed = [name for _, name, _, _ in parts if name]

    @classmethod
    def parse(cls, value: Mapping[str, Any] | None) -> NudgeText | None:
        """The text of a specification's `nudge:`; None for None. Raises ConfigurationError."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"nudge: {value!r}; expected a mapping with text and, if you like, sender")
        for key in value:
            if key not in ("text", "sender"):
                raise ConfigurationError(f"nudge.{key}: " + unknown("key", key, ("text", "sender")))
        if "text" not in value:
            raise ConfigurationError("nudge: key 'text' is missing; expected what the agents are to be shown")
        return cls(**value)

    def say(self, verdict: ObserverVerdict) -> ProtocolMessage:
        """What is recorded for a verdict. Raises ConfigurationError if its evidence lacks what the text needs."""
        for name in self._needed:
            if name not in verdict.evidence:
                known = ", ".join(verdict.evidence) or "nothing"
                raise ConfigurationError(
                    f"nudge.text: placeholder {name!r}; the observer's evidence has no such key (it has {known});"
                    " leave the placeholder out"
                )
        return ProtocolMessage(self.sender, self.text.format(**{n: verdict.evidence[n] for n in self._needed}), NUDGE)
