"""The text that a protocol inserts when an observer requests a nudge."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import NUDGE
from a2a_ray.core.turns import ProtocolMessage
from a2a_ray.core.validation import check_settings
from a2a_ray.core.verdict import ObserverVerdict

PLACEHOLDERS = ("onset_turn", "span")
"""Placeholders, filled from the verdict's evidence: the turn where the loop began, and the repeated words."""


class NudgeText:
    """The setting `nudge: {text: ..., sender: moderator}` of a protocol.

    text: may contain the placeholders {onset_turn} and {span}; a literal brace is written twice.
    sender: the author of the text; not the name of an agent.
    Raises ConfigurationError for unknown placeholders and empty texts.
    """

    def __init__(self, text: str, sender: str = "moderator") -> None:
        for key, value in (("text", text), ("sender", sender)):
            if not value.strip():
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
        """Return the nudge of a specification's `nudge:`; None for None. Raises ConfigurationError."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"nudge: {value!r}; expected a mapping with text and, optionally, sender")
        return cls(**check_settings(cls, value, "nudge"))

    def say(self, verdict: ObserverVerdict) -> ProtocolMessage:
        """Return the record for a verdict. Raises ConfigurationError if its evidence lacks a placeholder."""
        for name in self._needed:
            if name not in verdict.evidence:
                known = ", ".join(verdict.evidence) or "nothing"
                raise ConfigurationError(
                    f"nudge.text: placeholder {name!r}; expected a key of the observer's evidence ({known})."
                    " Leave the placeholder out"
                )
        return ProtocolMessage(self.sender, self.text.format(**{n: verdict.evidence[n] for n in self._needed}), NUDGE)
