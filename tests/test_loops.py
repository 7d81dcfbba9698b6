"""The loop detector's parts, its settings, its evidence, bad input, and its figures on labelled talks."""

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

from a2a_ray.analysis.embedding import Embedder, load_embedder
from a2a_ray.analysis.loops import EMBEDDED, LEAST, MOST, LoopDetector, scan, scan_many, to_embed
from a2a_ray.analysis.loops.actions import canonical
from a2a_ray.analysis.loops.lexical import WINDOW, Copied, Recall
from a2a_ray.analysis.loops.semantic import scale_of
from a2a_ray.analysis.loops.signs import Voice, of_words
from a2a_ray.analysis.loops.words import words
from a2a_ray.core.errors import A2AError, BadInput
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from tests.strategies import random_talk

TOPIC = (
    "The harbour was frozen until March, so the fishermen mended nets in the school and told the children about storms"
    " that had thrown whole boats onto the market square"
)
AGREED = [
    "Absolutely! When team members feel heard, they are more willing to share ideas. It creates psychological safety.",
    "I completely agree. Psychological safety is so important, because people who feel understood share more openly.",
    "Exactly! By fostering empathy and understanding, we build teams in which everybody feels valued and heard.",
    "Well said! A culture of mutual understanding truly helps teams, since everyone feels respected and valued.",
    "I couldn't agree more. When people feel respected and valued, trust grows, and the whole team benefits.",
    "Yes, indeed! Trust and open communication are what makes a team strong, and empathy makes them possible.",
    "That's so true. Empathy strengthens trust, and trust strengthens teams in which all members feel valued.",
    "Beautifully put! Understanding one another creates teams in which each person feels appreciated and heard.",
    "Absolutely. A team culture of empathy and respect lets people feel valued and share their ideas openly.",
    "I wholeheartedly agree. When we listen with empathy, people feel heard, and teams grow in trust and respect.",
    "Precisely! Listening with empathy makes everyone in the team feel valued, and so trust can grow.",
    "Indeed! Valuing each person and listening with empathy is what makes teams trust one another.",
]


def message(turn: int, content: Any, sender: str = "ann", **parts: Any) -> Message:
    return Message("t", turn, sender, content, **parts)


def transcript(*said: str, speakers: str = "ann bob") -> Transcript:
    names = tuple(speakers.split())
    talk = Transcript("t", names)
    for i, text in enumerate(said):
        talk.append(message(i + 1, text, names[i % len(names)]))
    return talk


def tell(*said: str) -> list[Copied]:
    recall = Recall()
    return [recall.read(*words(text)) for text in said]


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The default embedder, where its weights are on this machine."""
    try:
        found = load_embedder()
    except A2AError as error:
        pytest.skip(str(error))
    assert found is not None
    return found


# --- words and what is copied


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Version 2.1 at 12:30 of f3a9", ["version", "#", "#", "at", "#", "#", "of", "#"]),
        ("Don't STOP", ["don", "t", "stop"]),
        ("ÉTÉ Straße", ["été", "strasse"]),
        ("猫は鳴いた", ["猫", "は", "鳴", "い", "た"]),
        ("👍👍!", ["👍", "👍", "!"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("a" * 30, ["a" * 12, "a" * 12, "a" * 6]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text)[0] == expected


def test_numbers_are_kept_as_they_were_written() -> None:
    assert words("7 of 10 files, id a8")[1] == ["7", "10", "a8"]


def test_new_text_is_new_and_a_copy_costs_as_much_as_pointing() -> None:
    first, copy, again = tell(TOPIC, TOPIC, TOPIC)
    assert (first.novelty, first.words, first.new) == (1.0, 29, 29)
    assert (copy.novelty, copy.new, copy.again) == (pytest.approx(0.5 / 29), 0, 0.0)
    assert (again.novelty, again.again) == (0.0, 1.0)


def test_scattered_words_and_stock_phrases_save_nothing() -> None:
    shuffled = TOPIC.split()
    random.Random(4).shuffle(shuffled)
    quoted = "As I said in the morning, the fishermen mended nets, which takes patience and very thin cold fingers"
    assert tell(TOPIC, " ".join(shuffled))[1].novelty > 0.9
    assert tell(TOPIC, quoted)[1].novelty > 0.85


def test_a_passage_is_found_wherever_turns_are_cut() -> None:
    said = TOPIC.split()
    found = tell(TOPIC, " ".join([*said[17:], *said[:11]]), " ".join(said[11:]))
    assert found[1].novelty < 0.3  # two places to point at
    assert found[2].novelty < 0.2


def test_swapped_words_and_changed_numbers() -> None:
    swapped = TOPIC.replace("school", "church").replace("storms", "floods")
    found = tell(TOPIC, swapped)[1]
    assert (found.new, found.swapped, found.fresh) == (2, 2, 0)
    assert found.novelty < 0.15
    counted = tell(
        "Report number 12 of the northern office is ready", "Report number 13 of the northern office is ready"
    )
    assert counted[1].changed == 1
    assert counted[1].novelty == pytest.approx(1 / 9 + 0.5 / 9 - 0.5 / 9, abs=0.06)


def test_text_longer_than_the_window_is_forgotten() -> None:
    rng = np.random.default_rng(3)
    said = [TOPIC, *random_talk(rng, 3 * WINDOW // 20, 20), TOPIC]
    assert tell(*said)[-1].novelty > 0.9
    assert tell(*said[-300:-1], TOPIC, *said[1:100], TOPIC)[-1].novelty < 0.1


def test_progress_outweighs_a_quotation() -> None:
    addition = (
        "what nobody had told them is that the ice breaker was sold in autumn to pay for the new roof of the church"
    )
    grown = tell(TOPIC, f"{TOPIC}; {addition} and for two bells made of bronze")[1]
    assert of_words(grown) < 0
    assert of_words(tell(TOPIC, f"{TOPIC} too")[1]) > 0.4


# --- likeness


def test_common_wording_explains_likeness() -> None:
    new, copied = Voice(), Voice()
    for _ in range(6):
        new.hear(1.0, 1.0)
        copied.hear(0.6, 1.0)
    assert new.of_likeness(0.9) > 0.9
    assert copied.of_likeness(0.9) < 0


def test_what_is_usual_in_a_talk_is_no_sign() -> None:
    voice = Voice()
    signs = [voice.of_likeness(0.75) for _ in range(6)]
    assert signs[0] > 0.3
    assert signs[-1] < 0
    assert voice.of_likeness(1.1) > 0.9


def test_the_scale_of_an_embedder(embedder: Embedder) -> None:
    scale = scale_of(embedder)
    same = embedder.encode(["The cat sleeps on the sofa.", "On the sofa there is a sleeping cat."])
    other = embedder.encode(["Interest rates rose again in May."])
    assert scale(float(same[0] @ same[1])) > 0.9
    assert abs(scale(float(same[0] @ other[0]))) < 0.2


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("The ferry left at dawn with eleven passengers on deck.", True),
        ("def area(width: float, height: float) -> float: return width * height", True),
        ("Die Fähre legte im Morgengrauen mit elf Fahrgästen ab.", True),
        ("渡轮在黎明时分载着十一名乘客离开了港口。", False),
        ("페리는 새벽에 승객 열한 명을 태우고 떠났다.", False),
        ("কেমন আছেন আপনি আজ সকালে", False),
    ],
)
def test_which_texts_an_embedder_can_read(embedder: Embedder, text: str, known: bool) -> None:
    assert scale_of(embedder).reads(text) is known


def test_a_language_that_the_embedder_cannot_read_is_left_to_the_words(embedder: Embedder) -> None:
    said = (
        "페리는 새벽에 떠났다. 등대는 어두웠다. 안개가 짙어졌다. 소년은 초를 셌다. 요리사는 국을 나눠 주었다."
        " 정오에 종이 울렸다. 엔진이 멈췄다. 부표가 떠 있었다. 선장은 수심을 쟀다. 모래가 나왔다. 물이 차올랐다."
        " 저녁에 항구가 보였다. 오렌지를 먼저 내렸다."
    )
    assert scan(transcript(*said.split(". ")), embedder, loop=LEAST).alarm is None


def static_model(folder: Path, embedder: Embedder) -> Path:
    """A static sentence-transformers model: the word vectors of the default model, averaged."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    transformer: Any = embedder._loaded()[0]
    weights = transformer.auto_model.get_input_embeddings().weight.detach().numpy()
    tokenizer = transformer.tokenizer.backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(folder))
    return folder


def test_a_static_model_as_the_fast_choice(tmp_path: Path, embedder: Embedder) -> None:
    fast = load_embedder(str(static_model(tmp_path / "static", embedder)))
    assert fast is not None
    scale, default = scale_of(fast), scale_of(embedder)
    assert scale.unrelated > default.unrelated + 0.05, "a cosine means less with word vectors"
    talk = transcript("What makes a team work well?", *AGREED)
    assert scan(talk, fast, loop=LEAST).alarm is not None
    rng = np.random.default_rng(2)
    assert scan(transcript(*random_talk(rng, 30)), fast, loop=LEAST).alarm is None


def test_agreement_in_ever_new_words(embedder: Embedder) -> None:
    talk = transcript("What makes a team work well?", *AGREED)
    found = scan(talk, embedder, loop=LEAST)
    assert found.alarm is not None
    assert found.finding is not None
    assert found.finding["kind"] == "semantic"
    assert 2 <= found.finding["onset"] <= 8
    assert scan(talk, loop=LEAST).alarm is None


# --- settings, evidence, status


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"loop": MOST}, "loop: 8.0; expected 0 < warn <= loop < 8"),
        ({"loop": 0}, "expected 0 < warn"),
        ({"loop": 2, "warn": 3}, "warn: 3, loop: 2"),
        ({"loop": 2, "action": "shout"}, "action: 'shout'; expected 'record', 'nudge' or 'stop'"),
        ({"loop": 2, "cooldown": 0}, "cooldown: 0; expected at least 1"),
        ({"loop": 2, "embedder": "./nowhere"}, "embedder './nowhere': no such folder"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as error:
        LoopDetector(**settings)
    assert sentence in str(error.value)


def test_the_default_threshold_is_the_fitted_one_or_the_floor() -> None:
    from a2a_ray.analysis.calibration import shipped

    assert LoopDetector().loop == max(LEAST, shipped("lexical").threshold)


def test_evidence_can_be_checked() -> None:
    said = [
        "Shall we paint the fence?",
        "Not in this rain.",
        *["I would wait until the paint is dry on both sides."] * 4,
    ]
    talk = transcript(*said)
    found = scan(talk, loop=LEAST)
    assert found.finding is not None
    assert found.alarm == 5
    assert found.finding == {
        "kind": "verbatim",
        "onset": 4,
        "earlier": 3,
        "last_before": 3,
        "period": 1,
        "span": "I would wait until the paint is dry on both sides",
        "earlier_span": "i would wait until the paint is dry on both sides",
        "repeats": 5,
        "speakers": ["ann", "bob"],
        "similarity": 1.0,
        "tokens": 3 * round(11 * 4 / 3),
        "score": found.finding["score"],
    }
    reason = found.verdicts[-1].reason
    assert reason.startswith("turns 4 to 6 repeat earlier ones word for word, or nearly so (first at turn 3; 45 tokens")
    assert json.loads(json.dumps(found.finding)) == found.finding


def test_tokens_are_those_that_messages_report() -> None:
    talk = Transcript("t", ("ann",))
    for i in range(6):
        talk.append(message(i + 1, "The same nine words are said once more today.", usage={"output_tokens": 100}))
    found = scan(talk, loop=LEAST)
    assert found.finding is not None
    assert found.finding["tokens"] == 500


def test_hysteresis_and_the_end_of_an_alarm() -> None:
    rng = np.random.default_rng(5)
    news = random_talk(rng, 12, 30)
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*news[:3], *[again] * 8, *news[3:]), loop=LEAST)
    status = [v.status for v in found.verdicts]
    first, last = status.index("loop"), status.index("recovered")
    assert set(status[first:last]) == {"loop"}
    assert status[last + 1 :] == ["none"] * (len(status) - last - 1)
    assert last - 11 <= 5, "an alarm must end a few turns after the loop"
    assert found.verdicts[last].evidence["recovers_at"] == 12
    assert max(found.scores) <= MOST


def test_a_single_new_turn_does_not_end_an_alarm() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*[again] * 6, "By the way, who has got the key?", *[again] * 3), loop=LEAST)
    assert [v.status for v in found.verdicts][-4:] == ["loop"] * 4


def test_nudges_are_asked_for_at_first_and_after_the_cooldown() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    found = scan(transcript(*[again] * 16), loop=LEAST, action="nudge", cooldown=5)
    asked = [turn for turn, v in zip(found.turns, found.verdicts, strict=True) if v.action == "nudge"]
    assert asked[1:] == [asked[0] + 5, asked[0] + 10]
    stops = scan(transcript(*[again] * 16), loop=LEAST, action="stop").verdicts
    assert all(v.action == "stop" for v in stops if v.status == "loop")


def test_what_is_passed_over() -> None:
    again = "There is no train before six, so we have to stay here for the night."
    detector = LoopDetector(loop=LEAST)
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
    found = scan(transcript(*said), loop=LEAST)
    assert found.alarm is not None
    rng = np.random.default_rng(8)
    interview = [
        text for story in random_talk(rng, 10, 60) for text in ("How interesting! And what happened then?", story)
    ]
    assert scan(transcript(*interview), loop=LEAST).alarm is None


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

    detector = LoopDetector(loop=LEAST)
    steps = ["open()", "list()", "close()"] * 4
    status = [detector.update(m).status for i, name in enumerate(steps) for m in call(2 * i + 1, name, "ok")]
    assert status.index("loop") == 2 * 9 + 1  # the first call for the fourth time
    assert detector.update(message(30, "list()", kind="action")).status == "loop"
    assert detector.update(message(31, "three files", "tool", kind="result")).status == "recovered"


# --- size, speed, bad input


def test_the_state_stays_small_and_goes_on_after_ten_thousand_turns() -> None:
    rng = np.random.default_rng(7)
    said = random_talk(rng, 500, 50)
    detector = LoopDetector(loop=LEAST)
    for i in range(10_000):
        detector.update(message(i + 1, f"{said[i % 500]} {said[(7 * i + 3) % 500]}"[:300], f"agent_{i % 200}"))
    assert len(pickle.dumps(detector)) <= 256 * 1024


def test_the_embedder_pickles_by_name(embedder: Embedder) -> None:
    detector = LoopDetector(embedder, loop=LEAST)
    for i, text in enumerate(AGREED):
        detector.update(message(i + 1, text))
    state = pickle.dumps(detector)
    assert len(state) <= 64 * 1024
    copy = pickle.loads(state)
    assert copy.update(message(99, AGREED[0])) == detector.update(message(99, AGREED[0]))


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
        detector, started = LoopDetector(loop=LEAST), time.perf_counter()
        for turn in range(1, 4):
            detector.update(message(turn, text, kind=kind))
        assert (time.perf_counter() - started) / 3 < 1


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
    assert scan(transcript(*[text] * 12), loop=LEAST).alarm is not None


def test_an_empty_talk() -> None:
    found = scan(Transcript("t", ()), loop=LEAST)
    assert (found.verdicts, found.scores, found.alarm, found.finding, found.highest) == ([], [], None, None, 0.0)


# --- many conversations


def test_many_are_scanned_as_one_is(embedder: Embedder) -> None:
    talks = [transcript("What makes a team work well?", *AGREED[:k]) for k in (3, 7, 12)]
    together = scan_many(talks, embedder, loop=LEAST)
    assert together == [scan(t, embedder, loop=LEAST) for t in talks]
    done: list[tuple[int, int]] = []
    assert scan_many(talks, progress=lambda *n: done.append(n), loop=LEAST) == [scan(t, loop=LEAST) for t in talks]
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_what_is_embedded() -> None:
    messages = [message(1, "a" * 9000), message(2, " "), message(3, "ls", kind="action"), message(4, "x", kind="nudge")]
    assert to_embed(messages) == ["a" * EMBEDDED]


def test_figures_on_labelled_talks(shared: Path) -> None:
    """A floor under the figures in docs/loops.md, for the words alone: what is lost would be noticed."""
    score = runpy.run_path(str(shared.parent / "eval" / "score_loops.py"))["score"]
    labelled = [json.loads(line) for line in (shared / "loops_dev.jsonl").read_text(encoding="utf-8").splitlines()]
    alarms = [{"id": t["id"], "alarm": scan(Transcript.from_exchange(t), loop=LEAST).alarm} for t in labelled]
    found = score(labelled, alarms)
    assert found["f1"] >= 0.88
    assert found["false_alarm_rate"] <= 0.05
    assert found["delay_median"] <= 3
