"""An agent whose replicas are Ray actors, as conversations see it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from a2a_ray.core.message import Message
from a2a_ray.runtime.agents.dispatcher import Dispatcher


class RemoteAgent:
    """An agent whose replicas are Ray actors; itself an `Agent`. Made by `remote`, or by a run for its heavy agents.

    A replica works on one call, and everything that waits meanwhile goes with the next one; questions to an agent whose
    step is asynchronous overlap. A replica that dies is started again; `Dispatcher` says what becomes of its questions.

    replicas: the actors. facts: what `AgentHost.setup` told. max_batch_size: the most messages in a call.
    """

    placement = "worker"

    def __init__(self, name: str, replicas: Sequence[Any], facts: Mapping[str, Any], max_batch_size: int = 64) -> None:
        self.name = name
        self.paid: bool = facts["paid"]
        self.stateful: bool = facts["stateful"]
        self._parts = (name, tuple(replicas), facts, max_batch_size)
        self._states: dict[str, Any] = {}
        self._dispatchers: dict[asyncio.AbstractEventLoop, Dispatcher] = {}
        if facts["bids"]:
            self.bid = self._bid

    async def step(self, message: Message) -> Message:
        """The answer of one of the replicas. Raises AgentError; LostCall where a paid call was in flight."""
        answer: Message = await self._dispatcher().ask("step", message)
        if self.stateful:
            self._states[message.conversation] = answer.metadata.get("state")
        return answer

    async def _bid(self, message: Message) -> float:
        bid: float = await self._dispatcher().ask("bid", message)
        return bid

    def restore(self, conversation: str, state: Any) -> None:
        """Gives the newest state of a conversation that goes on: `metadata["state"]` of the agent's last answer."""
        if self.stateful:
            self._states[conversation] = state
            for dispatcher in self._dispatchers.values():
                dispatcher.forget(conversation)

    def forget(self, conversation: str) -> None:
        """Lets a stateful agent drop what it holds of a conversation that is over; of others there is nothing."""
        if self.stateful:
            self._states.pop(conversation, None)
            for dispatcher in self._dispatchers.values():
                dispatcher.forget(conversation)

    @property
    def queue(self) -> int:
        """Messages that wait for a replica."""
        return sum(dispatcher.queue for dispatcher in self._dispatchers.values())

    @property
    def batches(self) -> deque[int]:
        """Messages of each call so far; whoever reads them may take them away."""
        found = [dispatcher.batches for dispatcher in self._dispatchers.values()]
        return found[-1] if found else deque()

    def _dispatcher(self) -> Dispatcher:
        loop = asyncio.get_running_loop()
        found = self._dispatchers.get(loop)
        if found is None:
            self._dispatchers = {k: v for k, v in self._dispatchers.items() if not k.is_closed()}
            found = self._dispatchers[loop] = Dispatcher(*self._parts, self._states)
        return found
