"""Negotiations as findings: whether the parties of one conversation settled on a deal."""

from __future__ import annotations

from typing import Any

from a2a_ray.analysis.equilibria.negotiation import IN_A_ROW, PARTIES, Negotiation, check_rule, has_offers, negotiation
from a2a_ray.core.findings import NONE, Finding
from a2a_ray.core.transcript import Transcript

KIND = "negotiation"


class NegotiationAnalyzer:
    """Assess the offers in the metadata of turns under `key` by the rule of `negotiation`.

    A finding's `evidence` has the data of the figures and tables of negotiations; `speakers` are the parties whose
    newest offer is the last deal. Raises ConfigurationError unless 2 <= parties <= in_a_row.
    """

    name = "negotiation"
    version = "1"

    def __init__(self, in_a_row: int = IN_A_ROW, parties: int = PARTIES, key: str = "deal") -> None:
        check_rule(in_a_row, parties)
        self.in_a_row, self.parties, self.key = in_a_row, parties, key

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make a finding reproducible; JSON."""
        return {"in_a_row": self.in_a_row, "parties": self.parties, "key": self.key}

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return the one finding of a conversation; its status is "none" if no turn has an offer."""
        about: dict[str, Any] = {
            "conversation_id": transcript.id,
            "analyzer": self.name,
            "analyzer_version": self.version,
            "settings": self.settings,
            "through_seq": len(transcript),
        }
        game = negotiation(transcript, self.in_a_row, self.parties, self.key)
        evidence = game.to_dict()
        del evidence["id"]
        if not has_offers(transcript, self.key):  # in tables of negotiations it counts as one with too few offers
            reason = f"no turn has an offer under {self.key!r}"
            return [Finding(**about, status=NONE, reason=reason, evidence={**evidence, "disagreement": []})]
        newest = {offer.speaker: offer.choices for offer in game.made}
        agreeing = [
            who for who, choices in newest.items() if all(choices[issue] == game.deal[issue] for issue in game.issues)
        ]
        return [
            Finding(
                **about,
                kind=KIND,
                status=game.status,
                reason=self._reason(game),
                speakers=tuple(agreeing),
                score=game.in_a_row,
                threshold=self.in_a_row,
                evidence=evidence,
            )
        ]

    def _reason(self, game: Negotiation) -> str:
        row = f"the last {game.in_a_row} offers are one deal of {game.supporters} parties"
        if game.status == "settled":
            return row
        if game.status == "too few offers":
            makers = len({offer.speaker for offer in game.made})
            return f"{len(game.made)} complete offers of {makers} parties; expected {self.in_a_row} of {self.parties}"
        return f"{row}; expected {self.in_a_row} of {self.parties}"
