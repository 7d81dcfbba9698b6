"""Storage that fails, a full disk or an object store with errors; and reading only the rows that are needed."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

from a2a_ray.core.errors import ConfigurationError, StorageError
from a2a_ray.core.message import Message
from a2a_ray.experiment.spec import Experiment
from a2a_ray.store import run as store_module
from a2a_ray.store import writer as writer_module
from a2a_ray.store.lease import Lease
from a2a_ray.store.run import Run, create_run, open_run
from a2a_ray.store.run_folder import run_names
from a2a_ray.store.schema import CALL, Beside, call_row, to_batch
from a2a_ray.store.writer import Writer
from tests.command_line import ROOT, finish, start, write_spec
from tests.object_store import Store, serving
from tests.test_exactly_once import after_the_kill, conversation_rows, keys, stored, uri

# A full disk

FULL = """
import resource, sys
from a2a_ray.core.errors import StorageError
from a2a_ray.store.schema import to_batch
from a2a_ray.store.writer import Writer
from tests.test_exactly_once import conversation_rows

writer = Writer(sys.argv[1])
conversations = [conversation_rows(f"c{i}", 30) for i in range(40)]
try:
    for turn in range(32):
        if turn == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
        writer.write([to_batch([t[turn] for t in conversations])])
        print(turn, flush=True)
except StorageError as error:
    print(error, file=sys.stderr)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("limit", [0, 500, 1500, 2500])
def test_a_full_disk_ends_the_run_at_once_and_acknowledged_rows_are_stored(tmp_path: Path, limit: int) -> None:
    """The limit is reached in the rows' file or, where that fits, in the commit."""
    command = [sys.executable, "-c", FULL, uri(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "retrying" not in done.stderr, "a disk does not repair itself"
    assert "the turns cannot be written: the disk is full" in done.stderr
    assert "repair the storage, then resume the run" in done.stderr
    acknowledged = len(done.stdout.splitlines())
    assert acknowledged == 5
    assert after_the_kill(tmp_path, acknowledged) == 40 * 5


@pytest.mark.parametrize("name", ["a b", "über", "#1", "a?b", "a+b%c"])
def test_folders_with_odd_names(tmp_path: Path, name: str) -> None:
    writer = Writer(uri(tmp_path / name))
    writer.write([to_batch(conversation_rows("c", 3))])
    writer.close()
    assert stored(tmp_path / name) == sorted(keys(conversation_rows("c", 3)))
    Lease.acquire(tmp_path / name).release()
    assert Lease.acquire(tmp_path / name).epoch == 2


def test_a_folder_that_deltalake_cannot_write_to_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the turns cannot be written"):
        Writer(uri(tmp_path / "[1]")).write([to_batch(conversation_rows("c", 3))])


# An object store


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    with serving() as store:
        yield store


@pytest.fixture
def s3(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    bucket.fail()
    return bucket


LOG, ROWS, ANY = "_delta_log", "part-", "turns"


@pytest.mark.parametrize(
    ("rule", "times"),
    [
        ({"method": "PUT", "part": ROWS}, 6),
        ({"method": "PUT", "part": LOG}, 6),
        ({"method": "PUT", "part": LOG, "done": True}, 1),  # committed, but the answer says that it failed
        ({"method": "PUT", "part": LOG, "done": True}, 6),
        ({"method": "GET", "part": ANY}, 6),
    ],
)
def test_temporary_errors_are_retried(s3: Store, tmp_path: Path, rule: dict[str, Any], times: int) -> None:
    run = f"{s3.uri}/{tmp_path.name}"
    writer = Writer(f"{run}/turns")
    rows = conversation_rows("c", 2)
    writer.write([to_batch(rows[:2])])
    for place in range(2, len(rows), 2):
        s3.fail({**rule, "times": times})
        writer.write([to_batch(rows[place : place + 2])])
        assert s3.fail() < times or rule["method"] == "GET", "an error was met"
        assert len(stored(run)) == min(place + 2, len(rows))
    assert stored(run) == sorted(keys(rows))


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
def test_rows_are_stored_once_despite_random_errors(s3: Store, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    run = f"{s3.uri}/{tmp_path.name}-{seed}"
    writer = Writer(f"{run}/turns")
    conversations = [conversation_rows(f"c{i}", 6) for i in range(3)]
    for turn in range(8):
        part, done, times = chance.choice([LOG, ROWS]), chance.random() < 0.5, chance.randint(0, 6)
        s3.fail({"method": chance.choice(["PUT", "PUT", "GET"]), "part": part, "done": done, "times": times})
        writer.write([to_batch([t[turn] for t in conversations])])
    s3.fail()
    assert stored(run) == sorted(key for t in conversations for key in keys(t))


def test_a_store_that_stays_unavailable_ends_the_run_and_it_can_be_resumed(
    s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "RETRY_SECONDS", 1.0)
    run = f"{s3.uri}/{tmp_path.name}"
    writer = Writer(f"{run}/turns", 1)
    rows = conversation_rows("c", 6)
    writer.write([to_batch(rows[:3])])
    s3.fail({"method": "PUT", "part": ANY, "times": 1000})
    with pytest.raises(StorageError, match=r"the turns cannot be written: .*500 Internal Server"):
        writer.write([to_batch(rows[3:6])])
    s3.fail()
    assert stored(run) == sorted(keys(rows[:3]))
    Writer(f"{run}/turns", 2).write([to_batch(rows[3:])])
    assert stored(run) == sorted(keys(rows))


def test_a_lease_in_an_object_store_has_one_holder(s3: Store, tmp_path: Path) -> None:
    run = f"{s3.uri}/{tmp_path.name}"
    first = Lease.acquire(run)
    with pytest.raises(ConfigurationError, match="drives this run since"):
        Lease.acquire(run)
    s3.fail({"method": "PUT", "part": "lease", "times": 1, "done": True})
    assert first.renew(), "its own commit, reported as failed, is not another's"
    second = Lease.acquire(run, takeover=True)
    assert not first.renew()
    second.release()


@pytest.mark.slow
def test_a_run_by_uri_is_stored_listed_and_read(s3: Store, tmp_path: Path) -> None:
    process = start("run", write_spec(tmp_path), "--storage", f"{s3.uri}/all", "--json", cwd=tmp_path, **s3.environment)
    done = finish(process)
    assert done.status == 0, done.err
    (name,) = run_names(f"{s3.uri}/all")
    assert open_run(name).summary() == {"conversations": 2, "done": 2, "failed": 0, "turns": 12}


# Reading


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three conversations of four turns, and one that has only begun; the second speaker is paid."""
    agents = [{"name": "ann", "kind": "echo"}, {"name": "bob", "kind": "echo"}]
    run = create_run(Experiment.parse({"agents": agents, "openings": ["x"], "repeats": 4, "max_rounds": 2}), tmp_path)
    rows: list[Message] = []
    for id in ("0-0-0", "0-0-1", "0-0-2"):
        for row in conversation_rows(id, 4):
            if row.kind == "message" and row.turn % 2 == 0:
                rows.append(replace(call_row(row, "bob", "step", 0, 1.0), writer="w"))
                row = row.reply("paid", "bob", usage={"cost": 0.25, "input_tokens": 10, "model": "m"})
            rows.append(row)
    rows += conversation_rows("0-0-3", 4)[:2]
    again = rows[2]
    rows.append(replace(call_row(again, "bob", "step", 1, 1.0), writer="w"))
    rows.append(replace(call_row(Message("0-0-3", 2, "", ""), "bob", "step", 0, 1.0), writer="w"))
    assert again.kind == CALL
    Writer(uri(Path(run.path))).write([to_batch(rows)])
    return run


def test_the_ledger_counts_calls_that_are_possibly_duplicated(run: Run) -> None:
    assert run.ledger() == {"calls": 8, "answered": 6, "possibly_duplicated": 1, "unanswered": 1}
    assert run.cost() == {"cost": 1.5, "input_tokens": 60}
    assert run.summary() == {"conversations": 4, "done": 3, "failed": 0, "turns": 13}


def test_calls_are_not_turns(run: Run) -> None:
    assert CALL not in run.turns.column("kind").to_pylist()
    assert CALL in run.rows.column("kind").to_pylist()
    assert [len(t.turns) for t in run.transcripts()] == [4, 4, 4, 1]
    assert [t.status for t in run.transcripts()] == ["done", "done", "done", "running"]
    assert run.transcript("0-0-1").turns[1].content == "paid"


def test_only_the_requested_conversations_are_read(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    sort = store_module.sort_rows

    def counted(table: Any) -> Any:
        read.append(len(table))
        return sort(table)

    monkeypatch.setattr(store_module, "sort_rows", counted)
    assert [t.id for t in run.transcripts(["0-0-3", "0-0-1", "nothing"])] == ["0-0-1", "0-0-3"]
    assert run.transcript("0-0-2").id == "0-0-2"
    run.summary()
    assert read == [8, 6]
    assert "rows" not in vars(run)
    with pytest.raises(ConfigurationError, match=r"unknown conversation '9'.*0-0-0, 0-0-1, 0-0-2, 0-0-3"):
        run.transcript("9")


def test_a_failed_conversation_that_continues_has_not_ended(tmp_path: Path, run: Run) -> None:
    writer = Writer(uri(Path(run.path)))
    writer.write([to_batch([Beside("0-0-3", 2, "", "no", kind="failed", writer="a")])])
    assert run.summary()["failed"] == 1
    assert run.transcript("0-0-3").error == "no"
    writer.write([to_batch([Message("0-0-3", 2, "bob", "yes")])])
    assert run.summary()["failed"] == 0
    assert run.transcript("0-0-3").status == "running"
    assert [m.turn for m in run.transcript("0-0-3")] == [1, 2]


def test_a_table_with_rows_twice_is_read_once(run: Run) -> None:
    """Runs of older versions may hold a row twice."""
    from deltalake import write_deltalake

    before = run.rows
    twice = pads.dataset(before).to_table(filter=~pads.field("kind").isin([CALL]))
    write_deltalake(uri(Path(run.path)), twice, mode="append")
    assert open_run(run.path).rows.equals(before)
