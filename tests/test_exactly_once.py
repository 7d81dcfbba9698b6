"""A turn is on record exactly once, whatever dies between saying it and its acknowledgement."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
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
from a2a_ray.runtime import recorder_client as recording_module
from a2a_ray.runtime.recorder_client import Recording
from a2a_ray.store import writer as writer_module
from a2a_ray.store.committed import Committed
from a2a_ray.store.dataset import turns_of
from a2a_ray.store.recorder import Recorder
from a2a_ray.store.schema import BESIDE, CALL, OPENING, Beside, call_row, end_row, to_batch
from a2a_ray.store.writer import TakenOver, Writer
from tests.command_line import ROOT

Key = tuple[str, int, str]


def said(conversation: str, turn: int, kind: str = "message") -> Message:
    return Message(conversation, turn, "ann", f"{conversation} {turn}", kind=kind, created_at=1.0)


def talk(conversation: str, turns: int) -> list[Message]:
    """A whole conversation as rows: opening, turns, end."""
    transcript = Transcript(conversation, ("ann",))
    rows = [said(conversation, 0, OPENING), *(said(conversation, t) for t in range(1, turns + 1))]
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


def on_record(folder: Path | str) -> list[Key]:
    """Keys in the table; each conversation must be without a gap."""
    found = keys(turns_of(str(folder)).to_table())
    last = Counter(id for id, _, kind in found if kind not in BESIDE)
    highest: dict[str, int] = {}
    for id, turn, kind in found:
        if kind not in BESIDE:
            highest[id] = max(highest.get(id, 0), turn)
    assert {id: count - 1 for id, count in last.items()} == highest, "a turn is missing or there twice"
    return sorted(found)


def found_in(folder: Path) -> list[str]:
    """The conversations of all findings, as the table holds them."""
    return sorted(DeltaTable(str(folder / "findings")).to_pyarrow_table()["conversation_id"].to_pylist())


def uri(folder: Path) -> str:
    return str(folder / "turns")


# What is on record, by keys


@pytest.mark.parametrize("seed", range(30))
def test_any_grouping_of_rows_that_come_again_gives_each_once(seed: int) -> None:
    chance = random.Random(seed)
    talks = [talk(f"c{i}", chance.randint(0, 6)) for i in range(5)]
    rows: list[Message] = []
    while any(talks):
        one = chance.choice([t for t in talks if t])
        row = one.pop(0)
        if chance.random() < 0.3 and row.kind == "message":
            rows.extend(call_row(row, "ann", "step", attempt, 1.0) for attempt in range(chance.randint(1, 2)))
        rows.append(row)
    rows = [written(r, "w") if isinstance(r, Beside) else r for r in rows]
    committed, kept, sent = Committed(), [], 0
    while sent < len(rows):
        # Calls are acknowledged before they are made, so what comes again never begins before an answered call.
        asked = max((i + 1 for i, r in enumerate(rows[:sent]) if r.kind == CALL), default=0)
        start = chance.randint(asked, sent)
        stop = chance.randint(start, len(rows))
        kept.append(committed.admit(to_batch(rows[start:stop])))
        sent = max(sent, stop)
        if chance.random() < 0.3:  # a new recorder reads the keys
            committed = Committed(pa.dataset.dataset(pa.Table.from_batches(kept)))
    assert pa.Table.from_batches(kept).equals(pa.Table.from_batches([to_batch(rows)]))


def test_a_gap_is_refused_and_named() -> None:
    committed = Committed()
    committed.admit(to_batch(talk("c", 2)[:-1]))
    with pytest.raises(StorageError, match=r"record 4 of conversation 'c' .* last record there is 2"):
        committed.admit(to_batch([said("other", 0, OPENING), said("c", 4)]))
    assert committed.last("other") == -1
    with pytest.raises(StorageError, match=r"record 1 of conversation 'new' .* nothing of it is there"):
        committed.admit(to_batch([said("new", 1)]))
    with pytest.raises(StorageError, match="record 4 of conversation 'c'"):
        committed.admit(to_batch([said("c", 4, DONE)]))


def test_a_failure_that_is_retried_gets_the_next_attempt_whatever_the_clock_says(tmp_path: Path) -> None:
    """The clock is set back between the two ends; the later one stands all the same."""
    transcript = Transcript("c", ("ann",))
    transcript.status, transcript.error = FAILED, "first"
    writer = Writer(uri(tmp_path))
    writer.write([to_batch([said("c", 0, OPENING), written(end_row(transcript, 1000.0), "a")])])
    transcript.error = "second"
    writer.write([to_batch([written(end_row(transcript, 10.0), "b")])])
    writer.write([to_batch([written(end_row(transcript, 10.0), "b")])])  # comes again
    table = turns_of(str(tmp_path)).to_table()
    ends = (
        table.filter(pads.field("kind") == FAILED).sort_by("attempt").select(["attempt", "writer", "text"]).to_pylist()
    )
    assert [tuple(end.values()) for end in ends] == [(0, "a", "first"), (1, "b", "second")]
    from a2a_ray.store.run import _ended, _sorted

    assert _ended(turns_of(str(tmp_path))).to_pylist() == [{"conversation_id": "c", "kind": "failed"}]
    assert _sorted(table).column("text").to_pylist() == ["c 0", "first", "second"]


def test_calls_of_two_workers_for_one_turn_are_two_calls() -> None:
    committed = Committed()
    call = call_row(said("c", 1), "ann", "step", 0, 1.0)
    committed.admit(to_batch([said("c", 0, OPENING), written(call, "worker that died")]))
    assert len(committed.admit(to_batch([written(call, "its successor")]))) == 1
    assert len(committed.admit(to_batch([written(call, "its successor")]))) == 0


# Two writers


@pytest.mark.parametrize(("first", "second", "who"), [(1, 2, "another driver"), (1, 1, "a newer recorder")])
def test_an_older_writer_is_refused_for_good(tmp_path: Path, first: int, second: int, who: str) -> None:
    rows = talk("c", 4)
    old = Writer(uri(tmp_path), first)
    old.write([to_batch(rows[:2])])
    new = Writer(uri(tmp_path), second)
    new.open()
    for _ in range(2):
        with pytest.raises(TakenOver, match=f"taken over by {who}"):
            old.write([to_batch(rows[2:4])])
    new.write([to_batch(rows)])
    assert on_record(tmp_path) == sorted(keys(rows))
    with pytest.raises(TakenOver):
        Writer(uri(tmp_path), second - 1).open()


def test_another_process_may_compact_while_a_run_writes(tmp_path: Path) -> None:
    from deltalake import DeltaTable

    writer = Writer(uri(tmp_path))
    for row in talk("c", 6):
        writer.write([to_batch([row])])
        if row.turn % 2:
            DeltaTable(uri(tmp_path)).optimize.compact()
    assert on_record(tmp_path) == sorted(keys(talk("c", 6)))


def test_recorders_that_race_write_each_turn_once(tmp_path: Path) -> None:
    """Each takes the table over from the other again and again; all resend everything."""
    rows = talk("c", 12)
    writers: list[Writer] = []
    failed: list[StorageError] = []

    def write(start: threading.Barrier) -> None:
        start.wait()
        for stop in range(1, len(rows) + 1):
            writer = Writer(uri(tmp_path))
            writers.append(writer)
            try:
                writer.write([to_batch(rows[:stop])])
            except TakenOver:
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
    assert on_record(tmp_path) == sorted(keys(rows))
    assert sum(w.rows for w in writers) <= len(rows)


# A writer that is killed

KILLED = """
import os, signal, sys, time
from a2a_ray.store import writer
from a2a_ray.store.schema import to_batch
from tests.test_exactly_once import talk

class Dying(writer.Writer):
    def _append(self, rows):
        if self.commits == int(sys.argv[2]):
            print("now", flush=True)
            time.sleep(0.1)
        super()._append(rows)
        if self.commits == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

dying = Dying(sys.argv[1])
talks = [talk(f"c{i}", 30) for i in range(40)]
for turn in range(32):
    dying.write([to_batch([t[turn] for t in talks])])
    print(turn, flush=True)
"""


def killed(folder: Path, watched: int, dies: int) -> int:
    """Commits that were acknowledged by a writer that is killed as soon as it has written the rows of commit `watched`
    to a file that no commit names yet, or that dies after commit `dies` before it says so. Counted from 0."""
    command = [sys.executable, "-c", KILLED, uri(folder), str(watched), str(dies)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "now\n":
            before = {e.name for e in os.scandir(folder / "turns")}
            while not any(e.name.endswith(".parquet") for e in os.scandir(folder / "turns") if e.name not in before):
                pass
            process.kill()
    assert process.wait(60) == -signal.SIGKILL
    return sum(line != "now\n" for line in lines)


def after_the_kill(folder: Path, acknowledged: int) -> int:
    """Checks what is on record, sends everything again to a new writer, and checks again. Rows that were there."""
    talks = [talk(f"c{i}", 30) for i in range(40)]
    there = on_record(folder)
    assert {key for t in talks for key in keys(t)[:acknowledged]} <= set(there), "what was acknowledged is there"
    after = Writer(uri(folder))
    after.write([to_batch([row for t in talks for row in t])])  # in another grouping
    assert on_record(folder) == sorted(key for t in talks for key in keys(t))
    assert after.again == len(there)
    return len(there)


ROUNDS = [0, 3, pytest.param(9, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.slow)]


@pytest.mark.chaos
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_writer_killed_between_file_and_commit_loses_and_doubles_nothing(tmp_path: Path, rounds: int) -> None:
    for attempt in range(20):  # the moment between the two lasts about a millisecond
        folder = tmp_path / str(attempt)
        acknowledged = killed(folder, rounds, -1)
        there = after_the_kill(folder, acknowledged)
        if acknowledged == rounds and there == 40 * rounds:
            return
    pytest.fail("no kill came before the commit")


@pytest.mark.chaos
@pytest.mark.parametrize("rounds", ROUNDS)
def test_a_writer_killed_before_it_acknowledges_loses_and_doubles_nothing(tmp_path: Path, rounds: int) -> None:
    assert killed(tmp_path, -1, rounds) == rounds
    assert after_the_kill(tmp_path, rounds) == 40 * (rounds + 1), "the last commit was made, though nobody was told"


# The worker's side; here the recorder is in the same process, and can be lost


class Line:
    """What an actor's handle is to a worker: calls of a Recorder that is replaced by a new one when it `die`s."""

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
        """The commit that is under way in its thread may be made all the same, as in a process on a lost node."""
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


async def hold(recording: Recording, conversation: str, turns: int, paid: bool, last: int = -1) -> None:
    """A conversation as a worker holds it, after turn `last`."""
    for row in talk(conversation, turns)[last + 1 :]:
        if paid and row.kind == "message":
            await recording.commit(call_row(row, "ann", "step", 0, 1.0))
        if row.kind == "done":
            recording.add_findings([Finding(conversation_id=conversation, analyzer="mine", through_seq=turns)])
        if recording.add(row):
            await recording.send()
        await asyncio.sleep(0)


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(i, marks=pytest.mark.slow) for i in range(5, 40))])
async def test_workers_outlive_recorders_and_every_turn_is_there_once(tmp_path: Path, seed: int) -> None:
    line = Line(tmp_path, random.Random(seed))
    workers = [Recording(line, f"worker-{i}", rows=20, unanswered=4) for i in range(3)]
    talks = [(w, f"{i}-{j}", 12, i == 0) for i, w in enumerate(workers) for j in range(10)]
    await asyncio.wait_for(asyncio.gather(*(hold(*t) for t in talks)), 100)
    line.dies = None
    await asyncio.wait_for(asyncio.gather(*(w.flush() for w in workers)), 100)
    assert line.deaths > 0
    expected = [key for _, id, turns, _ in talks for key in keys(talk(id, turns))]
    expected += [(id, t, CALL) for _, id, turns, paid in talks if paid for t in range(1, turns + 1)]
    assert on_record(tmp_path) == sorted(expected)
    assert found_in(tmp_path) == sorted(id for _, id, _, _ in talks)


@pytest.mark.parametrize("seed", range(5))
async def test_the_talks_of_a_dead_worker_go_on_with_another(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    line = Line(tmp_path)
    talks = [(f"c{i}", 15, i % 4 == 0) for i in range(20)]
    attempts = 0
    for number in range(4):
        there = turns_of(str(tmp_path)).to_table() if number else to_batch([])
        last: Counter[str] = Counter()
        for id, turn, kind in keys(there):
            if kind != CALL:
                last[id] = max(last[id], turn + 1)
        recording = Recording(line, f"worker-{number}", rows=chance.randint(1, 60))
        holding = asyncio.gather(*(hold(recording, *t, last=last[t[0]] - 1) for t in talks))
        if number == 3:
            await asyncio.wait_for(holding, 60)
            await recording.flush()
            break
        await asyncio.wait({holding}, timeout=chance.uniform(0.02, 0.3))
        holding.cancel()
        recording.add(said("c0", 16))  # what it had on its way when it was given up
        await line.fence.remote(f"worker-{number}")
        with contextlib.suppress(StorageError, asyncio.CancelledError):
            await holding
        with pytest.raises(StorageError, match="given up for dead"):
            await recording.flush()
        attempts += 1
    found = on_record(tmp_path)
    assert [k for k in found if k[2] != CALL] == sorted(k for id, turns, _ in talks for k in keys(talk(id, turns)))
    calls = Counter(k for k in found if k[2] == CALL)
    assert set(calls) == {(id, t, CALL) for id, turns, paid in talks if paid for t in range(1, turns + 1)}
    assert calls.total() <= len(calls) + attempts * 5, "of each talk at most one call was outstanding at each death"


async def test_hundreds_that_commit_at_once_go_in_a_few_batches(tmp_path: Path) -> None:
    line = Line(tmp_path)
    recording = Recording(line, "worker-0")
    await asyncio.gather(*(recording.commit(said(f"c{i}", 0, OPENING)) for i in range(300)))
    assert len(on_record(tmp_path)) == 300
    await asyncio.gather(*(recording.commit(said(f"c{i}", 1), said(f"c{i}", 2)) for i in range(300)))
    assert len(on_record(tmp_path)) == 900
    assert line.batches <= 4


async def test_commit_returns_when_what_was_added_before_is_there_too(tmp_path: Path) -> None:
    recording = Recording(Line(tmp_path), "worker-0")
    for row in talk("c", 5)[:-1]:
        recording.add(row)
    await recording.commit(call_row(said("c", 6), "ann", "step", 0, 1.0))
    assert len(on_record(tmp_path)) == 7


async def test_what_a_dead_worker_sends_is_refused_after_the_fence(tmp_path: Path) -> None:
    recorder = Recorder(uri(tmp_path))
    rows = talk("c", 4)
    sent = asyncio.create_task(recorder.append("worker-0", 0, 0, to_batch(rows[:2])))
    early = asyncio.create_task(recorder.append("worker-0", 0, 2, to_batch(rows[3:])))  # number 1 was lost with it
    await asyncio.sleep(0)
    await recorder.fence("worker-0")
    assert sent.done() or await asyncio.wait_for(sent, 5) is None
    assert len(on_record(tmp_path)) == 2
    with pytest.raises(StorageError, match="given up for dead"):
        await early
    with pytest.raises(StorageError, match="given up for dead"):
        await recorder.append("worker-0", 0, 1, to_batch(rows[2:3]))
    await recorder.append("worker-1", 0, 0, to_batch(rows[2:]))
    assert on_record(tmp_path) == sorted(keys(rows))


async def test_a_worker_that_leaves_a_gap_is_refused_and_others_are_not(tmp_path: Path) -> None:
    recorder = Recorder(uri(tmp_path))
    good, bad = talk("good", 2), talk("bad", 4)
    del bad[2]
    batches = [recorder.append("w-0", 0, 0, to_batch(bad)), recorder.append("w-1", 0, 0, to_batch(good))]
    answers = await asyncio.gather(*batches, return_exceptions=True)
    assert "a record is missing" in str(answers[0])
    assert answers[1] is None
    assert on_record(tmp_path) == sorted(keys(good))


async def test_a_recorder_without_a_sign_of_life_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_module, "RECORDER_SECONDS", 0.4)
    line = Line(tmp_path)
    line.recorder.append = line.recorder.ready = lambda *_: asyncio.sleep(60)  # type: ignore[method-assign,assignment]
    recording = Recording(line, "worker-0")
    started = time.monotonic()
    with pytest.raises(StorageError, match="no sign of life"):
        await recording.commit(said("c", 0, OPENING))
    with pytest.raises(StorageError, match="no sign of life"):
        await recording.flush()
    assert time.monotonic() - started < 5


async def test_a_compaction_every_so_many_commits_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "COMPACT_EVERY", 4)
    recorder = Recorder(uri(tmp_path))
    before = None
    for number, row in enumerate(talk("c", 9)):
        await recorder.append("w", 0, number, to_batch([row]))
        if number == 5:
            before = turns_of(str(tmp_path))
            assert len(before.files) == 3  # four in one, and two
    await recorder.close()
    assert len(turns_of(str(tmp_path)).files) == 1
    assert before is not None
    assert len(before.to_table()) == 6, "who has the run open reads on"
    with pytest.raises(StorageError, match="closed"):
        await recorder.append("w", 0, 11, to_batch(talk("d", 1)))


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
    """A recorder that says which process it is."""

    async def process(self) -> int:
        return os.getpid()


@pytest.mark.chaos
async def test_a_recorder_that_is_killed_is_started_again_and_nothing_is_missing(
    ray_cluster: None, tmp_path: Path
) -> None:
    import ray

    actor: Any = ray.remote
    handle = actor(Mortal).options(num_cpus=0, max_restarts=-1, max_task_retries=0).remote(uri(tmp_path))
    recording = Recording(handle, "worker-0", rows=50)
    talks = [f"c{i}" for i in range(30)]
    holding = asyncio.gather(*(hold(recording, id, 8, id < "c2") for id in talks))
    for wait in (0.05, 0.2):
        process = await handle.process.remote()
        await asyncio.sleep(wait)
        os.kill(process, signal.SIGKILL)
        while True:
            with contextlib.suppress(ray.exceptions.RayActorError):
                if await handle.process.remote() != process:
                    break
            await asyncio.sleep(0.1)
    await asyncio.wait_for(holding, 120)
    await asyncio.wait_for(recording.flush(), 120)
    expected = [key for id in talks for key in keys(talk(id, 8))]
    expected += [(id, t, CALL) for id in talks if id < "c2" for t in range(1, 9)]
    assert on_record(tmp_path) == sorted(expected)
    assert found_in(tmp_path) == sorted(talks)
    ray.kill(handle)
    with pytest.raises(StorageError, match="the recorder process died"):
        await asyncio.wait_for(recording.commit(said("late", 0, OPENING)), 60)
