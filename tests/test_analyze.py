"""The analysis of runs: stored once, here and on Ray; all commands report the same."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from a2a_ray.analysis.analyze import AnalysisSettings, analyze
from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL
from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import Finding, to_arrow
from a2a_ray.core.message import Message
from a2a_ray.core.verdict import NOTHING, ObserverVerdict
from a2a_ray.report.analyze_source import analyze_opened
from a2a_ray.report.loop_tables import loop_table
from a2a_ray.runtime import analyze_run as of_runs
from a2a_ray.runtime.analyze_run import analyze_run
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.run import Run, open_run
from tests.command_line import call
from tests.test_detect import REFRAIN, needs_model

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "su") for b in ("ra", "ne", "pi", "do") for c in "stnlm"]


class Play:
    """Random lines; in every second conversation a refrain from the fifth turn on. It bids, too."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        at = (message.turn or 1) - 1
        loops = int(message.conversation.split("-")[1]) % 2
        words = random.Random(f"{message.conversation} {at}").choices(WORDS, k=16)
        text = REFRAIN[at % 2] if loops and at > 4 else " ".join(words)
        return message.reply(text, self.name)

    def bid(self, message: Message) -> float:
        return message.seed % 7


class Counts:
    """A custom observer without findings of its own: reports a loop from the third message on."""

    def __init__(self) -> None:
        self.seen = 0

    def update(self, message: Message) -> ObserverVerdict:
        self.seen += message.kind == "message"
        if self.seen < 3:
            return NOTHING
        return ObserverVerdict("loop", reason="three messages", evidence={"onset_turn": 2, "why": "three"})


def value(**more: Any) -> dict[str, Any]:
    agents = [{"name": name, "kind": Play} for name in ("ann", "bob")]
    return {"agents": agents, "openings": ["Hello.", "Well?", "So?", "Now."], "max_turns": 14, **more}


@pytest.fixture(scope="module")
def played(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that tests only copy."""
    return run_experiment(value(), storage=tmp_path_factory.mktemp("played"), workers=1, progress=False)


def copied(run: Run, storage: Path) -> Run:
    return open_run(str(shutil.copytree(run.path, storage / Path(run.path).name)))


@pytest.fixture
def run(played: Run, tmp_path: Path) -> Run:
    return copied(played, tmp_path)


def commits(run: Run) -> int:
    return DeltaTable(f"{run.path}/findings").version()


def loops_of(run: Run) -> dict[str, tuple[int | None, int | None]]:
    found = (f for f in run.findings() if f.analyzer == "loops" and f.looped)
    return {f.conversation_id: (f.onset_turn, f.alarm_turn) for f in found}


# --- exactly once


def test_a_run_is_analyzed_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = analyze_run(run)
    assert [key[0] for key in keys] == ["loops", "paper_rule", "exact_repetition", "equilibrium", "negotiation"]
    found = list(run.findings())
    assert len({(*f.key, f.number) for f in found}) == len(found)
    assert {f.conversation_id for f in found} == {"0-0-0", "0-1-0", "0-2-0", "0-3-0"}
    assert set(loops_of(run)) == {"0-1-0", "0-3-0"}
    assert {f.through_seq for f in found} == {14}
    version = commits(run)

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("analyzed again")

    monkeypatch.setattr(of_runs, "_in_process", refuse)
    assert analyze_run(open_run(run.path)) == keys
    assert list(run.findings()) == found
    assert commits(run) == version


def test_findings_of_other_settings_are_added(run: Run) -> None:
    analyze_run(run)
    analyze_run(run, AnalysisSettings(threshold=3.0))
    thresholds = [f.threshold for f in run.findings(["0-1-0"]) if f.analyzer == "loops"]
    assert sorted(filter(None, thresholds)) == [1.0, 3.0]
    assert sum(f.analyzer == "exact_repetition" for f in run.findings(["0-1-0"])) == 1


def test_findings_made_before_an_interruption_are_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 15:  # the second conversation
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_run(run, on_progress=interrupt)
    kept = {f.conversation_id for f in run.findings()}
    assert kept == {"0-0-0", "0-1-0"}
    progress: list[tuple[int, int]] = []
    analyze_run(run, on_progress=lambda *n: progress.append(n))
    assert progress == [(15, 30), (30, 30)]
    assert len(loops_of(run)) == 2


def finding(id: str, seq: int, **more: Any) -> Finding:
    return Finding(conversation_id=id, analyzer="mine", through_seq=seq, **more)


def test_two_writers_add_each_finding_once(tmp_path: Path) -> None:
    one, other = FindingsTable(str(tmp_path)), FindingsTable(str(tmp_path))
    assert (one.known(), other.known()) == ({}, {})
    rows = to_arrow([finding("a", 3), finding("b", 3)])
    assert one.add(rows) == 2
    assert other.add(to_arrow([finding("b", 3), finding("c", 3)])) == 1  # it had read the keys before
    assert one.add(rows) == 0
    assert [f.conversation_id for f in FindingsTable(str(tmp_path)).read(["a", "b", "c"])] == ["a", "b", "c"]


def test_findings_that_have_read_further_replace_earlier_ones(tmp_path: Path) -> None:
    table = FindingsTable(str(tmp_path))
    table.add(to_arrow([finding("a", 3, number=1), finding("a", 3, number=2), finding("b", 3)]))
    table.add(to_arrow([finding("a", 9, status="loop")]))
    assert table.add(to_arrow([finding("a", 5)])) == 0
    (newest,) = table.read(["a"])
    assert (newest.through_seq, newest.status) == (9, "loop")


def test_a_table_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    table = FindingsTable(str(tmp_path))
    table.add(to_arrow([finding("a", 3)]))
    log = tmp_path / "findings" / "_delta_log" / "00000000000000000000.json"
    log.write_text("{broken")
    with pytest.raises(StorageError, match="the table of findings: "):
        FindingsTable(str(tmp_path)).known()


# --- on Ray


def test_ray_tasks_find_the_same_as_this_process(ray_cluster: None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(of_runs, "TASK_RECORDS", 40)
    here = run_experiment(value(repeats=3), storage=tmp_path / "here", workers=1, progress=False)
    there = copied(here, tmp_path / "there")
    analyze_run(here)
    progress: list[tuple[int, int]] = []
    analyze_run(there, workers=2, on_progress=lambda *n: progress.append(n))
    assert len(progress) == 4
    assert progress[-1] == (12 * 15, 12 * 15)
    assert list(here.findings()) == list(there.findings())


@pytest.mark.slow
@needs_model
def test_with_an_embedder_ray_tasks_find_the_same_as_this_process(played: Run, tmp_path: Path) -> None:
    here, there = (copied(played, tmp_path / name) for name in ("here", "there"))
    settings = AnalysisSettings(DEFAULT_MODEL)
    analyze_run(here, settings)
    analyze_run(there, settings, workers=2)
    one, other = list(here.findings()), list(there.findings())
    assert [(f.key, f.status, f.onset_turn, f.alarm_turn) for f in one] == [
        (f.key, f.status, f.onset_turn, f.alarm_turn) for f in other
    ]
    assert all(f.settings["embedder"].startswith(DEFAULT_MODEL) for f in one if f.analyzer in ("loops", "paper_rule"))
    drifts = [[f.evidence["drift"] for f in each if f.analyzer == "paper_rule"] for each in (one, other)]
    np.testing.assert_allclose(drifts[0], drifts[1], atol=1e-3)


def test_an_error_in_a_task_is_raised_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(run.path) / "manifest.json").write_text("{}")
    with pytest.raises(Exception, match="not a run"):
        analyze_run(run, workers=2)


# --- live


def test_live_observers_store_the_same_findings_as_an_analysis(run: Run, tmp_path: Path) -> None:
    observers = [{"kind": "loops"}, {"kind": "loops", "threshold": 3.0, "name": "strict"}, {"kind": "exact_repetition"}]
    live = run_experiment(value(observers=observers), storage=tmp_path / "live", workers=1, progress=False)
    found = list(live.findings())
    assert {f.analyzer for f in found} == {"loops", "exact_repetition"}
    for settings in (AnalysisSettings(), AnalysisSettings(threshold=3.0)):
        analyze_run(run, settings)
    assert found == [f for f in run.findings() if f.analyzer in ("loops", "exact_repetition")]
    version = commits(live)
    analyze_run(live)  # adds the other analyzers only
    assert commits(live) == version + 1
    assert [f for f in live.findings() if f.analyzer in ("loops", "exact_repetition")] == found


def test_verdicts_of_a_custom_observer_become_findings(ray_cluster: None, tmp_path: Path) -> None:
    observers = [{"kind": Counts, "name": "counts"}]
    run = run_experiment(value(observers=observers), storage=tmp_path, workers=1, progress=False)
    found = list(run.findings())
    assert [f.conversation_id for f in found] == ["0-0-0", "0-1-0", "0-2-0", "0-3-0"]
    assert {(f.analyzer, f.status, f.onset_turn, f.alarm_turn, f.reason) for f in found} == {
        ("counts", "loop", 2, 3, "three messages")
    }
    assert found[0].evidence == {"why": "three"}
    table = loop_table(analyze_opened(run))
    assert table is not None
    assert table.columns[-1] == "counts"
    assert table.rows[0][-1] == 4


def test_a_run_whose_agents_cannot_be_imported_can_be_read(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    manifest = Path(run.path) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("tests.test_analyze:Play", "elsewhere.plays:Play"))
    for command in ("analyze", "show", "detect"):
        done = call(capsys, command, run.path)
        assert (done.status, done.err) == (0, "")
    assert call(capsys, "report", run.path, "-o", tmp_path / "report.html").status == 0


def test_a_resumed_run_has_each_finding_once(ray_cluster: None, tmp_path: Path) -> None:
    from a2a_ray.runtime.run_experiment import resume_run

    def stop(progress: Any) -> None:
        if progress.messages:
            raise KeyboardInterrupt

    spec = value(observers=[{"kind": "loops"}], repeats=20)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_experiment(spec, storage=tmp_path, workers=1, progress=stop)
    run = resume_run(str(stopped.value), workers=1, progress=False, experiment=spec)
    found = list(run.findings())
    assert len(found) == 80
    assert len({f.key for f in found}) == 80


# --- one answer


def test_all_commands_report_the_same_loops(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert re.search(r"│ +- │", call(capsys, "ls", "--storage", Path(run.path).parent).out)
    analyzed = call(capsys, "analyze", run.path, "--json").json
    detected = call(capsys, "detect", run.path, "--json").json
    assert analyzed["looped"] == detected["looped"] == ["0-1-0", "0-3-0"]
    assert [f for f in analyzed["findings"] if f["analyzer"] == "loops"] == detected["findings"]
    loops = {f["conversation_id"]: f for f in detected["findings"] if f["status"] == "loop"}
    live = LoopDetector()
    for message in run.transcript("0-1-0").turns:
        live.update(message)
    assert live.findings("0-1-0")[0].to_dict() == loops["0-1-0"]
    onset, alarm = loops["0-1-0"]["onset_turn"], loops["0-1-0"]["alarm_turn"]
    line = f"from turn {onset}, alarm after turn {alarm}, period 2 (score "
    shown = call(capsys, "show", run.path, "0-1-0").out
    assert f"loops: loop ({loops['0-1-0']['kind']}), {line}" in shown
    assert f"a loop begins at turn {onset}" in shown
    assert f"alarm after turn {alarm} " in shown
    page = tmp_path / "report.html"
    assert call(capsys, "report", run.path, "-o", page).status == 0
    text = page.read_text(encoding="utf-8")
    assert line in text
    assert "The loop detector found loops in 2 of 4 conversations." in text
    assert f'"alarm":{{"x":{alarm / 2:g},"turn":{alarm},'.replace(".0,", ",") in text.replace(".0,", ",")
    assert re.search(r"│ +2 │ +20\d\d", call(capsys, "ls", "--storage", Path(run.path).parent).out)
    table = call(capsys, "analyze", run.path).out
    assert re.search(r"all +│ +4 │ +2 │ 50% +│ 15% to 85% +│ +[\d.]+ │ +0 │ +2", table)
    with (tmp_path / "talks.jsonl").open("w") as file:
        file.writelines(json.dumps(t.to_exchange()) + "\n" for t in run.transcripts())
    assert call(capsys, "analyze", tmp_path / "talks.jsonl", "--json").json["looped"] == analyzed["looped"]


def test_turns_are_numbered_by_messages_if_agents_bid(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    protocol = {"kind": "adaptive", "by": "bid"}
    bidding = run_experiment(value(protocol=protocol), storage=tmp_path / "bids", workers=1, progress=False)
    assert len(bidding.transcript("0-1-0").turns) > 14
    for each in (run, bidding):
        analyze_run(each)
    assert {f.alarm_turn for f in bidding.findings(["0-1-0"]) if f.analyzer == "loops"} == {
        f.alarm_turn for f in run.findings(["0-1-0"]) if f.analyzer == "loops"
    }
    shown = call(capsys, "show", bidding.path, "0-1-0").out
    assert re.findall(r"turn (\d+) *$", shown, flags=re.M)[:3] == ["1", "2", "3"]


def test_analyze_in_python_needs_no_run() -> None:
    from a2a_ray.core.transcript import Transcript

    turns = [{"speaker": "ann", "text": REFRAIN[i % 2]} for i in range(12)]
    ((transcript, found),) = analyze([Transcript.from_exchange({"id": "c", "turns": turns})])
    assert transcript.id == "c"
    assert [(f.analyzer, f.looped) for f in found] == [
        ("loops", True),
        ("paper_rule", False),
        ("exact_repetition", True),
    ]
