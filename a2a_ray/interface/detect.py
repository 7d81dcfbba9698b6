"""`a2a-ray detect`: the loop detector over a run or anybody's transcripts, turn by turn as if they were going on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from a2a_ray.analysis.calibration import Calibration
from a2a_ray.analysis.embedding import BATCH, Embedder, load_embedder
from a2a_ray.analysis.loops import MOST, SCORE, LoopDetector, scan, to_embed
from a2a_ray.core.contracts import NOTHING, Verdict
from a2a_ray.core.errors import A2AError, BadInput, StorageError
from a2a_ray.core.transcript import Transcript
from a2a_ray.interface.hostile import clean_line
from a2a_ray.interface.main import say
from a2a_ray.interface.progress import progress
from a2a_ray.interface.results import half_the_cores, load_source
from a2a_ray.interface.tables import SHOWN, print_table

if TYPE_CHECKING:
    from a2a_ray.runtime.store import Run

SHORTEST_QUOTE = 20
"""So many characters of what is repeated are shown at least, however narrow the terminal."""
READ_CHARACTERS = 1_200
"""The default model reads about so much of a text (256 tokens), so a longer one takes no more time."""


@dataclass(frozen=True, slots=True)
class FoundLoop:
    """One alarm and the loop behind it.

    alarm: the turn after whose arrival the detector first said "loop": its index, from 0, among the turns of the file.
    alarm_turn: the same turn by its number, as `show` prints it; the evidence names turns by number too.
    recovers_at: number of the turn that withdrew the alarm, None where none did.
    reason, evidence: as they stood at the last turn of the loop.
    """

    alarm: int
    alarm_turn: int
    recovers_at: int | None
    reason: str
    evidence: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON value: the evidence beside the rest."""
        own = {name: getattr(self, name) for name in ("alarm", "alarm_turn", "recovers_at", "reason")}
        return {**self.evidence, **own}


@dataclass(frozen=True, slots=True)
class FoundTalk:
    """What the detector said of one conversation. turns: how many the file has of it. highest: its largest score."""

    id: str
    turns: int
    highest: float
    loops: list[FoundLoop]
    waiting: bool

    @property
    def alarm(self) -> int | None:
        """Index of the turn of the first alarm."""
        return self.loops[0].alarm if self.loops else None

    def to_dict(self) -> dict[str, Any]:
        """JSON value of it."""
        loops = [loop.to_dict() for loop in self.loops]
        return {
            "id": self.id,
            "turns": self.turns,
            "alarm": self.alarm,
            "highest": round(self.highest, 6),
            "waiting": self.waiting,
            "loops": loops,
        }


@dataclass
class Detection:
    """The outcome for all conversations of `source`, in its order.

    threshold: the alarm came above it. embedder: None for the lexical grade.
    """

    source: str
    talks: list[FoundTalk]
    threshold: float
    embedder: str | None
    problems: list[str] = field(default_factory=list)

    @property
    def looped(self) -> list[FoundTalk]:
        """The conversations that ever alarmed."""
        return [talk for talk in self.talks if talk.loops]

    def to_dict(self) -> dict[str, Any]:
        """JSON value of everything found."""
        return {
            "source": self.source,
            "conversations": len(self.talks),
            "turns": sum(talk.turns for talk in self.talks),
            "looped": len(self.looped),
            "tokens_since_onset": sum(map(_tokens, self.talks)),
            "embedder": self.embedder,
            "threshold": self.threshold,
            "problems": self.problems,
            "talks": [talk.to_dict() for talk in self.talks],
        }

    def write_alarms(self, path: Path) -> None:
        """One line a conversation: its id and its alarm. Raises StorageError."""
        try:
            with path.open("w", encoding="utf-8") as file:
                for talk in self.talks:
                    file.write(json.dumps({"id": talk.id, "alarm": talk.alarm}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}; the alarms are not written") from None


def detect_source(source: str, embedder_name: str, threshold: str | None = None) -> Detection:
    """Lets the detector watch every conversation of a run or a file.

    threshold: a number, the file of a calibration, or None for the shipped one of this grade.

    Raises BadInput for what cannot be read, an embedder that cannot be loaded, and a threshold that no score reaches.
    """
    given = _given(threshold)
    run, transcripts, problems = load_source(source)
    embedder = load_embedder(embedder_name, _cache_file(source, run, embedder_name), dtype="auto")
    limit = _suited(given, embedder)
    with _kept(embedder):
        if embedder is not None:
            _embed(transcripts, embedder)
        talks = _scan(transcripts, embedder, limit, run is None)
    return Detection(source, talks, limit, embedder.name if embedder else None, problems)


def show_detection(found: Detection, as_json: bool) -> None:
    """What was found: a table of the loops and a sentence, or one JSON object."""
    from rich.console import Console

    if as_json:
        print(json.dumps(found.to_dict()))
        return
    columns = ("conversation", "kind", "alarm", "onset", "period", "tokens", "repeats")
    rows = [
        [clean_line(talk.id), e["kind"], loop.alarm_turn, e["onset"], e["period"], e["tokens"]]
        for talk in found.looped[:SHOWN]
        for loop in talk.loops
        for e in (loop.evidence,)
    ]
    if rows:
        used = sum(max(len(str(row[i])) for row in [columns, *rows]) + 3 for i in range(len(rows[0])))
        room = max(Console().width - used, SHORTEST_QUOTE)
        quotes = (loop.evidence["span"] for talk in found.looped[:SHOWN] for loop in talk.loops)
        note = "Turn numbers, as a2a-ray show prints them. Tokens: spent since the onset."
        if len(found.looped) > SHOWN:
            note += f" {len(found.looped) - SHOWN} more conversations: --json lists all."
        print_table("Loops", columns, [[*r, clean_line(q, room)] for r, q in zip(rows, quotes, strict=True)], note)
    print(" ".join(_in_words(found)))


def _in_words(found: Detection) -> Iterator[str]:
    """The outcome in sentences."""
    count, looped = len(found.talks), found.looped
    said = f"{len(looped):,} of {count:,} conversation{'s' * (count != 1)} loop{'s' * (count == 1)}"
    if recovered := sum(talk.loops[-1].recovers_at is not None for talk in looped):
        said += f" ({recovered:,} went on to something new)"
    yield f"{said}; about {sum(map(_tokens, looped)):,} tokens were spent from the onsets on." if looped else f"{said}."
    if waiting := sum(talk.waiting and not talk.loops for talk in found.talks):
        yield f"Waiting for a result that does not change, which is no loop: {waiting:,}."


def _tokens(talk: FoundTalk) -> int:
    return sum(int(loop.evidence["tokens"]) for loop in talk.loops)


def _given(threshold: str | None) -> float | Calibration | None:
    """The number or the calibration that the user names; None: the shipped one."""
    if threshold is None:
        return None
    try:
        number = float(threshold)
    except ValueError:
        if not Path(threshold).is_file():
            expected = f"a number between 0 and {MOST:g}, or the file of a calibration (docs/calibration.md)"
            raise BadInput(f"--threshold: {threshold!r}; expected {expected}") from None
        return Calibration.load(threshold)
    if not 0 < number < MOST:
        raise BadInput(f"--threshold: {number:g}; expected above 0, and below {MOST:g}, the largest score there is")
    return number


def _suited(given: float | Calibration | None, embedder: Embedder | None) -> float:
    """The threshold to use; a calibration must be of the same score, with the same embedder."""
    if isinstance(given, float):
        return given
    if given is None:
        return LoopDetector(embedder).loop
    score = f"{SCORE}, {'lexical' if embedder is None else embedder.name}"
    if given.score and given.score != score:
        raise BadInput(
            f"--threshold: a calibration of the score {given.score!r}; expected {score!r}: pass the --embedder that it"
            " was fitted with, or fit it anew (docs/calibration.md)"
        )
    return LoopDetector(loop=given.threshold).loop


def _cache_file(source: str, run: Run | None, embedder_name: str) -> Path | None:
    """Where embeddings are kept: in the run, or for a file in the user's cache folder; None where there is neither."""
    if run is not None:
        return Path(run.path) / "embeddings.parquet" if "://" not in run.path else None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2a_ray"
    except RuntimeError:  # no home
        return None
    path = Path(source).resolve()
    key = blake2b(f"{path}\0{embedder_name}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return folder / f"{path.stem}-{key}.parquet"


def _embed(transcripts: Sequence[Transcript], embedder: Embedder) -> None:
    """Embeds every text that is not in the cache.

    Batches of equal length, in random order: so the time that the rest takes can be told after the first few.
    """
    import random

    texts = {text for transcript in transcripts for text in to_embed(transcript.messages)}
    new = sorted((t for t in texts if embedder.cache.get(t) is None), key=lambda t: (len(t), t))
    if not new:
        return
    batches = [new[i : i + BATCH] for i in range(0, len(new), BATCH)]
    random.Random(0).shuffle(batches)
    sizes = [sum(min(len(text), READ_CHARACTERS) + 50 for text in batch) for batch in batches]
    _load(embedder, new[0])
    with half_the_cores(), progress(_size(transcripts), f"embedding {len(new):,} texts", sum(sizes)) as advance:
        for batch, size in zip(batches, sizes, strict=True):
            embedder.encode(batch)
            advance(size)


@contextmanager
def _kept(embedder: Embedder | None) -> Iterator[None]:
    """Keeps what was embedded for the next time, Ctrl-C or not."""
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted. What was embedded is kept for the next time." if embedder is not None else "Interrupted.")
        raise
    finally:
        try:
            if embedder is not None:
                embedder.save()
        except StorageError as error:
            say(f"Note: {error}. They are made anew next time.")


def _load(embedder: Embedder, text: str) -> None:
    """Loads the model. Raises BadInput where its folder holds none that works."""
    try:
        embedder.encode([text])
    except A2AError:
        raise
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise BadInput(
            f"embedder {embedder.name!r} cannot be loaded: {type(error).__name__}: {reason}; expected a"
            " sentence-transformers model, or --embedder none"
        ) from error


def _scan(
    transcripts: Sequence[Transcript], embedder: Embedder | None, threshold: float, of_file: bool
) -> list[FoundTalk]:
    talks = []
    with progress(_size(transcripts), "looking for loops", sum(map(len, transcripts))) as advance:
        for transcript in transcripts:
            found = scan(transcript, embedder, loop=threshold)
            talks.append(_talk(transcript, found.turns, found.verdicts, found.highest, of_file))
            advance(len(transcript))
    return talks


def _size(transcripts: Sequence[Transcript]) -> str:
    return f"{len(transcripts):,} conversations, {sum(map(len, transcripts)):,} turns"


def _talk(
    transcript: Transcript, turns: Sequence[int], verdicts: Sequence[Verdict], highest: float, of_file: bool
) -> FoundTalk:
    """One conversation; in a file every turn has its index, in a run those that an export writes."""
    said = transcript.turns if of_file else transcript.messages
    place = {message.turn: index for index, message in enumerate(said)}
    loops: list[FoundLoop] = []
    alarm, newest = 0, NOTHING  # turn of the alarm that is on, 0 for none, and the newest verdict of that loop

    def end(recovers_at: int | None) -> None:
        loops.append(FoundLoop(place[alarm], alarm, recovers_at, newest.reason, dict(newest.evidence)))

    for turn, verdict in zip(turns, verdicts, strict=True):
        if verdict.status == "loop":
            alarm, newest = alarm or turn, verdict
        elif verdict.status == "recovered" and alarm:
            end(verdict.evidence["recovers_at"])
            alarm = 0
    if alarm:
        end(None)
    waiting = any(verdict.status == "waiting" for verdict in verdicts)
    return FoundTalk(transcript.id, len(said), highest, loops, waiting)
