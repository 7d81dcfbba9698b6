"""Progress of long work: a bar on a terminal, a line in a notebook, one estimate anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from a2a_ray.runtime.plan import Progress, Watch

MEASURED_SECONDS = 1.0
"""How long work is measured before its end is estimated."""
SHORTEST_ESTIMATE = 5.0
"""Seconds. No estimate is printed for shorter work."""

Update: TypeAlias = "Callable[[int, int, str], None]"
"""Called with the amount done, the total, and a text beside the bar."""


def print_status(sentence: str) -> None:
    """Print one line on standard error; standard output is for results."""
    print(sentence, file=sys.stderr)


@contextmanager
def progress_bar(name: str, work: str = "", *, transient: bool = False) -> Iterator[Update]:
    """Show the progress of `name` on standard error and yield the function that updates it.

    Args:
        name: what the bar is called, such as the name of a run.
        work: what is being done, such as "analyzing". If given, a line such as "chats.jsonl: analyzing, about 9 s."
            is printed once after the first second of long work.
        transient: remove the bar when the work ends.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if console.is_jupyter:
        yield _notebook_line(name)
        return
    text = TextColumn("{task.fields[text]}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), text, TimeRemainingColumn())
    estimate = _Estimate()
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=transient) as bar:
        task = bar.add_task(work or name, total=None, text="" if work else "starting")

        def update(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=max(total, 1), text=text)
            if work and (seconds := estimate.seconds_left(done, total)):
                console.print(f"{name}: {work}, about {duration(seconds)}.", markup=False)

        yield update


@contextmanager
def watch_run(name: str, progress: Watch | bool) -> Iterator[Watch]:
    """Yield the function that a run calls with its progress: the caller's own, none, or one that updates a bar."""
    if progress is not True:
        yield progress or (lambda _: None)
        return
    with progress_bar(name) as update:
        yield lambda now: update(now.messages, now.expected, summary(now))


class _Estimate:
    """Time left, once: after MEASURED_SECONDS of work that takes longer than SHORTEST_ESTIMATE."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None  # of the first call: before it, modules and models are loaded
        self._made = False

    def seconds_left(self, done: int, total: int) -> float | None:
        now = time.perf_counter()
        self._first = self._first or (now, done)
        seconds, measured = now - self._first[0], done - self._first[1]
        if self._made or not measured or seconds < MEASURED_SECONDS:
            return None
        self._made = True
        left = seconds * (total - done) / measured
        return left if left > SHORTEST_ESTIMATE else None


def _notebook_line(name: str) -> Update:
    """A line under the cell. (rich's own bar needs ipywidgets, and shows nothing without them.)"""
    display = import_module("IPython.display").display

    def shown(text: str, share: float) -> dict[str, str]:
        bar = f'<progress max="1" value="{share:.4f}"></progress>'
        return {"text/plain": f"{name} {text}", "text/html": f"{name} {bar} {text}"}

    line = display(shown("starting", 0.0), raw=True, display_id=True)

    def update(done: int, total: int, text: str = "") -> None:
        line.update(shown(text, done / max(total, 1)), raw=True)

    return update


def summary(now: Progress) -> str:
    """One line: conversations done, failed and in flight, turns and turns/s, cost, and the time left at this rate."""
    parts = [f"{now.done}/{now.conversations} conversations"]
    if now.failed:
        parts.append(f"{now.failed} failed")
    if now.in_flight:
        parts.append(f"{now.in_flight} in flight")
    rate = now.messages / now.seconds if now.seconds else 0.0
    parts += [f"{now.messages:,} turns", f"{rate:,.0f} turns/s" if rate >= 10 else f"{rate:.2g} turns/s"]
    if now.cost:
        parts.append(f"cost {now.cost:.2f}")
    left = now.seconds_left
    if left is not None and now.messages < now.expected:
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"at most {minutes // 60}:{minutes % 60:02}:{seconds:02} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A duration such as "9 s", "12 min" or "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3600:.1f} h"
