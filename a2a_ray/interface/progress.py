"""Work that may take long: a bar on a terminal, and one line that says how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEASURED_SECONDS = 1.0
"""How long the work is measured before its end is estimated."""
WORTH_TELLING = 5.0
"""Seconds. Shorter work prints no estimate."""


@contextmanager
def progress(what: str, work: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function to call with how much is done, and of how much, in any unit that takes an equal time.

    what, work: for the line on standard error: "talks.jsonl: analyzing, about 9 s."
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started: tuple[float, int] | None = None  # of the first call: before it, modules and models are loaded
    printed = False
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(work, total=None)

        def told(done: int, total: int) -> None:
            nonlocal printed, started
            bar.update(task, completed=done, total=total)
            now = time.perf_counter()
            started = started or (now, done)
            seconds, measured = now - started[0], done - started[1]
            if not printed and measured and seconds >= MEASURED_SECONDS:
                printed = True
                if (left := seconds * (total - done) / measured) > WORTH_TELLING:
                    console.print(f"{what}: {work}, about {in_words(left)}.", markup=False)

        yield told


def in_words(seconds: float) -> str:
    """A time in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"
