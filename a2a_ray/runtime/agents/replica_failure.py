"""What happens when a replica dies: which calls are retried, which fail, and when the replica is used again."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable

from ray.exceptions import ActorDiedError, RayError, RayTaskError

from a2a_ray.core.errors import AgentError, LostCall, PlacementError
from a2a_ray.runtime.agents.background_tasks import BackgroundTasks
from a2a_ray.runtime.agents.replica import PendingCall, Replica
from a2a_ray.runtime.agents.replica_queues import ReplicaQueues

log = logging.getLogger(__name__)

AWAY_SECONDS = 120.0
"""How long queued calls wait while no replica answers."""
MAX_DEATHS = 3
"""A call fails after this many processes died with it in flight."""
PAUSE_SECONDS = (0.05, 2.0)
"""The first and the longest pause between two checks of a replica that is away."""


class ReplicaFailures:
    """Recovers the calls of replicas that die, and the replicas.

    Ray restarts a replica that dies, and the others get its work meanwhile. The calls that were in flight with it are
    suspects: one of them may have killed it. They are retried apart from other calls, first in groups of the square
    root of their number, then each alone. A call that was in flight at three deaths fails. So one poisonous message
    takes no other with it, and a crash with many calls in flight does not serialize them all.

    A paid agent's calls that were in flight raise LostCall instead. If no replica answers for `AWAY_SECONDS`, or none
    can come back, all queued calls raise PlacementError.

    changed: called if calls may be sent now that could not be sent before.
    """

    def __init__(self, agent: str, paid: bool, queues: ReplicaQueues, changed: Callable[[], None]) -> None:
        self._agent, self._paid, self._queues, self._changed = agent, paid, queues, changed
        self.suspects: deque[list[PendingCall]] = deque()
        self._none_since: float | None = None
        self._reason = ""  # why a replica went away last
        self._tasks = BackgroundTasks()

    def fail(self, calls: Iterable[PendingCall], reason: str) -> None:
        """Fail calls with an AgentError."""
        for call in calls:
            call.resolve(AgentError(f"agent {self._agent!r}: {reason}"))

    def retry(self, calls: Iterable[PendingCall]) -> None:
        """Queue calls that were not started; suspects stay apart."""
        for call in calls:
            if call.deaths:
                self.suspects.append([call])
            else:
                self._queues.add(call)

    def exchange_failed(self, replica: Replica, calls: list[PendingCall], error: RayError) -> None:
        """Handle the failure of an actor call. calls: those that it carried."""
        if "actor is restarting" in str(error):  # Ray's text for a call that it has not sent
            self.retry(calls)
        else:
            self.lose(calls, first_line(error))
        if not replica.exchanges:
            self.lose(replica.remove(list(replica.in_flight)), first_line(error))
            replica.has_state.clear()
            replica.to_forget.clear()
            replica.isolated = False
        replica.gone = replica.gone or isinstance(error, ActorDiedError)
        self.mark_away(replica, first_line(error))

    def lose(self, calls: list[PendingCall], reason: str) -> None:
        """Retry or fail calls that were in flight with a process that died."""
        suspects: dict[str, list[PendingCall]] = {"step": [], "bid": []}
        for call in calls:
            call.deaths += 1
            turn = f"turn {call.message.turn} of {call.message.conversation!r}"
            if self._paid:
                text = f"its process died during {turn}; it is unknown whether the call was made: {reason}"
                call.resolve(LostCall(f"agent {self._agent!r}: {text}"))
            elif call.deaths >= MAX_DEATHS:
                self.fail([call], f"its process died {MAX_DEATHS} times during {turn}: {reason}")
            elif call.deaths > 1:
                self.suspects.append([call])
            else:
                suspects[call.method].append(call)
        for group in suspects.values():
            size = math.isqrt(len(group))
            self.suspects.extend(group[i : i + size] for i in range(0, len(group), size or 1))

    def mark_away(self, replica: Replica, reason: str) -> None:
        """Send a replica no more calls until it is back; the calls queued for it go to the others."""
        if replica.away:
            return
        log.warning("agent %r: a replica is away: %s", self._agent, reason)
        replica.away = True
        if self._none_since is None and all(r.away for r in self._queues.replicas):
            self._none_since = time.monotonic()
        self._queues.move_from_away()
        self._reason = reason
        self._tasks.start(self._await_return(replica))

    async def _await_return(self, replica: Replica) -> None:
        """Check a replica that is away until it is back or gone."""
        pause, longest = PAUSE_SECONDS
        back = False
        while not back and not replica.gone:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            if replica.exchanges:  # the calls in flight must be known to be lost first
                continue
            try:
                async with asyncio.timeout(AWAY_SECONDS):
                    replica.loading = bool(await replica.handle.ready.remote())
                if replica.loading:
                    await replica.handle.setup.remote()
                    back = True
            except RayTaskError as error:
                self._reason = first_line(error.cause)
            except (RayError, TimeoutError) as error:
                replica.gone = isinstance(error, ActorDiedError)
                self._reason = first_line(error)
            finally:
                replica.loading = False
            self._changed()
        if back:
            replica.away, self._none_since = False, None
            self._queues.move_from_away()

    def fail_if_none_answers(self) -> None:
        """Fail all queued calls if no replica can come back, or none was back for long.

        The error is a PlacementError, which ends the run: the conversations are not at fault.
        """
        since, replicas = self._none_since, self._queues.replicas
        late = since is not None and time.monotonic() - since > AWAY_SECONDS
        if all(r.gone for r in replicas):
            text = f"all of its processes have died: {self._reason}"
        elif late and not any(r.loading for r in replicas):
            text = f"none of its processes has answered for {AWAY_SECONDS:g} s: {self._reason}"
        else:
            return
        for call in (*self._queues.drain(), *(call for group in self.suspects for call in group)):
            call.resolve(PlacementError(f"agent {self._agent!r}: {text}"))
        self.suspects.clear()


def first_line(error: object) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
