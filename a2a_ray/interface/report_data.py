"""What a report is made of: plain data, so that a report of anything can be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from a2a_ray.core.transcript import FAILED, Transcript
from a2a_ray.interface.chat import Spans

if TYPE_CHECKING:
    from a2a_ray.interface.study import Section

Cell: TypeAlias = "str | int | float | None"
PairKind: TypeAlias = Literal["pair", "adversary", "helper"]


@dataclass(frozen=True, slots=True)
class BigNumber:
    """One figure that the reader should take home, e.g. BigNumber("9 of 12", "conversations looped")."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table. None is shown as a dash; floats with four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class PlateauPoint:
    """Where one agent of a pair settled.

    angle_degrees: between the objectives of the pair. measured, predicted: distance of the agent from its own
    objective, read after its own turn, by simulation and by the closed form; in the unit of the iterate.
    """

    angle_degrees: float
    agent: str
    measured: float
    predicted: float
    kind: PairKind = "pair"


@dataclass(frozen=True, slots=True)
class ErrorSeries:
    """The distance of one agent of a pair from its own objective after each round.

    pair: name of the pair, e.g. "90 degrees". errors: shape (n_rounds,). predicted: its plateau, where known.
    """

    pair: str
    agent: str
    errors: Sequence[float]
    predicted: float | None = None


@dataclass(frozen=True, slots=True)
class ConversationItem:
    """One conversation and what was found in it.

    cell: label of the setting it belongs to. rule, onset, phrase: of its loop, if it looped: which rule saw it, the
    first turn that repeats, what is repeated. distances: name -> shape (n_rounds,), between the outputs of a round,
    NaN where undefined. drift: from the opening, shape (n_turns,). spans: for each of `transcript.messages`, the
    passages that were said before. stopped: the turn after which an observer ended it, if one did.
    """

    transcript: Transcript
    cell: str = ""
    rule: str | None = None
    onset: int | None = None
    phrase: str | None = None
    distances: Mapping[str, Sequence[float]] = field(default_factory=dict)
    drift: Sequence[float] = ()
    spans: Sequence[Spans] = ()
    stopped: int | None = None

    @property
    def id(self) -> str:
        """Of the conversation."""
        return self.transcript.id

    @property
    def looped(self) -> bool:
        """Whether a rule found a loop."""
        return self.rule is not None

    @property
    def failed(self) -> bool:
        """Whether the conversation ended with an error."""
        return self.transcript.status == FAILED

    @property
    def is_text(self) -> bool:
        """Whether everything in it is text, so that it can loop."""
        return all(isinstance(m.content, str) for m in (self.transcript.opening, *self.transcript.messages))

    def round_of(self, turn: int) -> float:
        """The turn in rounds: the last turn of round 3 is at 3."""
        position = sum(1 for m in self.transcript.messages if m.turn <= turn)
        return position / max(len(self.transcript.agents), 1)


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
    """One agent of the run, as it is listed."""

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that a report shows; a section without data is left out. sections: further ones, ready made.

    headline: sentences that say what came out. run: what was run (path, created, versions, git commit, seed, protocol,
    rounds, openings, repeats, sweep), name -> value. specification: as YAML.
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
