"""Whether the parties of a negotiation settled on a deal, and how far apart their offers stayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import fmean
from typing import Any, Literal, TypeAlias

import numpy as np

from a2a_ray.analysis.equilibria.positions import Choice, Offer, issues_of, offer_distance, offers
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import MESSAGE
from a2a_ray.core.transcript import Transcript

Status: TypeAlias = Literal["settled", "not settled", "too few offers"]

IN_A_ROW = 3
"""This many offers at the end of a game must be the same deal."""
PARTIES = 2
"""At least this many parties must have made them: one party that repeats itself settles nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Negotiation:
    """The outcome of one game.

    parties: the senders. issues: those at stake (`issues_of`). made: the complete offers, which name every issue, in
    order. partial: number of incomplete offers, which are ignored. A turn without a complete offer neither continues a
    row nor ends it.
    status: "settled": the last `in_a_row` offers are one deal, made by at least the required number of parties;
        "too few offers": there are fewer offers, or offers of fewer parties; else "not settled".
    deal: the last offer, if any. in_a_row, supporters: number of offers of that deal in a row at the end, and of their
        parties. since: the turn of the first of them.
    left: number of earlier rows that satisfied the rule and were ended by another offer. Many of them mean that such a
        row is not a settlement.
    agreeing: number of parties whose newest offer is the last deal.
    disagreement: after each message the share of issues on which the newest offers of two parties differ, averaged
        over all pairs of parties with an offer; shape (messages,), NaN until there are two.
    """

    id: str
    parties: tuple[str, ...]
    issues: tuple[str, ...]
    made: tuple[Offer, ...]
    partial: int
    status: Status
    deal: dict[str, Choice]
    in_a_row: int
    supporters: int
    since: int | None
    left: int
    agreeing: int
    disagreement: np.ndarray[Any, np.dtype[np.float64]]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value without the offers; NaN becomes None."""
        names = ("id", "status", "deal", "in_a_row", "supporters", "since", "left", "agreeing", "partial")
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        series = [None if math.isnan(v) else round(v, 6) for v in self.disagreement.tolist()]
        return out | {"parties": list(self.parties), "offers": len(self.made), "disagreement": series}


def negotiation(
    transcript: Transcript, in_a_row: int = IN_A_ROW, parties: int = PARTIES, key: str = "deal"
) -> Negotiation:
    """Return the outcome of one game from the offers in the metadata of its turns under `key` (see `read_offer`).

    This is a statistic of the offers, not the game's own score: the offers do not tell whether the parties would sign.
    Raises ConfigurationError unless 2 <= parties <= in_a_row.
    """
    check_rule(in_a_row, parties)
    found = offers(transcript, key)
    issues = issues_of(found)
    made = tuple(o for o in found if issues and all(i in o.choices for i in issues))
    rows = [list(row) for _, row in groupby(made, key=lambda o: _deal(o, issues))]
    long = [len(row) >= in_a_row and _parties(row) >= parties for row in rows]
    status: Status = "settled" if long and long[-1] else "not settled"
    if len(made) < in_a_row or _parties(made) < parties:
        status = "too few offers"
    last = rows[-1] if rows else []
    deal = _deal(last[0], issues) if last else {}
    newest = {o.speaker: o for o in made}
    return Negotiation(
        id=transcript.id,
        parties=tuple(dict.fromkeys(m.sender for m in transcript.messages if m.kind == MESSAGE)),
        issues=issues,
        made=made,
        partial=len(found) - len(made),
        status=status,
        deal=deal,
        in_a_row=len(last),
        supporters=_parties(last),
        since=last[0].turn if last else None,
        left=sum(long[:-1]),
        agreeing=sum(_deal(o, issues) == deal for o in newest.values()),
        disagreement=_disagreement(transcript, made, issues),
    )


def check_rule(in_a_row: int, parties: int) -> None:
    """Raise ConfigurationError unless 2 <= parties <= in_a_row."""
    if not 2 <= parties <= in_a_row:
        raise ConfigurationError(f"in_a_row: {in_a_row}, parties: {parties}; expected 2 <= parties <= in_a_row")


def has_offers(transcript: Transcript, key: str = "deal") -> bool:
    """Return whether any turn has metadata under `key`, that is, whether this is a negotiation."""
    return any(key in message.metadata for message in transcript.messages)


def _deal(offer: Offer, issues: Sequence[str]) -> dict[str, Choice]:
    return {issue: offer.choices[issue] for issue in issues}


def _parties(made: Sequence[Offer]) -> int:
    return len({offer.speaker for offer in made})


def _disagreement(
    transcript: Transcript, made: Sequence[Offer], issues: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    by_turn = {offer.turn: offer for offer in made}
    newest: dict[str, Offer] = {}
    values = []
    for message in transcript.messages:
        if message.turn in by_turn:
            newest[message.sender] = by_turn[message.turn]
        pairs = combinations(newest.values(), 2)
        apart = [offer_distance(a.choices, b.choices, issues) for a, b in pairs]
        values.append(fmean(apart) if apart else math.nan)
    return np.array(values)
