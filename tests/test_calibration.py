from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.analysis.loops import MAX_SCORE, LoopDetector, scan_many
from a2a_ray.analysis.loops.calibration import MIN_THRESHOLD, check, fit
from a2a_ray.analysis.loops.threshold import AlarmRate, Calibration, score_name
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import BID, Message
from a2a_ray.core.transcript import Transcript
from tests.strategies import calibrations, rates, tied_scores

TALKS = 1_000


def margin(rate: float, trials: int = TALKS) -> float:
    """`rate` plus four standard errors of a share of so many trials."""
    return rate + 4 * math.sqrt(rate * (1 - rate) / trials)


def runs_of(scores: Any) -> list[Any]:
    """One run of one turn for each score."""
    return list(np.reshape(np.asarray(scores, dtype=float), (-1, 1)))


# --- which score the threshold is ---


@pytest.mark.parametrize(
    ("runs", "rate", "confidence", "rank"),
    [
        (19, 0.05, None, 19),
        (33, 0.03, None, 33),
        (39, 0.05, None, 38),
        (99, 0.03, None, 97),
        (100, 0.03, None, 98),
        (199, 0.29, None, 142),
        (59, 0.05, 0.95, 59),
        (93, 0.05, 0.95, 92),  # Wilks: 93 runs let the second highest do
        (92, 0.05, 0.95, 92),
        (100, 0.1, 0.95, 96),
    ],
)
def test_the_threshold_is_the_order_statistic(runs: int, rate: float, confidence: float | None, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(runs) + 1.0
    assert fit(runs_of(scores), rate, 1, confidence=confidence).threshold == rank


@given(rates, st.integers(1, 150), st.sampled_from([None, 0.5, 0.95]))
def test_as_many_runs_as_the_sentence_says(rate: float, runs: int, confidence: float | None) -> None:
    lacks = (1 - rate) ** runs > 1 - confidence + 1e-12 if confidence else runs < 1 / rate - 1 - 1e-9
    if lacks:
        with pytest.raises(ConfigurationError, match=f"normal_runs: {runs} runs; expected at least") as caught:
            fit(runs_of(range(runs)), rate, 1, confidence=confidence)
        runs = int(re.search(r"at least (\d+)", str(caught.value))[1])  # type: ignore[index]
    fit(runs_of(range(runs)), rate, 1, confidence=confidence)


def test_a_run_counts_by_its_highest_score_within_the_horizon() -> None:
    rng = np.random.default_rng(1)
    kinds = [rng.random((int(rng.integers(5, 40)), 3)) for _ in range(60)]
    calibration = fit(kinds, 0.05, 20)
    highest = sorted(run[:20].max() for run in kinds)
    assert calibration.threshold == highest[math.ceil(61 * 0.95) - 1]
    assert calibration.shorter == sum(len(run) < 20 for run in kinds)
    assert calibration == fit([run.max(axis=1) for run in kinds], 0.05, 20)
    assert calibration.threshold == fit(kinds[::-1], 0.05, 20).threshold


# --- what it promises ---


@settings(max_examples=8)
@given(tied_scores, rates.filter(lambda rate: rate > 0.01), st.integers(0, 2**32))
def test_at_most_the_rate_of_talks_alarm(values: list[float], rate: float, seed: int) -> None:
    """1 000 talks of 12 turns, each against a calibration on others, whatever the scores are drawn from."""
    rng = np.random.default_rng(seed)
    runs = math.ceil(1 / rate - 1 - 1e-9) + int(rng.integers(0, 9))
    alarms = 0
    for scores in rng.choice(values, (TALKS, runs + 1, 12)):
        alarms += scores[0].max() > fit(scores[1:], rate, 12).threshold
    assert alarms / TALKS <= margin(rate)


def test_the_rate_is_used_up_where_there_are_no_ties() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(scores[0] > fit(runs_of(scores[1:]), 0.2, 1).threshold for scores in rng.random((TALKS, 25)))
    assert abs(alarms / TALKS - 0.2) <= margin(0.2) - 0.2


@pytest.mark.parametrize(("runs", "rate"), [(59, 0.05), (150, 0.1)])
def test_with_confidence_the_threshold_itself_keeps_the_rate(runs: int, rate: float) -> None:
    """Scores are uniform, so the rate of a threshold t is 1 - t."""
    rng = np.random.default_rng(3)
    kept = [1 - fit(runs_of(s), rate, 1, confidence=0.95).threshold <= rate for s in rng.random((TALKS, runs))]
    assert np.mean(kept) >= 2 * 0.95 - margin(0.95)
    plain = [1 - fit(runs_of(s), rate, 1).threshold <= rate for s in rng.random((TALKS, runs))]
    assert np.mean(plain) < 0.8 or runs == 59  # 59 runs let the plain rule pass only the third highest


def test_clusters_keep_the_rate_for_a_run_of_a_new_cluster() -> None:
    """Runs of one cluster are nearly equal; without clusters the rate is missed, with them it is kept."""
    rng = np.random.default_rng(4)
    missed = kept = 0
    for centre in rng.normal(size=(TALKS, 20)):
        labels = np.repeat(np.arange(19), rng.choice([1, 20], 19))
        scores = runs_of(centre[labels] + 0.05 * rng.normal(size=len(labels)))
        new = centre[19] + 0.05 * rng.normal()
        missed += new > fit(scores, 0.05, 1).threshold
        kept += new > fit(scores, 0.05, 1, clusters=labels.tolist()).threshold
    assert kept / TALKS <= margin(0.05)
    assert missed / TALKS > margin(0.05)


def test_with_confidence_and_clusters_one_run_of_each_is_drawn() -> None:
    scores = runs_of([*range(58), *range(1000, 1401)])
    labels = [*range(58), *[58] * 401]
    drawn = {fit(scores, 0.05, 1, confidence=0.95, clusters=labels, seed=seed).threshold for seed in range(20)}
    assert min(drawn) >= 1000
    assert len(drawn) > 10
    with pytest.raises(ConfigurationError, match="normal_runs: 58 clusters; expected at least 59"):
        fit(scores[:58] * 2, 0.05, 1, confidence=0.95, clusters=labels[:58] * 2)


def test_every_cluster_weighs_the_same() -> None:
    scores = runs_of([*range(38), *range(100, 110)])
    labels = [*range(38), *[38] * 10]
    assert fit(scores, 0.05, 1, clusters=labels).threshold == 37  # 38 of 39 clusters, of 40 weights with the infinite
    assert fit(scores, 0.05, 1).threshold == 108


def test_equal_clusters_of_one_run_are_the_plain_rule() -> None:
    scores = runs_of(np.random.default_rng(5).random(70))
    plain, clustered = fit(scores, 0.05, 1), fit(scores, 0.05, 1, clusters=[f"task {i}" for i in range(70)])
    assert plain.threshold == clustered.threshold
    assert (plain.clusters, clustered.clusters) == (None, 70)


# --- what was achieved ---


def test_achieved_is_measured_on_runs_that_were_left_out() -> None:
    rng = np.random.default_rng(6)
    calibration = fit(runs_of(rng.random(400)), 0.1, 1)
    assert calibration.achieved is not None
    assert calibration.achieved.runs == 400
    assert 0.05 < calibration.achieved.value < 0.15
    assert fit(runs_of(range(19)), 0.05, 1).achieved is None
    left_out = fit(runs_of(range(20)), 0.05, 1).achieved
    assert left_out is not None
    assert left_out.alarms == 1  # each run against the 19 others: only the highest is above them all


def test_achieved_with_clusters_shows_that_a_cluster_stands_out() -> None:
    """One cluster of 40 loops. Left out as a whole it alarms; run by run the others of its kind cover it up."""
    scores = runs_of([*np.random.default_rng(7).random(200), *([9.0] * 200)])
    labels = [*(i // 5 for i in range(200)), *([40] * 200)]
    achieved = fit(scores, 0.05, 1, clusters=labels).achieved
    assert achieved is not None
    assert achieved.runs == 41
    assert achieved.alarms >= 1


def test_check_counts_alarms_strictly_above() -> None:
    calibration = fit(runs_of([*range(19)]), 0.05, 2)
    assert calibration.threshold == 18
    others = [[18.0], [18.5], [0.0, 19.0], [0.0, 18.0, 99.0]]  # the last one rises beyond the horizon
    assert check(calibration, others) == AlarmRate.of(2, 4)


@pytest.mark.parametrize(("alarms", "runs"), [(0, 1), (1, 1), (0, 60), (3, 97), (59, 60), (60, 60)])
def test_interval_of_a_rate(alarms: int, runs: int) -> None:
    from scipy.stats import binomtest

    exact = binomtest(alarms, runs).proportion_ci(0.95, "exact")
    rate = AlarmRate.of(alarms, runs)
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), abs=1e-12)


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"normal_runs": runs_of(range(12)), "false_alarm_rate": 0.03},
         "normal_runs: 12 runs; expected at least 33 for a rate of 0.03 (n >= 1 / rate - 1). Give more"),
        ({"normal_runs": []}, "normal_runs: 0 runs; expected at least 19"),
        ({"confidence": 0.95}, "normal_runs: 30 runs; expected at least 59 for a rate of 0.05 (1 - (1 - rate)^n >="),
        ({"clusters": ["a", "b", "c"] * 10}, "normal_runs: 3 clusters; expected at least 19"),
        ({"clusters": ["a"]}, "clusters: 1 labels for 30 runs; expected one for each run"),
        ({"false_alarm_rate": 0}, "false_alarm_rate: 0; expected a number between 0 and 1"),
        ({"false_alarm_rate": math.nan}, "false_alarm_rate: nan; expected"),
        ({"horizon": 0}, "horizon: 0; expected at least 1 turn"),
        ({"confidence": 95}, "confidence: 95; expected a number between 0 and 1"),
        ({"top": 29}, "normal_runs: the threshold would be 29, the top of the score's range, so that no score"),
        ({"top": 20}, "normal_runs: a score of 29; expected at most 20"),
        ({"normal_runs": [[0.5, math.nan]] * 30}, "normal_runs: run 0 has scores of shape (2,), 1 of them NaN"),
        ({"normal_runs": [[1.0]] * 29 + [[]]}, "normal_runs: run 29 has scores of shape (0,), 0 of"),
    ],
)  # fmt: skip
def test_refusals(arguments: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"normal_runs": runs_of(range(30)), "false_alarm_rate": 0.05, "horizon": 1, **arguments}
    with pytest.raises(ConfigurationError) as caught:
        fit(**given)
    assert str(caught.value).startswith(sentence)


# --- on file ---


@given(calibrations())
def test_json_round_trip(calibration: Calibration) -> None:
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_save_and_load(tmp_path: Path) -> None:
    calibration = fit(runs_of(range(40)), 0.05, 1)
    calibration.save(tmp_path / "mine.json")
    assert Calibration.load(tmp_path / "mine.json") == calibration
    (tmp_path / "other.json").write_text('{"threshold": 3}')
    with pytest.raises(ConfigurationError, match=r"expected the output of Calibration\.to_dict"):
        Calibration.load(tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match=r"expected a file that Calibration\.save wrote"):
        Calibration.load(tmp_path / "none.json")


# --- with the loop detector ---


def random_talks(rng: np.random.Generator, count: int, turns: int) -> list[Transcript]:
    """Talks of words drawn at random, few of them frequent, and now and then a turn that was said before."""
    words = np.array([f"{a}{b}{c}" for a in "bdfkmnprst" for b in "aeiou" for c in ("l", "rt", "n", "sk", "mm", "d")])
    share = 1 / (np.arange(len(words)) + 3)
    talks = []
    for number in range(count):
        said: list[str] = []
        for _ in range(turns):
            again = said and rng.random() < 0.1
            new = " ".join(rng.choice(words, rng.integers(3, 18), p=share / share.sum()))
            said.append(said[rng.integers(len(said))] if again else new)
        turns_of = [{"speaker": "ab"[i % 2], "text": text} for i, text in enumerate(said)]
        talks.append(Transcript.from_exchange({"id": str(number), "turns": turns_of}))
    return talks


@pytest.mark.slow
def test_at_most_the_rate_of_random_talks_alarm() -> None:
    """The threshold goes into the detector, the talks through it: 1 000 of them, of the horizon."""
    rng = np.random.default_rng(8)
    calibration = fit(random_talks(rng, 300, 20), 0.1, 20, confidence=0.95)
    assert 0 < calibration.threshold < MAX_SCORE
    scans = scan_many(random_talks(rng, TALKS, 20), threshold=calibration.threshold)
    alarms = sum(scan.loop is not None for scan in scans)
    assert 0 < alarms / TALKS <= margin(0.1)


def test_transcripts_and_their_scores_give_the_same() -> None:
    talks = random_talks(np.random.default_rng(9), 40, 12)
    calibration = fit(talks, 0.05, 10)
    assert calibration.score == score_name(None)
    scores = [scan.scores for scan in scan_many(talks, threshold=0.99 * MAX_SCORE)]
    assert calibration.threshold == max(MIN_THRESHOLD, fit(scores, 0.05, 10).threshold)
    assert check(calibration, talks) == check(calibration, scores)


def test_runs_without_any_repetition_give_a_threshold_that_the_detector_takes() -> None:
    silent = [Transcript.from_exchange({"turns": [{"speaker": "a", "text": f"{i}"}]}) for i in range(20)]
    LoopDetector(threshold=fit(silent, 0.05, 1).threshold)


def test_the_horizon_counts_messages_not_bids() -> None:
    """Between its messages each talk has a bid; the loop begins behind the horizon, counted in messages."""
    talks = []
    for talk in random_talks(np.random.default_rng(10), 19, 12):
        with_bids = Transcript(talk.id, talk.agents)
        for message in [*talk.messages, *[talk.messages[-1]] * 12]:
            for kind, content in ((BID, "0.5"), ("message", message.content)):
                with_bids.append(Message(talk.id, len(with_bids) + 1, message.sender, content, kind=kind))
        talks.append(with_bids)
    assert fit(talks, 0.05, 12).threshold < fit(talks, 0.05, 13 + 3).threshold
