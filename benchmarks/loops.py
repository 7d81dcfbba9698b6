"""How well the loop detector finds loops, one JSON object; and how much of that hangs on what it was set by.

talks: benchmarks/talks.jsonl, conversations in the manner of large models, each read and labelled twice. The constants
of analysis/loops/dryness.py were set on the groups w1 to w4 of them; w5 and w6 were written afterwards.
cross_validated: groups w1 to w4; for each the bounds of dryness.py are chosen on the three others from a grid around
those in force, and it is scored with these: F1 of each group, and of all.
dev, mas, prose: ../shared/data, where it is there.

An alarm is a hit from 2 turns before the labelled onset to 10 (or two periods) after it, before any recovery. f1_95:
interval of the F1 by 2 000 bootstrap samples of the talks. delay: median over the hits, in turns.

    python benchmarks/loops.py [--embedder NAME|none]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2a_ray.analysis.embedding import DEFAULT_MODEL, Embedder, load_embedder
from a2a_ray.analysis.loops import detector, dryness, scan_many
from a2a_ray.core.transcript import Transcript

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
EARLY, LATE = 2, 10
SET_ON = ("w1", "w2", "w3", "w4")
GRID: dict[tuple[Any, str], tuple[float, ...]] = {
    (dryness, "EMPTY"): (0.22, 0.25, 0.28),
    (dryness, "USUAL"): (1.2, 1.25, 1.3),
    (detector, "LEVEL"): (2.0, 2.5, 3.0),
}

Talk = dict[str, Any]


def read(path: Path) -> list[Talk]:
    """The talks on whose verdict both readers agree, with their transcripts."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    talks = [t for t in found if t["labels"]["A"]["loop"] == t["labels"]["B"]["loop"]]
    for talk in talks:
        talk["transcript"] = Transcript.from_exchange(talk)
    return talks


def verdict(talk: Talk, alarm: int | None) -> str:
    """hit, late, missed, early, false or quiet. alarm: index of the turn, from 0."""
    labels = list(talk["labels"].values())
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
    """2 hits over alarms and loops; 1 where there is neither."""
    hits = verdicts.count("hit")
    alarms = sum(v not in ("missed", "quiet") for v in verdicts)
    loops = sum(v not in ("false", "quiet") for v in verdicts)
    return 2 * hits / (alarms + loops) if alarms + loops else 1.0


def verdicts(talks: list[Talk], embedder: Embedder | None) -> list[str]:
    """One for each talk."""
    scans = scan_many([talk["transcript"] for talk in talks], embedder)
    return [verdict(talk, scan.alarm) for talk, scan in zip(talks, scans, strict=True)]


def figures(talks: list[Talk], embedder: Embedder | None) -> dict[str, Any]:
    """F1 with its interval, false alarms among talks that do not loop, and the median delay of the hits."""
    scans = scan_many([talk["transcript"] for talk in talks], embedder)
    found = [verdict(talk, scan.alarm) for talk, scan in zip(talks, scans, strict=True)]
    delays = [
        scan.alarm - min(label["onset"] for label in talk["labels"].values())
        for talk, scan, v in zip(talks, scans, found, strict=True)
        if v == "hit" and scan.alarm is not None
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


def cross_validated(talks: list[Talk], embedder: Embedder) -> dict[str, Any]:
    """F1 of each group at the bounds that are best on the others; of equal ones those nearest to the ones in force."""
    group = [talk["id"].partition("_")[0] for talk in talks]
    kept = [getattr(module, name) for module, name in GRID]
    of_setting: dict[tuple[float, ...], list[str]] = {}
    try:
        for setting in itertools.product(*GRID.values()):
            _put(setting)
            of_setting[setting] = verdicts(talks, embedder)
    finally:
        _put(kept)
    distance = {s: sum(abs(a - b) / b for a, b in zip(s, kept, strict=True)) for s in of_setting}
    everything: list[str] = []
    each = {}
    for held in SET_ON:
        best = max(
            of_setting,
            key=lambda s: (f1([v for v, g in zip(of_setting[s], group, strict=True) if g != held]), -distance[s]),
        )
        of_group = [v for v, g in zip(of_setting[best], group, strict=True) if g == held]
        each[held] = round(f1(of_group), 3)
        everything += of_group
    return {"f1": round(f1(everything), 3), "false_alarms": everything.count("false"), **each}


def _put(setting: Sequence[float]) -> None:
    for (module, name), value in zip(GRID, setting, strict=True):
        setattr(module, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default=DEFAULT_MODEL, help="or none for the words alone")
    parser.add_argument("--cache", type=Path, help="Parquet file that keeps the embeddings")
    settings = parser.parse_args()
    embedder = None if settings.embedder == "none" else load_embedder(settings.embedder, settings.cache)
    talks = read(HERE / "talks.jsonl")
    known = [talk for talk in talks if talk["id"].startswith(SET_ON)]
    result: dict[str, Any] = {"talks": figures(known, embedder)}
    if embedder is not None:
        result["cross_validated"] = cross_validated(known, embedder)
    result["written_afterwards"] = figures([t for t in talks if t not in known], embedder)
    for name, file in (("dev", "loops_dev"), ("mas", "loops_mas"), ("prose", "prose")):
        if (SHARED / f"{file}.jsonl").exists():
            result[name] = figures(read(SHARED / f"{file}.jsonl"), embedder)
    if embedder is not None and settings.cache:
        embedder.save()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
