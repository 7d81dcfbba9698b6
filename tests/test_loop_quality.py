"""Regression gate for the accuracy of the loop detector, without an embedder, on conversations in the repository.

benchmarks/conversations.jsonl has 104 labelled conversations, 42 of them with a loop. They were written for tests and
chose no constant. These bounds guard against regressions; they do not estimate accuracy. docs/method/loop_detector.md
reports it for real conversations.
"""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest

from a2a_ray.analysis.loops import scan_many

ROOT = Path(__file__).resolve().parents[1]
CONVERSATIONS = ROOT / "benchmarks" / "conversations.jsonl"
COPIED = ("verbatim", "template")
"""The kinds of loop that need no embedder."""


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The labelled kind of each conversation, "none" without a loop, and its outcome by the rules of the benchmark."""
    if not CONVERSATIONS.exists():
        pytest.skip("benchmarks/ is not here: no checkout of the repository")
    monkeypatch.syspath_prepend(str(ROOT))
    benchmark = importlib.import_module("benchmarks.loops")
    conversations = benchmark.read(CONVERSATIONS)
    scans = scan_many([each["transcript"] for each in conversations])
    return [
        (each["labels"]["A"]["kind"], benchmark.verdict(each, benchmark.index(scan)))
        for each, scan in zip(conversations, scans, strict=True)
    ]


def test_recall_and_false_alarms(outcomes: list[tuple[str, str]]) -> None:
    """Today: 8 hits among 13 copied loops, 4 of them among 4 verbatim ones; no false, early or late alarm."""
    counts = Counter(outcome for _, outcome in outcomes)
    hits = Counter(kind for kind, outcome in outcomes if outcome == "hit")
    assert len(outcomes) == 104
    assert counts["quiet"] + counts["false"] == 62
    assert sum(kind in COPIED for kind, _ in outcomes) == 13
    assert hits["verbatim"] + hits["template"] >= 8
    assert hits["verbatim"] >= 3
    assert counts["false"] <= 1
    assert counts["early"] + counts["late"] <= 1
