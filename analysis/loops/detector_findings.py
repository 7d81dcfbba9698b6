"""The findings of the loop detector, collected from its verdicts on one conversation."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from a2a_ray.core.findings import LOOP, RECOVERED, WAITING, WARNING, Finding, as_finding
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

ANALYZER = "loops"
"""Name of the loop detector as an analyzer."""
VERSION = "6"
"""Version of the detector's score. Increase it with every change of the computation."""
SCORES = 10_000
"""Limit on the number of scores kept."""


class FindingCollector:
    """Collects the verdicts and scores of a detector after each message of one conversation."""

    def __init__(self) -> None:
        self.scores = array("f")  # after each message; 4 bytes each, because the state travels with the conversation
        self._seq = 0
        self._highest = 0.0
        self._loops: list[dict[str, Any]] = []  # the newest fields and evidence of each loop
        self._looping = False  # whether the newest loop lasts
        self._notice = NOTHING  # the newest warning or "waiting"

    def add(self, message: Message, verdict: ObserverVerdict, score: float) -> None:
        """Add one verdict and the score after it."""
        self._seq = message.seq
        if message.kind not in ASIDE and len(self.scores) < SCORES:
            self.scores.append(score)
        if score > self._highest:
            self._highest = score
        if verdict is NOTHING:
            return
        if verdict.status == LOOP:
            if not self._looping:
                self._loops.append({"alarm_turn": message.turn, "score": 0.0})
                self._looping = True
            newest = self._loops[-1]
            highest = max(newest["score"], score)
            newest.update(verdict.evidence, score=highest, reason=verdict.reason)
        elif verdict.status == RECOVERED and self._looping:
            self._loops[-1]["recovered_turn"] = verdict.evidence.get("recovered_turn")
            self._looping = False
        elif verdict.status in (WARNING, WAITING):
            self._notice = verdict

    def findings(self, conversation_id: str, settings: Mapping[str, Any]) -> list[Finding]:
        """Return one finding per loop; without a loop, one finding that says so."""
        found = [{"status": LOOP, **each} for each in self._loops]
        for each in found:
            if each.get("recovered_turn") is not None:
                each["status"] = RECOVERED
        if not found:
            found = [
                {
                    **self._notice.evidence,
                    "status": self._notice.status,
                    "reason": self._notice.reason,
                    "score": self._highest,
                }
            ]
        found[0]["scores"] = [round(one, 3) for one in self.scores]
        return [
            as_finding(
                {**each, "score": round(each["score"], 3), "number": number},
                conversation_id=conversation_id,
                analyzer=ANALYZER,
                analyzer_version=VERSION,
                settings=settings,
                through_seq=self._seq,
                threshold=settings["threshold"],
            )
            for number, each in enumerate(found, 1)
        ]


def first_loop(findings: Iterable[Finding]) -> Finding | None:
    """Return the first finding that reports a loop, or None."""
    return next((finding for finding in findings if finding.looped), None)
