"""A caller's view of one replica of an agent: the calls queued for it and the calls in flight with it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from a2a_ray.core.message import Message


class PendingCall:
    """A call of an agent whose response has not arrived yet. method: "step" or "bid"."""

    __slots__ = ("deaths", "future", "message", "method", "sent_to")

    def __init__(self, method: str, message: Message, future: asyncio.Future[Any]) -> None:
        self.method, self.message, self.future = method, message, future
        self.sent_to = ""  # incarnation of the process
        self.deaths = 0  # of processes that had this call in flight

    def resolve(self, outcome: Any) -> None:
        """Set the result, or the error, unless the caller has given up."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


MethodQueues = dict[str, deque[PendingCall]]
"""Queued calls by method."""


def empty_queues() -> MethodQueues:
    """Return an empty queue for each method of an agent."""
    return {"step": deque(), "bid": deque()}


class Replica:
    """The state of one actor, as far as this caller knows it."""

    def __init__(self, handle: Any, queued: MethodQueues) -> None:
        self.handle = handle
        self.queued = queued  # shared by all replicas of a stateless agent
        self.in_flight: dict[int, PendingCall] = {}
        self.exchanges = 0  # actor calls in flight
        self.other_load = 0  # calls of other callers, as of the newest reply
        self.incarnation = ""
        self.isolated = False  # retries suspects, and gets nothing else meanwhile
        self.away = False  # gets no calls until it is back
        self.loading = False  # is back, and sets its agent up
        self.gone = False  # will not come back
        self.assigned = 0  # conversations with a stateful agent
        self.has_state: set[str] = set()  # conversations whose state it has
        self.to_forget: list[str] = []

    def remove(self, numbers: Iterable[int]) -> list[PendingCall]:
        """Remove calls from those in flight, and return them."""
        return [call for n in numbers if (call := self.in_flight.pop(n, None)) is not None]
