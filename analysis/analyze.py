"""One analysis of conversations: every analyzer on every conversation, as findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias

from a2a_ray.analysis.loops import ANALYZER, VERSION, LoopDetector, texts_to_embed
from a2a_ray.analysis.text.embedding import Embedder, load_embedder
from a2a_ray.analysis.text.exact_repetition import ExactRepetitionRule
from a2a_ray.analysis.text.paper_rule import PaperRuleAnalyzer
from a2a_ray.core.findings import NOT_APPLICABLE, Finding, canonical
from a2a_ray.core.transcript import Transcript

GROUP = 20
"""So many conversations are embedded together."""


class Analyzer(Protocol):
    """Finds something in whole conversations."""

    name: str
    version: str

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what it finds; JSON."""
        ...

    def findings(self, transcript: Transcript) -> list[Finding]:
        """What it finds in one conversation, at least one finding."""
        ...


OfConversation: TypeAlias = Callable[[Transcript], Sequence[Analyzer]]
"""The analyzers that depend on the conversation: on what is known of its agents."""


@dataclass(frozen=True)
class AnalysisSettings:
    """What decides what an analysis finds. The defaults are those of the command line and of an observer.

    embedder: name or folder of a sentence-embedding model; None for the words alone.
    threshold: of the loop detector; None for the default.
    detector_embeds: whether the loop detector uses the embedder too; else only the distances of the paper's rule do.
    """

    embedder: str | None = None
    threshold: float | None = None
    detector_embeds: bool = True

    def load(self, cache: Any = None) -> Embedder | None:
        """The embedder. cache: Parquet file that keeps vectors from one analysis to the next. Raises
        ConfigurationError.

        The detector's vectors are float32, as they are live. The paper's rule alone takes what this machine is quick
        with; its findings name it.
        """
        return load_embedder(self.embedder, cache, "float32" if self.detector_embeds else "auto")


class LoopAnalyzer:
    """The loop detector on whole conversations: the same findings as live."""

    name, version = ANALYZER, VERSION

    def __init__(self, embedder: Embedder | None = None, threshold: float | None = None) -> None:
        self._embedder, self._threshold = embedder, threshold
        self.settings = LoopDetector(embedder, threshold).settings

    def texts(self, transcript: Transcript) -> list[str]:
        """What will be asked of the embedder."""
        return texts_to_embed(transcript.turns)

    def findings(self, transcript: Transcript) -> list[Finding]:
        """See `LoopDetector.findings`."""
        return _watched(self, LoopDetector(self._embedder, self._threshold), transcript)


class ExactRepetitionAnalyzer:
    """Exact repetition on whole conversations: the same findings as live."""

    name, version = "exact_repetition", "1"

    def __init__(self) -> None:
        self.settings = ExactRepetitionRule().settings

    def findings(self, transcript: Transcript) -> list[Finding]:
        """See `ExactRepetitionRule.findings`."""
        return _watched(self, ExactRepetitionRule(), transcript)


def loop_analyzers(settings: AnalysisSettings, embedder: Embedder | None) -> tuple[Analyzer, ...]:
    """The loop detector, and the two baselines that stand beside it."""
    of_detector = embedder if settings.detector_embeds else None
    return LoopAnalyzer(of_detector, settings.threshold), PaperRuleAnalyzer(embedder), ExactRepetitionAnalyzer()


def analyze(
    transcripts: Iterable[Transcript],
    settings: AnalysisSettings = AnalysisSettings(),
    *,
    embedder: Embedder | None = None,
    of_conversation: OfConversation = lambda transcript: (),
    wanted: Callable[[str, Analyzer], bool] = lambda conversation, analyzer: True,
) -> Iterator[tuple[Transcript, list[Finding]]]:
    """Each conversation with its findings, in order; `GROUP` conversations are in memory at once.

    embedder: the loaded one of `settings`, if the caller has it.
    of_conversation: further analyzers of a conversation, such as of its equilibrium.
    wanted: whether an analyzer is to read the conversation of this id; the others give nothing.
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
    """Analyzer, version and settings: with the conversation's id the key of a finding."""
    return analyzer.name, analyzer.version, canonical(analyzer.settings)


def _texts(analyzer: Any, transcript: Transcript) -> list[str]:
    found: list[str] = analyzer.texts(transcript) if hasattr(analyzer, "texts") else []
    return found


def _watched(analyzer: Analyzer, observer: Any, transcript: Transcript) -> list[Finding]:
    """The findings of an observer that sees the whole conversation."""
    if not any(isinstance(message.content, str) for message in transcript.messages):
        reason = "it has no messages" if not transcript.messages else "it has vectors and no text"
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
