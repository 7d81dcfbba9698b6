"""Whole transcripts through the detector: the same verdicts as in streaming, turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from a2a_ray.analysis.loops.detector import LoopDetector, embedded_text
from a2a_ray.analysis.loops.log import first_loop
from a2a_ray.analysis.loops.semantic import loaded, named
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import ObserverVerdict


@dataclass(frozen=True, slots=True)
class Scan:
    """What the detector says of one conversation.

    verdicts, scores: after each record of `transcript.turns`, same length. findings: see `LoopDetector.findings`.
    """

    verdicts: list[ObserverVerdict]
    scores: list[float]
    findings: list[Finding]

    @property
    def loop(self) -> Finding | None:
        """The first loop, or None."""
        return first_loop(self.findings)

    @property
    def highest(self) -> float:
        """The largest score; 0 for an empty conversation."""
        return max(self.scores, default=0.0)


def scan(transcript: Transcript, embedder: str | Embedder | None = None, **settings: Any) -> Scan:
    """One conversation from its beginning. settings: of `LoopDetector`."""
    detector = LoopDetector(embedder, **settings)
    verdicts: list[ObserverVerdict] = []
    scores: list[float] = []
    for message in transcript.turns:
        verdicts.append(detector.update(message))
        scores.append(detector.score)
    return Scan(verdicts, scores, detector.findings(transcript.id))


def to_embed(messages: Iterable[Message]) -> list[str]:
    """The texts that the detector asks its embedder for; whoever embeds them before finds them in its cache."""
    return [text for m in messages if (text := embedded_text(m))]


def scan_many(
    transcripts: Sequence[Transcript],
    embedder: str | Embedder | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Scan]:
    """Many conversations; with an embedder all their texts are embedded first, in full batches, equal ones once.

    progress: called with how many texts were embedded, and how many are to be; without an embedder with conversations.
    """
    chosen = named(embedder)
    if chosen is not None:
        loaded(chosen).encode(to_embed(m for t in transcripts for m in t.messages), progress)
        return [scan(t, chosen, **settings) for t in transcripts]
    scans = []
    for done, transcript in enumerate(transcripts, 1):
        scans.append(scan(transcript, **settings))
        if progress is not None:
            progress(done, len(transcripts))
    return scans
