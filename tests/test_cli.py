"""The command line from one end to the other: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import a2a_ray
from a2a_ray.store.run import open_run
from tests.command_line import Done, call, finish, start, write_spec
from tests.test_report import CHROMIUM, probe


class Finished:
    """One run, held once by the real command for all tests of this module that only read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "runs"
        spec = write_spec(folder, name="talks")
        self.done: Done = finish(start("run", spec, "--storage", self.storage, "--workers", "2", "--json", cwd=folder))
        (self.path,) = map(str, self.storage.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def capsys(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> pytest.CaptureFixture[str]:
    monkeypatch.setenv("COLUMNS", "100")
    return capsys


def test_run_ends_with_one_line_of_json_and_speaks_on_standard_error(finished: Finished) -> None:
    status, out, err = finished.done
    assert status == 0, err
    assert out == json.dumps(finished.done.json) + "\n"
    assert finished.done.json == {"run": finished.path, "conversations": 2, "done": 2, "failed": 0, "turns": 12}
    assert err == f"{finished.path}: 2 of 2 conversations done, 12 turns.\n"
    assert re.fullmatch(r"talks-\d{8}-\d{6}", Path(finished.path).name)


def test_the_new_specification_can_be_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, "init")
    assert (status, out) == (0, "")
    assert err == "Wrote experiment.yaml. Try: a2a-ray run experiment.yaml --dry-run\n"
    assert call(capsys, "run", "experiment.yaml", "--dry-run").status == 0
    assert call(capsys, "init").status == 2
    assert call(capsys, "init", "--force").status == 0
    assert [p.name for p in tmp_path.iterdir()] == ["experiment.yaml"]


PAID = {
    "agents": [
        {
            "name": "ann",
            "kind": "openai",
            "model": "m",
            "api_key_env": None,
            "max_tokens": 100,
            "instructions": "x" * 20,
            "price": {"input": 1.0, "output": 10.0},
        },
        {"name": "bob", "kind": "openai", "model": "m", "api_key_env": None},
    ],
    "protocol": {"kind": "alternating", "context": {"last": 2}},
    "openings": ["x" * 40],
    "max_rounds": None,
    "max_turns": 4,
    "repeats": 3,
}
# By hand, in tokens of four characters: the opening has 10, the instructions 5; an answer is taken at most as long as
# the longest allowed, 500 (bob has no limit). Shown at the four turns: 10, 10 + 500, 2 x 500, 2 x 500.
PAID_INPUT = 3 * ((5 + 10) + 510 + (5 + 1000) + 1000)
PAID_COST = 3 * ((15 + 1005) * 1.0 + 2 * 100 * 10.0) / 1e6


def test_a_dry_run_adds_up_as_by_hand(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = write_spec(tmp_path, **PAID)
    done = call(capsys, "run", spec, "--dry-run", "--json", "--storage", tmp_path / "runs")
    assert done.status == 0
    assert done.json == {
        "conversations": 3,
        "turns": 12,
        "calls": 12,
        "input_tokens": PAID_INPUT,
        "output_tokens": 3 * (2 * 100 + 2 * 500),
        "cost": pytest.approx(PAID_COST),
        "assumed": ["bob"],
        "judge_calls": 0,
    }
    table = call(capsys, "run", spec, "--dry-run")
    assert f"{PAID_INPUT:,}" in table.out
    assert "0.01" in table.out
    assert "500 tokens an answer: bob" in table.out
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]


def test_a_dry_run_counts_bids_as_calls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lsa = {"kind": "lsa", "dim": 3, "step_size": 0.5}
    agents = [{"name": n, **lsa, "objective": {"angle": a}} for n, a in (("a", 0.0), ("b", 90.0), ("c", 180.0))]
    sweep = {"agents.a.step_size": [0.1, 0.2]}
    spec = write_spec(
        tmp_path,
        agents=agents,
        protocol={"kind": "adaptive", "by": "bid"},
        openings={"zeros": 3},
        max_rounds=5,
        repeats=2,
        sweep=sweep,
    )
    done = call(capsys, "run", spec, "--dry-run", "--json").json
    # 2 settings x 2 repeats of 5 rounds of 3 agents; before each turn all three bid.
    assert (done["conversations"], done["turns"], done["calls"]) == (4, 60, 60 * 4)
    assert (done["input_tokens"], done["output_tokens"], done["cost"]) == (0, 0, None)


def test_ls_lists_runs(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "ls", "--storage", finished.storage, "--json")
    (run,) = done.json["runs"]
    assert done.status == 0
    assert run.pop("created").startswith("20")
    assert run == {**finished.done.json, "looped": run["looped"]}
    table = call(capsys, "ls", "--storage", finished.storage)
    assert finished.path in table.out  # whole, so that it can be copied
    assert "No runs in" in call(capsys, "ls", "--storage", finished.folder / "none").out


def test_show_prints_a_chat(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "show", finished.path)
    assert (status, err) == (0, "")
    assert out.index("0-0-0") < out.index("so so so one") < out.index("0-1-0") < out.index("so so so two")
    assert "done: turn limit 6 (6 turns)" in out
    assert call(capsys, "show", finished.path + "/").out == out
    assert call(capsys, "show", f"{finished.path}/manifest.json").out == out
    one = call(capsys, "show", finished.path, "0-1-0").out
    assert "0-0-0" not in one
    assert one in out
    limited = call(capsys, "show", finished.path, "--limit", "1")
    assert "0-1-0" not in limited.out
    assert "1 more conversation:" in limited.err


def test_export_and_back(finished: Finished, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    assert call(capsys, "export", finished.path, "-o", file) == (0, "", f"Wrote 2 conversations to {file}\n")
    transcripts, problems = a2a_ray.read_jsonl(file)
    assert problems == []
    kept = {t.id: [(m.sender, m.content) for m in t.messages] for t in open_run(finished.path).transcripts()}
    assert {t.id: [(m.sender, m.content) for m in t.messages] for t in transcripts} == kept
    assert [t.opening.content for t in transcripts] == ["one", "two"]
    shown = call(capsys, "show", file)
    assert (shown.status, shown.err) == (0, "")
    assert "so so so two" in shown.out
    assert shown.out.count("opening\n") == 2

    of_run = call(capsys, "analyze", finished.path, "--embedder", "none", "--json")
    of_file = call(capsys, "analyze", file, "--embedder", "none", "--json")
    assert (of_run.status, of_file.status) == (0, 0)
    assert of_run.json["conversations"] == 2
    assert of_file.json["looped"] == of_run.json["looped"]
    loops = [
        [{**f, "through_seq": 0} for f in each.json["findings"] if f["analyzer"] != "equilibrium"]
        for each in (of_file, of_run)  # the file has no combinations, so the log of the run is longer
    ]
    assert loops[0] == loops[1]
    table = call(capsys, "analyze", file, "--embedder", "none")
    assert table.out.startswith("Loops\n")


def test_report_is_written(finished: Finished, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert call(capsys, "report", finished.path, "--embedder", "none", "-o", page) == (0, "", f"Wrote {page}\n")
    assert "so so so two" in page.read_text()


def test_a_finished_run_needs_no_resuming(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    before = open_run(finished.path).rows
    done = call(capsys, "resume", finished.path, "--json")
    assert (done.status, done.json) == (0, finished.done.json)
    assert open_run(finished.path).rows.equals(before)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert a2a_ray.__version__ in call(capsys, "--version").out
    status, out, err = call(capsys, "--help")
    assert (status, err) == (0, "")
    for command in (
        "demo",
        "init",
        "run",
        "resume",
        "ls",
        "show",
        "analyze",
        "report",
        "export",
        "detect",
        "calibrate",
        "reproduce",
    ):
        assert re.search(rf"^  {command} ", out, re.M)
        assert call(capsys, command, "--help").status == 0
    status, out, err = call(capsys)
    assert (status, out) == (2, "")
    assert "Usage:" in err


SHAPE: dict[str, Any] = {
    "misaligned": {"pairs": int, "max_relative_error": float},
    "loops": {"conversations": int, "looped": int, "published_setting_looped": int},
    "turns": int,
    "run": str,
    "report": str,
    "seconds": float,
}


def shape(value: Any) -> Any:
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path: Path) -> None:
    done = finish(start("demo", "--json", cwd=tmp_path), timeout=280)
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    result = done.json
    assert shape(result) == SHAPE
    assert result["misaligned"]["pairs"] == 19
    assert 0 <= result["misaligned"]["max_relative_error"] < 1e-9
    loops = result["loops"]
    assert loops["conversations"] == 24
    assert 0 < loops["looped"] <= 24
    assert loops["published_setting_looped"] <= min(12, loops["looped"])
    assert open_run(tmp_path / result["run"]).summary()["turns"] == result["turns"]
    page = tmp_path / result["report"]
    assert page.is_file()
    if CHROMIUM is None:
        pytest.skip("the demo is fine; no Chromium is installed to open its report")
    seen, console = probe(page)
    assert console == []
    assert seen["drawn"] >= seen["plots"] > 0
