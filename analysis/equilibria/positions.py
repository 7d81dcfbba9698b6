"""Read the positions of agents from text: from numbers in their messages, or from parsed offers.

The resulting arrays, shape (T, d), are the input of `trajectory_fit.py` and `assessment.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import MESSAGE, Message
from a2a_ray.core.transcript import Transcript

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
Choice: TypeAlias = "str | int | float"

NUMBER = re.compile(
    r"(?<!\w)(?<!\d\.)(?<![A-Za-z]-)"  # not inside a word (A1, GPT-4) nor after another number's point (1.2.3)
    r"(?P<sign>(?<![\w)\]])[-−+])?[$€£¥]?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\.)\.\d+)(?P<exponent>[eE][-+]?\d+)?"
    r"(?:(?P<letter>[kK]|M|bn|B)(?!\w)|[ \t-](?P<word>thousand|million|billion|trillion)\b)?"
)
"""A number in running text; see `numbers`."""
_TIMES = {"k": 1e3, "thousand": 1e3, "m": 1e6, "million": 1e6, "b": 1e9, "bn": 1e9, "billion": 1e9, "trillion": 1e12}
_CODE = re.compile(r"(?<![A-Z])([A-Z])(\d+)(?!\.?\d)")


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """The position of one agent at each of its own T messages.

    turns: their numbers, shape (T,). values: shape (T, d), float64; a row, or with offers a part of it, is NaN if the
    message states no position. axes: the names of the d columns.
    """

    turns: tuple[int, ...]
    values: Array
    axes: tuple[str, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """The turns without a complete position."""
        return tuple(turn for turn, row in zip(self.turns, self.values, strict=True) if np.isnan(row).any())

    def stated(self) -> Array:
        """Return only the turns with a complete position, shape (T - missing, d).

        Two of them may be more than one round apart; inference from the trajectory assumes one round.
        """
        return self.values[~np.isnan(self.values).any(axis=1)]

    def standing(self) -> Array:
        """Return the positions from the first complete one on, with gaps filled with the last stated value."""
        values = self.values.copy()
        for t in range(1, len(values)):
            values[t] = np.where(np.isnan(values[t]), values[t - 1], values[t])
        whole = np.flatnonzero(~np.isnan(values).any(axis=1))
        return values[whole[0] :] if len(whole) else values[:0]


def numbers(text: str, pattern: str | re.Pattern[str] | None = None) -> list[float]:
    """Return the finite numbers in a text, in order.

    One number each: 1,234.5 (thousands separators, so "1,234" is not a pair), .5, 1e-3, -3 and −3. A sign must stand
    free: "10-20" is 10 and 20, "a - 3" is 3. Currency signs are ignored. Suffixes multiply: 1.5k, $1.5M, 2bn, 3B and
    "3 million" (but 5m is 5). Units, including per cent, are left to the caller: 12% is 12. Digits in words (A1, GPT-4)
    do not count. Years, dates, 2nd and list numbers ("1. First") count like all others. To select the intended ones,
    pass `pattern`, such as r"price of (\\S+)": each match gives the first number in its first group, or in the match
    if there are no groups.
    """
    if pattern is None:
        found = NUMBER.finditer(text)
        return [value for match in found if math.isfinite(value := _value(match))]
    matches = re.finditer(pattern, text)
    parts = (numbers(m[1] or "" if m.re.groups else m[0]) for m in matches)
    return [part[0] for part in parts if part]


def _value(match: re.Match[str]) -> float:
    digits = match["digits"].replace(",", "") + (match["exponent"] or "")
    size = float(digits) * _TIMES.get((match["letter"] or match["word"] or "").lower(), 1.0)
    return -size if match["sign"] in ("-", "−") else size


def positions_from_numbers(
    transcript: Transcript,
    dim: int = 1,
    which: Literal["first", "last", "all"] = "last",
    pattern: str | re.Pattern[str] | None = None,
) -> dict[str, Positions]:
    """Return each agent's positions by name, from the numbers in its messages (those of kind "message").

    which: "first" or "last": the first or last `dim` numbers of a message, in their order; "all": a message states a
        position only if it has exactly `dim` numbers. pattern: selects numbers; see `numbers`.
    Messages with too few numbers are NaN. A vector of shape (dim,) is its own position. Raises ConfigurationError.
    """
    if dim < 1:
        raise ConfigurationError(f"dim: {dim}; expected at least 1")
    if which not in ("first", "last", "all"):
        raise ConfigurationError("which: " + unknown("choice", which, ("first", "last", "all")))

    def position(message: Message) -> Sequence[float]:
        if not isinstance(message.content, str):
            found = [float(v) for v in message.content]
            return found if len(found) == dim else ()
        found = numbers(message.content, pattern)
        if len(found) < dim or (which == "all" and len(found) > dim):
            return ()
        return found[:dim] if which == "first" else found[-dim:]

    return _by_agent(transcript, position, tuple(f"number {i + 1}" for i in range(dim)))


class Offer(NamedTuple):
    """One offer: its turn, its speaker, and its choice for each issue that it names."""

    turn: int
    speaker: str
    choices: Mapping[str, Choice]


def read_offer(deal: object) -> dict[str, Choice]:
    """Return issue -> choice of a parsed offer; empty if `deal` is not an offer.

    deal: a mapping of issues to choices (text or numbers; others are ignored), or codes of a letter for the issue and a
    number for the choice: "A1, B2", ["A1", "B2"]. Text around the codes is ignored ("and E3.", "C2 (2:1)"). An issue
    with two choices ("C2 or C3") or an invalid one ("D2.5") is left open.
    """
    if isinstance(deal, Mapping):
        return {str(k): v for k, v in deal.items() if isinstance(v, str | int | float) and v == v}
    parts = [deal] if isinstance(deal, str) else deal if isinstance(deal, Sequence) else []
    found: dict[str, set[int]] = {}
    for part in parts:
        for issue, choice in _CODE.findall(part) if isinstance(part, str) else ():
            found.setdefault(issue, set()).add(int(choice))
    return {issue: choices.pop() for issue, choices in sorted(found.items()) if len(choices) == 1}


def offers(transcript: Transcript, key: str = "deal") -> list[Offer]:
    """Return the offers of a conversation in order, complete or not, from the metadata of its turns under `key`."""
    read = ((m, read_offer(m.metadata.get(key))) for m in transcript.messages if m.kind == MESSAGE)
    return [Offer(m.turn, m.sender, choices) for m, choices in read if choices]


def issues_of(made: Sequence[Offer]) -> tuple[str, ...]:
    """Return the issues at stake: those that more than half of the offers name, in order; others are errors."""
    named = [issue for offer in made for issue in offer.choices]
    return tuple(sorted(issue for issue in set(named) if named.count(issue) > len(made) / 2))


def offer_distance(a: Mapping[str, Choice], b: Mapping[str, Choice], issues: Sequence[str]) -> float:
    """Return the share of issues on which two offers differ (Hamming distance), 0 to 1.

    Issues that one of them leaves open do not count; NaN if no issue is left.
    """
    both = [issue for issue in issues if issue in a and issue in b]
    return sum(a[issue] != b[issue] for issue in both) / len(both) if both else math.nan


def positions_from_offers(
    transcript: Transcript,
    encoding: Literal["one_hot", "ordinal"] = "one_hot",
    choices: Mapping[str, Sequence[Choice]] | None = None,
    key: str = "deal",
) -> dict[str, Positions]:
    """Return each agent's positions by name, from the offers in its turns; NaN if a turn leaves an issue open.

    encoding: "one_hot": an axis for each choice of each issue, 1 if it is offered: two offers that differ on k issues
        are sqrt(2 k) apart. "ordinal": an axis for each issue, the index of the choice in its list, from 0, for ordered
        choices.
    choices: of each issue, in order; None for those that occur in the conversation, sorted, for `issues_of`. A choice
        that is not listed leaves its issue open.
    Raises ConfigurationError if no choices are given and no turn has an offer.
    """
    if encoding not in ("one_hot", "ordinal"):
        raise ConfigurationError("encoding: " + unknown("encoding", encoding, ("one_hot", "ordinal")))
    made = offers(transcript, key)
    if choices is None:
        if not made:
            raise ConfigurationError(
                f"transcript: none of its {len(transcript.messages)} turns has an offer under {key!r}"
            )
        choices = {i: _sorted({o.choices[i] for o in made if i in o.choices}) for i in issues_of(made)}
    by_turn = {offer.turn: offer.choices for offer in made}

    def position(message: Message) -> list[float]:
        offered = by_turn.get(message.turn, {})
        values: list[float] = []
        for issue, listed in choices.items():
            place = list(listed).index(offered[issue]) if offered.get(issue) in listed else None
            if encoding == "ordinal":
                values.append(math.nan if place is None else place)
            else:
                values += [math.nan if place is None else float(i == place) for i in range(len(listed))]
        return values

    if encoding == "ordinal":
        return _by_agent(transcript, position, tuple(choices))
    return _by_agent(transcript, position, tuple(f"{issue}={c}" for issue, listed in choices.items() for c in listed))


def _sorted(found: Iterable[Choice]) -> list[Choice]:
    """Sort numbers by size, then texts."""
    return sorted(found, key=lambda c: (isinstance(c, str), c if not isinstance(c, str) else 0, str(c)))


def _by_agent(
    transcript: Transcript, position: Callable[[Message], Sequence[float]], axes: tuple[str, ...]
) -> dict[str, Positions]:
    """Return `position` of every message by agent; a row of NaN if it is empty."""
    found: dict[str, tuple[list[int], list[Sequence[float]]]] = {name: ([], []) for name in transcript.agents}
    for message in (m for m in transcript.messages if m.kind == MESSAGE):
        turns, rows = found.setdefault(message.sender, ([], []))
        turns.append(message.turn)
        rows.append(position(message) or [math.nan] * len(axes))
    return {
        name: Positions(tuple(turns), np.array(rows, np.float64).reshape(-1, len(axes)), axes)
        for name, (turns, rows) in found.items()
    }
