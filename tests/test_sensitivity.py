"""Threshold sensitivity of the published rule: one number a talk answers for every threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2a_ray.analysis.text.distances import DISTANCES
from a2a_ray.analysis.text.paper_rule import PaperLoopRule
from a2a_ray.analysis.text.text_distances import distances
from a2a_ray.analysis.text.threshold_sensitivity import ALL, critical, curve, sweep
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.transcripts.jsonl import read_jsonl

DEFAULTS = PaperLoopRule().thresholds
values = st.floats(0, 1) | st.just(np.nan)
series = st.integers(0, 8).flatmap(
    lambda n: st.fixed_dictionaries({name: hnp.arrays(np.float64, n, elements=values) for name in DISTANCES})
)


@given(series, st.floats(0.01, 1), st.integers(1, 4))
def test_the_rule_fires_exactly_above_the_critical_threshold(
    talk: dict[str, np.ndarray], factor: float, rounds: int
) -> None:
    scaled = {name: DEFAULTS[name] * factor for name in DISTANCES}
    turns = list(range(1, len(talk["cosine"]) + 1))
    found = PaperLoopRule(**scaled, rounds=rounds).find(talk, turns)
    at = critical(talk, ALL, DEFAULTS, rounds)
    if abs(at - factor) > 1e-9:  # at the very threshold rounding decides
        assert (found is not None) == (at < factor)


@given(series, st.sampled_from(DISTANCES), st.floats(0, 1))
def test_a_single_distance_by_hand(talk: dict[str, np.ndarray], which: str, threshold: float) -> None:
    below = [bool(v < threshold) for v in talk[which]]
    by_hand = any(all(below[i : i + 3]) for i in range(len(below) - 2))
    assert (critical(talk, which, DEFAULTS) < threshold) == by_hand


def test_the_curve_by_hand() -> None:
    found = curve("cosine", [0.1, 0.2, 0.3, np.inf], [True, True, False, False])
    assert (found.area, found.average_precision, found.best_f1) == (1.0, 1.0, 1.0)
    assert 0.2 < found.best_threshold <= 0.3
    assert found.recall.tolist() == [0, 0.5, 1, 1]
    assert found.false_alarm_rate.tolist() == [0, 0, 0, 0.5]
    worthless = curve("cosine", [np.inf] * 4, [True, True, False, False])
    assert worthless.area == 0.5


@pytest.mark.parametrize(
    ("labels", "said"),
    [([True], "1 for 2 conversations"), ([True, True], "expected both kinds"), ([False] * 2, "both kinds")],
)
def test_labels_that_allow_no_curve(labels: list[bool], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        curve("cosine", [0.1, 0.2], labels)


def test_unknown_names_and_rounds() -> None:
    talk = {name: np.zeros(3) for name in DISTANCES}
    with pytest.raises(ConfigurationError, match="which: 'euclid'; expected one of cosine"):
        critical(talk, "euclid", DEFAULTS)
    with pytest.raises(ConfigurationError, match="rounds: 0"):
        critical(talk, ALL, DEFAULTS, 0)


def test_a_grid_counts_what_the_rule_says_on_real_talks(shared: Path) -> None:
    talks, _ = read_jsonl(shared / "loops_dev.jsonl")
    talks = talks[:30]
    analyses = [distances(t) for t in talks]
    looped = [t.metadata["labels"]["A"]["loop"] for t in talks]
    grid = {"cosine": [0.3], "jaccard": [0.3, 0.5, 0.9], "bleu": [0.6, 0.95]}
    rows = list(sweep([a.rounds for a in analyses], looped, grid, (2, 3)))
    assert len(rows) == 12
    for row in rows:
        rule = PaperLoopRule(row["cosine"], row["jaccard"], row["bleu"], rounds=row["rounds"])
        alarms = [rule.find(a.rounds, range(1, 1 + len(a.rounds["bleu"]))) is not None for a in analyses]
        assert row["alarms"] == sum(alarms)
        assert row["hits"] == sum(a and b for a, b in zip(alarms, looped, strict=True))
    assert max(r["alarms"] for r in rows) > min(r["alarms"] for r in rows)
    assert "hits" not in next(sweep([a.rounds for a in analyses], None, grid, (3,)))
