"""One start of a run: its actors, and handing conversations to them."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayTaskError

from a2a_ray.core.errors import A2AError, BadInput, PlacementError, StorageError
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.runtime import tracing
from a2a_ray.runtime.budget import NOTHING, Spent
from a2a_ray.runtime.calls import Calling, keep_budget
from a2a_ray.runtime.cluster import await_placed, started_locally
from a2a_ray.runtime.columns import pack
from a2a_ray.runtime.experiment import AgentSpec, Experiment, Task
from a2a_ray.runtime.metrics import exported
from a2a_ray.runtime.pool import Pool
from a2a_ray.runtime.recorder import Recorder
from a2a_ray.runtime.store import table_uri
from a2a_ray.runtime.worker import CONTROL, Outcome, Said, Worker

log = logging.getLogger(__name__)

IN_FLIGHT = 512
"""Most conversations that a worker holds at once, where agents are heavy."""
LIGHT_IN_FLIGHT = 2048
"""The same where they are light: larger groups to commit at once."""
CHUNKS = 4
"""Parts in which a worker gets what it may hold at once; it is given the next when it is done with one."""
WAITING = 2
"""Parts more that wait in the worker, so that a talk that ends early makes room for another at once."""
WATCH_SECONDS = 0.5
"""Between two looks at the progress."""


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


Watch = Callable[[Progress], None]


class Session:
    """The actors of one run, from start to end."""

    def __init__(
        self,
        path: str,
        experiment: Experiment,
        tasks: Sequence[Task],
        workers: int | None,
        spent: Spent = NOTHING,
        attempts: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        self.stopped = ""
        self._experiment = experiment
        self._attempts = attempts or {}
        self._actors: list[Any] = []
        self._workers: list[Any] = []
        keys = [[spec.key() for spec in cell.agents] for cell in experiment.cells]
        specs = dict(zip(chain(*keys), chain(*(cell.agents for cell in experiment.cells)), strict=True))
        talks = Counter(key for task in tasks for key in keys[task.cell])
        heavy = {key: spec for key, spec in specs.items() if spec.heavy and talks[key]}
        self._in_flight = IN_FLIGHT if heavy else LIGHT_IN_FLIGHT
        local = started_locally()
        try:
            actor: Any = ray.remote  # its types know neither these options nor the methods of what it makes
            self._recorder = actor(Recorder).options(num_cpus=0, max_task_retries=0).remote(table_uri(path))
            self._actors.append(self._recorder)
            self._keeper, known = keep_budget(experiment, spent)
            self._state: Any = None
            if self._keeper is not None:
                self._actors.append(self._keeper)
            name = path.rstrip("/").rpartition("/")[2]
            calling = Calling(name, self._keeper, known, exported(), tracing.settings())
            pools = self._start_pools(heavy, talks, local)
            fitting = 1 if heavy else max(1, int(ray.available_resources().get("CPU", 1)))
            count = max(1, min(workers or fitting, len(tasks)))
            # A light worker computes, so it takes a CPU; one that only waits for heavy agents takes none.
            cpus = 0 if heavy or local else 1
            kind = actor(concurrency_groups={CONTROL: 1})(Worker).options(num_cpus=cpus, max_task_retries=0)
            self._workers = [
                kind.remote(f"worker-{i}", experiment, self._recorder, pools, keys, self._in_flight, calling)
                for i in range(count)
            ]
            self._actors += self._workers
            await_placed([self._recorder.ready.remote()], [{}], "recorder")
            ready = [worker.ready.remote() for worker in self._workers]
            await_placed(ready, [{"CPU": cpus} if cpus else {}] * count, "workers")
        except BaseException:
            self.end()
            raise

    def _start_pools(
        self, heavy: Mapping[str, AgentSpec], talks: Mapping[str, int], local: bool
    ) -> dict[str, tuple[Any, ...]]:
        """Starts all pools at once, then waits for each."""
        pools = {}
        for key, spec in heavy.items():
            cpus = spec.num_cpus if spec.num_cpus is not None else (0 if local else 1)
            where = (spec.replicas, cpus, spec.num_gpus, spec.scheduling_strategy, spec.runtime_env)
            pools[key] = Pool(f"agent {spec.name!r}", _Factory(spec.pool_settings), *where)
            self._actors += pools[key].hosts
        out = {}
        for key, spec in heavy.items():
            facts = pools[key].facts()
            # At most half of an agent's talks in a call: while it works on one half, the others have the second.
            most = min(spec.max_batch, -(-talks[key] // 2) or 1)
            out[key] = (spec.name, pools[key].hosts, facts["overlaps"], facts["bids"], most)
        return out

    def hold(self, tasks: list[Task], earlier: Mapping[str, Transcript], watch: Watch) -> None:
        """Gives tasks to workers in chunks as they finish others. KeyboardInterrupt stops all after their turn."""
        count = Tally(self._experiment, tasks, earlier)
        share = -(-len(tasks) // (CHUNKS * len(self._workers)))
        size = max(1, min(self._in_flight // CHUNKS, share))
        chunks = deque(tasks[i : i + size] for i in range(0, len(tasks), size))
        pending: dict[Any, Any] = {}
        said = _Polls(self._workers)
        started = time.monotonic()
        try:
            for worker in self._workers * (CHUNKS + WAITING):
                self._give(worker, chunks, earlier, pending)
            while pending:
                done, _ = ray.wait([*pending, *said.calls()], timeout=WATCH_SECONDS)
                for call in done:
                    if not said.answered(call):
                        worker = pending.pop(call)
                        count.add(ray.get(call))
                        self._give(worker, chunks, earlier, pending)
                if said.due():
                    if not self.stopped and self._budget_spent(time.monotonic() - started):
                        chunks.clear()
                        for worker in self._workers:
                            worker.stop.remote()
                    watch(count.progress(said.total))
            if self._keeper is not None:  # by now the last calls are counted
                self.stopped = ray.get(self._keeper.state.remote()) or self.stopped
            watch(count.progress(_sum(ray.get([w.said.remote() for w in self._workers]))))
        except KeyboardInterrupt:
            self._stop(pending)
            raise
        except RayTaskError as error:
            self._stop(pending)
            raise error.cause if isinstance(error.cause, A2AError) else error from None
        except RayActorError as error:
            raise StorageError(f"a worker process died: {str(error).splitlines()[0]}; resume the run") from None

    def _budget_spent(self, seconds: float) -> str:
        """What of the budget is spent, as far as its keeper has answered; it is asked without waiting for it."""
        budget = self._experiment.budget
        if budget is not None and budget.seconds is not None and seconds >= budget.seconds:
            self.stopped = f"budget of {budget.seconds:g} seconds spent"
            return self.stopped
        if self._keeper is not None and self._state is None:
            self._state = self._keeper.state.remote()
        if self._state is not None and ray.wait([self._state], timeout=0)[0]:
            call, self._state = self._state, None
            try:
                self.stopped = ray.get(call)
            except RayActorError:  # Ray starts it again
                log.warning("the process that keeps the budget has died")
        return self.stopped

    def _give(
        self, worker: Any, chunks: deque[list[Task]], earlier: Mapping[str, Transcript], pending: dict[Any, Any]
    ) -> None:
        if chunks:
            chunk = chunks.popleft()
            before = {t.id: pack(earlier[t.id].turns) for t in chunk if t.id in earlier}
            ids = {t.id for t in chunk}
            asked = {key: count for key, count in self._attempts.items() if key[0] in ids}
            pending[worker.hold.remote(chunk, before, asked)] = worker

    def _stop(self, pending: Mapping[Any, Any]) -> None:
        """Lets the turns under way end and be committed, for at most 30 s."""
        for worker in self._workers:
            worker.stop.remote()
        if pending:
            ray.wait(list(pending), num_returns=len(pending), timeout=30)

    def end(self) -> None:
        """Ends all actors of the run."""
        for actor in self._actors:
            ray.kill(actor)


class _Polls:
    """Asks every worker now and then how much was said, without waiting for one that is busy."""

    def __init__(self, workers: list[Any]) -> None:
        self._workers = workers
        self._said = [Said()] * len(workers)
        self._asked: dict[Any, int] = {}
        self._next = 0.0

    @property
    def total(self) -> Said:
        """What all of them did, as far as is known."""
        return _sum(self._said)

    def calls(self) -> list[Any]:
        """Questions that are under way."""
        return list(self._asked)

    def answered(self, call: Any) -> bool:
        """Takes the answer if the call is one of these questions."""
        index = self._asked.pop(call, None)
        if index is not None:
            self._said[index] = ray.get(call)
        return index is not None

    def due(self) -> bool:
        """Whether it is time to look; those who have answered are asked again."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + WATCH_SECONDS
        for index in set(range(len(self._workers))) - set(self._asked.values()):
            self._asked[self._workers[index].said.remote()] = index
        return True


class Tally:
    """Adds up outcomes of conversations."""

    def __init__(self, experiment: Experiment, tasks: Iterable[Task], earlier: Mapping[str, Transcript]) -> None:
        self._before = {id: len(t.messages) for id, t in earlier.items()}
        self._limits = {t.id: experiment.cells[t.cell].limit - self._before.get(t.id, 0) for t in tasks}
        self._expected = sum(self._limits.values())
        self._done = self._failed = 0
        self._started = time.monotonic()

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Counts conversations that ended; what they did not use of their limit is no longer expected."""
        for outcome in outcomes:
            if outcome.status == RUNNING:
                continue
            self._done += outcome.status == DONE
            self._failed += outcome.status == FAILED
            self._expected -= self._limits[outcome.id] - (outcome.messages - self._before.get(outcome.id, 0))

    def progress(self, said: Said) -> Progress:
        """The progress now."""
        seconds = time.monotonic() - self._started
        return Progress(len(self._limits), self._done, self._failed, said[0], self._expected, seconds, *said[1:])


def _sum(said: Iterable[Said]) -> Said:
    return Said(*map(sum, zip(*said, strict=True)))


class _Factory:
    """Makes an agent from its settings, in the process where it is to work."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self) -> Any:
        from a2a_ray.core.registry import agents

        try:
            return agents.build(self._settings, "agent")
        except BadInput as error:
            raise PlacementError(f"on a node: {error}; is the same code installed on every node?") from None
