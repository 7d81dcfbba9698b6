"""The driver of a small run: conversations, recorder and budget in this process, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import wait
from uuid import uuid4

from a2a_ray.core.errors import StorageError
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.conversation_runner import ConversationRunner
from a2a_ray.runtime.limits.budget import time_spent
from a2a_ray.runtime.limits.budget_keeper import BudgetKeeper, budget_totals, endpoint_limits
from a2a_ray.runtime.limits.metered_agent import MeteringSettings
from a2a_ray.runtime.limits.spent import NOTHING, Spent
from a2a_ray.runtime.loop_thread import LocalActor, LoopThread
from a2a_ray.runtime.plan import CHUNKS, LIGHT_IN_FLIGHT, QUEUED, STOP_SECONDS, WATCH_SECONDS, Plan, Progress, Watch
from a2a_ray.runtime.telemetry import tracing
from a2a_ray.store.dataset import table_uri
from a2a_ray.store.lease import Lease
from a2a_ray.store.recorder import Recorder
from a2a_ray.store.schema import pack


class LocalDriver:
    """Runs all conversations in one event loop; `run` does the work, `shutdown` ends the loop.

    The event loop has a thread of its own. The thread that calls `run` reports the progress and receives Ctrl-C.

    Args:
        path: of the run.
        experiment: the specification; all agents are light.
        make_plan: makes the plan from the store. It is called when no other driver can write any more.
        lease: of this driver.
        spent: what the run has spent of its budget before.

    Raises StorageError.
    """

    def __init__(
        self,
        path: str,
        experiment: Experiment,
        make_plan: Callable[[], Plan],
        lease: Lease | None = None,
        spent: Spent = NOTHING,
    ) -> None:
        self._path, self._experiment, self._lease = path, experiment, lease
        self._stopping = False
        self.stopped = ""
        """Why the run stopped before its end, as a sentence."""
        self._thread = LoopThread()
        try:
            self.plan = self._thread.submit(self._open(make_plan, spent)).result()
        except BaseException:
            self.shutdown()
            raise

    async def _open(self, make_plan: Callable[[], Plan], spent: Spent) -> Plan:
        """Open the table, so that nobody else can write any more; then make the plan and the parts of the run."""
        self._recorder = Recorder(table_uri(self._path), self._lease.epoch if self._lease is not None else 0)
        await self._recorder.ready()
        experiment = self._experiment
        limits, endpoints = endpoint_limits(experiment)
        self._keeper = BudgetKeeper(limits, budget_totals(experiment), spent, in_actor=False) if limits else None
        metering = MeteringSettings(
            self._path.rstrip("/").rpartition("/")[2],
            None if self._keeper is None else LocalActor(self._keeper),
            endpoints,
            otel=tracing.settings(),
        )
        keys = [[spec.key() for _, spec in cell.all_agents] for cell in experiment.cells]
        name, recorder = f"worker-{uuid4().hex[:12]}", LocalActor(self._recorder)
        self._runner = ConversationRunner(name, experiment, recorder, {}, keys, LIGHT_IN_FLIGHT, metering)
        return make_plan()

    def run(self, watch: Watch) -> None:
        """Run all conversations of the plan.

        watch: called with the progress about twice a second. On an error, or KeyboardInterrupt, turns in flight end
        and are stored first.
        """
        self.plan.start_clock()
        running = self._thread.submit(self._run_plan())
        try:
            watch(self._progress())
            while not wait([running], WATCH_SECONDS).done:
                watch(self._progress())
            running.result()
            watch(self._progress())
        except BaseException:
            self._stop()
            wait([running], STOP_SECONDS)
            raise

    async def _run_plan(self) -> None:
        started = asyncio.get_running_loop().time()
        chunks = {asyncio.create_task(self._run_chunks()) for _ in range(CHUNKS + QUEUED)}
        try:
            while chunks:
                done, chunks = await asyncio.wait(chunks, timeout=WATCH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                for chunk in done:
                    chunk.result()
                if self._lease is not None and self._lease.lost:
                    raise StorageError("another driver has taken over the run; this one has stopped")
                await self._stop_if_spent(asyncio.get_running_loop().time() - started)
        except BaseException:
            self._stop()
            if chunks:
                done, _ = await asyncio.wait(chunks, timeout=STOP_SECONDS)
                _ = [chunk.exception() for chunk in done]  # only the first error is raised
            raise
        if self._keeper is not None:
            self.stopped = await self._keeper.stop_reason() or self.stopped
        await self._recorder.close()

    async def _run_chunks(self) -> None:
        """Run one chunk of conversations after the other."""
        while not self._stopping and (chunk := self.plan.next_chunk(LIGHT_IN_FLIGHT // CHUNKS)) is not None:
            stored = {id: pack(transcript.turns) for id, transcript in chunk.transcripts.items()}
            self.plan.count(await self._runner.run_chunk(chunk.tasks, stored))

    async def _stop_if_spent(self, elapsed: float) -> None:
        if not self.stopped:
            budget = self._experiment.budget
            late = time_spent(None if budget is None else budget.seconds, elapsed)
            self.stopped = late or ("" if self._keeper is None else await self._keeper.stop_reason())
            if self.stopped:
                self._stop()

    def _stop(self) -> None:
        """Stop all conversations after their turn in flight. Any thread may call it."""
        self._stopping = True
        self._runner.halt()

    def _progress(self) -> Progress:
        return self.plan.progress(self._runner.work)

    def shutdown(self) -> None:
        """End the event loop."""
        self._thread.end()
