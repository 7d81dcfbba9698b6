"""Which replica a call goes to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from a2a_ray.runtime.agents.replica import MethodQueues, PendingCall, Replica, empty_queues


class ReplicaQueues:
    """The replicas of an agent and the calls queued for them.

    The replicas of a stateless agent share one queue. A stateful agent's conversation stays with one replica, so each
    of its replicas has a queue of its own.
    """

    def __init__(self, handles: Sequence[Any], stateful: bool) -> None:
        shared = empty_queues()
        self.replicas = [Replica(handle, empty_queues() if stateful else shared) for handle in handles]
        random.Random().shuffle(self.replicas)  # workers do not all begin with the same replica
        self.stateful = stateful
        self._assigned: dict[str, Replica] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queues in self._distinct() for queue in queues.values())

    def add(self, call: PendingCall) -> None:
        """Queue a call for the replica of its conversation, or for all replicas."""
        replica = self.assign(call.message.conversation) if self.stateful else self.replicas[0]
        replica.queued[call.method].append(call)

    def assign(self, conversation: str, to: Replica | None = None) -> Replica:
        """Return the replica of a conversation with a stateful agent.

        A conversation without one, or whose replica is away, gets the replica with the fewest conversations. If `to` is
        given, the conversation moves there.
        """
        replica = self._assigned.get(conversation)
        if replica is None or replica.away or (to is not None and to is not replica):
            self.release(conversation)
            replica = to or min(self.replicas, key=lambda r: (r.away, r.assigned))
            replica.assigned += 1
            self._assigned[conversation] = replica
        return replica

    def release(self, conversation: str) -> None:
        """Let the replica of a conversation drop its state, with the next exchange."""
        replica = self._assigned.pop(conversation, None)
        if replica is not None:
            replica.assigned -= 1
            if conversation in replica.has_state:
                replica.has_state.discard(conversation)
                replica.to_forget.append(conversation)

    def move_from_away(self) -> None:
        """Queue the calls of replicas that are away for other replicas."""
        if self.stateful:
            for call in [c for r in self.replicas if r.away for c in _drain(r.queued)]:
                self.add(call)

    def drain(self) -> list[PendingCall]:
        """Remove all queued calls, and return them."""
        return [call for queues in self._distinct() for call in _drain(queues)]

    def _distinct(self) -> list[MethodQueues]:
        return [r.queued for r in self.replicas] if self.stateful else [self.replicas[0].queued]


def _drain(queued: MethodQueues) -> list[PendingCall]:
    calls = [call for queue in queued.values() for call in queue]
    for queue in queued.values():
        queue.clear()
    return calls
