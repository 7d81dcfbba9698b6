"""Sends an agent's calls to its replicas in batches, and hands the responses back.

Which replica: replica_queues.py. What happens when one dies: replica_failure.py.
"""

from __future__ import annotations

import asyncio
import pickle
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from a2a_ray.core.message import Message
from a2a_ray.runtime.agents.actor_messages import ActorReply, CallBatch, agent_error
from a2a_ray.runtime.agents.background_tasks import BackgroundTasks
from a2a_ray.runtime.agents.replica import MethodQueues, PendingCall, Replica
from a2a_ray.runtime.agents.replica_failure import ReplicaFailures, first_line
from a2a_ray.runtime.agents.replica_queues import ReplicaQueues
from a2a_ray.store.schema import pack, unpack


class Dispatcher:
    """The calls of one event loop to one agent.

    A replica works on one batch, and the calls queued meanwhile go with the next one. A batch that is full
    (`max_batch_size`) is sent at once and waits in the actor. A replica whose agent overlaps calls gets everything at
    once. Queued calls are divided among the free replicas, the one with the fewest calls first. Several workers share
    the replicas: each counts its own calls, and those of others by the replica's newest reply.

    A stateful agent's conversation stays with one replica. A replica without the conversation's state gets the state
    with the call.

    facts: from `AgentHost.setup`. states: conversation -> newest state.
    """

    def __init__(
        self,
        name: str,
        handles: Sequence[Any],
        facts: Mapping[str, Any],
        max_batch_size: int,
        states: Mapping[str, Any],
    ) -> None:
        self._max_batch_size, self._states = max_batch_size, states
        self._overlaps, self._stateful = facts["overlaps"], facts["stateful"]
        self._caller = uuid.uuid4().hex
        self._queues = ReplicaQueues(handles, self._stateful)
        self._failures = ReplicaFailures(name, facts["paid"], self._queues, self._schedule)
        self._next_number = 0
        self.batches: deque[int] = deque(maxlen=10_000)  # sizes, for metrics
        self._scheduled = False
        self._tasks = BackgroundTasks()
        self._loop = asyncio.get_running_loop()

    def call(self, method: str, message: Message) -> asyncio.Future[Any]:
        """Queue a call of `step` or `bid`, and return its future response."""
        future = self._loop.create_future()
        self._queues.add(PendingCall(method, message, future))
        self._schedule()
        return future

    @property
    def queue(self) -> int:
        """Number of queued calls."""
        return len(self._queues)

    def forget(self, conversation: str) -> None:
        """Let the replica of a conversation drop its state, with the next exchange."""
        self._queues.release(conversation)

    def _schedule(self) -> None:
        # After the other callbacks that are ready now: their conversations' calls go in one batch.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        self._send_queued()
        for replica in self._queues.replicas:
            if replica.in_flight and not replica.exchanges:
                self._start_exchange(replica, [])  # only to wait for responses
        if all(r.away for r in self._queues.replicas):
            self._failures.fail_if_none_answers()

    def _send_queued(self) -> None:
        """Send a batch to every replica that can take one: suspects first, each group to an idle replica."""
        present = (r for r in self._queues.replicas if not r.away)
        available = sorted(present, key=lambda r: len(r.in_flight) + r.other_load)
        suspects = self._failures.suspects
        while suspects and available:
            replica = available.pop(0)  # if it is busy, it gets nothing else until it is idle
            if replica.in_flight or replica.exchanges:
                break
            replica.isolated = True
            self._start_exchange(replica, suspects.popleft())
        for only_full in (False, True):
            free = [r for r in available if self._has_room(r, only_full)]
            for place, replica in enumerate(free):
                share = 1 if self._stateful or only_full else len(free) - place
                while self._has_room(replica, only_full) and (batch := self._take(replica.queued, share, only_full)):
                    self._start_exchange(replica, batch)

    def _has_room(self, replica: Replica, full_batch: bool) -> bool:
        """Whether a replica can take a batch. A full batch may wait in the actor for the one before it."""
        if replica.isolated or replica.exchanges >= 2:
            return False
        if self._overlaps or not replica.in_flight:
            return True
        return full_batch and len(replica.in_flight) <= self._max_batch_size

    def _take(self, queued: MethodQueues, share: int, only_full: bool) -> list[PendingCall]:
        queue = max(queued.values(), key=len)
        if only_full and len(queue) < self._max_batch_size:
            return []
        size = min(self._max_batch_size, -(-len(queue) // share))
        batch: list[PendingCall] = []
        while queue and len(batch) < size:
            call = queue.popleft()
            if not call.future.done():  # else its conversation was cancelled
                batch.append(call)
        return batch

    def _start_exchange(self, replica: Replica, batch: list[PendingCall]) -> None:
        numbers = range(self._next_number, self._next_number + len(batch))
        self._next_number += len(batch)
        replica.in_flight.update(zip(numbers, batch, strict=True))
        for call in batch:
            call.sent_to = replica.incarnation
        replica.exchanges += 1
        if batch:
            self.batches.append(len(batch))
        self._tasks.start(self._exchange(replica, numbers, batch))

    async def _exchange(self, replica: Replica, numbers: range, batch: list[PendingCall]) -> None:
        incarnation = replica.incarnation
        states = self._missing_states(replica, numbers, batch) if self._stateful else {}
        forget, replica.to_forget = replica.to_forget, []
        try:
            columns = pack([call.message for call in batch])
            request = CallBatch(batch[0].method if batch else "step", numbers, columns, states, forget)
            sent = cloudpickle.dumps(tuple(request))
            reply = ActorReply(*pickle.loads(await replica.handle.exchange.remote(self._caller, incarnation, sent)))
        except RayTaskError as error:
            replica.exchanges -= 1
            self._failures.fail(replica.remove(numbers), f"its process failed: {first_line(error.cause)}")
        except RayError as error:
            replica.exchanges -= 1
            self._failures.exchange_failed(replica, replica.remove(numbers), error)
        except Exception as error:
            replica.exchanges -= 1
            self._failures.fail(replica.remove(numbers), f"a message cannot be sent to it: {first_line(error)}")
        else:
            replica.exchanges -= 1
            self._receive(replica, reply, incarnation)
        self._schedule()

    def _missing_states(self, replica: Replica, numbers: range, batch: list[PendingCall]) -> dict[int, Any]:
        """Return the states that the replica needs for these calls and does not have."""
        states = {}
        for number, call in zip(numbers, batch, strict=True):
            conversation = call.message.conversation
            self._queues.assign(conversation, replica)
            if conversation not in replica.has_state:
                replica.has_state.add(conversation)
                states[number] = (self._states.get(conversation),)
        return states

    def _receive(self, replica: Replica, reply: ActorReply, incarnation: str) -> None:
        """Resolve the calls of a reply. incarnation: the one that the exchange was sent to."""
        replica.incarnation, replica.other_load = reply.incarnation, reply.other_load
        answered = [replica.in_flight.pop(n, None) for n in reply.numbers]
        self._failures.retry(replica.remove(reply.not_started))
        if incarnation not in ("", reply.incarnation):  # it died while no exchange was in flight, and is back
            replica.has_state.clear()
            lost = [n for n, call in replica.in_flight.items() if call.sent_to == incarnation]
            self._failures.lose(replica.remove(lost), "it was restarted")
        elif reply.not_started:
            self._failures.mark_away(replica, reply.problem or "too many of its steps hang")
        replica.isolated = replica.isolated and bool(replica.in_flight)
        self._send_queued()  # the replica works on the next batch while this one is unpacked
        for call, message in zip(answered, unpack(reply.messages), strict=True):
            if call is not None and not call.future.done():
                call.future.set_result(message)
        for number, bid in reply.bids.items():
            for call in replica.remove([number]):
                call.resolve(bid)
        for number, failure in reply.failed.items():
            for call in replica.remove([number]):
                call.resolve(agent_error(*failure))
