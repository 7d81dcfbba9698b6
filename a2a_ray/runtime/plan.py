"""What a start of a run has to hold, given out in chunks: nothing is kept of a conversation before its turn comes."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple, TypeAlias

from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.experiment.spec import Experiment, Task


class Outcome(NamedTuple):
    """How one conversation stands when a worker is done with it; `status` is "running" where the run was stopped."""

    task: Task
    status: str
    messages: int


class Said(NamedTuple):
    """What a worker did since it began: messages, conversations under way now, tokens and money that calls took."""

    messages: int = 0
    in_flight: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: Said) -> Said:
        """The sums."""
        a, b = self, other
        return Said(a.messages + b.messages, a.in_flight + b.in_flight, a.tokens + b.tokens, a.cost + b.cost)


class Progress(NamedTuple):
    """How far a run is: `messages` were said since this start of it, of at most `expected`.

    in_flight: conversations under way. tokens, cost: what calls took since this start; the money is in the currency of
    the specification's prices.
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
        """Until the end, at the rate so far, if every conversation goes to its limit; None before the first message."""
        return self.seconds * (self.expected - self.messages) / self.messages if self.messages else None


Watch: TypeAlias = "Callable[[Progress], None]"
"""What is called with the progress about twice a second."""


class Chunk(NamedTuple):
    """Conversations for one worker, and what was said in them before. apart: it must hold nothing else meanwhile."""

    tasks: list[Task]
    earlier: dict[str, Transcript]
    apart: bool = False


class Plan:
    """The conversations of an experiment without those that ended before; `earlier` were begun."""

    def __init__(
        self, experiment: Experiment, ended: Collection[str] = (), earlier: Mapping[str, Transcript] | None = None
    ) -> None:
        self._limits = [cell.limit for cell in experiment.cells]
        left = Counter({i: len(c.opening_contents) * c.repeats for i, c in enumerate(experiment.cells)})
        left.subtract(experiment.task(id).cell for id in ended)
        self.left: dict[int, int] = dict(left)
        """Conversations to hold, by cell."""
        self._fresh: Iterator[Task] = (task for task in experiment.tasks() if task.id not in ended)
        self._ahead: list[Task] = []
        self._earlier = dict(earlier or {})
        self._again: deque[Chunk] = deque()
        self._apart: deque[Chunk] = deque()
        self._conversations = sum(left.values())
        said = sum(len(t.messages) for t in self._earlier.values())
        self._expected = sum(n * self._limits[cell] for cell, n in left.items()) - said
        self._done = self._failed = 0
        self._started = time.monotonic()

    def __len__(self) -> int:
        return self._conversations

    def next(self, size: int) -> Chunk | None:
        """The next chunk, of at most `size` conversations; None where there is none (of those that are not apart)."""
        if self._again:
            chunk = self._again.popleft()
            if len(chunk.tasks) > size:
                self._again.appendleft(Chunk(chunk.tasks[size:], chunk.earlier))
            tasks = chunk.tasks[:size]
            return Chunk(tasks, {t.id: chunk.earlier[t.id] for t in tasks if t.id in chunk.earlier})
        tasks, self._ahead = [*self._ahead, *islice(self._fresh, size - len(self._ahead))], []
        earlier = {t.id: self._earlier.pop(t.id) for t in tasks if t.id in self._earlier}
        return Chunk(tasks, earlier) if tasks else None

    def again(self, chunk: Chunk) -> None:
        """Puts conversations back that a worker could not end."""
        (self._apart if chunk.apart else self._again).append(chunk)

    @property
    def over(self) -> int:
        """Conversations that ended since the start."""
        return self._done + self._failed

    def next_apart(self) -> Chunk | None:
        """The next group of suspects."""
        return self._apart.popleft() if self._apart else None

    @property
    def suspected(self) -> bool:
        """Whether a group waits for a worker that holds nothing else."""
        return bool(self._apart)

    @property
    def empty(self) -> bool:
        """Whether nothing is left to give out."""
        if not self._ahead:
            self._ahead = list(islice(self._fresh, 1))
        return not (self._ahead or self._again or self._apart)

    def count(self, outcomes: Iterable[Outcome]) -> None:
        """Counts conversations that ended; what they did not use of their limit is no longer expected."""
        for outcome in outcomes:
            if outcome.status == RUNNING:
                continue
            self._done += outcome.status == DONE
            self._failed += outcome.status == FAILED
            self._expected -= self._limits[outcome.task.cell] - outcome.messages

    def begin(self) -> None:
        """The first conversation is handed out: from here on the time counts."""
        self._started = time.monotonic()

    def progress(self, said: Said) -> Progress:
        """The progress now, when workers have said so much."""
        seconds = time.monotonic() - self._started
        return Progress(self._conversations, self._done, self._failed, said[0], self._expected, seconds, *said[1:])

    def end(self) -> None:
        """Gives out nothing more."""
        self._fresh = iter(())
        self._ahead = []
        self._again.clear()
        self._apart.clear()
