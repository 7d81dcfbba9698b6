"""One driver per run: who is refused, who takes over, and that no clock decides it alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from deltalake import DeltaTable

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.store import lease as lease_module
from a2a_ray.store import lease_holder
from a2a_ray.store.lease import EXPIRY_SECONDS, Lease
from tests.command_line import ROOT

HOLDER = """
import sys
from a2a_ray.store.lease import Lease
print(Lease.acquire(sys.argv[1]).epoch, flush=True)
sys.stdin.read()
"""


class Clock:
    """The clock that the lease reads. It moves only when somebody sleeps, or when a test sets it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.watched = 0.0
        self.on_sleep: Callable[[], object] = lambda: None

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.watched

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.watched += seconds
        self.on_sleep()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 3600)  # a holder renews when the test says so
    return clock


@contextmanager
def on_another_machine() -> Iterator[None]:
    """A lease that is acquired here belongs to a process of another machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "node-7")
        yield


def test_a_second_driver_gets_an_error_that_names_the_holder_and_the_remedy(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        Lease.acquire(tmp_path)
    sentence = str(error.value)
    assert f"process {os.getpid()} on {socket.gethostname()} drives this run since 20" in sentence
    assert "last sign of life " in sentence
    assert sentence.endswith("wait until it ends, or take over the run with --takeover")
    assert not first.lost
    first.release()
    second = Lease.acquire(tmp_path)
    assert (first.epoch, second.epoch) == (1, 2)
    second.release()


def test_a_killed_process_of_this_machine_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    with pytest.raises(ConfigurationError, match=f"process {process.pid} on"):
        Lease.acquire(tmp_path)
    process.kill()
    process.communicate()
    monkeypatch.setattr(lease_module, "_is_renewed", lambda table: pytest.fail("it must not be watched first"))
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 2
    lease.release()


def test_another_process_with_the_pid_of_the_holder_is_not_the_holder(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_holder, "start_ticks", lambda pid: "1")  # an earlier process had our pid
        first = Lease.acquire(tmp_path)
    second = Lease.acquire(tmp_path)
    assert not first.renew()
    assert first.lost
    second.release()


def test_a_holder_notices_a_takeover_and_its_release_changes_nothing(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    second = Lease.acquire(tmp_path, takeover=True)
    assert second.epoch == 2
    assert not first.renew()
    assert first.lost
    first.release()
    assert second.renew()
    with pytest.raises(ConfigurationError):
        Lease.acquire(tmp_path)
    second.release()


def test_a_silent_holder_elsewhere_is_watched_for_the_whole_expiry(tmp_path: Path, clock: Clock) -> None:
    with on_another_machine():
        first = Lease.acquire(tmp_path)
    with pytest.raises(ConfigurationError, match="on node-7"):
        Lease.acquire(tmp_path)
    assert clock.watched == 0
    clock.now += EXPIRY_SECONDS + 1
    second = Lease.acquire(tmp_path)
    assert clock.watched >= EXPIRY_SECONDS, "the clock alone must not decide"
    assert second.epoch == 2
    assert not first.renew()
    second.release()


def test_a_holder_whose_clock_is_slow_keeps_its_run(tmp_path: Path, clock: Clock) -> None:
    with on_another_machine():
        first = Lease.acquire(tmp_path)

    def renew_by_a_slow_clock() -> None:
        clock.now -= 600
        assert first.renew()
        clock.now += 600

    renew_by_a_slow_clock()
    clock.on_sleep = renew_by_a_slow_clock
    with pytest.raises(ConfigurationError, match="on node-7"):
        Lease.acquire(tmp_path)
    assert 0 < clock.watched < EXPIRY_SECONDS
    assert not first.lost


def test_a_holder_whose_clock_is_fast_keeps_its_run(tmp_path: Path, clock: Clock) -> None:
    clock.now += 300
    with on_another_machine():
        Lease.acquire(tmp_path)
    clock.now -= 300
    with pytest.raises(ConfigurationError, match="300 s ahead of this machine's clock"):
        Lease.acquire(tmp_path)


def test_of_many_drivers_that_start_at_once_one_gets_the_lease(tmp_path: Path) -> None:
    Lease.acquire(tmp_path).release()
    acquired: list[Lease] = []
    refused: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            acquired.append(Lease.acquire(tmp_path))
        except ConfigurationError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acquired) == 1
    assert len(refused) == 7
    assert acquired[0].epoch == 2
    acquired[0].release()


def test_a_lease_renews_itself_and_keeps_its_log_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(lease_module, "CLEAN_UP_EVERY", 5)
    monkeypatch.setattr(lease_module, "LOG_RETENTION", "interval 0 seconds")
    lease = Lease.acquire(tmp_path)
    log = tmp_path / "lease" / "_delta_log"
    deadline = time.monotonic() + 300
    while not any(int(file.stem) >= 30 for file in log.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 300)  # how long the release waits for the thread
    lease.release()
    assert DeltaTable(tmp_path / "lease").version() >= 30, "its thread must renew it"
    entries = sorted(log.glob("*.json"))
    assert len(entries) <= 12
    assert json.loads(entries[-1].read_text().splitlines()[0])
    assert Lease.acquire(tmp_path).epoch == 2
