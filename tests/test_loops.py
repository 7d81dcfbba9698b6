"""The loop detector: its settings, evidence and status, bad input, and its figures on labelled talks."""

from __future__ import annotations

import json
import pickle
import random
import runpy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.analysis.loops import MAX_SCORE, VERSION, LoopDetector, scan
from a2a_ray.analysis.loops.repeated_rounds import canonical
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from tests.strategies import random_talk
from tests.talks import message, transcript

# --- settings, evidence, status


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"threshold": MAX_SCORE}, "threshold: 4.0; expected 0 < warn_threshold <= threshold < 4"),
        ({"threshold": 0}, "expected 0 < warn_threshold"),
        ({"threshold": 2, "warn_threshold": 3}, "warn_threshold: 3, threshold: 2"),
        ({"threshold": 2, "action": "shout"}, "action: 'shout'; expected 'record', 'nudge' or 'stop'"),
        ({"threshold": 2, "cooldown": 0}, "cooldown: 0; expected at least 1"),
        ({"conversation_kind": "gossip"}, "'gossip'; expected 'auto' or one of tools, chat, self_talk, human"),
        ({"threshold": 2, "embedder": "./nowhere"}, "embedder './nowhere': no such folder"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        LoopDetector(**settings)
    assert sentence in str(error.value)


def test_evidence_can_be_checked() -> None:
    said = [
        "Shall we paint the fence?",
        "Not in this rain.",
        *["I would wait until the paint is dry on both sides."] * 5,
    ]
    talk = transcript(*said)
    found = scan(talk)
    assert found.loop is not None
    assert found.loop.alarm_turn == 6
    reason = found.verdicts[-1].reason
    assert found.findings == [
        Finding(
            conversation_id="t",
            analyzer="loops",
            analyzer_version=VERSION,
            settings={"threshold": 1.0, "warn_threshold": 0.6},
            through_seq=7,
            kind="verbatim",
            status="loop",
            reason=reason,
            onset_turn=4,
            alarm_turn=6,
            period=1,
            score=round(found.highest, 3),
            threshold=1.0,
            span="I would wait until the paint is dry on both sides.",
            earlier_span="I would wait until the paint is dry on both sides.",
            speakers=("ann", "bob"),
            tokens_since_onset=4 * round(11 * 4 / 3),
            evidence={
                "conversation_kind": "self_talk",
                "first_repeats_turn": 3,
                "last_repeats_turn": 6,
                "similarity": 1.0,
                "scores": [round(score, 3) for score in found.scores],
            },
        )
    ]
    assert reason.startswith("turns 4 to 7 repeat earlier ones word for word, or nearly so (first at turn 3; 60 tokens")


def test_tokens_are_those_that_messages_report() -> None:
    talk = Transcript("t", ("ann",))
    for i in range(6):
        talk.append(message(i + 1, "The same nine words are said once more today.", usage={"output_tokens": 100}))
    found = scan(talk)
    assert found.loop is not None
    assert found.loop.tokens_since_onset == 500


def test_hysteresis_and_the_end_of_an_alarm() -> None:
    rng = np.random.default_rng(5)
    news = random_talk(rng, 12, 30)
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*news[:3], *[again] * 8, *news[3:]))
    status = [v.status for v in found.verdicts]
    first, last = status.index("loop"), status.index("recovered")
    assert set(status[first:last]) == {"loop"}
    assert status[last + 1 :] == ["none"] * (len(status) - last - 1)
    assert last - 11 <= 5, "an alarm must end a few turns after the loop"
    assert found.verdicts[last].evidence["recovered_turn"] == 12
    assert max(found.scores) <= MAX_SCORE


def test_a_single_new_turn_does_not_end_an_alarm() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*[again] * 6, "By the way, who has got the key?", *[again] * 3))
    assert [v.status for v in found.verdicts][-4:] == ["loop"] * 4


def test_nudges_are_asked_for_at_first_and_after_the_cooldown() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*[again] * 16), action="nudge", cooldown=5)
    asked = [turn for turn, v in enumerate(found.verdicts, 1) if v.action == "nudge"]
    assert asked[1:] == [asked[0] + 5, asked[0] + 10]
    stops = scan(transcript(*[again] * 16), action="stop").verdicts
    assert all(v.action == "stop" for v in stops if v.status == "loop")


def test_what_is_passed_over() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    detector = LoopDetector()
    for turn in range(1, 40, 4):
        assert detector.update(message(turn, again, kind="bid")).status == "none"
        assert detector.update(message(turn + 1, again, kind="combine")).status == "none"
        assert detector.update(message(turn + 2, again, metadata={"nudge": True})).status == "none"
        assert detector.update(message(turn + 3, np.array([0.5, 1.0]))).status == "none"
    assert detector.score == 0


def test_one_speaker_who_repeats_what_others_do_not_answer_with_news() -> None:
    ask = "Please continue searching for other funds without fees and gather their performance since May."
    pages = [
        f"I scrolled down. The list of funds shows the same {w} entries, page {i}." for i, w in enumerate("abcdefgh")
    ]
    said = [text for page in pages for text in (ask, page)]
    found = scan(transcript(*said))
    assert found.loop is not None
    rng = np.random.default_rng(8)
    interview = [
        text for story in random_talk(rng, 10, 60) for text in ("How interesting! And what happened then?", story)
    ]
    assert scan(transcript(*interview)).loop is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1, "b": [2, " x "]}', '{ "b": [2, "X"], "a":1 }'),
        ("ls   -la\n", "LS -la"),
        ("done at 2026-11-21T14:05:09Z", "done at 2026-11-22T09:00:00.5+01:00"),
        ("req_81ab ok", "req_17zz ok"),
        ("id 0b8a6f3e-0d2c-4d1e-9f3a-8f8f8f8f8f8f", "id 3a8a6f3e-0d2c-4d1e-9f3a-8f8f8f8f8f00"),
    ],
)
def test_canonical_actions_are_equal(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("page(3)", "page(4)"), ('{"day": "2026-11-21"}', '{"day": "2026-11-22"}'), ("call 555-0199", "call 555-0147")],
)
def test_what_matters_of_an_action_stays(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


def test_calls_that_go_round_between_other_speakers_and_progress() -> None:
    def call(turn: int, name: str, answer: str) -> list[Message]:
        return [message(turn, name, kind="action"), message(turn + 1, answer, "tool", kind="result")]

    detector = LoopDetector()
    steps = ["open()", "list()", "close()"] * 4
    status = [detector.update(m).status for i, name in enumerate(steps) for m in call(2 * i + 1, name, "ok")]
    assert status.index("loop") == 2 * 4 + 1  # the second call of the second round, with the same result again
    assert detector.update(message(30, "list()", kind="action")).status == "loop"
    assert detector.update(message(31, "three files", "tool", kind="result")).status == "recovered"


# --- size, speed, bad input


def test_the_state_stays_small_and_goes_on_after_ten_thousand_turns() -> None:
    rng = np.random.default_rng(7)
    said = random_talk(rng, 500, 50)
    detector = LoopDetector()
    for i in range(10_000):
        detector.update(message(i + 1, f"{said[i % 500]} {said[(7 * i + 3) % 500]}"[:300], f"agent_{i % 200}"))
    assert len(pickle.dumps(detector)) <= 64 * 1024


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        "".join(random.Random(1).choices("ab ", k=1_000_000)),
        "\x00\xff\x1b" * 333_333,
        "猫" * 1_000_000,
        "e\u0301" * 500_000,
        "9" * 1_000_000,
        '{"a":' * 200_000,
    ],
    ids=["words", "letters", "two letters", "binary", "cjk", "combining", "digits", "nested"],
)
def test_a_megabyte_in_one_turn(text: str) -> None:
    for kind in ("message", "action"):
        detector, started = LoopDetector(), time.process_time()
        for turn in range(1, 4):
            detector.update(message(turn, text, kind=kind))
        assert (time.process_time() - started) / 3 < 1, "CPU seconds a turn"


@pytest.mark.parametrize(
    "text",
    [
        "😀🎉👍🏽",
        "שלום, מה שלומך היום? הכל בסדר גמור אצלי",
        "猫は窓のそばで静かに鳴いていた。",
        "नमस्ते आप कैसे हैं",
        "\ud800 broken half of a pair",
    ],
)
def test_any_script_goes_round(text: str) -> None:
    assert scan(transcript(*[text] * 12)).loop is not None


def test_an_empty_talk() -> None:
    found = scan(Transcript("t", ()))
    assert (found.verdicts, found.scores, found.loop, found.highest) == ([], [], None, 0.0)
    assert [each.status for each in found.findings] == ["none"]


def test_figures_on_labelled_talks(shared: Path) -> None:
    """A floor under the figures in docs/method/loop_detector.md, without an embedder: what is lost would be noticed."""
    score = runpy.run_path(str(shared.parent / "eval" / "score_loops.py"))["score"]
    labelled = [json.loads(line) for line in (shared / "loops_dev.jsonl").read_text(encoding="utf-8").splitlines()]
    loops = {t["id"]: scan(Transcript.from_exchange(t)).loop for t in labelled}
    alarms = [{"id": id, "alarm": None if loop is None else loop.alarm_turn - 1} for id, loop in loops.items()]
    found = score(labelled, alarms)
    assert found["f1"] >= 0.91
    assert found["false_alarm_rate"] <= 0.05
    assert found["delay_median"] <= 5
