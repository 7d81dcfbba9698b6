"""The conversations of one start of a run, handed out in chunks and counted when they end."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeAlias

from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.experiment.spec import Experiment, Task

CHUNKS = 4
"""Number of chunks in the conversations that a worker runs at once. It gets the next chunk when one has ended."""
QUEUED = 2
"""Further chunks that wait in the worker, so that a conversation that ends early is replaced at once."""
LIGHT_IN_FLIGHT = 2048
"""Conversations that a worker runs at once if all agents are light: more rows go into one commit."""
WATCH_SECONDS = 0.5
"""Time between two progress reports."""
STOP_SECONDS = 30.0
"""How long turns in flight may take to end when a run is stopped."""


class Outcome(NamedTuple):
    """The state of one conversation when its worker returns it; `status` is "running" if the run was stopped."""

    task: Task
    status: str
    messages: int


class WorkerProgress(NamedTuple):
    """The work of one worker since it started: messages, conversations in flight, tokens and cost of its calls."""

    messages: int = 0
    in_flight: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: WorkerProgress) -> WorkerProgress:
        """Return the sum of both, field by field."""
        a, b = self, other
        return WorkerProgress(a.messages + b.messages, a.in_flight + b.in_flight, a.tokens + b.tokens, a.cost + b.cost)


class Progress(NamedTuple):
    """The progress of a run since this start: `messages` of at most `expected`.

    Attributes:
        conversations: number of conversations that this start of the run has to complete.
        done, failed: conversations that have ended.
        seconds: time since the first conversation was handed to a worker.
        in_flight: conversations in progress.
        tokens, cost: of all calls since this start; cost is in the currency of the prices in the specification.
    """

    conversations: int
    done: int
    failed: int
    messages: int
    expected: int
    seconds: float
    in_flight: int = 0
    tokens: int = 0
    cost: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """An upper estimate: every conversation reaches its limit at the rate so far. None before the first message."""
        return self.seconds * (self.expected - self.messages) / self.messages if self.messages else None


Watch: TypeAlias = "Callable[[Progress], None]"
"""A function that is called with the progress about twice a second."""


class Chunk(NamedTuple):
    """Conversations for one worker, with the stored transcripts of those that have begun.

    quarantined: the worker runs nothing else at the same time, and commits every turn before it requests the next.
    """

    tasks: list[Task]
    transcripts: dict[str, Transcript]
    quarantined: bool = False


class Plan:
    """The conversations of an experiment that have not ended.

    Tasks are generated when they are handed out, so memory does not grow with the number of conversations.

    Args:
        experiment: the specification.
        ended: ids of conversations to leave out.
        transcripts: stored transcripts of conversations that have begun, by id.
    """

    def __init__(
        self, experiment: Experiment, ended: Collection[str] = (), transcripts: Mapping[str, Transcript] | None = None
    ) -> None:
        self._limits = [cell.limit for cell in experiment.cells]
        remaining = Counter({i: len(c.opening_contents) * c.repeats for i, c in enumerate(experiment.cells)})
        remaining.subtract(experiment.task(id).cell for id in ended)
        self.remaining: dict[int, int] = dict(remaining)
        """Number of conversations to run, by cell."""
        self._fresh: Iterator[Task] = (task for task in experiment.tasks() if task.id not in ended)
        self._peeked: list[Task] = []
        self._transcripts = dict(transcripts or {})
        self._returned: deque[Chunk] = deque()
        self._quarantined: deque[Chunk] = deque()
        self._conversations = sum(remaining.values())
        stored = sum(len(t.messages) for t in self._transcripts.values())
        self._expected = sum(n * self._limits[cell] for cell, n in remaining.items()) - stored
        self._done = self._failed = 0
        self._started = time.monotonic()

    def __len__(self) -> int:
        return self._conversations

    def next_chunk(self, size: int) -> Chunk | None:
        """Return the next chunk of at most `size` conversations, or None if only quarantined ones are left."""
        if self._returned:
            chunk = self._returned.popleft()
            if len(chunk.tasks) > size:
                self._returned.appendleft(Chunk(chunk.tasks[size:], chunk.transcripts))
            tasks = chunk.tasks[:size]
            return Chunk(tasks, {t.id: chunk.transcripts[t.id] for t in tasks if t.id in chunk.transcripts})
        tasks, self._peeked = [*self._peeked, *islice(self._fresh, size - len(self._peeked))], []
        transcripts = {t.id: self._transcripts.pop(t.id) for t in tasks if t.id in self._transcripts}
        return Chunk(tasks, transcripts) if tasks else None

    def next_quarantined(self) -> Chunk | None:
        """Return the next quarantined chunk, or None."""
        return self._quarantined.popleft() if self._quarantined else None

    def put_back(self, chunk: Chunk) -> None:
        """Hand out a chunk again whose worker died."""
        (self._quarantined if chunk.quarantined else self._returned).append(chunk)

    def discard_rest(self) -> None:
        """Hand out nothing more."""
        self._fresh = iter(())
        self._peeked = []
        self._returned.clear()
        self._quarantined.clear()

    @property
    def has_quarantined(self) -> bool:
        """Whether a quarantined chunk is queued."""
        return bool(self._quarantined)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to hand out."""
        if not self._peeked:
            self._peeked = list(islice(self._fresh, 1))
        return not (self._peeked or self._returned or self._quarantined)

    @property
    def ended(self) -> int:
        """Number of conversations that have ended since this start of the run."""
        return self._done + self._failed

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Count conversations that ended. Turns that they did not use are no longer expected."""
        for outcome in outcomes:
            if outcome.status == RUNNING:
                continue
            self._done += outcome.status == DONE
            self._failed += outcome.status == FAILED
            self._expected -= self._limits[outcome.task.cell] - outcome.messages

    def start_clock(self) -> None:
        """Measure `Progress.seconds` from now on."""
        self._started = time.monotonic()

    def progress(self, work: WorkerProgress) -> Progress:
        """Return the progress of the run, given the work of all workers together."""
        seconds = time.monotonic() - self._started
        ended = self._conversations, self._done, self._failed
        return Progress(*ended, work.messages, self._expected, seconds, work.in_flight, work.tokens, work.cost)
