"""Measure the accuracy of the loop detector on labelled and on ordinary conversations. Prints one JSON object.

llm: ../shared/data/loops_llm.jsonl, real conversations of large models, labelled by two readers. The detector's
structure was designed in sight of them. ordinary: alarms in ../shared/data/ordinary_llm.jsonl by source; unlabelled,
most of them healthy. dev, mas, prose: conversations of small models, of agent teams, and a novel. The detector was
developed in sight of dev and mas. written: benchmarks/conversations.jsonl, written in the style of large models;
tests/test_loop_quality.py gates them.

The rules are those of ../shared/eval/score_loops.py: an alarm is a hit from 2 turns before the labelled onset to 10
turns (or two periods) after it, before any recovery. f1_95: interval of the F1 from 2 000 bootstrap samples of the
conversations. delay: median over the hits, in turns.

    python benchmarks/loops.py [--embedder NAME]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2a_ray.analysis.loops import Scan, scan_many
from a2a_ray.analysis.text.embedding import Embedder, load_embedder
from a2a_ray.core.transcript import Transcript

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
EARLY, LATE = 2, 10

Labelled = dict[str, Any]


def read(path: Path) -> list[Labelled]:
    """Return the conversations on which both readers agree, with their transcripts."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    agreed = [each for each in found if each["labels"]["A"]["loop"] == each["labels"]["B"]["loop"]]
    for each in agreed:
        each["transcript"] = Transcript.from_exchange(each)
    return agreed


def verdict(conversation: Labelled, alarm: int | None) -> str:
    """Return "hit", "late", "missed", "early", "false" or "quiet". alarm: index of the turn, from 0."""
    labels = list(conversation["labels"].values())
    if not labels[0]["loop"]:
        return "quiet" if alarm is None else "false"
    onset = min(label["onset"] for label in labels)
    ends = [label["recovers_at"] for label in labels if label.get("recovers_at") is not None]
    latest = onset + max(LATE, 2 * max(label.get("period") or 1 for label in labels))
    if len(ends) == len(labels):
        latest = min(latest, max(ends) - 1)
    if alarm is None:
        return "missed"
    return "early" if alarm < onset - EARLY else "late" if alarm > latest else "hit"


def f1(verdicts: Sequence[str]) -> float:
    """Return 2 hits / (alarms + loops); 1 without alarms and loops."""
    hits = verdicts.count("hit")
    alarms = sum(v not in ("missed", "quiet") for v in verdicts)
    loops = sum(v not in ("false", "quiet") for v in verdicts)
    return 2 * hits / (alarms + loops) if alarms + loops else 1.0


def index(scan: Scan) -> int | None:
    """Return the index of the alarm, from 0, as in the labels."""
    return None if scan.loop is None or scan.loop.alarm_turn is None else scan.loop.alarm_turn - 1


def figures(conversations: list[Labelled], embedder: Embedder | None) -> dict[str, Any]:
    """Return the F1 with its interval, false alarms among conversations without a loop, and the median delay."""
    scans = scan_many([each["transcript"] for each in conversations], embedder)
    found = [verdict(each, index(scan)) for each, scan in zip(conversations, scans, strict=True)]
    delays = [
        alarm - min(label["onset"] for label in each["labels"].values())
        for each, scan, v in zip(conversations, scans, found, strict=True)
        if v == "hit" and (alarm := index(scan)) is not None
    ]
    draw = np.random.default_rng(0)
    samples = [f1([found[i] for i in draw.integers(len(found), size=len(found))]) for _ in range(2000)]
    return {
        "f1": round(f1(found), 3),
        "f1_95": [round(float(q), 3) for q in np.quantile(samples, [0.025, 0.975])],
        "false_alarms": f"{found.count('false')} of {found.count('false') + found.count('quiet')}",
        "loops": f"{found.count('hit')} of {sum(v not in ('false', 'quiet') for v in found)}",
        "delay": statistics.median(delays) if delays else None,
    }


def alarms_by_source(path: Path, embedder: Embedder | None) -> dict[str, str]:
    """Count alarms among unlabelled conversations by source. Ids are o-SOURCE-NUMBER."""
    conversations = [
        Transcript.from_exchange(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()
    ]
    alarms: dict[str, list[bool]] = {}
    for each, found in zip(conversations, scan_many(conversations, embedder), strict=True):
        alarms.setdefault(each.id.removeprefix("o-").rpartition("-")[0], []).append(found.loop is not None)
    return {source: f"{sum(raised)} of {len(raised)}" for source, raised in sorted(alarms.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="none", help="sentence-embedding model; none by default")
    parser.add_argument("--cache", type=Path, help="Parquet file in which embeddings are stored")
    settings = parser.parse_args()
    embedder = load_embedder(settings.embedder, settings.cache)
    result: dict[str, Any] = {"embedder": settings.embedder}
    for name, file in (("llm", "loops_llm"), ("dev", "loops_dev"), ("mas", "loops_mas"), ("prose", "prose")):
        if (SHARED / f"{file}.jsonl").exists():
            result[name] = figures(read(SHARED / f"{file}.jsonl"), embedder)
    if (SHARED / "ordinary_llm.jsonl").exists():
        result["ordinary"] = alarms_by_source(SHARED / "ordinary_llm.jsonl", embedder)
    result["written"] = figures(read(HERE / "conversations.jsonl"), embedder)
    if embedder is not None and settings.cache:
        embedder.save()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
