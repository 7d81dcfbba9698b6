"""One numbering from the conversation to the stored row and back, and the columns of the turns table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.function import FunctionAgent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.experiment.spec import Experiment
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.simultaneous import Simultaneous
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store import row_order
from a2a_ray.store import run as store
from a2a_ray.store.dataset import snapshot, table_uri, turns_of
from a2a_ray.store.run import Run, create_run, open_run
from a2a_ray.store.schema import SCHEMA, Beside, end_row, from_table, opening_row, pack, to_batch, unpack
from a2a_ray.store.writer import Writer
from tests.strategies import messages, usages


class Bidder:
    """Bids by its seed, and keeps the turns of its calls."""

    def __init__(self, name: str, fails_at: int = 0) -> None:
        self.name, self.fails_at = name, fails_at
        self.asked: list[int] = []
        self.bid_for: list[int] = []

    def step(self, message: Message) -> Message:
        self.asked.append(message.turn)
        if message.turn == self.fails_at:
            raise OSError("the wire was cut")
        return message.reply("Hi.", self.name)

    def bid(self, message: Message) -> float:
        self.bid_for.append(message.turn)
        return message.seed % 3


class Notes:
    """Counts records, and stops the conversation after `most`."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.seen = most, 0

    def update(self, message: Message) -> ObserverVerdict:
        self.seen += 1
        return ObserverVerdict("noted", "stop" if self.seen >= self.most else "record", f"{self.seen} records")


# --- one numbering


def test_bids_have_no_turn_and_messages_are_numbered_from_1() -> None:
    agents = [Bidder("ann"), Bidder("bob")]
    transcript = Conversation(agents, Adaptive(), max_turns=4, observers=[Notes()]).run()
    assert [m.seq for m in transcript] == list(range(1, 13))
    assert [m.turn for m in transcript] == [None, None, 1, None, None, 2, None, None, 3, None, None, 4]
    assert [m.turn for m in transcript.messages] == sorted(n for a in agents for n in a.asked) == [1, 2, 3, 4]
    assert agents[0].bid_for == agents[1].bid_for == [1, 2, 3, 4], "a request for a bid names the turn in question"
    assert [turn for turn, _, _ in transcript.verdicts] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    part = transcript.until(2)
    assert [m.kind for m in part] == ["bid", "bid", "message"] * 2
    with pytest.raises(ConfigurationError, match="turn: 5; expected 0 to 4"):
        transcript.until(5)


def test_simultaneous_answers_and_combinations_are_numbered_alike() -> None:
    agents = [Bidder(name) for name in ("ann", "bob", "cy")]
    transcript = Conversation(agents, Simultaneous("join"), max_rounds=2).run()
    assert [(m.seq, m.turn) for m in transcript] == [(1, 1), (2, 2), (3, 3), (4, None), (5, 4), (6, 5), (7, 6)]
    assert [a.asked for a in agents] == [[1, 4], [2, 5], [3, 6]]


def test_errors_name_the_message_not_the_record() -> None:
    conversation = Conversation([Bidder("ann", 3), Bidder("bob", 3)], Adaptive(), max_turns=4)
    with pytest.raises(AgentError, match="failed at turn 3: OSError: the wire was cut"):
        conversation.run()
    assert len(conversation.transcript) == 8


def test_a_message_made_by_hand_gets_the_turn_it_has_in_the_conversation() -> None:
    agents = [
        FunctionAgent(n, lambda m, n=n: Message(m.conversation, m.seq, n, "Hi."), takes="message", bid=lambda m: 1.0)
        for n in ("ann", "bob")
    ]
    transcript = Conversation(agents, Adaptive(), max_turns=2).run()
    assert [m.turn for m in transcript.messages] == [1, 2]
    copied = Transcript("c", ("ann", "bob"))
    for m in transcript:
        copied.append(Message("c", m.seq, m.sender, m.content, kind=m.kind))
    assert [m.turn for m in copied] == [m.turn for m in transcript]


@given(st.lists(messages(), max_size=4))
def test_messages_cross_between_processes_as_they_are(sent: list[Message]) -> None:
    back = unpack(pack(sent))
    assert list(back) == sent
    assert [m.asides for m in back] == [m.asides for m in sent]


# --- columns


def test_the_columns_are_those_of_the_documentation() -> None:
    assert ", ".join(SCHEMA.names) == (
        "conversation_id, seq, turn, kind, sender, text, vector, dtype, seed, input_tokens, output_tokens, cost,"
        " requests, usage, attempt, writer, metadata, created_at"
    )


ODD = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text() | st.lists(st.integers())


@given(st.lists(messages(history=False), max_size=5), st.data())
def test_stored_messages_are_read_unchanged(said: list[Message], data: st.DataObject) -> None:
    from dataclasses import replace

    odd = st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "cost", "requests", "note"]), ODD)
    said = [replace(m, options={}, created_at=float(round(m.created_at)), usage=data.draw(usages | odd)) for m in said]
    table = pa.Table.from_batches([to_batch(said)])
    back = list(from_table(table))
    assert repr([m.to_dict() for m in back]) == repr(_sorted_usage(said, back))
    assert table.column("turn").to_pylist() == [m.turn for m in said]
    for m, row in zip(said, table.to_pylist(), strict=True):
        if type(count := m.usage.get("input_tokens")) is int and 0 <= count < 2**53:
            assert row["input_tokens"] == count
        assert (row["usage"] is None) == (set(m.usage) <= {n for n in m.usage if row.get(n) is not None})


def _sorted_usage(said: list[Message], back: list[Message]) -> list[dict[str, Any]]:
    """The messages as JSON values; a cost that is a whole number becomes a float, and keys may change their order."""
    out = []
    for m, b in zip(said, back, strict=True):
        value = m.to_dict()
        if m.usage:
            order = [*b.usage, *(name for name in m.usage if name not in b.usage)]
            value["usage"] = {n: float(m.usage[n]) if type(b.usage.get(n)) is float else m.usage[n] for n in order}
        out.append(value)
    return out


def test_an_end_is_a_row_of_its_own_kind() -> None:
    transcript = Conversation([Bidder("ann")], max_turns=9, observers={"mine": Notes(2)}).run()
    assert (transcript.stopped_by, transcript.reason) == ("mine", "mine: 2 records")
    row = to_batch([opening_row(transcript), end_row(transcript, 1.0)]).to_pylist()[1]
    fields = {name: row[name] for name in ("seq", "turn", "kind", "sender", "text", "attempt", "writer")}
    assert fields == {
        "seq": 3,
        "turn": None,
        "kind": "done",
        "sender": "mine",
        "text": "mine: 2 records",
        "attempt": 0,
        "writer": "",
    }
    assert Conversation([Bidder("ann")], max_turns=2, observers=[Notes(9)]).run().stopped_by == ""


# --- runs


def written(tmp_path: Path, talks: int, turns: int, files: int = 1) -> Run:
    """A run of echoes; conversations in order of id, a file for each group of them."""
    agents = [{"name": "ann", "kind": "echo"}, {"name": "bob", "kind": "echo"}]
    experiment = Experiment.parse({"agents": agents, "openings": ["x"], "repeats": talks, "max_turns": turns})
    run = create_run(experiment, tmp_path)
    writer = Writer(table_uri(run.path))
    ids = [task.id for task in experiment.tasks()]
    for group in range(files):
        rows: list[Message] = []
        for id in ids[group * talks // files : (group + 1) * talks // files]:
            transcript = Transcript(id, ("ann", "bob"), "x")
            rows.append(opening_row(transcript))
            for turn in range(1, turns + 1):
                usage = {"input_tokens": 3, "output_tokens": 2, "cost": 0.5, "requests": 2, "note": '"requests": 7'}
                transcript.append(Message(id, turn, transcript.agents[turn % 2], "Hi.", usage=usage))
            transcript.status = "failed" if id.endswith("0") else "done"
            rows += [*transcript.turns, end_row(transcript, 1.0)]
        writer.write([to_batch(rows)])
    return run


def test_counts_and_sums_are_those_of_the_rows(tmp_path: Path) -> None:
    run = written(tmp_path, talks=20, turns=3, files=4)
    assert run.summary() == {"conversations": 20, "done": 18, "failed": 2, "turns": 60}
    assert run.cost() == {"input_tokens": 180, "output_tokens": 120, "cost": 30.0, "requests": 120}
    assert run.statuses() == {t.id: t.status for t in run.transcripts()}
    usage = run.transcript("0-0-01").messages[0].usage
    assert usage == {"input_tokens": 3, "output_tokens": 2, "cost": 0.5, "requests": 2, "note": '"requests": 7'}


def test_conversations_are_read_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path, talks=300, turns=3)
    whole = [t.to_exchange() for t in run.transcripts()]
    sizes: list[int] = []
    sort = store.sort_rows
    monkeypatch.setattr(store, "sort_rows", lambda table: sizes.append(len(table)) or sort(table))
    monkeypatch.setattr(row_order, "GROUP_ROWS", 100)
    assert [t.to_exchange() for t in run.transcripts()] == whole
    assert len(sizes) == 15
    assert max(sizes) <= 100
    some = [t.id for t in run.transcripts()][50:250:2]
    assert [t.id for t in run.transcripts(reversed([*some, "0-0-010", "none"]))] == ["0-0-010", *some]
    assert [*run.transcripts([])] == []


def test_files_without_the_requested_ids_are_not_read(tmp_path: Path) -> None:
    run = written(tmp_path, talks=40, turns=2, files=4)
    files = sorted((low, name) for name, low, _ in snapshot(run.path).files)
    assert [low for low, _ in files] == ["0-0-00", "0-0-10", "0-0-20", "0-0-30"]
    for _, name in (files[0], files[3]):
        (Path(table_uri(run.path)) / name).unlink()
    assert len([*run.transcripts([f"0-0-{i}" for i in range(10, 30)])]) == 20
    assert run.transcript("0-0-25").status == "done"
    assert turns_of(run.path, "0-0-12", "0-0-18").count_rows() == 10 * 4
    with pytest.raises(FileNotFoundError):
        run.transcript("0-0-05")


def test_a_run_shows_its_path_and_size_and_never_raises(tmp_path: Path) -> None:
    run = written(tmp_path, talks=3, turns=2)
    assert repr(run) == f"Run({run.path!r}, 3 conversations planned)"
    broken = {**run.manifest, "experiment": {"agents": "of a later version"}}
    assert repr(Run(run.path, broken)) == f"Run({run.path!r})"


def test_observers_are_named_by_kind_or_by_their_own_name() -> None:
    base = {"agents": [{"name": "ann", "kind": "echo"}]}
    kinds: list[Any] = ["loops", {"kind": "loops"}, {"kind": "exact", "name": "mine"}, "exact"]
    named = Experiment.parse({**base, "observers": kinds}).named_observers
    assert list(named) == ["loops", "loops-2", "mine", "exact-2"]
    assert [settings["kind"] for settings in named.values()] == ["loops", "loops", "exact", "exact"]
    for wrong in ("loops", "", 3):
        with pytest.raises(
            ConfigurationError, match=r"observers.1.name: .* expected a name that no other observer has"
        ):
            Experiment.parse({**base, "observers": ["loops", {"kind": "loops", "name": wrong}]}).check()


def test_a_run_stores_who_stopped_a_conversation_and_no_turn_for_bids(ray_cluster: None, tmp_path: Path) -> None:
    observers = [{"kind": Notes}, {"kind": Notes, "most": 2, "name": "second"}]
    bidders = [{"name": name, "kind": Bidder} for name in ("ann", "bob")]
    cells = [
        {"label": "stopped", "observers": observers},
        {"label": "bids", "agents": bidders, "protocol": "adaptive"},
    ]
    value = {"agents": [{"name": "ann", "kind": "echo"}], "openings": ["x"], "max_turns": 3, "sweep": cells}
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    stopped, bidding = open_run(run.path).transcripts()
    rows = run.rows.to_pylist()
    assert (stopped.stopped_by, stopped.reason, len(stopped)) == ("second", "second: 2 records", 2)
    row = [row for row in rows if row["conversation_id"] == stopped.id][-1]
    assert (row["kind"], row["sender"], row["turn"]) == ("done", "second", None)
    assert row["metadata"] is None
    numbers = [(row["seq"], row["turn"]) for row in rows if row["conversation_id"] == bidding.id]
    assert numbers == list(enumerate([0, None, None, 1, None, None, 2, None, None, 3, None]))
    assert [m.turn for m in bidding if m.kind not in ASIDE] == [1, 2, 3]
    assert isinstance(end_row(bidding, 0.0), Beside)


# --- continuing a transcript


def test_continuing_a_transcript_does_not_change_it() -> None:
    first = Conversation([Bidder("ann")], max_turns=3, observers=[Notes()]).run()
    first.status, first.reason = "running", ""
    before = (len(first), list(first.verdicts), first.status)
    for _ in range(2):
        longer = Conversation([Bidder("ann")], max_turns=5, observers=[Notes()], transcript=first).run()
        assert [turn for turn, _, _ in longer.verdicts] == [1, 2, 3, 4, 5]
        assert (len(longer), longer.status) == (5, "done")
        assert (len(first), first.verdicts, first.status) == before
    assert first.copy().to_exchange() == first.to_exchange()
