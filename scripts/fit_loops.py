"""Fit the loop detector's defaults on normal talks, and write the table of docs/method/calibration.md.

    python scripts/normal_talks.py -o normal.jsonl --extras FOLDER
    python scripts/fit_loops.py normal.jsonl --write            # a few minutes, most of it embedding
    python scripts/fit_loops.py normal.jsonl --alarms FILE      # talks that alarm at the threshold, and why

Without --write only the tables are printed. Their columns, per cluster: talks, median and largest score of a talk,
alarms at the threshold that is fitted on all clusters, and alarms at the one that all OTHER clusters give.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from a2a_ray import __version__
from a2a_ray.analysis.loops import MAX_SCORE, scan_many
from a2a_ray.analysis.loops.calibration import fit
from a2a_ray.analysis.loops.threshold import Calibration, score_name
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, Embedder, load_embedder
from a2a_ray.core.transcript import Transcript
from a2a_ray.transcripts.jsonl import read_jsonl

CONFIDENCE, HORIZON = 0.95, 50
ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = ROOT / "a2a_ray" / "data" / "loops" / "defaults.json"
PAGE, BEGIN, END = ROOT / "docs" / "method" / "calibration.md", "<!-- tables -->", "<!-- end of tables -->"
PACKAGES = ("numpy", "torch", "sentence-transformers", "transformers")


def read(path: Path) -> tuple[list[Transcript], list[str]]:
    """The talks, and the cluster of each."""
    talks, problems = read_jsonl(path)
    if problems:
        raise SystemExit(problems[0])
    return talks, [str(talk.metadata["cluster"]) for talk in talks]


def scanned(talks: list[Transcript], embedder: Embedder | None) -> list[list[float]]:
    """The score after each turn of each talk, as it is up to the first alarm: the threshold is out of reach."""
    return [scan.scores for scan in scan_many(talks, embedder, threshold=math.nextafter(MAX_SCORE, 0))]


def fitted(scores: list[list[float]], rate: float, embedder: Embedder | None) -> Calibration:
    name = score_name(None if embedder is None else embedder.name)
    return fit(scores, rate, HORIZON, confidence=CONFIDENCE, top=MAX_SCORE, score=name)


def table(
    grade: str, clusters: list[str], scores: list[list[float]], calibration: Calibration, embedder: Embedder | None
) -> Iterator[str]:
    """The lines of a Markdown table."""
    highest = np.array([max(of_talk[:HORIZON]) for of_talk in scores])
    label = np.array(clusters)
    yield f"| {grade} | conversations | median | largest | alarms | alarms, source not seen |"
    yield "|---|---|---|---|---|---|"
    seen = unseen = 0
    for cluster in dict.fromkeys(clusters):
        here = label == cluster
        others = fitted([s for s, out in zip(scores, ~here, strict=True) if out], calibration.rate, embedder).threshold
        alarms, new = int((highest[here] > calibration.threshold).sum()), int((highest[here] > others).sum())
        seen, unseen = seen + alarms, unseen + new
        median, largest = np.median(highest[here]), highest[here].max()
        yield f"| {cluster} | {here.sum()} | {median:.2f} | {largest:.2f} | {alarms} | {new} |"
    yield f"| all | {len(label)} | {np.median(highest):.2f} | {highest.max():.2f} | {seen} | {unseen} |"
    yield f"\nThreshold {calibration.threshold:.4f}; alarms by cross-fitting: {calibration.achieved}.\n"


def explained(
    grade: str, clusters: list[str], talks: list[Transcript], loop: float, embedder: Embedder | None
) -> Iterator[str]:
    """Every talk that alarms: by cluster, with the detector's own sentence and the turns before."""
    scans = scan_many(talks, embedder, threshold=loop)
    for cluster in dict.fromkeys(clusters):
        of_cluster = [(t, s) for t, s, label in zip(talks, scans, clusters, strict=True) if label == cluster]
        alarmed = [(talk, scan, scan.loop.alarm_turn) for talk, scan in of_cluster if scan.loop is not None]
        yield f"\n## {grade}, above {loop:.2f}, {cluster}: {len(alarmed)} of {len(of_cluster)} alarm\n"
        for talk, scan, alarm in alarmed:
            verdict = next(verdict for verdict in scan.verdicts if verdict.status == "loop")
            yield f"* `{talk.id}`, highest {scan.highest:.2f}, alarm at turn {alarm}: {verdict.reason}"
            for message in talk.messages[max(alarm - 7, 0) : alarm]:
                yield f"    * {message.sender[:12]}: {' '.join(str(message.content).split())[:160]}"


def provenance(talks: dict[str, dict[str, int]], embedded: int) -> dict[str, Any]:
    return {
        "generator": "scripts/normal_talks.py --seed 0 --extras FOLDER",
        "fitted by": f"scripts/fit_loops.py --embedded {embedded} --write",
        "talks": talks,
        "a2a_ray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "embedder": DEFAULT_MODEL,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("talks", type=Path)
    parser.add_argument("--rate", type=float, default=0.01, help="of false alarms, with 95 %% confidence")
    parser.add_argument("--write", action="store_true", help=f"write {DEFAULTS.name}")
    parser.add_argument("--alarms", type=Path, help="write the talks that alarm, with their turns, to a file")
    parser.add_argument("--at", type=float, help="the threshold for that, in place of the fitted one")
    parser.add_argument("--cache", type=Path, help="Parquet file that keeps the embeddings")
    parser.add_argument("--embedded", type=int, default=60, help="talks of each cluster for the grade with an embedder")
    parser.add_argument("--grades", nargs="*", default=["lexical", "semantic"])
    given = parser.parse_args()
    grades: dict[str, Any] = {}
    tables: list[str] = []
    alarms: list[str] = []
    every, labels = read(given.talks)
    made: dict[str, dict[str, int]] = {}
    for grade in given.grades:
        most = given.embedded if grade == "semantic" else len(every)
        kept = [i for i, label in enumerate(labels) if labels[:i].count(label) < most]
        talks, clusters = [every[i] for i in kept], [labels[i] for i in kept]
        made[grade] = {cluster: clusters.count(cluster) for cluster in dict.fromkeys(clusters)}
        embedder = load_embedder(DEFAULT_MODEL, given.cache, "auto") if grade == "semantic" else None
        scores = scanned(talks, embedder)
        calibration = fitted(scores, given.rate, embedder)
        tables += table(grade, clusters, scores, calibration, embedder)
        grades[grade] = calibration.to_dict()
        if given.alarms:
            alarms += explained(grade, clusters, talks, given.at or calibration.threshold, embedder)
        if embedder is not None:
            embedder.save()
    print(*tables, sep="\n")
    if given.write:
        value = {"grades": grades, "provenance": provenance(made, given.embedded)}
        DEFAULTS.parent.mkdir(parents=True, exist_ok=True)
        DEFAULTS.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        head, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
        lines = [head + BEGIN, *tables, END + rest.partition(END)[2]]
        PAGE.write_text("\n".join(lines), encoding="utf-8")
    if given.alarms:
        given.alarms.write_text("\n".join(alarms) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
