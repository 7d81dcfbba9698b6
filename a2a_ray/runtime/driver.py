"""The driver of one start of a run: hands chunks of conversations to workers until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from a2a_ray.core.errors import A2AError, PlacementError, StorageError
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.budget_watch import BudgetWatch
from a2a_ray.runtime.crash_recovery import LOST_SECONDS, CrashRecovery, call_recorder, read_progress
from a2a_ray.runtime.executor import OnFailure
from a2a_ray.runtime.limits.spent import NOTHING, Spent
from a2a_ray.runtime.plan import CHUNKS, QUEUED, STOP_SECONDS, WATCH_SECONDS, Plan, Progress, Watch
from a2a_ray.runtime.run_actors import RunActors
from a2a_ray.runtime.worker_slot import WorkerSlot
from a2a_ray.store.lease import Lease


class Driver:
    """Starts the actors of a run and drives it; `run` does the work, `shutdown` ends all actors.

    Args:
        path: of the run.
        experiment: the specification.
        make_plan: makes the plan from the store. It is called when no other driver can write any more.
        workers: number of workers; as many as fit by default.
        on_failure: "recover" replaces processes that die, "raise" raises StorageError.
        lease: of this driver.
        spent: what the run has spent of its budget before.

    Raises PlacementError, AgentError and StorageError.
    """

    def __init__(
        self,
        path: str,
        experiment: Experiment,
        make_plan: Callable[[], Plan],
        workers: int | None = None,
        on_failure: OnFailure = "recover",
        lease: Lease | None = None,
        spent: Spent = NOTHING,
    ) -> None:
        self._lease, self._recover = lease, on_failure == "recover"
        self._next_report = 0.0
        self.stopped = ""
        """Why the run stopped before its end, as a sentence."""
        self._actors = actors = RunActors(path, experiment, self._recover)
        try:
            actors.start_recorder(lease.epoch if lease is not None else 0)
            self.plan = make_plan()
            actors.start_agents(self.plan.remaining, spent)
            seconds = experiment.budget.seconds if experiment.budget is not None else None
            self._budget = BudgetWatch(seconds, actors.budget_keeper)
            self._recovery = CrashRecovery(
                path, experiment, self.plan, actors.recorder, actors.start_worker, self._recover
            )
            count = max(1, min(workers or actors.workers_that_fit(), len(self.plan)))
            self._slots = [WorkerSlot(actors.start_worker) for _ in range(count)]
            share = -(-len(self.plan) // (CHUNKS * count))
            self._chunk_size = max(1, min(actors.max_in_flight // CHUNKS, share))
            self._recovery.start_workers(self._slots, {"CPU": actors.worker_cpus} if actors.worker_cpus else {})
        except BaseException:
            self.shutdown()
            raise

    def run(self, watch: Watch) -> None:
        """Run all conversations of the plan.

        watch: called with the progress about twice a second. On an error, or KeyboardInterrupt, turns in flight end
        and are stored first.
        """
        try:
            self._run_plan(watch)
            self._call_recorder(lambda: self._actors.recorder.close.remote())
        except RayTaskError as error:
            self._stop_workers()
            raise error.cause if isinstance(error.cause, A2AError) else error from None
        except (KeyboardInterrupt, A2AError):
            self._stop_workers()
            raise

    def _run_plan(self, watch: Watch) -> None:
        self.plan.start_clock()
        started = time.monotonic()
        deadline = started + LOST_SECONDS
        while True:
            if self._lease is not None and self._lease.lost:
                raise StorageError("another driver has taken over the run; this one has stopped")
            self._hand_out_chunks()
            slots = self._all_slots()
            if any(slot.ready for slot in slots):
                deadline = time.monotonic() + LOST_SECONDS
            elif time.monotonic() > deadline:
                raise PlacementError(f"no worker could be started again within {LOST_SECONDS:g} s; resume the run")
            if not any(slot.chunks for slot in slots) and self.plan.is_empty:
                break
            done, _ = ray.wait([call for slot in slots for call in slot.pending_calls()], timeout=WATCH_SECONDS)
            for call in done:
                self._take_result(call)
            if time.monotonic() >= self._next_report:
                self._next_report = time.monotonic() + WATCH_SECONDS
                self._stop_if_spent(time.monotonic() - started)
                for slot in self._all_slots():
                    slot.request_progress()
                watch(self._progress())
        self.stopped = self._budget.final() or self.stopped
        for slot in self._slots:
            read_progress(slot)
        watch(self._progress())

    def _hand_out_chunks(self) -> None:
        """Send chunks to the workers with the fewest; suspects go to the quarantine slot."""
        if self.stopped:  # discards also what was put back since
            self.plan.discard_rest()
        for count in range(CHUNKS + QUEUED):  # in rounds, so that the last chunks are shared evenly
            for slot in self._slots:
                if slot.ready and len(slot.chunks) <= count:
                    chunk = self.plan.next_chunk(self._chunk_size)
                    if chunk is not None:
                        slot.send(chunk)
        self._recovery.run_suspects()

    def _take_result(self, call: Any) -> None:
        """Take the result of a call to a worker, or replace the worker if it died."""
        slot = next((slot for slot in self._all_slots() if call in slot.pending_calls()), None)
        if slot is None:  # its worker was replaced a moment ago
            return
        try:
            result = ray.get(call)
        except (RayActorError, ObjectLostError) as error:
            self._recovery.replace_worker(slot, error)
            return
        if slot.take_result(call, result) is not None:
            self.plan.count(result)

    def _stop_if_spent(self, elapsed: float) -> None:
        if self.stopped:
            return
        self.stopped = self._budget.check(elapsed)
        if self.stopped:
            self.plan.discard_rest()
            for slot in self._all_slots():
                slot.actor.stop.remote()

    def _stop_workers(self) -> None:
        """Let turns in flight end and be stored, for at most STOP_SECONDS."""
        slots = self._all_slots()
        pending = [call for slot in slots for call in slot.chunks]
        for slot in slots:
            slot.actor.stop.remote()
        if pending:
            ray.wait(pending, num_returns=len(pending), timeout=STOP_SECONDS)

    def _progress(self) -> Progress:
        work = self._recovery.quarantine_progress
        for slot in self._all_slots():
            work = work.plus(slot.total_progress)
        return self.plan.progress(work)

    def _all_slots(self) -> list[WorkerSlot]:
        quarantine = self._recovery.quarantine_slot
        return self._slots if quarantine is None else [*self._slots, quarantine]

    def _call_recorder(self, call: Callable[[], Any]) -> Any:
        return call_recorder(call, self._recover)

    def recorder_stats(self) -> dict[str, float]:
        """Return rows and commits of this start, and the seconds that commits took."""
        stats: dict[str, float] = self._call_recorder(lambda: self._actors.recorder.stats.remote())
        return stats

    def shutdown(self) -> None:
        """Kill all actors of the run."""
        self._actors.kill()
