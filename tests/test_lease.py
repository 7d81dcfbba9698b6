"""One driver per run: who is refused, who takes over, and that no clock decides it alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.store import lease as module
from a2a_ray.store.lease import Lease
from tests.command_line import ROOT

HOLD = """
import sys, time
from a2a_ray.store.lease import Lease
print(Lease.acquire(sys.argv[1]).epoch, flush=True)
time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 0.6)


def elsewhere(lease: Lease, **changes: Any) -> None:
    """Has the lease written as if by a process of another machine."""
    lease._who |= {"host": "node-7", "boot": "another", **changes}
    assert lease.renew()


def test_a_second_driver_is_told_who_holds_the_run_and_what_to_do(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    with pytest.raises(ConfigurationError) as error:
        Lease.acquire(tmp_path)
    sentence = str(error.value)
    assert f"process {first._who['pid']} on {first._who['host']} drives this run since 20" in sentence
    assert "last sign of life 0 s ago" in sentence
    assert sentence.endswith("wait until it ends, or take the run from it with --takeover")
    assert not first.lost
    first.release()
    second = Lease.acquire(tmp_path)
    assert (first.epoch, second.epoch) == (1, 2)
    second.release()


def test_a_process_that_was_killed_here_is_followed_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    with pytest.raises(ConfigurationError, match=f"process {process.pid} on"):
        Lease.acquire(tmp_path)
    process.kill()
    process.wait()
    started = time.monotonic()
    lease = Lease.acquire(tmp_path)
    assert lease.epoch == 2
    assert time.monotonic() - started < 5
    lease.release()


def test_a_process_number_that_was_given_anew_is_not_the_holder(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path)
    first._who["started"] = "1"  # as if another process had our number
    first.renew()
    second = Lease.acquire(tmp_path)
    assert not first.renew()
    assert first.lost
    second.release()


def test_stealing_is_noticed_by_the_holder_and_its_release_changes_nothing(tmp_path: Path) -> None:
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


def test_a_silent_holder_elsewhere_is_followed_after_the_expiry_only(tmp_path: Path, quick: None) -> None:
    first = Lease.acquire(tmp_path)
    elsewhere(first)
    with pytest.raises(ConfigurationError, match="on node-7"):
        Lease.acquire(tmp_path)
    time.sleep(0.7)
    started = time.monotonic()
    second = Lease.acquire(tmp_path)
    assert time.monotonic() - started >= 0.6, "it must be watched for the whole expiry, not judged by the clock"
    assert second.epoch == 2
    assert not first.renew()
    second.release()


def test_a_holder_whose_clock_is_late_keeps_its_run(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease.acquire(tmp_path)
    clock = time.time
    monkeypatch.setattr(module.time, "time", lambda: clock() - (600 if threading.current_thread() is late else 0))
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.1):
            assert first.renew()

    late = threading.Thread(target=live)
    elsewhere(first)
    late.start()
    time.sleep(0.3)
    try:
        with pytest.raises(ConfigurationError, match="last sign of life 60"):
            Lease.acquire(tmp_path)
        assert not first.lost
    finally:
        ended.set()
        late.join()


def test_a_clock_that_is_ahead_lets_nobody_in(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lease.acquire(tmp_path)
    clock = time.time
    monkeypatch.setattr(module.time, "time", lambda: clock() + 300)
    elsewhere(first)
    monkeypatch.setattr(module.time, "time", clock)
    with pytest.raises(ConfigurationError, match="ahead of this machine's clock"):
        Lease.acquire(tmp_path)


def test_of_many_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    Lease.acquire(tmp_path).release()
    got: list[Lease] = []
    refused: list[str] = []
    barrier = threading.Barrier(8)

    def come() -> None:
        barrier.wait()
        try:
            got.append(Lease.acquire(tmp_path))
        except ConfigurationError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    assert len(refused) == 7
    assert got[0].epoch == 2
    got[0].release()


def test_it_renews_itself_and_keeps_its_log_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(module, "LOG_EVERY", 5)
    monkeypatch.setattr(module, "_KEPT", {**module._KEPT, "delta.logRetentionDuration": "interval 0 seconds"})
    lease = Lease.acquire(tmp_path)
    deadline = time.monotonic() + 20
    while lease._table.version() < 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    lease.release()
    assert lease._table.version() >= 30, "its thread must renew it"
    entries = sorted((tmp_path / "lease" / "_delta_log").glob("*.json"))
    assert len(entries) <= 12
    assert json.loads(entries[-1].read_text().splitlines()[0])
    assert Lease.acquire(tmp_path).epoch == 2
