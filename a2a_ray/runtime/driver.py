"""One start of a run: its actors, handing conversations to them, and going on when one of them dies."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal
from uuid import uuid4

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from a2a_ray.core.errors import A2AError, PlacementError, StorageError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.experiment.spec import AgentSpec, Experiment
from a2a_ray.runtime.agents.pool import Factory, Pool
from a2a_ray.runtime.cluster import EndedAtStart, await_placed, started_locally, storage_place
from a2a_ray.runtime.limits.budget import NOTHING, Spent
from a2a_ray.runtime.limits.metered import Calling, keep_budget
from a2a_ray.runtime.plan import Chunk, Outcome, Plan, Progress, Said, Watch
from a2a_ray.runtime.post import Post
from a2a_ray.runtime.quarantine import ALONE_DEATHS, Suspects
from a2a_ray.runtime.telemetry import tracing
from a2a_ray.runtime.telemetry.metrics import exported
from a2a_ray.runtime.worker import CONTROL, Worker
from a2a_ray.store.dataset import table_uri
from a2a_ray.store.lease import Lease
from a2a_ray.store.recorder import Recorder
from a2a_ray.store.run import open_run
from a2a_ray.store.schema import end_row, opening_row, to_batch

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
LOST_SECONDS = 120.0
"""How long a run waits for a process that died to be replaced; a node may have to come back first."""
BAD_STARTS = 5
"""So many workers in a row that die before they are ready are no accident."""

OnFailure = Literal["recover", "raise"]


class Session:
    """The actors of one run, from start to end.

    on_failure: "recover" replaces what dies and goes on, "raise" ends with StorageError.
    plan: makes the plan, from what is on record once nobody else can write any more. lease: this driver's.
    spent: of the budget, before this start.
    """

    def __init__(
        self,
        path: str,
        experiment: Experiment,
        plan: Callable[[], Plan],
        workers: int | None,
        on_failure: OnFailure = "recover",
        lease: Lease | None = None,
        spent: Spent = NOTHING,
    ) -> None:
        self._path, self._experiment, self._lease, self._on_failure = path, experiment, lease, on_failure
        self._actors: list[Any] = []
        self._posts: list[Post] = []
        self._ward: Post | None = None
        self._said_apart = Said()
        self._suspects = Suspects()
        self._look = 0.0
        self.stopped = ""
        local = started_locally()
        try:
            actor: Any = ray.remote  # its types know neither these options nor the methods of what it makes
            options: dict[str, Any] = {
                "num_cpus": 0,
                "max_task_retries": 0,
                "max_restarts": -1 if on_failure == "recover" else 0,
            }
            place = storage_place(path, experiment.shared_storage)
            if place is not None:
                options["scheduling_strategy"] = place
            self._recorder = actor(Recorder).options(**options).remote(table_uri(path), lease.epoch if lease else 0)
            self._actors.append(self._recorder)
            try:
                await_placed([self._recorder.ready.remote()], [{}], "recorder", place)
            except EndedAtStart:
                self._ask_recorder(lambda: self._recorder.ready.remote())
            self.plan = plan()
            keys = [[spec.key() for spec in cell.agents] for cell in experiment.cells]
            specs = dict(zip(chain(*keys), chain(*(cell.agents for cell in experiment.cells)), strict=True))
            talks = {key: sum(n for cell, n in self.plan.left.items() if key in keys[cell]) for key in specs}
            heavy = {key: spec for key, spec in specs.items() if spec.heavy and talks[key]}
            self._in_flight = IN_FLIGHT if heavy else LIGHT_IN_FLIGHT
            self._keeper, known = keep_budget(experiment, spent)
            self._state: Any = None
            if self._keeper is not None:
                self._actors.append(self._keeper)
            name = path.rstrip("/").rpartition("/")[2]
            calling = Calling(name, self._keeper, known, exported(), tracing.settings())
            pools = self._start_pools(heavy, talks, local)
            fitting = 1 if heavy else max(1, int(ray.available_resources().get("CPU", 1)))
            count = max(1, min(workers or fitting, len(self.plan)))
            # A light worker computes, so it takes a CPU; one that only waits for heavy agents takes none.
            cpus = 0 if heavy or local else 1
            kind = actor(concurrency_groups={CONTROL: 1})(Worker)

            def start(name: str, cpus: float = cpus) -> Any:
                # No restart by Ray: it would come back empty, and what it must not do again is for us to know.
                made = kind.options(num_cpus=cpus, max_task_retries=0, scheduling_strategy="SPREAD")
                return made.remote(name, experiment, self._recorder, pools, keys, self._in_flight, calling)

            self._start = start
            self._posts = [Post(start) for _ in range(count)]
            share = -(-len(self.plan) // (CHUNKS * count))
            self._size = max(1, min(self._in_flight // CHUNKS, share))
            self._await_workers({"CPU": cpus} if cpus else {})
        except BaseException:
            self.end()
            raise

    def _await_workers(self, demand: Mapping[str, float]) -> None:
        """Returns when all workers are ready; those that die before are replaced."""
        for left in reversed(range(BAD_STARTS)):
            try:
                await_placed([post.starting for post in self._posts], [demand] * len(self._posts), "workers")
                break
            except EndedAtStart:
                if self._on_failure == "raise" or not left:
                    raise
            for post in self._posts:
                try:
                    ray.get(post.starting)
                except RayActorError:
                    post.fill()
        for post in self._posts:
            post.starting = None

    def _start_pools(
        self, heavy: Mapping[str, AgentSpec], talks: Mapping[str, int], local: bool
    ) -> dict[str, tuple[Any, ...]]:
        """Starts all pools at once, then waits for each."""
        pools = {}
        for key, spec in heavy.items():
            ask = spec.resources
            cpus = ask.num_cpus if ask.num_cpus is not None else (0 if local else 1)
            where = (ask.replicas, cpus, ask.num_gpus, ask.scheduling_strategy, ask.runtime_env)
            made = Pool(
                f"agent {spec.name!r}",
                Factory(spec.pool_settings),
                *where,
                timeout=spec.step_timeout,
                max_hung_steps=spec.limits.max_hung_steps,
                paid=spec.paid,
                recover=self._on_failure == "recover",
            )
            pools[key] = made
            self._actors += pools[key].hosts
        for pool in pools.values():  # what cannot be placed is told before anything is loaded
            pool.placed()
        out = {}
        for key, spec in heavy.items():
            # At most half of an agent's talks in a call: while it works on one half, the others have the second.
            most = min(spec.resources.max_batch_size, -(-talks[key] // 2) or 1)
            out[key] = pools[key].parts(most)
        return out

    def hold(self, watch: Watch) -> None:
        """Gives conversations to workers as they finish others. KeyboardInterrupt stops all after their turn."""
        try:
            self._hold(watch)
            self._ask_recorder(lambda: self._recorder.close.remote())
        except KeyboardInterrupt:
            self._stop()
            raise
        except RayTaskError as error:
            self._stop()
            raise error.cause if isinstance(error.cause, A2AError) else error from None
        except A2AError:
            self._stop()
            raise

    def _hold(self, watch: Watch) -> None:
        self.plan.begin()
        started = time.monotonic()
        deadline = started + LOST_SECONDS
        while True:
            if self._lease is not None and self._lease.lost:
                raise StorageError("another driver has taken the run over; this one has stopped")
            self._fill()
            posts = self._all_posts()
            if any(post.starting is None for post in posts):
                deadline = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > deadline:
                raise PlacementError(f"no worker could be started again within {LOST_SECONDS:g} s; resume the run")
            if not any(post.given for post in posts) and self.plan.empty:
                break
            done, _ = ray.wait([c for post in posts for c in post.calls()], timeout=WATCH_SECONDS)
            for call in done:
                post = next((p for p in posts if call in p.calls()), None)  # None: its worker was found dead just now
                if post is not None:
                    self._answered(post, call)
            if time.monotonic() >= self._look:
                self._look = time.monotonic() + WATCH_SECONDS
                if not self.stopped and self._budget_spent(time.monotonic() - started):
                    self.plan.end()
                    for post in posts:
                        post.actor.stop.remote()
                for post in posts:
                    if post.asked is None and post.starting is None:
                        post.asked = post.actor.said.remote()
                watch(self._progress())
        if self._keeper is not None:  # by now the last calls are counted
            with contextlib.suppress(RayActorError):
                self.stopped = ray.get(self._keeper.state.remote()) or self.stopped
        for post in self._posts:
            self._ask_said(post)
        watch(self._progress())

    def _all_posts(self) -> list[Post]:
        return [*self._posts, self._ward] if self._ward is not None else self._posts

    def _fill(self) -> None:
        """Hands out what there is to do. Suspects are held in a worker of their own."""
        if self.stopped:  # also for what was put back since
            self.plan.end()
        for held in range(CHUNKS + WAITING):  # one after the other, so that the last chunks are shared out evenly
            for post in self._posts:
                if post.starting is None and len(post.given) <= held:
                    chunk = self.plan.next(self._size)
                    if chunk is not None:
                        post.give(chunk)
        if self.plan.suspected and self._ward is None:
            self._ward = Post(lambda name: self._start(name, 0))
        if self._ward is not None and self._ward.starting is None and not self._ward.given:
            suspected = self.plan.next_apart()
            if suspected is not None:
                self._ward.give(suspected)
            else:
                self._ask_said(self._ward)
                self._said_apart = self._said_apart.plus(self._ward.said_before).plus(self._ward.said)
                ray.kill(self._ward.actor)
                self._ward = None

    def _answered(self, post: Post, call: Any) -> None:
        """Takes one answer of a worker, or finds that it died."""
        try:
            answer = ray.get(call)
        except (RayActorError, ObjectLostError) as error:
            self._lost(post, error)
            return
        if call is post.starting:
            post.starting, post.bad_starts = None, 0
        elif call is post.asked:
            post.asked, post.said = None, answer
        else:
            del post.given[call]
            self.plan.count(answer)

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
                log.warning("%s: the process that keeps the budget has died", self._path)
        return self.stopped

    def _progress(self) -> Progress:
        said = self._said_apart
        for post in self._all_posts():
            said = said.plus(post.said_before).plus(post.said)
        return self.plan.progress(said)

    def _ask_said(self, post: Post) -> None:
        if post.starting is None:
            try:
                post.said = ray.get(post.actor.said.remote())
            except RayActorError:
                log.info("worker %s died after its work", post.name)

    def _lost(self, post: Post, error: Exception) -> None:
        """Fills the place of a worker that died, and puts back what it held, as far as that is not on record."""
        reason = str(error).strip().splitlines()[0]
        if self._on_failure == "raise":
            raise StorageError(f"a worker process died: {reason}; resume the run")
        log.warning("%s: worker %s died (%s); its conversations go on in another", self._path, post.name, reason)
        ray.kill(post.actor)  # it may only be out of reach
        post.bad_starts += post.starting is not None
        if post.bad_starts >= BAD_STARTS:
            raise PlacementError(f"{BAD_STARTS} workers in a row died before they were ready: {reason}; resume the run")
        chunks = list(post.given.values())
        if chunks:
            # What it sent and is still on its way must not come after what another says in its place.
            self._ask_recorder(lambda: self._recorder.fence.remote(post.name))
            self._put_back(chunks, apart=post is self._ward)
        post.fill()

    def _put_back(self, chunks: list[Chunk], apart: bool) -> None:
        held = {task.id: task for chunk in chunks for task in chunk.tasks}
        before = {id: t for chunk in chunks for id, t in chunk.earlier.items()}
        now = {t.id: t for t in open_run(self._path).transcripts(held)}
        over = {id for id, t in now.items() if _ended(t, before.get(id))}
        self.plan.count(Outcome(held[id], now[id].status, len(now[id].messages)) for id in over)
        left = {id: task for id, task in held.items() if id not in over}
        moved = {id: _turns(now.get(id)) > _turns(before.get(id)) for id in left}
        found = self._suspects.died(moved, apart=apart)
        for group, alone in ((found.free, False), *((g, True) for g in found.groups)):
            if group:
                tasks = [left[id] for id in group]
                self.plan.again(Chunk(tasks, {id: now[id] for id in group if id in now}, alone))
        for id in found.poison:
            self._set_aside(left[id], now.get(id))

    def _set_aside(self, task: Any, said: Transcript | None) -> None:
        """Puts on record that a conversation kills its worker."""
        cell = self._experiment.cells[task.cell]
        names = tuple(spec.name for spec in cell.agents)
        begun: list[Message] = []
        if said is None:  # it killed every worker before even its opening was on record
            said = Transcript(task.id, names, cell.opening_contents[task.opening], task.seed)
            begun.append(opening_row(said))
        said.status = FAILED
        said.error = (
            f"its worker process died at turn {len(said.messages) + 1}, {ALONE_DEATHS} times with no other conversation"
            " in it; look for a crash or for memory that runs out in its agents (Ray's logs of the worker), then resume"
            " with retry_failed"
        )
        log.error("%s: conversation %s is set aside: %s", self._path, task.id, said.error)
        name = f"driver-{uuid4().hex[:12]}"
        rows = to_batch([*begun, replace(end_row(said, time.time()), writer=name)])
        self._ask_recorder(lambda: self._recorder.append.remote(name, 0, 0, rows))
        self.plan.count([Outcome(task, FAILED, len(said.messages))])

    def _ask_recorder(self, ask: Callable[[], Any]) -> Any:
        """The recorder's answer, also where it has just died and is started again."""
        deadline = time.monotonic() + LOST_SECONDS
        while True:
            try:
                return ray.get(ask())
            except RayActorError as error:
                if self._on_failure == "raise" or time.monotonic() > deadline:
                    reason = str(error).splitlines()[0]
                    raise StorageError(f"the recorder process died: {reason}; resume the run") from None
                time.sleep(0.2)

    def _stop(self) -> None:
        """Lets the turns under way end and be committed, for at most 30 s."""
        pending = [call for post in self._all_posts() for call in post.given]
        for post in self._all_posts():
            post.actor.stop.remote()
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=30)

    def recorder_stats(self) -> dict[str, float]:
        """Rows and commits of this start, and the seconds that commits took."""
        stats: dict[str, float] = self._ask_recorder(lambda: self._recorder.stats.remote())
        return stats

    def end(self) -> None:
        """Ends all actors of the run."""
        for actor in (*self._actors, *(post.actor for post in self._all_posts())):
            ray.kill(actor)


def _turns(transcript: Transcript | None) -> int:
    return len(transcript.turns) if transcript is not None else 0


def _ended(now: Transcript, before: Transcript | None) -> bool:
    """Whether a conversation is over. One that failed before and is tried again is not, until it failed again later."""
    if now.status == FAILED and before is not None and before.status == FAILED:
        return len(now.turns) > len(before.turns)
    return now.status in (DONE, FAILED)
