"""Holding a whole experiment on Ray: start, watch, stop, resume."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from a2a_ray.core.errors import AgentError, BadInput, PlacementError, StorageError
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.experiment import Experiment, Task
from a2a_ray.runtime.session import Progress, Session, Watch
from a2a_ray.runtime.startable import check_startable
from a2a_ray.runtime.store import Run, create_run, open_run, remove_run

UNREACHABLE = re.compile(r"^__main__:|<lambda>|<locals>")
"""Names of functions and classes that cannot be imported by name elsewhere."""


def run_many(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    storage: str | Path = "runs",
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
) -> Run:
    """Holds every conversation of an experiment on Ray and gives the finished run.

    experiment: an Experiment, the same as a mapping, or the path of a YAML specification.
    storage: folder or URI under which the run gets its own folder.
    workers: worker actors that hold conversations; as many as fit by default.
    address: a Ray cluster; without it, the Ray that runs in this process, or a new local one (ended afterwards).
    progress: shows a bar (True), nothing (False), or is called with a Progress about twice a second.

    Conversations that fail are kept with their error; see `run.summary()`. Raises BadInput before anything starts,
    PlacementError where the cluster lacks something, AgentError where an agent cannot be set up (no run is left then),
    StorageError where turns cannot be written. After that, or a KeyboardInterrupt, `resume(run.path)` goes on.
    """
    experiment = Experiment.load(experiment) if isinstance(experiment, (str, Path)) else Experiment.parse(experiment)
    experiment.check()
    check_startable(experiment)
    _check_workers(workers)
    run = create_run(experiment, storage)
    try:
        return _hold(run, experiment, list(experiment.tasks()), {}, workers, address, progress)
    except (PlacementError, AgentError):  # nothing was started, so nothing is left
        remove_run(run)
        raise


def resume(
    run: Run | str | Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    retry_failed: bool = False,
    experiment: Experiment | Mapping[str, Any] | None = None,
) -> Run:
    """Goes on with a run where it stopped: conversations that ended stay, the others continue after their last turn.

    retry_failed: failed conversations go on too, with the turn that failed.
    experiment: the specification again, for a run whose agents are Python functions that cannot be imported by name.

    Raises as `run_many`.
    """
    run = open_run(run.path if isinstance(run, Run) else run)
    here = [f for f in re.findall(r'"([\w.]+:[^"]*)"', json.dumps(run.manifest["experiment"])) if UNREACHABLE.search(f)]
    if here and experiment is None:
        raise BadInput(
            f"{run.path}: it was started with {here[0]}, which only the program that defines it has;"
            " resume it from there: resume(path, experiment=the same specification)"
        )
    given = run.experiment if experiment is None else Experiment.parse(experiment)
    if experiment is not None and given.to_dict() != run.experiment.to_dict():
        raise BadInput(f"{run.path}: was started with another specification; resume it with the one in its manifest")
    if given.openings_digest() != run.manifest["openings_sha256"]:
        raise BadInput(f"{run.path}: its openings have changed since it was started; put the old ones back")
    _check_workers(workers)
    earlier: dict[str, Transcript] = {}
    ended: set[str] = set()
    for transcript in run.transcripts():
        if transcript.status == DONE or (transcript.status == FAILED and not retry_failed):
            ended.add(transcript.id)
        else:
            earlier[transcript.id] = transcript
    tasks = [t for t in given.tasks() if t.id not in ended]
    if not tasks:
        return run
    given.check()
    check_startable(given)
    return _hold(run, given, tasks, earlier, workers, address, progress)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise BadInput(f"workers: {workers}; expected at least 1")


def _hold(
    run: Run,
    experiment: Experiment,
    tasks: list[Task],
    earlier: Mapping[str, Transcript],
    workers: int | None,
    address: str | None,
    progress: Watch | bool,
) -> Run:
    own, session = False, None
    try:
        own = connect(address)
        session = Session(run.path, experiment, tasks, workers)
        with _watching(run, progress) as watch:
            session.hold(tasks, earlier, watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.path) from None  # so that whoever catches it can say what to resume
    except StorageError as error:
        raise StorageError(f"{run.path}: {error}") from None
    finally:
        if session is not None:
            session.end()
        if own:
            ray.shutdown()
    return open_run(run.path)


@contextmanager
def _watching(run: Run, progress: Watch | bool) -> Iterator[Watch]:
    """What is called with the progress: the caller's own, nothing, or a bar on standard error."""
    if progress is not True:
        yield progress or (lambda _: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not (console.is_terminal or console.is_jupyter)) as bar:
        task = bar.add_task(Path(run.path).name, text="starting")

        def watch(now: Progress) -> None:
            rate = now.messages / now.seconds if now.seconds else 0.0
            failed = f", {now.failed} failed" if now.failed else ""
            text = f"{now.done}/{now.conversations} talks{failed}, {now.messages:,} turns, {rate:,.0f} turns/s"
            bar.update(task, total=max(now.expected, 1), completed=now.messages, text=text)

        yield watch
