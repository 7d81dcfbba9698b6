"""Run the loop detector over whole transcripts, with the same verdicts as in a live conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from a2a_ray.analysis.loops.conversation_kind import AUTO, FAMILIES, MEANING
from a2a_ray.analysis.loops.detector import LoopDetector, embedded_text, kind_of
from a2a_ray.analysis.loops.detector_findings import first_loop
from a2a_ray.analysis.loops.similarity_scale import load_shared, resolve_embedder
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import ObserverVerdict


@dataclass(frozen=True, slots=True)
class Scan:
    """The detector's output for one conversation.

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
    """Scan one conversation from its beginning. settings: of `LoopDetector`."""
    detector = LoopDetector(embedder, **settings)
    verdicts: list[ObserverVerdict] = []
    scores: list[float] = []
    for message in transcript.turns:
        verdicts.append(detector.update(message))
        scores.append(detector.score)
    return Scan(verdicts, scores, detector.findings(transcript.id))


def texts_to_embed(messages: Sequence[Message], conversation_kind: str = AUTO) -> list[str]:
    """Return the texts that the detector will embed, so that a caller can embed them in advance into the cache."""
    kind = kind_of(messages) if conversation_kind == AUTO else conversation_kind
    return [text for m in messages if (text := embedded_text(m))] if MEANING in FAMILIES[kind] else []


def scan_many(
    transcripts: Sequence[Transcript],
    embedder: str | Embedder | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> list[Scan]:
    """Scan many conversations. With an embedder, all texts are embedded first, in full batches, equal texts once.

    progress: called with the number of texts embedded so far and in total; without an embedder, of conversations.
    """
    chosen = resolve_embedder(embedder)
    if chosen is not None:
        kind = settings.get("conversation_kind", AUTO)
        load_shared(chosen).encode([text for t in transcripts for text in texts_to_embed(t.turns, kind)], progress)
        return [scan(t, chosen, **settings) for t in transcripts]
    scans = []
    for done, transcript in enumerate(transcripts, 1):
        scans.append(scan(transcript, **settings))
        if progress is not None:
            progress(done, len(transcripts))
    return scans
