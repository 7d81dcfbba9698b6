"""Acting on loops while talks go on: stop and nudge in one process and on Ray, and what stopping saved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import ProtocolMessage
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.report.early_stops import early_stop
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.run import Run
from tests.command_line import ROOT, call, write_spec
from tests.test_bad_input import one_sentence
from tests.test_detect import HEALTHY, REFRAIN, needs_model


class Reads:
    """Says the lines of a play one after the other; what comes after them, again and again."""

    def __init__(self, name: str, lines: list[str], refrain: list[str], usage: dict[str, int] | None = None) -> None:
        self.name, self.lines, self.refrain, self.usage = name, lines, refrain, usage or {}

    def step(self, message: Message) -> Message:
        at = message.turn - 1
        beyond = at - len(self.lines)
        text = self.lines[at] if beyond < 0 else self.refrain[beyond % len(self.refrain)]
        return message.reply(text, self.name, usage=self.usage)


def players(**more: Any) -> list[Any]:
    return [Reads(name, HEALTHY, REFRAIN, **more) for name in ("ann", "bob")]


# --- in one process --------------------------------------------------------------------------------------------------


def test_stop_gives_the_reason_and_the_last_turn_before_the_onset() -> None:
    talk = Conversation(players(), max_rounds=25, observers=[LoopDetector(action="stop")]).run()
    assert talk.status == "done"
    assert len(talk) in range(13, 20)  # the refrain is new in turns 11 and 12
    turn, name, verdict = talk.verdicts[-1]
    assert (turn, name, verdict.status, verdict.action) == (len(talk), "LoopDetector", "loop", "stop")
    assert talk.reason == f"LoopDetector: {verdict.reason}"
    before = verdict.evidence["onset_turn"] - 1
    assert before in (11, 12)
    assert re.search(rf"\b{before}\b", talk.reason)


def test_a_talk_goes_on_from_the_last_turn_before_the_loop() -> None:
    talk = Conversation(players(), max_rounds=25, id="play", seed=3, observers=[LoopDetector(action="stop")]).run()
    start = talk.until(talk.verdicts[-1][2].evidence["onset_turn"] - 1)
    assert (start.status, start.verdicts, start.id, start.seed) == ("running", [], "play", 3)
    kept = len(start)
    others = [Reads(name, HEALTHY * 3, []) for name in ("ann", "bob")]
    again = Conversation(others, max_turns=20, transcript=start, observers=[LoopDetector(action="stop")]).run()
    assert again.turns[:kept] == talk.turns[:kept]
    assert len(again) == 20 or again.verdicts
    assert len(talk.until(0)) == 0
    for turn in (-1, len(talk) + 1):
        with pytest.raises(ConfigurationError, match=f"turn: {turn}; expected 0 to {len(talk)}"):
            talk.until(turn)


class Moderated(Alternating):
    """A moderator says its one sentence where a nudge is called for; nobody is moved by it."""

    def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
        return ProtocolMessage("moderator", "Please talk about something else now, you have said all of this before.")


def test_nudges_come_again_and_are_no_repetition_themselves() -> None:
    detector = LoopDetector(action="nudge", cooldown=6)
    talk = Conversation(players(), Moderated(), max_rounds=25, observers=[detector]).run()
    nudges = [m.seq for m in talk.turns if m.kind == "nudge"]
    assert len(nudges) >= 3
    assert all(6 <= b - a <= 8 for a, b in pairwise(nudges))
    assert talk.reason == "turn limit 50"
    silent = Conversation(players(), max_rounds=25, observers=[LoopDetector()]).run()

    def first_loop(transcript: Transcript) -> int:
        return next(turn for turn, _, verdict in transcript.verdicts if verdict.status == "loop")

    assert first_loop(talk) == first_loop(silent)
    statuses = [[v.status for _, _, v in t.verdicts] for t in (talk, silent)]
    assert statuses[0] == statuses[1]


def test_a_resumed_talk_that_loops_already_stops_with_its_next_turn() -> None:
    whole = Conversation(players(), max_turns=24).run()
    whole.status, whole.reason = "running", ""
    resumed = Conversation(players(), max_turns=50, transcript=whole, observers=[LoopDetector(action="stop")]).run()
    assert resumed.reason.startswith("LoopDetector: ")
    assert len(resumed) <= 25


# --- what stopping saved ---------------------------------------------------------------------------------------------


def stopped_at(texts: list[str], tokens: list[int | None]) -> Transcript:
    talk = Transcript("t", ("ann", "bob"))
    for i, (text, count) in enumerate(zip(texts, tokens, strict=True)):
        usage = {} if count is None else {"output_tokens": count}
        talk.append(Message("t", i + 1, ("ann", "bob")[i % 2], text, usage=usage))
    talk.status, talk.reason, talk.stopped_by = "done", "mine: again", "mine"
    return talk


def loop(onset: int, alarm: int) -> Finding:
    return Finding(conversation_id="t", analyzer="mine", status="loop", onset_turn=onset, alarm_turn=alarm)


def test_saved_tokens_add_up_as_by_hand() -> None:
    reported = stopped_at(["a", "b", "so", "so"], [10, 20, 30, 40])
    assert early_stop(reported, 10, [loop(1, 2), loop(3, 4)]).to_dict() == {
        "id": "t",
        "observer": "mine",
        "turn": 4,
        "onset_turn": 3,
        "turns_left": 6,
        "tokens_since_onset": 30 + 40,
        "tokens_saved": 6 * 25,  # a mean of 100 / 4
        "counted": True,
    }
    words = stopped_at(["a b c", "c d", "c d", "c d"], [None, None, None, 12])
    found = early_stop(words, 6, [loop(2, 4)])
    spent = (3 + 2 + 2) * 4 / 3 + 12
    assert (found.tokens_since_onset, found.tokens_saved) == (round(4 * 4 / 3 + 12), round(2 * spent / 4))
    assert not found.counted


def test_a_stop_without_a_loop_has_no_onset() -> None:
    found = early_stop(stopped_at(["a", "b"], [1, 1]), 5, [loop(1, 1)])
    assert (found.onset_turn, found.tokens_since_onset, found.tokens_saved) == (None, 0, 3)


# --- on Ray, with language models that loop --------------------------------------------------------------------------

OPENINGS, ROUNDS, TOKENS = 4, 15, 20


def looping(*observers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Greedy decoding, with the last 400 characters shown: most of these talks collapse into a few sentences."""
    model = {"kind": "hf", "model": "tiny-llama", "temperature": 0.0, "max_new_tokens": TOKENS}
    return {
        "agents": [{"name": "lou", **model}, {"name": "neo", **model}],
        "protocol": {"kind": "alternating", "context": {"characters": 400}},
        "openings": {"first": OPENINGS},
        "max_rounds": ROUNDS,
        "observers": list(observers),
        **more,
    }


@pytest.fixture(scope="module")
def acted(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Each talk twice: watched only, and stopped."""
    sweep = {"observers.0.action": ["record", "stop"]}
    storage = tmp_path_factory.mktemp("acted")
    return run_experiment(looping({"kind": "loops"}, sweep=sweep), storage=storage, progress=False)


@pytest.mark.slow
def test_stopped_talks_are_those_that_go_on_cut_short(acted: Run) -> None:
    watched, stopped = ([t for t in acted.transcripts() if t.metadata["cell"] == cell] for cell in (0, 1))
    assert acted.summary() == {
        "conversations": 2 * OPENINGS,
        "done": 2 * OPENINGS,
        "failed": 0,
        "turns": sum(len(t) for t in (*watched, *stopped)),
    }
    assert sum(t.stopped_by == "loops" for t in stopped) > OPENINGS / 2
    alarms = {f.conversation_id: f.alarm_turn for f in acted.findings() if f.looped and f.number == 1}
    for whole, cut in zip(watched, stopped, strict=True):
        assert whole.reason == f"turn limit {2 * ROUNDS}"
        assert [m.content for m in cut] == [m.content for m in whole][: len(cut)]
        assert len(cut) == (alarms.get(whole.id) or 2 * ROUNDS)


@pytest.mark.slow
def test_analyze_tells_what_was_saved(acted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, "analyze", acted.path, "--json").json
    stopped, talks = found["stopped"], {t.id: t for t in acted.transcripts()}
    assert len(stopped) > OPENINGS / 2
    for each in stopped:
        talk = talks[each["id"]]
        spent = [m.usage["output_tokens"] for m in talk.messages]
        assert each["counted"]
        assert each["turns_left"] == 2 * ROUNDS - len(spent)
        assert each["tokens_saved"] == round(each["turns_left"] * sum(spent) / len(spent))
        assert each["tokens_since_onset"] == sum(spent[each["onset_turn"] - 1 :])
        # The conversation that went on spent about what was thought to be saved.
        whole = sum(m.usage["output_tokens"] for m in talks["0" + each["id"][1:]].messages)
        assert sum(spent) + each["tokens_saved"] == pytest.approx(whole, rel=0.1)
    assert set(found["looped"]) >= {each["id"] for each in stopped}


@pytest.mark.slow
def test_people_read_it_in_a_table_and_in_the_report(
    acted: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stopped = call(capsys, "analyze", acted.path, "--json").json["stopped"]
    tokens = sum(each["tokens_saved"] for each in stopped)
    out = call(capsys, "analyze", acted.path).out
    assert "Stopped by an observer" in out
    assert re.search(rf"observers.0.action = stop +│ +{OPENINGS} │ +{len(stopped)} │", out)
    assert str(tokens) in out
    page = tmp_path / "report.html"
    assert call(capsys, "report", acted.path, "-o", page).status == 0
    text = page.read_text(encoding="utf-8")
    assert f"Observers stopped {len(stopped)} of them early, which saved about {tokens:,} tokens." in text
    assert text.count(", stopped by loops after turn ") >= len(stopped)


@pytest.mark.slow
def test_the_observer_and_an_analysis_of_the_file_find_the_same(
    acted: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    live = {f.conversation_id: f for f in acted.findings() if f.analyzer == "loops" and f.number == 1}
    assert call(capsys, "export", acted.path, "-o", tmp_path / "talks.jsonl").status == 0
    found = call(capsys, "detect", tmp_path / "talks.jsonl", "--json").json["findings"]
    assert {f["conversation_id"]: f for f in found if f["number"] == 1} == {id: f.to_dict() for id, f in live.items()}


@pytest.mark.slow
@needs_model
def test_a_worker_watches_with_an_embedder(ray_cluster: None, tmp_path: Path) -> None:
    value = looping({"kind": "loops", "embedder": "default", "action": "stop"}, openings={"first": 2}, max_rounds=8)
    run = run_experiment(value, storage=tmp_path, progress=False)
    assert run.summary()["done"] == 2
    assert any(t.stopped_by == "loops" for t in run.transcripts())


# --- what a specification may say -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"action": "halt"}, "action: 'halt'; expected 'record', 'nudge' or 'stop'"),
        ({"threshold": 99}, "observers.0: warn_threshold: "),
        ({"threshold": "hot"}, "observers.0.threshold: 'hot'; expected a number"),
        ({"thresold": 2}, "unknown key 'thresold'. Did you mean 'threshold'?"),
        ({"cooldown": 0}, "cooldown: 0; expected at least 1"),
        ({"embedder": "./none"}, "embedder './none': no such folder"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = write_spec(tmp_path, observers=[{"kind": "loops", **settings}])
    assert sentence in one_sentence(call(capsys, "run", spec))
    assert not (tmp_path / "runs").exists()


CHECKS = """
import json, sys
from a2a_ray.experiment.spec import Experiment
agents = [{"name": n, "kind": "echo"} for n in ("ann", "bob")]
Experiment.parse({"agents": agents, "observers": [{"kind": "loops", "embedder": "default"}]}).check()
print(json.dumps([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]))
"""


@needs_model
def test_checking_a_specification_loads_no_model() -> None:
    done = subprocess.run([sys.executable, "-c", CHECKS], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == []


@needs_model
def test_the_model_is_loaded_once_for_all_conversations(monkeypatch: pytest.MonkeyPatch) -> None:
    import sentence_transformers

    loaded: list[str] = []

    class Counted(sentence_transformers.SentenceTransformer):
        def __init__(self, *given: Any, **more: Any) -> None:
            loaded.append("a model")
            super().__init__(*given, **more)

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", Counted)
    for id in ("first", "second", "third"):
        agents = [EchoAgent("ann"), EchoAgent("bob")]
        observers = [LoopDetector("default", action="stop")]
        talk = Conversation(agents, opening=f"{id}: {HEALTHY[0]}", max_rounds=20, id=id, observers=observers).run()
        assert talk.reason.startswith("LoopDetector: ")
    assert len(loaded) <= 1
