"""Shared by the contract tests: comparing answers, and messages for broken promises."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from a2a_ray.core.message import Message

T = TypeVar("T")


def comparable(value: Any) -> Any:
    """Return an answer without its time stamp, and an error as its class and text."""
    if isinstance(value, Message):
        return {k: v for k, v in value.to_dict().items() if k != "created_at"}
    return (type(value).__name__, str(value)) if isinstance(value, BaseException) else value


def expect_same(first: Sequence[Any], second: Sequence[Any], where: str) -> None:
    """Raise AssertionError, naming the first difference, unless both sequences hold the same answers."""
    expect(len(first) == len(second), f"{where}: {len(second)} answers to {len(first)} messages")
    for number, (a, b) in enumerate(zip(first, second, strict=True), 1):
        one, other = comparable(a), comparable(b)
        expect(one == other, f"{where}: message {number} was answered {one!r:.300}, then {other!r:.300}")


def expect(condition: bool, sentence: str) -> None:
    """Raise AssertionError with this sentence unless the condition is true, also under `python -O`."""
    if not condition:
        raise AssertionError(sentence)


async def awaited(value: Any) -> Any:
    """Return the value, awaited if it is awaitable."""
    return await value if inspect.isawaitable(value) else value


def run_anywhere(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine, also inside a running event loop (a notebook, an asynchronous test)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
