"""Analyze conversations: run every analyzer on every conversation and return findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias

from a2a_ray.analysis.loops import ANALYZER, VERSION, LoopDetector, texts_to_embed
from a2a_ray.analysis.loops.conversation_kind import AUTO
from a2a_ray.analysis.text.embedding import Embedder, load_embedder
from a2a_ray.analysis.text.exact_repetition import ExactRepetitionRule
from a2a_ray.analysis.text.paper_rule import PaperRuleAnalyzer
from a2a_ray.core.findings import NOT_APPLICABLE, Finding, canonical
from a2a_ray.core.transcript import Transcript

GROUP = 20
"""Number of conversations that are embedded together."""


class Analyzer(Protocol):
    """An analyzer of whole conversations."""

    name: str
    version: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the findings; JSON."""
        ...

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return the findings of one conversation, at least one."""
        ...


OfConversation: TypeAlias = Callable[[Transcript], Sequence[Analyzer]]
"""Returns the analyzers that depend on the conversation, such as on the objectives of its agents."""


@dataclass(frozen=True)
class AnalysisSettings:
    """The settings of an analysis. The defaults are those of the command line and of an observer.

    embedder: name or folder of a sentence-embedding model; None for no model.
    threshold: of the loop detector; None for the default.
    conversation_kind: what the loop detector takes the conversations for; "auto" detects it.
    detector_embeds: whether the loop detector uses the embedder as well as the paper's rule.
    """

    embedder: str | None = None
    threshold: float | None = None
    conversation_kind: str = AUTO
    detector_embeds: bool = True

    def load(self, cache: Any = None) -> Embedder | None:
        """Load the embedder. Raises ConfigurationError.

        cache: Parquet file that stores vectors between analyses. The detector uses float32 vectors, as in a live
        conversation. The paper's rule alone uses the fastest dtype of this machine; its findings name the dtype.
        """
        return load_embedder(self.embedder, cache, "float32" if self.detector_embeds else "auto")


class LoopAnalyzer:
    """The loop detector on whole conversations, with the same findings as in a live one."""

    name, version = ANALYZER, VERSION

    def __init__(
        self, embedder: Embedder | None = None, threshold: float | None = None, conversation_kind: str = AUTO
    ) -> None:
        self._embedder, self._threshold, self._kind = embedder, threshold, conversation_kind
        self.settings = self._detector().settings

    def _detector(self) -> LoopDetector:
        return LoopDetector(self._embedder, self._threshold, conversation_kind=self._kind)

    def texts(self, transcript: Transcript) -> list[str]:
        """Return the texts that will be embedded."""
        return texts_to_embed(transcript.turns, self._kind)

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return the findings; see `LoopDetector.findings`."""
        return _watched(self, self._detector(), transcript)


class ExactRepetitionAnalyzer:
    """Exact repetition on whole conversations, with the same findings as in a live one."""

    name, version = "exact_repetition", "1"

    def __init__(self) -> None:
        self.settings = ExactRepetitionRule().settings

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return the findings; see `ExactRepetitionRule.findings`."""
        return _watched(self, ExactRepetitionRule(), transcript)


def loop_analyzers(settings: AnalysisSettings, embedder: Embedder | None) -> tuple[Analyzer, ...]:
    """Return the loop detector and the two baselines."""
    of_detector = embedder if settings.detector_embeds else None
    detector = LoopAnalyzer(of_detector, settings.threshold, settings.conversation_kind)
    return detector, PaperRuleAnalyzer(embedder), ExactRepetitionAnalyzer()


def analyze(
    transcripts: Iterable[Transcript],
    settings: AnalysisSettings = AnalysisSettings(),
    *,
    embedder: Embedder | None = None,
    of_conversation: OfConversation = lambda transcript: (),
    wanted: Callable[[str, Analyzer], bool] = lambda conversation, analyzer: True,
) -> Iterator[tuple[Transcript, list[Finding]]]:
    """Yield each conversation with its findings, in order; `GROUP` conversations are in memory at once.

    embedder: that of `settings`, if it is loaded already.
    of_conversation: returns further analyzers of a conversation, such as for its equilibrium.
    wanted: whether to run an analyzer on the conversation of this id.
    """
    embedder = embedder or settings.load()
    common = loop_analyzers(settings, embedder)
    remaining = iter(transcripts)
    while group := list(islice(remaining, GROUP)):
        work = [(t, [a for a in (*common, *of_conversation(t)) if wanted(t.id, a)]) for t in group]
        if embedder is not None:
            embedder.encode([text for t, chosen in work for a in chosen for text in _texts(a, t)])
        for transcript, chosen in work:
            yield transcript, [finding for analyzer in chosen for finding in analyzer.findings(transcript)]


def key_of(analyzer: Analyzer) -> tuple[str, str, str]:
    """Return analyzer, version and settings, which with the conversation id are the key of a finding."""
    return analyzer.name, analyzer.version, canonical(analyzer.settings)


def _texts(analyzer: Any, transcript: Transcript) -> list[str]:
    found: list[str] = analyzer.texts(transcript) if hasattr(analyzer, "texts") else []
    return found


def _watched(analyzer: Analyzer, observer: Any, transcript: Transcript) -> list[Finding]:
    """Return the findings of an observer after the whole conversation."""
    if not any(isinstance(message.content, str) for message in transcript.messages):
        reason = "the conversation has no messages" if not transcript.messages else "the messages are vectors, not text"
        return [
            Finding(
                conversation_id=transcript.id,
                analyzer=analyzer.name,
                analyzer_version=analyzer.version,
                settings=analyzer.settings,
                through_seq=len(transcript),
                status=NOT_APPLICABLE,
                reason=reason,
            )
        ]
    for message in transcript.turns:
        observer.update(message)
    found: list[Finding] = observer.findings(transcript.id)
    return found
