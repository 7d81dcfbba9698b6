"""An agent whose replicas are Ray actors, as conversations see it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from a2a_ray.core.message import Message
from a2a_ray.runtime.agents.dispatcher import Dispatcher


class RemoteAgent:
    """An `Agent` whose replicas are Ray actors. `remote` returns one; a run makes one for each of its heavy agents.

    A replica works on one batch of calls, and the calls queued meanwhile form the next batch. Calls overlap if the
    agent's step is asynchronous. A replica that dies is restarted, and its calls are retried; see `ReplicaFailures`.

    replicas: the actors. facts: from `AgentHost.setup`. max_batch_size: the most messages in a batch.
    """

    placement = "worker"

    def __init__(self, name: str, replicas: Sequence[Any], facts: Mapping[str, Any], max_batch_size: int = 64) -> None:
        self.name = name
        self.paid: bool = facts["paid"]
        self.stateful: bool = facts["stateful"]
        self._arguments = (name, tuple(replicas), facts, max_batch_size)
        self._states: dict[str, Any] = {}
        self._dispatchers: dict[asyncio.AbstractEventLoop, Dispatcher] = {}
        if facts["bids"]:
            self.bid = self._bid

    async def step(self, message: Message) -> Message:
        """Return the response of one of the replicas. Raises AgentError; LostCall if a paid call was in flight."""
        response: Message = await self._dispatcher().call("step", message)
        if self.stateful:
            self._states[message.conversation] = response.metadata.get("state")
        return response

    async def _bid(self, message: Message) -> float:
        bid: float = await self._dispatcher().call("bid", message)
        return bid

    def restore(self, conversation: str, state: Any) -> None:
        """Set the state of a resumed conversation: `metadata["state"]` of the agent's last response."""
        if self.stateful:
            self._states[conversation] = state
            for dispatcher in self._dispatchers.values():
                dispatcher.forget(conversation)

    def forget(self, conversation: str) -> None:
        """Let a stateful agent drop the state of a conversation that ended. A stateless agent has none."""
        if self.stateful:
            self._states.pop(conversation, None)
            for dispatcher in self._dispatchers.values():
                dispatcher.forget(conversation)

    @property
    def queue(self) -> int:
        """Number of messages queued for a replica."""
        return sum(dispatcher.queue for dispatcher in self._dispatchers.values())

    @property
    def batches(self) -> deque[int]:
        """Sizes of the batches so far; the reader may remove them."""
        batches = [dispatcher.batches for dispatcher in self._dispatchers.values()]
        return batches[-1] if batches else deque()

    def _dispatcher(self) -> Dispatcher:
        loop = asyncio.get_running_loop()
        dispatcher = self._dispatchers.get(loop)
        if dispatcher is None:
            self._dispatchers = {k: v for k, v in self._dispatchers.items() if not k.is_closed()}
            dispatcher = self._dispatchers[loop] = Dispatcher(*self._arguments, self._states)
        return dispatcher
