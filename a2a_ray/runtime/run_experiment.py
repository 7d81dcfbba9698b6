"""Holding a whole experiment on Ray: start, watch, stop, resume."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from a2a_ray.core.errors import AgentError, AuthenticationError, ConfigurationError, PlacementError, StorageError
from a2a_ray.core.transcript import DONE, FAILED
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.driver import OnFailure, Session
from a2a_ray.runtime.limits.budget import NOTHING
from a2a_ray.runtime.limits.metered import spent_before
from a2a_ray.runtime.plan import Plan, Watch
from a2a_ray.runtime.preflight import check_startable
from a2a_ray.runtime.progress import watch_run
from a2a_ray.runtime.telemetry import tracing
from a2a_ray.store.lease import Lease
from a2a_ray.store.run import Run, create_run, open_run, remove_run

UNREACHABLE = re.compile(r"^__main__:|<lambda>|<locals>")
"""Names of functions and classes that cannot be imported by name elsewhere."""


def run_experiment(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    storage: str | Path = "runs",
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    on_failure: OnFailure = "recover",
    budget: float | Mapping[str, float] | None = None,
) -> Run:
    """Holds every conversation of an experiment on Ray and gives the finished run.

    experiment: an Experiment, the same as a mapping, or the path of a YAML specification.
    storage: folder or URI under which the run gets its own folder.
    workers: worker actors that hold conversations; as many as fit by default.
    address: a Ray cluster; without it, the Ray that runs in this process, or a new local one (ended afterwards).
    progress: shows a bar (True), nothing (False), or is called with a Progress about twice a second.
    on_failure: what to do when a process or a node of the run dies: "recover" replaces it and goes on after the last
    turn on record, "raise" ends with StorageError. A conversation that kills its worker again and again is set aside
    as failed.
    budget: takes the place of the specification's: money, or a mapping with some of cost, tokens, requests, seconds.

    Conversations that fail are kept with their error; see `run.summary()`. Where the budget is spent first,
    `run.stopped` says so; `resume_run(run.path, budget=more)` goes on. Raises ConfigurationError before anything
    starts, PlacementError where the cluster lacks something, AgentError where an agent cannot be set up (no run is left
    then), StorageError where turns cannot be written, AuthenticationError when a server refuses an agent's key. After
    the last two, or a KeyboardInterrupt, `resume_run(run.path)` goes on.
    """
    experiment = Experiment.load(experiment) if isinstance(experiment, (str, Path)) else Experiment.parse(experiment)
    experiment = _budgeted(experiment, budget)
    experiment.check()
    check_startable(experiment)
    _check_start(workers)
    run = create_run(experiment, storage)
    try:
        return _hold(run, experiment, lambda: Plan(experiment), workers, address, progress, on_failure)
    except AuthenticationError:
        raise
    except (ConfigurationError, PlacementError, AgentError) as error:
        if remove_run(run):  # nothing was said, so nothing is left
            raise
        raise type(error)(f"{error}; what was said is kept: a2a-ray resume {run.path}") from None


def resume_run(
    run: Run | str | Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    on_failure: OnFailure = "recover",
    retry_failed: bool = False,
    experiment: Experiment | Mapping[str, Any] | None = None,
    budget: float | Mapping[str, float] | None = None,
    takeover: bool = False,
) -> Run:
    """Goes on with a run where it stopped: conversations that ended stay, the others continue after their last turn.

    retry_failed: failed conversations go on too, with the turn that failed.
    experiment: the specification again, for a run whose agents are Python functions that cannot be imported by name.
    budget: takes the place of the one that the run was started with; what was spent before is counted.
    takeover: takes the run from a driver that seems to hold it.

    Raises as `run_experiment`.
    """
    run = open_run(run.path if isinstance(run, Run) else run)
    here = [f for f in re.findall(r'"([\w.]+:[^"]*)"', json.dumps(run.manifest["experiment"])) if UNREACHABLE.search(f)]
    if here and experiment is None:
        raise ConfigurationError(
            f"{run.path}: it was started with {here[0]}, which only the program that defines it has;"
            " resume it from there: resume_run(path, experiment=the same specification)"
        )
    given = run.experiment if experiment is None else Experiment.parse(experiment)
    if experiment is not None and _decisive(given) != _decisive(run.experiment):
        raise ConfigurationError(
            f"{run.path}: was started with another specification; resume it with the one in its manifest"
        )
    if given.openings_digest() != run.manifest["openings_sha256"]:
        raise ConfigurationError(f"{run.path}: its openings have changed since it was started; put the old ones back")
    given = _budgeted(given, budget)
    _check_start(workers)
    counts = run.summary()
    if counts["done"] + (0 if retry_failed else counts["failed"]) == counts["conversations"]:
        return run
    given.check()
    check_startable(given)

    def plan() -> Plan:
        now = open_run(run.path)
        over = (DONE,) if retry_failed else (DONE, FAILED)
        statuses = now.statuses()
        left = [id for id, status in statuses.items() if status not in over]
        return Plan(given, statuses.keys() - left, {t.id: t for t in now.transcripts(left)})

    return _hold(run, given, plan, workers, address, progress, on_failure, takeover)


def _budgeted(experiment: Experiment, budget: float | Mapping[str, float] | None) -> Experiment:
    if budget is None:
        return experiment
    plain = experiment.model_dump(exclude_unset=True)
    return Experiment.parse({**plain, "budget": budget if isinstance(budget, Mapping) else {"cost": budget}}, "budget")


def _decisive(experiment: Experiment) -> dict[str, Any]:
    """The specification without what cannot change what is said."""

    def decides(key: str) -> bool:
        return key.partition(".")[0] not in ("budget", "analyze")

    value = {key: setting for key, setting in experiment.to_dict().items() if decides(key)}
    sweep = value.get("sweep")
    if isinstance(sweep, dict):  # how many cells there are stays decisive
        value["sweep"] = {key: values if decides(key) else len(values) for key, values in sweep.items()}
    elif sweep:
        value["sweep"] = [{key: setting for key, setting in cell.items() if decides(key)} for cell in sweep]
    return value


def _check_start(workers: int | None) -> None:
    tracing.settings()  # raises where spans are asked for that nothing here can send
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers: {workers}; expected at least 1")


def _hold(
    run: Run,
    experiment: Experiment,
    plan: Callable[[], Plan],
    workers: int | None,
    address: str | None,
    progress: Watch | bool,
    on_failure: OnFailure,
    takeover: bool = False,
) -> Run:
    own, session = False, None
    lease = Lease.acquire(run.path, takeover)
    try:
        own = connect(address)
        with _terminable():
            spent = spent_before(run) if experiment.budget is not None else NOTHING
            session = Session(run.path, experiment, plan, workers, on_failure, lease, spent)
            with watch_run(Path(run.path).name, progress) as watch:
                session.hold(watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.path) from None  # so that whoever catches it can say what to resume
    except StorageError as error:
        raise StorageError(f"{run.path}: {error}") from None
    except AuthenticationError as error:
        raise AuthenticationError(
            f"{error}. The run has stopped, and no conversation failed by it; go on with: a2a-ray resume {run.path}"
        ) from None
    finally:
        if session is not None:
            session.end()
        lease.release()
        if own:
            ray.shutdown()
    done = open_run(run.path)
    if session.stopped and len(session.plan) > session.plan.over:
        done.stopped = f"{session.stopped}; go on with more: a2a-ray resume {run.path} --budget COST"
    return done


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: turns under way are kept. Ray's own handler would leave at once."""
    if threading.current_thread() is not threading.main_thread():  # only there can it be handled
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
