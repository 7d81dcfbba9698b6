"""The data of a report, as plain dataclasses: a report can be written from any source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from a2a_ray.core.findings import Finding
from a2a_ray.core.transcript import FAILED, Transcript
from a2a_ray.report.chat import Spans
from a2a_ray.report.page_parts import BigNumber, Section, Table

PairKind: TypeAlias = Literal["pair", "adversary", "helper"]


@dataclass(frozen=True, slots=True)
class PlateauPoint:
    """Where one agent of a pair settled.

    angle_degrees: between the objectives of the pair. measured, predicted: distance of the agent from its own
    objective after its own turn, in the run and by the closed form; in the unit of the iterate.
    """

    angle_degrees: float
    agent: str
    measured: float
    predicted: float
    kind: PairKind = "pair"


@dataclass(frozen=True, slots=True)
class ErrorSeries:
    """The distance of one agent of a pair from its own objective after each round.

    pair: name of the pair, e.g. "90 degrees". errors: shape (n_rounds,). predicted: the plateau, if known.
    """

    pair: str
    agent: str
    errors: Sequence[float]
    predicted: float | None = None


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """One conversation and its findings.

    cell: label of its setting. findings: (title of the analyzer, finding), the loop detector's first.
    spans: for each of `transcript.messages`, the passages that repeat earlier text.
    """

    transcript: Transcript
    cell: str = ""
    findings: Sequence[tuple[str, Finding]] = ()
    spans: Sequence[Spans] = ()

    @property
    def id(self) -> str:
        """Id of the conversation."""
        return self.transcript.id

    @property
    def detector(self) -> Finding | None:
        """The loop detector's first finding, a loop or not; None if the detector did not run."""
        return self.findings[0][1] if self.findings and self.findings[0][1].analyzer == "loops" else None

    @property
    def loop(self) -> Finding | None:
        """The loop detector's first loop."""
        return self.detector if self.detector is not None and self.detector.looped else None

    @property
    def looped(self) -> bool:
        """Whether the loop detector found a loop."""
        return self.loop is not None

    @property
    def onset(self) -> int | None:
        """The turn at which the detector's first loop begins."""
        return self.loop.onset_turn if self.loop is not None else None

    @property
    def scores(self) -> Sequence[float]:
        """The detector's score after each message."""
        scores: Sequence[float] = self.detector.evidence.get("scores", ()) if self.detector is not None else ()
        return scores

    @property
    def distances(self) -> Mapping[str, Sequence[float | None]]:
        """Name of a distance -> its value between the outputs of each round, shape (n_rounds,); None if undefined."""
        series: Mapping[str, Sequence[float | None]] = self._paper.get("series", {})
        return series

    @property
    def drift(self) -> Sequence[float | None]:
        """Distance of each turn from the opening, shape (n_turns,)."""
        drift: Sequence[float | None] = self._paper.get("drift", ())
        return drift

    @property
    def _paper(self) -> Mapping[str, Any]:
        return next((f.evidence for _, f in self.findings if f.analyzer == "paper_rule"), {})

    @property
    def failed(self) -> bool:
        """Whether the conversation ended with an error."""
        return self.transcript.status == FAILED

    @property
    def is_text(self) -> bool:
        """Whether every message is text; only text can loop."""
        return all(isinstance(m.content, str) for m in (self.transcript.opening, *self.transcript.messages))

    def round_of(self, turn: int) -> float:
        """Return the turn in rounds: the last turn of round 3 is at 3."""
        return turn / max(len(self.transcript.agents), 1)


@dataclass(frozen=True, slots=True)
class TrajectoryPoint:
    """One turn of a conversation on the map of all turns (t-SNE of the embeddings)."""

    x: float
    y: float
    turn: int
    conversation: str
    looped: bool


@dataclass(frozen=True, slots=True)
class AgentEntry:
    """One agent of the run, as the report lists it."""

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows; a section without data is left out.

    headline: sentences that state the result. sections: additional ones, as they are.
    loops: looped conversations by setting and analyzer. sampled: a sentence if the map shows a sample of the turns.
    more_errors: a sentence if errors per round of some pairs are not drawn.
    run: path, date, versions, git commit, seed, protocol, ...: name -> value. specification: as YAML.
    """

    title: str
    headline: Sequence[str] = ()
    numbers: Sequence[BigNumber] = ()
    tables: Sequence[Table] = ()
    plateau: Sequence[PlateauPoint] = ()
    errors: Sequence[ErrorSeries] = ()
    conversations: Sequence[ConversationItem] = ()
    trajectory: Sequence[TrajectoryPoint] = ()
    sections: Sequence[Section] = ()
    run: Mapping[str, str] = field(default_factory=dict)
    agents: Sequence[AgentEntry] = ()
    specification: str = ""
    loops: Table | None = None
    sampled: str = ""
    more_errors: str = ""
