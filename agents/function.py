"""Make an agent of any callable."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import Message
from a2a_ray.core.registry import load

TAKES = ("content", "message", "history")


class FunctionAgent(BaseAgent):
    """Answer with the return value of a callable: a function, `async` or not, a bound method, or a callable object.

    function: the callable, or its path "my_package.my_module:my_function".
    takes: its argument. "content": the newest content, text or an array of shape (d,). "history": the list of all
        contents in the context, oldest first. "message": the Message.
    bid: a callable with the same argument that returns the agent's bid for the turn, a finite number.

    The function returns text, a 1-D array (or list) of floats, or a Message; anything else fails the conversation with
    InvalidResponseError. It should keep no state between calls and draw its randomness from `message.seed`. It runs in
    the conversation worker: use `async` or `placement: actor` for a function that blocks for long.
    """

    def __init__(
        self,
        name: str,
        function: str | Callable[..., Any],
        takes: Literal["content", "message", "history"] = "content",
        bid: str | Callable[..., Any] | None = None,
    ) -> None:
        if takes not in TAKES:
            raise ConfigurationError("takes: " + unknown("argument", takes, TAKES))
        self.name = name
        self.takes = takes
        self._function = _callable(function, "function")
        if bid is not None:
            self._bid = _callable(bid, "bid")
            self.bid = self._call_bid  # type: ignore[method-assign]  # only an agent with a bid function bids
        if _is_async(self._function):
            self.step = self._step  # type: ignore[method-assign]  # in an actor, messages do not wait for each other

    def step(self, message: Message) -> Message | Awaitable[Message]:
        """Return the function's answer; an awaitable if the function is asynchronous."""
        value = self._function(self._argument(message))  # even a plain function may return an awaitable
        if type(value) is not str and inspect.isawaitable(value):
            return self._later(value, message)
        return self._answer(value, message)

    async def _later(self, value: Awaitable[Any], message: Message) -> Message:
        return self._answer(await value, message)

    async def _step(self, message: Message) -> Message:
        return self._answer(await self._function(self._argument(message)), message)

    def _call_bid(self, message: Message) -> Any:
        return self._bid(self._argument(message))

    def _argument(self, message: Message) -> Any:
        if self.takes == "content":
            return message.content
        if self.takes == "message":
            return message
        return [*(m.content for m in message.history), message.content]

    def _answer(self, value: Any, message: Message) -> Message:
        if isinstance(value, str):
            return message.reply(str(value), self.name)
        if isinstance(value, list | tuple) or hasattr(value, "dtype"):
            return message.reply(value, self.name)  # the conversation makes it an array
        answer: Message = value  # a Message; the conversation rejects anything else
        return answer


def _callable(function: str | Callable[..., Any], key: str) -> Callable[..., Any]:
    found: Any = load(function, key) if isinstance(function, str) else function
    if not callable(found):
        raise ConfigurationError(
            f"{key}: {function!r} is {type(found).__name__} {str(found)[:60]!r}; expected a callable"
        )
    called: Callable[..., Any] = found
    return called


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
