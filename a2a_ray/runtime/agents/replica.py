"""What a caller knows of one replica of an agent, and of its questions to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any

from a2a_ray.core import errors
from a2a_ray.core.errors import AgentError
from a2a_ray.core.message import Message


class Asked:
    """A question under way."""

    __slots__ = ("deaths", "future", "message", "method", "sent_to")

    def __init__(self, method: str, message: Message, future: asyncio.Future[Any]) -> None:
        self.method, self.message, self.future = method, message, future
        self.sent_to = ""  # incarnation
        self.deaths = 0

    def settle(self, outcome: Any) -> None:
        """Hands over an answer, or raises an error, where the asker still waits."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


Lines = dict[str, deque[Asked]]


class Replica:
    """What a caller knows of one actor."""

    def __init__(self, handle: Any, waiting: Lines) -> None:
        self.handle = handle
        self.waiting = waiting  # shared by all replicas of a stateless agent
        self.open: dict[int, Asked] = {}  # sent and not answered
        self.calls = 0  # exchanges in flight
        self.load = 0  # questions of other callers, when it answered last
        self.incarnation = ""
        self.alone = False  # works on suspects, and gets nothing else meanwhile
        self.away = False  # gets nothing until it is back
        self.loading = False  # is back, and sets its agent up
        self.gone = False  # will not come back
        self.seats = 0  # conversations of a stateful agent that are here
        self.holds: set[str] = set()  # those whose state it has
        self.forget: list[str] = []

    def close(self, numbers: Iterable[int]) -> list[Asked]:
        """Takes away open questions."""
        return [asked for n in numbers if (asked := self.open.pop(n, None)) is not None]


def lines() -> Lines:
    """Nothing that waits."""
    return {"step": deque(), "bid": deque()}


def emptied(waiting: Lines) -> list[Asked]:
    """All that waits, taken away."""
    asked = [a for line in waiting.values() for a in line]
    for line in waiting.values():
        line.clear()
    return asked


def first_line(error: object) -> str:
    """The first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def plain_error(kind: str, sentence: str, traceback: str = "") -> AgentError:
    """The error of this package for what an agent raised in its process."""
    cls = getattr(errors, kind, AgentError)
    error = cls(sentence) if isinstance(cls, type) and issubclass(cls, AgentError) else AgentError(sentence)
    error.traceback = traceback
    return error
