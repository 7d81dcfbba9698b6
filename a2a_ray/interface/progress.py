"""Work that may take long: a bar on a terminal, and one line that says how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEASURED_SECONDS = 1.0
"""How long the work is measured before it is said how long it will take."""
WORTH_TELLING = 5.0
"""Seconds. Of shorter work nothing is said."""


@contextmanager
def progress(size: str, work: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with each amount done, of `total` in all, in any unit that takes an equal time.

    size, work: in words, for the line on standard error: "10 conversations, 500 turns: embedding 480 texts, about 9 s."
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started, done, told = time.perf_counter(), 0, False
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(work, total=total)

        def advance(amount: int) -> None:
            nonlocal done, told
            done += amount
            bar.update(task, completed=done)
            seconds = time.perf_counter() - started
            if not told and seconds >= MEASURED_SECONDS:
                told = True
                if (left := seconds * (total - done) / done) > WORTH_TELLING:
                    console.print(f"{size}: {work}, about {in_words(left)}.", markup=False)

        yield advance


def in_words(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"
