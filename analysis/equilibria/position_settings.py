"""The source of the positions of a conversation, as configured in a specification."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from a2a_ray.analysis.equilibria.positions import Array, Positions, positions_from_numbers, positions_from_offers
from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import MESSAGE
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.validation import check_settings

VECTORS, NUMBERS, OFFERS = "vectors", "numbers", "offers"
GAPS = ("standing", "stated")
"""Treatments of messages without a complete position."""
READERS: dict[str, Callable[..., dict[str, Positions]]] = {
    NUMBERS: positions_from_numbers,
    OFFERS: positions_from_offers,
}


@dataclass(frozen=True, slots=True)
class PositionSettings:
    """`{from: numbers, dim, which, pattern}`, `{from: offers, encoding, choices, key}` or `{from: vectors}`.

    source: vectors, numbers or offers. options: the arguments of `positions_from_numbers` or `positions_from_offers`.
    missing: treatment of messages without a complete position. None: the agent cannot be assessed; "standing": the last
        stated position holds; "stated": they are left out. In a mapping it is a key beside the others.
    """

    source: str
    options: Mapping[str, Any]
    missing: str | None = None

    @classmethod
    def parse(cls, value: Any, where: str = "positions") -> PositionSettings:
        """Check a mapping, or the name of a source alone. Raises ConfigurationError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {"from": value}
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where}: {str(value)[:60]!r}; expected a mapping such as {{from: numbers}}")
        options = {key: setting for key, setting in value.items() if key not in ("from", "missing")}
        source = value.get("from")
        if source not in (VECTORS, *READERS):
            raise ConfigurationError(f"{where}.from: " + unknown("source", source, (VECTORS, *READERS)))
        if source == VECTORS:
            if options:
                raise ConfigurationError(
                    f"{where}.{min(options)}: vectors are positions themselves; expected no other key"
                )
            return cls(source, {})
        missing = value.get("missing")
        if missing not in (None, *GAPS):
            raise ConfigurationError(f"{where}.missing: " + unknown("choice", missing, GAPS))
        checked = check_settings(READERS[source], options, where, {"transcript"})
        if checked.get("dim", 1) < 1:
            raise ConfigurationError(f"{where}.dim: {checked['dim']}; expected at least 1")
        pattern = checked.get("pattern")
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigurationError(f"{where}.pattern: {pattern!r}; not a regular expression: {error}") from None
        return cls(source, checked, missing)

    @property
    def dim(self) -> int | None:
        """The number of dimensions of a position; None if the conversation determines it."""
        if self.source == NUMBERS:
            return int(self.options.get("dim", 1))
        choices = self.options.get("choices")
        if choices is None:
            return None
        return len(choices) if self.options.get("encoding") == "ordinal" else sum(map(len, choices.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value that `parse` accepts."""
        pattern = self.options.get("pattern")
        plain = {"pattern": pattern.pattern} if isinstance(pattern, re.Pattern) else {}
        missing = {"missing": self.missing} if self.missing else {}
        return {"from": self.source, **self.options, **plain, **missing}

    def read(self, transcript: Transcript) -> dict[str, Positions]:
        """Read each agent's positions. Raises Unreadable."""
        if self.source == VECTORS:
            return _vectors(transcript)
        try:
            found = READERS[self.source](transcript, **self.options)
        except ConfigurationError as error:  # the settings are valid: the conversation has no offer
            raise Unreadable(str(error)) from None
        if self.missing != "standing":
            return found
        return {name: Positions(p.turns, _forward_filled(p.values), p.axes) for name, p in found.items()}


class Unreadable(Exception):
    """A conversation has no positions; the message has the reason. No user error, so no ConfigurationError."""


def is_vectors(transcript: Transcript) -> bool:
    """Return whether there are messages and all of them are vectors."""
    contents = [message.content for message in transcript.messages if message.kind == MESSAGE]
    return bool(contents) and not any(isinstance(content, str) for content in contents)


def _forward_filled(values: Array) -> Array:
    """Fill gaps, NaN, with the last stated value; a gap at the beginning stays."""
    filled = values.copy()
    for t in range(1, len(filled)):
        filled[t] = np.where(np.isnan(filled[t]), filled[t - 1], filled[t])
    return filled


def _vectors(transcript: Transcript) -> dict[str, Positions]:
    messages = [message for message in transcript.messages if message.kind == MESSAGE]
    texts = [message for message in messages if isinstance(message.content, str)]
    if texts:
        raise Unreadable(f"{len(texts)} of {len(messages)} messages are text; expected vectors")
    sizes = sorted({len(message.content) for message in messages})
    if len(sizes) > 1:
        raise Unreadable(f"vectors of {' and '.join(map(str, sizes))} numbers; expected one length")
    found: dict[str, tuple[list[int], list[Any]]] = {name: ([], []) for name in transcript.agents}
    for message in messages:
        turns, rows = found.setdefault(message.sender, ([], []))
        turns.append(message.turn)
        rows.append(message.content)
    dim = sizes[0] if sizes else 0
    axes = tuple(f"axis {i + 1}" for i in range(dim))
    return {
        name: Positions(tuple(turns), np.array(rows, np.float64).reshape(-1, dim), axes)
        for name, (turns, rows) in found.items()
    }
