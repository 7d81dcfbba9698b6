"""What a run does when one of its processes dies.

* A worker: its slot gets a new one, and conversations that have not ended continue there after their last stored turn.
  A conversation that kills its worker every time is set aside as failed. See `CrashRecovery`.
* The recorder: Ray restarts it. The driver repeats its call (`call_recorder`); workers send again what was not
  committed (`recorder_client.py`), and the table stores each row once (`store/committed.py`).
* The budget keeper: Ray restarts it, and workers report their spending again (`limits/budget_keeper.py`).
* An agent replica: Ray restarts it, and the call goes to another one (`agents/replica_failure.py`).
* The driver: `resume_run` continues the run (`store/lease.py` makes sure that only one driver writes).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayActorError

from a2a_ray.core.errors import PlacementError, StorageError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.experiment.spec import Experiment, Task
from a2a_ray.runtime.cluster import EndedAtStart, await_placed
from a2a_ray.runtime.plan import Chunk, Outcome, Plan, WorkerProgress
from a2a_ray.runtime.quarantine import ALONE_DEATHS, Quarantine
from a2a_ray.runtime.worker_slot import WorkerSlot
from a2a_ray.store.run import open_run
from a2a_ray.store.schema import end_row, opening_row, to_batch

log = logging.getLogger(__name__)

LOST_SECONDS = 120.0
"""How long a run waits for the replacement of a process that died; a node may have to come back first."""
BAD_STARTS = 5
"""Workers in a row that may die before they are ready. More are no accident."""


def call_recorder(call: Callable[[], Any], recover: bool) -> Any:
    """Return the recorder's answer. If it has died, repeat the call until Ray has restarted it.

    Raises StorageError if it does not come back within LOST_SECONDS, or if recover is False.
    """
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        try:
            return ray.get(call())
        except RayActorError as error:
            if not recover or time.monotonic() > deadline:
                reason = str(error).splitlines()[0]
                raise StorageError(f"the recorder process died: {reason}; resume the run") from None
            time.sleep(0.2)


class CrashRecovery:
    """Replaces workers that die and puts their conversations back into the plan.

    Suspects, the conversations that may have killed a worker, run in a slot of their own; see `Quarantine`.

    Args:
        path: of the run.
        recorder: the recorder's actor handle.
        start_worker: starts a worker actor of the given name, which reserves the given number of CPUs.
        recover: False raises StorageError instead of replacing a worker.
    """

    def __init__(
        self,
        path: str,
        experiment: Experiment,
        plan: Plan,
        recorder: Any,
        start_worker: Callable[[str, int], Any],
        recover: bool,
    ) -> None:
        self._path, self._experiment, self._plan, self._recorder = path, experiment, plan, recorder
        self._start_worker, self._recover = start_worker, recover
        self._quarantine = Quarantine()
        self.quarantine_slot: WorkerSlot | None = None
        """The slot of the suspects, while there are any."""
        self.quarantine_progress = WorkerProgress()
        """The work of quarantine slots that are closed."""

    def start_workers(self, slots: Sequence[WorkerSlot], demand: Mapping[str, float]) -> None:
        """Return when the workers of all slots are ready; replace those that die before.

        demand: resources that each worker reserves. Raises PlacementError.
        """
        for attempts_left in reversed(range(BAD_STARTS)):
            try:
                await_placed([slot.starting for slot in slots], [demand] * len(slots), "workers")
                break
            except EndedAtStart:
                if not self._recover or not attempts_left:
                    raise
            for slot in slots:
                try:
                    ray.get(slot.starting)
                except RayActorError:
                    slot.fill()
        for slot in slots:
            slot.starting = None

    def replace_worker(self, slot: WorkerSlot, error: Exception) -> None:
        """Fill the slot of a worker that died, and put back its conversations that have not ended."""
        reason = str(error).strip().splitlines()[0]
        if not self._recover:
            raise StorageError(f"a worker process died: {reason}; resume the run")
        log.warning("%s: worker %s died (%s); another one continues its conversations", self._path, slot.name, reason)
        ray.kill(slot.actor)  # it may only be out of reach
        slot.failed_starts += not slot.ready
        if slot.failed_starts >= BAD_STARTS:
            raise PlacementError(f"{BAD_STARTS} workers in a row died before they were ready: {reason}; resume the run")
        chunks = list(slot.chunks.values())
        if chunks:
            # Batches that it sent may still be in flight. They must not arrive after those of its replacement.
            call_recorder(lambda: self._recorder.fence.remote(slot.name), self._recover)
            self._put_back(chunks, quarantined=slot is self.quarantine_slot)
        slot.fill()

    def run_suspects(self) -> None:
        """Send the next group of suspects to the quarantine slot; open the slot before, or close it after the last."""
        if self._plan.has_quarantined and self.quarantine_slot is None:
            self.quarantine_slot = WorkerSlot(lambda name: self._start_worker(name, 0))
        slot = self.quarantine_slot
        if slot is None or not slot.ready or slot.chunks:
            return
        suspects = self._plan.next_quarantined()
        if suspects is not None:
            slot.send(suspects)
            return
        read_progress(slot)
        self.quarantine_progress = self.quarantine_progress.plus(slot.total_progress)
        ray.kill(slot.actor)
        self.quarantine_slot = None

    def _put_back(self, chunks: Sequence[Chunk], quarantined: bool) -> None:
        """Compare the conversations of a dead worker with the store: count those that ended, put back the others."""
        tasks = {task.id: task for chunk in chunks for task in chunk.tasks}
        before = {id: t for chunk in chunks for id, t in chunk.transcripts.items()}
        now = {t.id: t for t in open_run(self._path).transcripts(tasks)}
        ended = {id for id, t in now.items() if _has_ended(t, before.get(id))}
        self._plan.count(Outcome(tasks[id], now[id].status, len(now[id].messages)) for id in ended)
        progress = {id: _turns(now.get(id)) > _turns(before.get(id)) for id in tasks if id not in ended}
        decision = self._quarantine.sort_after_death(progress, quarantined=quarantined)
        for ids, suspected in ((decision.cleared, False), *((group, True) for group in decision.suspects)):
            if ids:
                transcripts = {id: now[id] for id in ids if id in now}
                self._plan.put_back(Chunk([tasks[id] for id in ids], transcripts, suspected))
        for id in decision.guilty:
            self._set_aside(tasks[id], now.get(id))

    def _set_aside(self, task: Task, transcript: Transcript | None) -> None:
        """Store that a conversation failed because it kills its worker. transcript: None if nothing of it is stored."""
        cell = self._experiment.cells[task.cell]
        names = tuple(spec.name for spec in cell.agents)
        rows: list[Message] = []
        if transcript is None:
            transcript = Transcript(task.id, names, cell.opening_contents[task.opening], task.seed)
            rows.append(opening_row(transcript))
        transcript.status = FAILED
        transcript.error = (
            f"its worker process died at turn {len(transcript.messages) + 1}, {ALONE_DEATHS} times with no other"
            " conversation in it; look for a crash or an out-of-memory error in its agents (Ray's logs of the worker),"
            " then resume with retry_failed"
        )
        log.error("%s: conversation %s is set aside: %s", self._path, task.id, transcript.error)
        writer = f"driver-{uuid4().hex[:12]}"
        batch = to_batch([*rows, replace(end_row(transcript, time.time()), writer=writer)])
        call_recorder(lambda: self._recorder.append.remote(writer, 0, 0, batch), self._recover)
        self._plan.count([Outcome(task, FAILED, len(transcript.messages))])


def read_progress(slot: WorkerSlot) -> None:
    """Wait for the progress of a worker that has finished its work."""
    if slot.ready:
        try:
            slot.progress = ray.get(slot.actor.progress.remote())
        except RayActorError:
            log.info("worker %s died after its work", slot.name)


def _turns(transcript: Transcript | None) -> int:
    return len(transcript.turns) if transcript is not None else 0


def _has_ended(now: Transcript, before: Transcript | None) -> bool:
    """Whether a conversation has ended. If it is a retry of a failed one, only a later failure counts."""
    if now.status == FAILED and before is not None and before.status == FAILED:
        return len(now.turns) > len(before.turns)
    return now.status in (DONE, FAILED)
