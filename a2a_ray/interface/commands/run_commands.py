"""`a2a-ray run` and `a2a-ray resume`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import explain_resume
from a2a_ray.interface.options import Address, AsJson, Budget, ExecutorName, OnFailure, RunPath, Storage, Workers
from a2a_ray.runtime.progress import print_status

if TYPE_CHECKING:
    from a2a_ray.store.run import Run

SpecPath = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Specification; `a2a-ray init` writes one.")]

EXECUTORS, POLICIES = ("auto", "local", "ray"), ("recover", "raise")


def run(
    spec: SpecPath,
    storage: Storage = "runs",
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    on_failure: OnFailure = "recover",
    budget: Budget = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the specification and estimate calls, tokens and cost; run nothing."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run every conversation of a specification and store every turn.

    \b
    a2a-ray run experiment.yaml --dry-run              estimate first
    a2a-ray run experiment.yaml                        on this machine
    a2a-ray run experiment.yaml --address auto         on a Ray cluster
    a2a-ray run experiment.yaml --storage s3://b/runs  into an object store
    """
    from a2a_ray.experiment.spec import Experiment

    experiment = Experiment.load(spec)
    if dry_run:
        from a2a_ray.experiment.estimate import estimate
        from a2a_ray.interface.tables import print_estimate

        experiment.check()
        print_estimate(estimate(experiment), as_json)
        return
    from a2a_ray.runtime.run_experiment import run_experiment

    with explain_resume():
        done = run_experiment(
            experiment,
            storage=storage,
            executor=_one_of("--executor", executor, EXECUTORS),
            workers=workers,
            address=address,
            on_failure=_one_of("--on-failure", on_failure, POLICIES),
            budget=budget,
        )
    _print_outcome(done, as_json)


def resume(
    path: RunPath,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    address: Address = None,
    on_failure: OnFailure = "recover",
    budget: Budget = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the run over from another driver that still seems to be active.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry failed conversations, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a run that was interrupted or stopped. Stored turns are kept."""
    from a2a_ray.runtime.run_experiment import resume_run

    with explain_resume():
        done = resume_run(
            path,
            executor=_one_of("--executor", executor, EXECUTORS),
            workers=workers,
            address=address,
            on_failure=_one_of("--on-failure", on_failure, POLICIES),
            retry_failed=retry_failed,
            budget=budget,
            takeover=takeover,
        )
    _print_outcome(done, as_json)


def _one_of(option: str, value: str, known: tuple[str, ...]) -> Any:
    """Return the value of an option. Raises ConfigurationError if it is not a known one."""
    if value not in known:
        raise ConfigurationError(f"{option}: {value!r}; expected {', '.join(known[:-1])} or {known[-1]}")
    return value


def _print_outcome(run: Run, as_json: bool) -> None:
    """Print how a run ended. Exits with status 1 if conversations failed or the run was stopped."""
    from a2a_ray.interface.tables import print_failures

    counts = run.summary()
    print_status(
        f"{run.path}: {counts['done']} of {counts['conversations']} conversations done, {counts['turns']:,} turns."
    )
    ledger = run.ledger()
    if ledger["possibly_duplicated"]:
        print_status(f"Of {ledger['calls']:,} paid calls, {ledger['possibly_duplicated']:,} may have been paid twice.")
    if run.stopped:
        print_status(f"Stopped: {run.stopped}")
    if as_json:
        result = {"run": run.path, **counts}
        if ledger["calls"]:
            result |= {"ledger": ledger, "usage": run.cost()}
        if run.stopped:
            result["stopped"] = run.stopped
        print(json.dumps(result))
    if counts["failed"]:
        print_failures(run)
        raise typer.Exit(1)
    if run.stopped:
        raise typer.Exit(1)
    if not as_json:
        print_status(f"Next: a2a-ray show {run.path}; a2a-ray report {run.path}")
