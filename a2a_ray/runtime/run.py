"""Holding a whole experiment on Ray: start, watch, stop, resume."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from a2a_ray.core.errors import AgentError, BadInput, PlacementError, StorageError
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.runtime import tracing
from a2a_ray.runtime.budget import NOTHING
from a2a_ray.runtime.calls import attempts_before, spent_before
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.experiment import Experiment, Task
from a2a_ray.runtime.session import Session, Watch
from a2a_ray.runtime.store import Run, create_run, open_run, remove_run
from a2a_ray.runtime.watching import watching

UNREACHABLE = re.compile(r"^__main__:|<lambda>|<locals>")
"""Names of functions and classes that cannot be imported by name elsewhere."""


def run_many(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    storage: str | Path = "runs",
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    budget: float | Mapping[str, float] | None = None,
) -> Run:
    """Holds every conversation of an experiment on Ray and gives the finished run.

    experiment: an Experiment, the same as a mapping, or the path of a YAML specification.
    storage: folder or URI under which the run gets its own folder.
    workers: worker actors that hold conversations; as many as fit by default.
    address: a Ray cluster; without it, the Ray that runs in this process, or a new local one (ended afterwards).
    progress: shows a bar (True), nothing (False), or is called with a Progress about twice a second.
    budget: takes the place of the specification's: money, or a mapping with some of cost, tokens, requests, seconds.

    Conversations that fail are kept with their error; see `run.summary()`. Where the budget is spent first,
    `run.stopped` says so; `resume(run.path, budget=more)` goes on. Raises BadInput before anything starts,
    PlacementError where the cluster lacks something, AgentError where an agent cannot be set up (no run is left then),
    StorageError where turns cannot be written. After that, or a KeyboardInterrupt, `resume(run.path)` goes on.
    """
    experiment = Experiment.load(experiment) if isinstance(experiment, (str, Path)) else Experiment.parse(experiment)
    experiment = _budgeted(experiment, budget)
    experiment.check()
    _check_start(workers)
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
    budget: float | Mapping[str, float] | None = None,
) -> Run:
    """Goes on with a run where it stopped: conversations that ended stay, the others continue after their last turn.

    retry_failed: failed conversations go on too, with the turn that failed.
    experiment: the specification again, for a run whose agents are Python functions that cannot be imported by name.
    budget: takes the place of the one that the run was started with; what was spent before is counted.

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
    if experiment is not None and _decisive(given) != _decisive(run.experiment):
        raise BadInput(f"{run.path}: was started with another specification; resume it with the one in its manifest")
    if given.openings_digest() != run.manifest["openings_sha256"]:
        raise BadInput(f"{run.path}: its openings have changed since it was started; put the old ones back")
    given = _budgeted(given, budget)
    _check_start(workers)
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
    return _hold(run, given, tasks, earlier, workers, address, progress)


def _budgeted(experiment: Experiment, budget: float | Mapping[str, float] | None) -> Experiment:
    if budget is None:
        return experiment
    plain = experiment.model_dump(exclude_unset=True)
    return Experiment.parse({**plain, "budget": budget if isinstance(budget, Mapping) else {"cost": budget}}, "budget")


def _decisive(experiment: Experiment) -> dict[str, Any]:
    """The specification without what cannot change what is said."""
    return {key: value for key, value in experiment.to_dict().items() if key != "budget"}


def _check_start(workers: int | None) -> None:
    tracing.settings()  # raises where spans are asked for that nothing here can send
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
        spent = spent_before(run.rows) if experiment.budget is not None else NOTHING
        session = Session(run.path, experiment, tasks, workers, spent, attempts_before(run.rows))
        with watching(Path(run.path).name, progress) as watch:
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
    done = open_run(run.path)
    if session.stopped and len(done.tasks) > sum(done.summary()[key] for key in ("done", "failed")):
        done.stopped = f"{session.stopped}; go on with more: a2a-ray resume {run.path} --budget COST"
        if progress is True:
            print(done.stopped, file=sys.stderr)
    return done
