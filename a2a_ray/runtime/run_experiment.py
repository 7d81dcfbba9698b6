"""Run a whole experiment, in this process or on Ray, or resume one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import AgentError, AuthenticationError, ConfigurationError, PlacementError
from a2a_ray.core.transcript import DONE, FAILED
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.drive import StartOptions, drive
from a2a_ray.runtime.executor import Executor, OnFailure, runs_locally
from a2a_ray.runtime.plan import Plan, Watch
from a2a_ray.runtime.telemetry import tracing
from a2a_ray.store.run import Run, create_run, open_run, remove_run

NOT_IMPORTABLE = re.compile(r"^__main__:|<lambda>|<locals>")
"""Names of functions and classes that no other program can import."""


def run_experiment(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    storage: str | Path = "runs",
    executor: Executor = "auto",
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    on_failure: OnFailure = "recover",
    budget: float | Mapping[str, float] | None = None,
) -> Run:
    """Run every conversation of an experiment and return the finished run.

    Args:
        experiment: an Experiment, the same as a mapping, or the path of a YAML specification.
        storage: folder or URI under which the run gets its own folder.
        executor: "local" (this process), "ray" or "auto": local for at most 200 conversations without agents in actors,
            unless `workers`, `address` or RAY_ADDRESS is given or this process uses Ray. The turns are the same.
        workers: number of Ray worker actors; as many as fit by default.
        address: a Ray cluster. By default the Ray that this process uses, or a new local one that ends with the run.
        progress: True shows a bar, False nothing; a function is called with a `Progress` about twice a second.
        on_failure: what to do if a process or node of the run dies. "recover" replaces it and continues after the last
            stored turn, "raise" raises StorageError. A conversation that kills every worker is set aside as failed.
        budget: replaces the one in the specification: money, or any of cost, tokens, requests and seconds by name.

    Failed conversations are stored with their error; see `run.summary()`. If the budget is spent before the end,
    `run.stopped` gives the reason, and `resume_run(run.path, budget=more)` continues.

    Raises:
        ConfigurationError: the specification is invalid, or `executor` contradicts it. Nothing has started.
        PlacementError: the cluster lacks a resource.
        AgentError: an agent cannot be set up. No run is left.
        StorageError: turns cannot be written.
        AuthenticationError: a server refuses an agent's key.

    After a StorageError, an AuthenticationError or a KeyboardInterrupt, `resume_run(run.path)` continues the run.
    """
    given = Experiment.load(experiment) if isinstance(experiment, (str, Path)) else Experiment.parse(experiment)
    experiment = _with_budget(given, budget)
    experiment.check()
    local = _starts_locally(executor, experiment, experiment.size()[0], workers, address)
    run = create_run(experiment, storage)
    options = StartOptions(local, workers, address, progress, on_failure)
    try:
        return drive(run, experiment, lambda: Plan(experiment), options)
    except AuthenticationError:
        raise
    except (ConfigurationError, PlacementError, AgentError) as error:
        if remove_run(run):  # no turn was stored
            raise
        raise type(error)(f"{error}; stored turns are kept, continue with: a2a-ray resume {run.path}") from None


def resume_run(
    run: Run | str | Path,
    *,
    executor: Executor = "auto",
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    on_failure: OnFailure = "recover",
    retry_failed: bool = False,
    experiment: Experiment | Mapping[str, Any] | None = None,
    budget: float | Mapping[str, float] | None = None,
    takeover: bool = False,
) -> Run:
    """Resume a run: conversations that have not ended continue after their last stored turn.

    Args:
        run: a Run, or its folder or URI.
        retry_failed: failed conversations continue too, with the turn that failed.
        experiment: the specification again, for a run whose agents are functions that cannot be imported by name.
        budget: replaces the one that the run was started with. What the run has spent before counts.
        takeover: take the run over from a driver that seems to be alive.

    The other arguments, and the exceptions, are those of `run_experiment`.
    """
    run = open_run(run.path if isinstance(run, Run) else run)
    given = _with_budget(_matching_experiment(run, experiment), budget)
    counts = run.summary()
    remaining = counts["conversations"] - counts["done"] - (0 if retry_failed else counts["failed"])
    if not remaining:
        return run
    given.check()
    local = _starts_locally(executor, given, remaining, workers, address)

    def make_plan() -> Plan:
        stored = open_run(run.path)
        finished = (DONE,) if retry_failed else (DONE, FAILED)
        statuses = stored.statuses()
        begun = [id for id, status in statuses.items() if status not in finished]
        return Plan(given, statuses.keys() - begun, {t.id: t for t in stored.transcripts(begun)})

    return drive(run, given, make_plan, StartOptions(local, workers, address, progress, on_failure, takeover))


def _matching_experiment(run: Run, experiment: Experiment | Mapping[str, Any] | None) -> Experiment:
    """Return the specification to resume with. Raises ConfigurationError if it is not the one of the run."""
    names = re.findall(r'"([\w.]+:[^"]*)"', json.dumps(run.manifest["experiment"]))
    missing = [name for name in names if NOT_IMPORTABLE.search(name)]
    if missing and experiment is None:
        raise ConfigurationError(
            f"{run.path}: it was started with {missing[0]}, which only the program that defines it has;"
            " resume it from there: resume_run(path, experiment=the same specification)"
        )
    given = run.experiment if experiment is None else Experiment.parse(experiment)
    if experiment is not None and _decisive(given) != _decisive(run.experiment):
        raise ConfigurationError(
            f"{run.path}: was started with another specification; resume it with the one in its manifest"
        )
    if given.openings_digest() != run.manifest["openings_sha256"]:
        raise ConfigurationError(f"{run.path}: its openings have changed since it was started; restore the old ones")
    return given


def _with_budget(experiment: Experiment, budget: float | Mapping[str, float] | None) -> Experiment:
    if budget is None:
        return experiment
    plain = experiment.model_dump(exclude_unset=True)
    return Experiment.parse({**plain, "budget": budget if isinstance(budget, Mapping) else {"cost": budget}}, "budget")


def _decisive(experiment: Experiment) -> dict[str, Any]:
    """Return the specification without the keys that cannot change a message."""

    def decides(key: str) -> bool:
        return key.partition(".")[0] not in ("budget", "analyze")

    value = {key: setting for key, setting in experiment.to_dict().items() if decides(key)}
    sweep = value.get("sweep")
    if isinstance(sweep, dict):  # the number of cells stays decisive
        value["sweep"] = {key: values if decides(key) else len(values) for key, values in sweep.items()}
    elif sweep:
        value["sweep"] = [{key: setting for key, setting in cell.items() if decides(key)} for cell in sweep]
    return value


def _starts_locally(
    executor: Executor, experiment: Experiment, conversations: int, workers: int | None, address: str | None
) -> bool:
    """Check the arguments of a start, and return whether it needs no Ray. Raises ConfigurationError."""
    tracing.settings()  # raises if spans are requested that cannot be sent from here
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers: {workers}; expected at least 1")
    if runs_locally(executor, experiment, conversations, workers, address):
        return True
    from a2a_ray.runtime.preflight import check_startable

    check_startable(experiment)
    return False
