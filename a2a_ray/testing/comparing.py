"""What the contract tests share: comparing answers, and sentences for what does not hold."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from a2a_ray.core.message import Message

T = TypeVar("T")


def comparable(value: Any) -> Any:
    """An answer without its time stamp; an error as its class and text."""
    if isinstance(value, Message):
        return {k: v for k, v in value.to_dict().items() if k != "created_at"}
    return (type(value).__name__, str(value)) if isinstance(value, BaseException) else value


def same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    hold(len(first) == len(second), f"{what}: {len(second)} answers to {len(first)} messages")
    for number, (a, b) in enumerate(zip(first, second, strict=True), 1):
        one, other = comparable(a), comparable(b)
        hold(one == other, f"{what}: message {number} was answered {one!r:.300}, then {other!r:.300}")


def hold(condition: bool, sentence: str) -> None:
    """`assert` that python -O leaves in."""
    if not condition:
        raise AssertionError(sentence)


async def awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop runs already (a notebook, an asynchronous test)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
