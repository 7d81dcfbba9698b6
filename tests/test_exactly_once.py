"""Each turn is stored exactly once, whatever dies between the answer and its acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable

from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime import recorder_client
from a2a_ray.runtime.recorder_client import RecorderClient
from a2a_ray.store import writer as writer_module
from a2a_ray.store.committed import CommittedRows
from a2a_ray.store.dataset import turns_of
from a2a_ray.store.lease import TakenOverError
from a2a_ray.store.recorder import Recorder
from a2a_ray.store.run import create_run
from a2a_ray.store.schema import BESIDE, CALL, OPENING, Beside, call_row, end_row, to_batch
from a2a_ray.store.writer import Writer
from tests.command_line import ROOT

Key = tuple[str, int, str]


def message(conversation: str, turn: int, kind: str = "message") -> Message:
    return Message(conversation, turn, "ann", f"{conversation} {turn}", kind=kind, created_at=1.0)


def conversation_rows(conversation: str, turns: int) -> list[Message]:
    """Return the rows of a whole conversation: opening, turns, end."""
    transcript = Transcript(conversation, ("ann",))
    rows = [message(conversation, 0, OPENING), *(message(conversation, t) for t in range(1, turns + 1))]
    for row in rows[1:]:
        transcript.append(row)
    transcript.status = DONE
    return [*rows, end_row(transcript, 2.0)]


def written(row: Beside, writer: str) -> Beside:
    return replace(row, writer=writer)


def keys(rows: Any) -> list[Key]:
    table = rows if isinstance(rows, pa.RecordBatch | pa.Table) else to_batch(rows)
    columns = [table.column(name).to_pylist() for name in ("conversation_id", "seq", "kind")]
    return list(zip(*columns, strict=True))


def stored(folder: Path | str) -> list[Key]:
    """Return the keys in the table; fail if a conversation has a gap or a duplicate."""
    found = keys(turns_of(str(folder)).to_table())
    last = Counter(id for id, _, kind in found if kind not in BESIDE)
    highest: dict[str, int] = {}
    for id, turn, kind in found:
        if kind not in BESIDE:
            highest[id] = max(highest.get(id, 0), turn)
    assert {id: count - 1 for id, count in last.items()} == highest, "a turn is missing or stored twice"
    return sorted(found)


def found_in(folder: Path) -> list[str]:
    """Return the conversations of all findings in the table."""
    return sorted(DeltaTable(str(folder / "findings")).to_pyarrow_table()["conversation_id"].to_pylist())


def uri(folder: Path) -> str:
    return str(folder / "turns")


# The keys of stored rows


@pytest.mark.parametrize("seed", range(30))
def test_rows_sent_again_in_any_grouping_are_stored_once(seed: int) -> None:
    chance = random.Random(seed)
    conversations = [conversation_rows(f"c{i}", chance.randint(0, 6)) for i in range(5)]
    rows: list[Message] = []
    while any(conversations):
        one = chance.choice([t for t in conversations if t])
        row = one.pop(0)
        if chance.random() < 0.3 and row.kind == "message":
            rows.extend(call_row(row, "ann", "step", attempt, 1.0) for attempt in range(chance.randint(1, 2)))
        rows.append(row)
    rows = [written(r, "w") if isinstance(r, Beside) else r for r in rows]
    committed, kept, sent = CommittedRows(), [], 0
    while sent < len(rows):
        # Calls are committed before they are made, so rows sent again never begin before an answered call.
        called = max((i + 1 for i, r in enumerate(rows[:sent]) if r.kind == CALL), default=0)
        start = chance.randint(called, sent)
        stop = chance.randint(start, len(rows))
        kept.append(committed.add_new(to_batch(rows[start:stop])))
        sent = max(sent, stop)
        if chance.random() < 0.3:  # a new recorder reads the keys
            committed = CommittedRows(pa.dataset.dataset(pa.Table.from_batches(kept)))
    assert pa.Table.from_batches(kept).equals(pa.Table.from_batches([to_batch(rows)]))


def test_a_gap_is_refused_with_an_error_that_names_it() -> None:
    committed = CommittedRows()
    committed.add_new(to_batch(conversation_rows("c", 2)[:-1]))
    with pytest.raises(StorageError, match=r"conversation 'c': got record 4, but the last stored record is 2"):
        committed.add_new(to_batch([message("other", 0, OPENING), message("c", 4)]))
    assert committed.last("other") == -1
    with pytest.raises(StorageError, match=r"conversation 'new': got record 1, but the last stored record is none"):
        committed.add_new(to_batch([message("new", 1)]))
    with pytest.raises(StorageError, match="conversation 'c': got record 4"):
        committed.add_new(to_batch([message("c", 4, DONE)]))


def test_a_failure_that_is_retried_gets_the_next_attempt_whatever_the_clock_says(tmp_path: Path) -> None:
    """The clock is set back between the two ends; the later one counts all the same."""
    experiment = Experiment.parse({"agents": [{"name": "ann", "kind": "echo"}], "openings": ["x"], "max_turns": 3})
    run = create_run(experiment, tmp_path)
    transcript = Transcript("0-0-0", ("ann",))
    transcript.status, transcript.error = FAILED, "first"
    writer = Writer(uri(Path(run.path)))
    writer.write([to_batch([message("0-0-0", 0, OPENING), written(end_row(transcript, 1000.0), "a")])])
    assert run.transcript("0-0-0").error == "first"
    transcript.error = "second"
    writer.write([to_batch([written(end_row(transcript, 10.0), "b")])])
    writer.write([to_batch([written(end_row(transcript, 10.0), "b")])])  # sent again
    ends = run.rows.filter(pads.field("kind") == FAILED).select(["attempt", "writer", "text"]).to_pylist()
    assert [tuple(end.values()) for end in ends] == [(0, "a", "first"), (1, "b", "second")]
    assert run.summary() == {"conversations": 1, "done": 0, "failed": 1, "turns": 0}
    assert run.transcript("0-0-0").error == "second"


def test_calls_of_two_workers_for_one_turn_are_two_calls() -> None:
    committed = CommittedRows()
    call = call_row(message("c", 1), "ann", "step", 0, 1.0)
    committed.add_new(to_batch([message("c", 0, OPENING), written(call, "worker that died")]))
    assert len(committed.add_new(to_batch([written(call, "its successor")]))) == 1
    assert len(committed.add_new(to_batch([written(call, "its successor")]))) == 0


# Two writers


@pytest.mark.parametrize(("first", "second", "who"), [(1, 2, "another driver"), (1, 1, "a newer recorder")])
def test_an_older_writer_is_refused_for_good(tmp_path: Path, first: int, second: int, who: str) -> None:
    rows = conversation_rows("c", 4)
    old = Writer(uri(tmp_path), first)
    old.write([to_batch(rows[:2])])
    new = Writer(uri(tmp_path), second)
    new.open()
    for _ in range(2):
        with pytest.raises(TakenOverError, match=f"taken over by {who}"):
            old.write([to_batch(rows[2:4])])
    new.write([to_batch(rows)])
    assert stored(tmp_path) == sorted(keys(rows))
    with pytest.raises(TakenOverError):
        Writer(uri(tmp_path), second - 1).open()


def test_another_process_may_compact_while_a_run_writes(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    writer = Writer(uri(tmp_path))
    for row in conversation_rows("c", 6):
        writer.write([to_batch([row])])
        if row.turn % 2:
            DeltaTable(uri(tmp_path)).optimize.compact()
    assert stored(tmp_path) == sorted(keys(conversation_rows("c", 6)))


def test_recorders_that_race_write_each_turn_once(tmp_path: Path) -> None:
    """Each takes over the table from the other again and again; all send everything again."""
    rows = conversation_rows("c", 12)
    writers: list[Writer] = []
    failed: list[StorageError] = []

    def write(start: threading.Barrier) -> None:
        start.wait()
        for stop in range(1, len(rows) + 1):
            writer = Writer(uri(tmp_path))
            writers.append(writer)
            try:
                writer.write([to_batch(rows[:stop])])
            except TakenOverError:
                pass
            except StorageError as error:
                failed.append(error)

    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=write, args=[barrier]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    Writer(uri(tmp_path)).write([to_batch(rows)])
    assert stored(tmp_path) == sorted(keys(rows))
    assert sum(w.rows for w in writers) <= len(rows)


# A writer that is killed

KILLED = """
import os, pathlib, signal, sys
from a2a_ray.store import writer
from a2a_ray.store.schema import to_batch
from tests.test_exactly_once import conversation_rows

class Dying(writer.Writer):
    def _append(self, rows):
        log = pathlib.Path(sys.argv[1], "_delta_log")
        if self.commits == int(sys.argv[2]):
            log.rename(log.with_name("_aside"))
            log.touch()
        try:
            super()._append(rows)
        except Exception:
            log.unlink()
            log.with_name("_aside").rename(log)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.commits == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

dying = Dying(sys.argv[1])
conversations = [conversation_rows(f"c{i}", 30) for i in range(40)]
for turn in range(32):
    dying.write([to_batch([t[turn] for t in conversations])])
    print(turn, flush=True)
"""


def killed(folder: Path, watched: int, dies: int) -> int:
    """Kill a writer and return how many commits it had acknowledged.

    It dies when it has written the file of commit `watched`, which no commit refers to yet (a file in place of the
    log's folder keeps it from committing, and the log is as it was when it dies); or after commit `dies`, before it
    acknowledges it. Commits are counted from 0.
    """
    command = [sys.executable, "-c", KILLED, uri(folder), str(watched), str(dies)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return len(done.stdout.splitlines())


def after_the_kill(folder: Path, acknowledged: int) -> int:
    """Check the stored rows, send everything again to a new writer, and check again. Return how many were stored."""
    conversations = [conversation_rows(f"c{i}", 30) for i in range(40)]
    there = stored(folder)
    assert {key for t in conversations for key in keys(t)[:acknowledged]} <= set(there), (
        "acknowledged rows must be stored"
    )
    after = Writer(uri(folder))
    after.write([to_batch([row for t in conversations for row in t])])  # in another grouping
    assert stored(folder) == sorted(key for t in conversations for key in keys(t))
    assert after.duplicates == len(there)
    return len(there)


ROUNDS = [0, 3, pytest.param(9, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.chaos
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_writer_killed_between_file_and_commit_stores_each_row_once(tmp_path: Path, rounds: int) -> None:
    assert killed(tmp_path, rounds, -1) == rounds
    assert len(list((tmp_path / "turns").glob("*.parquet"))) == rounds + 1, "the file is there, and no commit names it"
    assert after_the_kill(tmp_path, rounds) == 40 * rounds


@pytest.mark.chaos
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_writer_killed_before_it_acknowledges_stores_each_row_once(tmp_path: Path, rounds: int) -> None:
    assert killed(tmp_path, -1, rounds) == rounds
    assert after_the_kill(tmp_path, rounds) == 40 * (rounds + 1), "the last commit was made, though not acknowledged"


# The worker's side. Here the recorder is in the same process, and can be lost


class Line:
    """Stands for the actor handle: calls a Recorder, which a new one replaces when it `die`s."""

    def __init__(self, folder: Path, dies: random.Random | None = None) -> None:
        self.folder, self.dies = folder, dies
        self.calls: set[asyncio.Task[Any]] = set()
        self.batches = 0
        self.deaths = 0
        self.recorder = Recorder(uri(folder))
        self.down = False

    def __getattr__(self, name: str) -> Any:
        return Method(self, name)

    async def call(self, name: str, *args: Any) -> Any:
        from ray.exceptions import ActorUnavailableError

        if self.down:
            raise ActorUnavailableError("it is being started", None)
        task = asyncio.create_task(getattr(self.recorder, name)(*args))
        self.calls.add(task)
        if name == "append":
            self.batches += 1
            if self.dies and self.dies.random() < 0.2:
                asyncio.get_running_loop().call_later(self.dies.random() * 0.02, self.die)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ActorUnavailableError("it died", None) from None
            raise
        finally:
            self.calls.discard(task)

    def die(self) -> None:
        """A commit in progress in its thread may still succeed, as in a process on a lost node."""
        if self.down:
            return
        self.deaths += 1
        self.down = True
        for call in self.calls:
            call.cancel()
        if self.recorder._committing is not None:
            self.recorder._committing.cancel()
        self.recorder = Recorder(uri(self.folder))
        asyncio.get_running_loop().call_later(0.05, setattr, self, "down", False)


class Method:
    def __init__(self, line: Line, name: str) -> None:
        self.line, self.name = line, name

    def remote(self, *args: Any) -> Any:
        return asyncio.ensure_future(self.line.call(self.name, *args))


async def converse(client: RecorderClient, conversation: str, turns: int, paid: bool, last: int = -1) -> None:
    """Store a conversation as a worker does, after turn `last`."""
    for row in conversation_rows(conversation, turns)[last + 1 :]:
        if paid and row.kind == "message":
            await client.commit(call_row(row, "ann", "step", 0, 1.0))
        if row.kind == "done":
            client.add_findings([Finding(conversation_id=conversation, analyzer="mine", through_seq=turns)])
        if client.add(row):
            await client.send()
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(i, marks=pytest.mark.slow) for i in range(5, 40))])
async def test_every_turn_is_stored_once_when_recorders_die(tmp_path: Path, seed: int) -> None:
    line = Line(tmp_path, random.Random(seed))
    workers = [RecorderClient(line, f"worker-{i}", batch_rows=20, max_in_flight=4) for i in range(3)]
    conversations = [(w, f"{i}-{j}", 12, i == 0) for i, w in enumerate(workers) for j in range(10)]
    await asyncio.wait_for(asyncio.gather(*(converse(*t) for t in conversations)), 100)
    line.dies = None
    await asyncio.wait_for(asyncio.gather(*(w.flush() for w in workers)), 100)
    assert line.deaths > 0
    expected = [key for _, id, turns, _ in conversations for key in keys(conversation_rows(id, turns))]
    expected += [(id, t, CALL) for _, id, turns, paid in conversations if paid for t in range(1, turns + 1)]
    assert stored(tmp_path) == sorted(expected)
    assert found_in(tmp_path) == sorted(id for _, id, _, _ in conversations)


@pytest.mark.parametrize("seed", range(5))
async def test_another_worker_continues_the_conversations_of_a_dead_one(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    line = Line(tmp_path)
    conversations = [(f"c{i}", 15, i % 4 == 0) for i in range(20)]
    attempts = 0
    for number in range(4):
        there = turns_of(str(tmp_path)).to_table() if number else to_batch([])
        last: Counter[str] = Counter()
        for id, turn, kind in keys(there):
            if kind != CALL:
                last[id] = max(last[id], turn + 1)
        client = RecorderClient(line, f"worker-{number}", batch_rows=chance.randint(1, 60))
        conversing = asyncio.gather(*(converse(client, *t, last=last[t[0]] - 1) for t in conversations))
        if number == 3:
            await asyncio.wait_for(conversing, 60)
            await client.flush()
            break
        await asyncio.wait({conversing}, timeout=chance.uniform(0.02, 0.3))
        conversing.cancel()
        client.add(message("c0", 16))  # it was in flight when the worker was declared dead
        await line.fence.remote(f"worker-{number}")
        with contextlib.suppress(StorageError, asyncio.CancelledError):
            await conversing
        with pytest.raises(StorageError, match="declared dead"):
            await client.flush()
        attempts += 1
    found = stored(tmp_path)
    assert [k for k in found if k[2] != CALL] == sorted(
        k for id, turns, _ in conversations for k in keys(conversation_rows(id, turns))
    )
    calls = Counter(k for k in found if k[2] == CALL)
    assert set(calls) == {(id, t, CALL) for id, turns, paid in conversations if paid for t in range(1, turns + 1)}
    assert calls.total() <= len(calls) + attempts * 5, "each conversation had at most one call in flight at each death"


async def test_hundreds_of_concurrent_commits_share_a_few_batches(tmp_path: Path) -> None:
    line = Line(tmp_path)
    client = RecorderClient(line, "worker-0")
    await asyncio.gather(*(client.commit(message(f"c{i}", 0, OPENING)) for i in range(300)))
    assert len(stored(tmp_path)) == 300
    await asyncio.gather(*(client.commit(message(f"c{i}", 1), message(f"c{i}", 2)) for i in range(300)))
    assert len(stored(tmp_path)) == 900
    assert line.batches <= 4


async def test_commit_returns_when_rows_added_before_are_stored_too(tmp_path: Path) -> None:
    client = RecorderClient(Line(tmp_path), "worker-0")
    for row in conversation_rows("c", 5)[:-1]:
        client.add(row)
    await client.commit(call_row(message("c", 6), "ann", "step", 0, 1.0))
    assert len(stored(tmp_path)) == 7


async def test_batches_of_a_dead_worker_are_refused_after_the_fence(tmp_path: Path) -> None:
    recorder = Recorder(uri(tmp_path))
    rows = conversation_rows("c", 4)
    sent = asyncio.create_task(recorder.append("worker-0", 0, 0, to_batch(rows[:2])))
    early = asyncio.create_task(recorder.append("worker-0", 0, 2, to_batch(rows[3:])))  # number 1 was lost with it
    await asyncio.sleep(0)
    await recorder.fence("worker-0")
    assert sent.done() or await asyncio.wait_for(sent, 5) is None
    assert len(stored(tmp_path)) == 2
    with pytest.raises(StorageError, match="declared dead"):
        await early
    with pytest.raises(StorageError, match="declared dead"):
        await recorder.append("worker-0", 0, 1, to_batch(rows[2:3]))
    await recorder.append("worker-1", 0, 0, to_batch(rows[2:]))
    assert stored(tmp_path) == sorted(keys(rows))


async def test_a_worker_that_leaves_a_gap_is_refused_and_others_are_not(tmp_path: Path) -> None:
    recorder = Recorder(uri(tmp_path))
    good, bad = conversation_rows("good", 2), conversation_rows("bad", 4)
    del bad[2]
    batches = [recorder.append("w-0", 0, 0, to_batch(bad)), recorder.append("w-1", 0, 0, to_batch(good))]
    answers = await asyncio.gather(*batches, return_exceptions=True)
    assert "A record is missing" in str(answers[0])
    assert answers[1] is None
    assert stored(tmp_path) == sorted(keys(good))


async def test_a_recorder_that_does_not_respond_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_client, "RECORDER_SECONDS", 0.4)
    line = Line(tmp_path)
    silence = asyncio.Event()
    line.recorder.append = line.recorder.ready = lambda *_: silence.wait()  # type: ignore[method-assign,assignment]
    client = RecorderClient(line, "worker-0")
    with pytest.raises(StorageError, match="has not responded"):
        await asyncio.wait_for(client.commit(message("c", 0, OPENING)), 60)
    with pytest.raises(StorageError, match="has not responded"):
        await client.flush()


async def test_the_table_is_compacted_regularly_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "COMPACT_EVERY", 4)
    recorder = Recorder(uri(tmp_path))
    before = None
    for number, row in enumerate(conversation_rows("c", 9)):
        await recorder.append("w", 0, number, to_batch([row]))
        if number == 5:
            before = turns_of(str(tmp_path))
            assert len(before.files) == 3  # four in one, and two
    await recorder.close()
    assert len(turns_of(str(tmp_path)).files) == 1
    assert before is not None
    assert len(before.to_table()) == 6, "a reader that has the run open keeps its files"
    with pytest.raises(StorageError, match="closed"):
        await recorder.append("w", 0, 11, to_batch(conversation_rows("d", 1)))


def test_a_compaction_does_not_rewrite_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake import DeltaTable

    monkeypatch.setattr(writer_module, "COMPACT_BYTES", 50_000)
    monkeypatch.setattr(writer_module, "COMPACT_EVERY", 5)
    chance = random.Random(0)
    writer = Writer(uri(tmp_path))
    for turn in range(60):
        files = set(DeltaTable(uri(tmp_path)).file_uris()) if turn else set()
        texts = ("".join(chance.choices("abcdefgh", k=70)) for _ in range(300))
        rows = [
            Message(f"c{i}", turn, "", text, kind=OPENING if turn == 0 else "message") for i, text in enumerate(texts)
        ]
        writer.write([to_batch(rows)])
    after = set(DeltaTable(uri(tmp_path)).file_uris())
    assert sum(Path(f).stat().st_size for f in after) > 10 * 50_000
    assert 0 < sum(Path(f).stat().st_size for f in files - after) <= 3 * 50_000


# With Ray


class Mortal(Recorder):
    """A recorder that reports its process id, and takes its third batch only when the file "killed" exists."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.killed = Path(uri).with_name("killed")

    async def process(self) -> int:
        return os.getpid()

    async def append(self, worker: str, epoch: int, number: int, *batch: Any) -> None:
        while number == 2 and not self.killed.exists():
            await asyncio.sleep(0.02)
        await super().append(worker, epoch, number, *batch)


@pytest.mark.chaos
async def test_a_killed_recorder_is_restarted_and_every_turn_is_stored(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    actor: Any = ray.remote
    handle = actor(Mortal).options(num_cpus=0, max_restarts=-1, max_task_retries=0).remote(uri(tmp_path))
    client = RecorderClient(handle, "worker-0", batch_rows=50)
    conversations = [f"c{i}" for i in range(30)]
    conversing = asyncio.gather(*(converse(client, id, 8, id < "c2") for id in conversations))
    while not (tmp_path / "turns").exists():
        await asyncio.sleep(0.01)
    os.kill(await handle.process.remote(), signal.SIGKILL)
    (tmp_path / "killed").touch()
    await asyncio.wait_for(conversing, 300)
    await asyncio.wait_for(client.flush(), 300)
    expected = [key for id in conversations for key in keys(conversation_rows(id, 8))]
    expected += [(id, t, CALL) for id in conversations if id < "c2" for t in range(1, 9)]
    assert stored(tmp_path) == sorted(expected)
    assert found_in(tmp_path) == sorted(conversations)
    ray.kill(handle)
    with pytest.raises(StorageError, match="the recorder process died"):
        await asyncio.wait_for(client.commit(message("late", 0, OPENING)), 60)
