"""`a2a-ray reproduce loops`: the published experiment with its open factors, run by the embedded models."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.reproduce.loops.loop_settings import LoopSetting, loop_experiment, loop_settings
from a2a_ray.reproduce.loops.looping_rates import LoopingRate
from a2a_ray.reproduce.loops.loops_study import read_labelled
from tests.command_line import call

PUBLISHED = LoopSetting(("a", "b"), 50, 0.7, "last")


def test_every_factor_is_varied_around_the_published_setting() -> None:
    cells = loop_settings(["a", "b"], [25, 100], [0.0, 1.0])
    assert len(cells) == len(set(cells))
    assert PUBLISHED in cells
    main = [c for c in cells if c.pair == ("a", "b")]
    assert {c.temperature for c in main} == {0.0, 0.7, 1.0}
    assert {c.context for c in main} == {"last", "last 3", "400 characters"}
    assert {c.tokens for c in main} == {25, 50, 100}
    assert {c.pair for c in cells} == {("a", "a"), ("a", "b"), ("b", "b")}


def test_one_model_is_paired_with_itself() -> None:
    assert {c.pair for c in loop_settings(["a"], [50], [0.7])} == {("a", "a")}
    with pytest.raises(ConfigurationError, match="models: none given"):
        loop_settings([], [50], [0.7])


def test_a_cell_becomes_agents_and_a_protocol() -> None:
    cells = loop_settings(["tiny-llama", "tiny-neox"], [25], [0.0])
    spec = loop_experiment(cells, 2, 3, 7)
    spec.check()
    assert spec.size() == (2 * len(cells), 2 * len(cells) * 6)
    cell = spec.cells[cells.index(LoopSetting(("tiny-llama", "tiny-neox"), 25, 0.7, "last"))]
    assert cell.agents[1].settings["max_new_tokens"] == 25
    assert cell.protocol["context"] == "last"


def test_rates_have_wilson_intervals() -> None:
    low, high = LoopingRate(35, 50).interval
    assert (round(low, 3), round(high, 3)) == (0.562, 0.809)


def test_labels_of_readers_who_disagree_are_left_out(tmp_path: Path) -> None:
    turns = [{"speaker": "a", "text": "Hi."}]
    rows = [
        {"id": "1", "turns": turns, "loop": True},
        {"id": "2", "turns": turns, "labels": {"A": {"loop": False}, "B": {"loop": False}}},
        {"id": "3", "turns": turns, "labels": {"A": {"loop": False}, "B": {"loop": True}}},
        {"id": "4", "turns": turns},
    ]
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    transcripts, looped = read_labelled(path)
    assert ([t.id for t in transcripts], looped) == (["1", "2"], [True, False])
    path.write_text(json.dumps(rows[3]))
    with pytest.raises(ConfigurationError, match="no conversation has a label"):
        read_labelled(path)


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join((shared / "loops_dev.jsonl").read_text().splitlines(True)[:20]))
    small = "--tokens 25 --temperatures 0,1 --openings 1 --rounds 4 --embedder none --seed 3"
    done = call(capsys, "reproduce", "loops", *small.split(), "--labelled", labelled, "-o", tmp_path, "--json")
    assert done.status == 0, done.err
    result = done.json
    assert result == json.loads((tmp_path / "results.json").read_text())
    assert len(result["cells"]) == 15  # 3 temperatures x 3 contexts, 25 tokens twice, two more pairs twice
    assert all(0 <= c["detector"]["low"] <= c["detector"]["rate"] <= c["detector"]["high"] for c in result["cells"])
    assert all(Path(figure).is_file() for figure in result["figures"])
    assert {"temperature", "tokens", "models", "thresholds", "roc"} <= {Path(f).stem for f in result["figures"]}
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7**3 * 4
    assert {"cosine", "jaccard", "bleu", "rounds", "alarms", "f1"} <= rows[0].keys()
    assert "a2a-ray reproduce loops" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tokens", "x"], "tokens"),
        (["--temperatures", "-1"], "temperature"),
        (["--openings", "999"], "openings"),
        (["--models", "nosuch"], "nosuch"),
        (["--labelled", "nosuch.jsonl"], "nosuch.jsonl"),
    ],
)
def test_invalid_values_are_reported_in_one_sentence(
    tmp_path: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "reproduce", "loops", *arguments, "-o", tmp_path / "out")
    assert done.status == 2
    assert named in done.err
    assert done.err.count("\n") <= 2
    assert not list(tmp_path.glob("out/loops-*"))
