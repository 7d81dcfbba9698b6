"""How a run's progress is shown: a bar on the terminal, a line in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from a2a_ray.runtime.plan import Progress, Watch


@contextmanager
def watching(name: str, progress: Watch | bool) -> Iterator[Watch]:
    """What is called with the progress: the caller's own, nothing, or what shows it where somebody can see it."""
    if progress is not True:
        yield progress or (lambda _: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if console.is_jupyter:
        yield _in_notebook(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, text="starting")

        def watch(now: Progress) -> None:
            bar.update(task, total=max(now.expected, 1), completed=now.messages, text=in_words(now))

        yield watch


def _in_notebook(name: str) -> Watch:
    """A line under the cell that changes as the run goes. (rich's own bar needs ipywidgets, and shows nothing else.)"""
    display = import_module("IPython.display").display  # there, for this is a notebook

    def shown(text: str, share: float) -> dict[str, str]:
        bar = f'<progress max="1" value="{share:.4f}"></progress>'
        return {"text/plain": f"{name} {text}", "text/html": f"{name} {bar} {text}"}

    line = display(shown("starting", 0.0), raw=True, display_id=True)

    def watch(now: Progress) -> None:
        line.update(shown(in_words(now), now.messages / max(now.expected, 1)), raw=True)

    return watch


def in_words(now: Progress) -> str:
    """One line: talks done, failed and in flight, turns and turns/s, money, and the time left at this rate."""
    parts = [f"{now.done}/{now.conversations} talks"]
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
