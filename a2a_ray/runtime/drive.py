"""Drives one start of a run, from the lease to its release."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from a2a_ray.core.errors import AuthenticationError, StorageError
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.executor import OnFailure
from a2a_ray.runtime.limits.budget_keeper import spent_before
from a2a_ray.runtime.limits.spent import NOTHING
from a2a_ray.runtime.local_driver import LocalDriver
from a2a_ray.runtime.plan import Plan, Watch
from a2a_ray.runtime.progress import watch_run
from a2a_ray.store.lease import Lease
from a2a_ray.store.run import Run, open_run

if TYPE_CHECKING:
    from a2a_ray.runtime.driver import Driver


class StartOptions(NamedTuple):
    """How a run is started. local: in this process. The others are arguments of `run_experiment` and `resume_run`."""

    local: bool
    workers: int | None
    address: str | None
    progress: Watch | bool
    on_failure: OnFailure
    takeover: bool = False


def drive(run: Run, experiment: Experiment, make_plan: Callable[[], Plan], options: StartOptions) -> Run:
    """Run the conversations of a plan and return the run as it is stored then.

    make_plan: makes the plan from the store. It is called when no other driver can write any more.

    Raises KeyboardInterrupt with the run's path, and the exceptions of `run_experiment`.
    """
    started_ray, driver = False, None
    lease = Lease.acquire(run.path, options.takeover)
    try:
        started_ray = not options.local and _connect(options.address)
        with _sigterm_interrupts():
            driver = _make_driver(run, experiment, make_plan, options, lease)
            with watch_run(Path(run.path).name, options.progress) as watch:
                driver.run(watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(run.path) from None  # names the run to resume
    except StorageError as error:
        raise StorageError(f"{run.path}: {error}") from None
    except AuthenticationError as error:
        raise AuthenticationError(
            f"{error}. The run has stopped; no conversation failed because of it. Continue with: a2a-ray resume"
            f" {run.path}"
        ) from None
    finally:
        if driver is not None:
            driver.shutdown()
        lease.release()
        if started_ray:
            _disconnect()
    finished = open_run(run.path)
    if driver.stopped and len(driver.plan) > driver.plan.ended:
        finished.stopped = f"{driver.stopped}; continue with a larger one: a2a-ray resume {run.path} --budget COST"
    return finished


def _make_driver(
    run: Run, experiment: Experiment, make_plan: Callable[[], Plan], options: StartOptions, lease: Lease
) -> Driver | LocalDriver:
    spent = spent_before(run) if experiment.budget is not None else NOTHING
    if options.local:
        return LocalDriver(run.path, experiment, make_plan, lease, spent)
    from a2a_ray.runtime.driver import Driver

    return Driver(run.path, experiment, make_plan, options.workers, options.on_failure, lease, spent)


def _connect(address: str | None) -> bool:
    """Connect to Ray; return whether this started one."""
    from a2a_ray.runtime.cluster import connect  # Ray is imported by runs that need it

    return connect(address)


def _disconnect() -> None:
    import ray

    ray.shutdown()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM stops a run as Ctrl-C does, so that turns in flight are stored. Ray's own handler exits at once."""
    if threading.current_thread() is not threading.main_thread():  # signals can only be handled there
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
