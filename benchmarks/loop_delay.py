"""Compare ways to raise the alarm earlier, at no more false alarms. Prints one JSON object.

Every design reads the detector's family scores after each turn of the labelled conversations (loops_llm, loops_dev,
loops_mas, prose of ../shared/data) and of the customer-service ones of ordinary_llm, which count as healthy.

threshold: the largest score is above a number; 1 is shipped. two stages: or above a lower number for some turns in a
row. sum: the sum over the families is above a number. trend: the score plus a multiple of its rise over four turns is.
sequential test: a sum of log-likelihood ratios of the rises of the score, from histograms of looping and of healthy
turns, is (Wald 1945, restarted at zero as by Page 1954); the histograms leave the conversation's own source out.

Of each design the setting with the smallest mean delay is shown, among those with no more false alarms than the shipped
threshold. delay: turns from the labelled onset to the alarm, mean over alarms at or after it.

    python benchmarks/loop_delay.py
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from loops import SHARED, Labelled, f1, read, verdict

from a2a_ray.analysis.loops import MAX_SCORE, LoopDetector
from a2a_ray.core.transcript import Transcript

Scores: TypeAlias = "list[list[float]]"
"""The scores of the families after each turn of a conversation."""

Rule: TypeAlias = "Callable[[Scores], int | None]"
"""Returns the index of the turn of the alarm, or None."""


def conversations() -> list[Labelled]:
    """Return the conversations with their source and scores; `labels` is None for unlabelled ones."""
    found = [each | {"source": each["source"]["repo"]} for each in read(SHARED / "loops_llm.jsonl")]
    for name in ("loops_dev", "loops_mas", "prose"):
        found += [each | {"source": name} for each in read(SHARED / f"{name}.jsonl")]
    for line in (SHARED / "ordinary_llm.jsonl").read_text(encoding="utf-8").splitlines():
        if '"id": "o-botbots' in line:
            transcript = Transcript.from_exchange(json.loads(line))
            found.append({"labels": None, "source": "radi-cho/botbots", "transcript": transcript})
    for each in found:
        detector = LoopDetector(threshold=math.nextafter(MAX_SCORE, 0))
        each["scores"] = []
        for message in each["transcript"].turns:
            detector.update(message)
            each["scores"].append(list(detector.family_scores.values()))
    return found


def first(values: Sequence[float], least: float, turns: int = 1) -> int | None:
    """Return the index of the last of the first `turns` values in a row above `least`."""
    row = 0
    for i, value in enumerate(values):
        row = row + 1 if value > least else 0
        if row == turns:
            return i
    return None


def threshold(least: float) -> Rule:
    return lambda scores: first([max(each) for each in scores], least)


def two_stages(least: float, turns: int) -> Rule:
    def find(scores: Scores) -> int | None:
        highest = [max(each) for each in scores]
        alarms = [first(highest, 1), first(highest, least, turns)]
        return min((alarm for alarm in alarms if alarm is not None), default=None)

    return find


def family_sum(least: float) -> Rule:
    return lambda scores: first([sum(each) for each in scores], least)


def trend(slope: float, least: float) -> Rule:
    def find(scores: Scores) -> int | None:
        highest = [0.0] * 4 + [max(each) for each in scores]
        rising = [now + slope * (now - old) for old, now in zip(highest, highest[4:], strict=False)]
        return first([value if now > 0.5 else now for value, now in zip(rising, highest[4:], strict=True)], least)

    return find


def rises(scores: Scores) -> Iterator[int]:
    """Yield the rise of the highest score at each turn, in tenths, from -5 to 5."""
    before = 0.0
    for each in scores:
        yield max(-5, min(5, round(10 * (max(each) - before))))
        before = max(each)


def ratios(data: list[Labelled]) -> dict[int, float]:
    """Return the log-likelihood ratio of each rise, of turns in a loop against healthy turns."""
    loop, healthy = Counter[int](), Counter[int]()
    for each in data:
        onset = min(label["onset"] for label in each["labels"].values()) if loops(each) else math.inf
        for i, rise in enumerate(rises(each["scores"])):
            (loop if i >= onset else healthy)[rise] += 1
    total = loop.total() + 11, healthy.total() + 11
    return {
        rise: math.log((loop[rise] + 1) / total[0]) - math.log((healthy[rise] + 1) / total[1]) for rise in range(-5, 6)
    }


def sequential(weights: dict[int, float], least: float) -> Rule:
    def find(scores: Scores) -> int | None:
        level, levels = 0.0, []
        for rise in rises(scores):
            level = max(0.0, level + weights[rise])
            levels.append(level)
        return first(levels, least)

    return find


def loops(each: Labelled) -> bool:
    return bool(each["labels"]) and bool(each["labels"]["A"]["loop"])


def designs(data: list[Labelled]) -> Iterator[tuple[str, str, Callable[[Labelled], Rule]]]:
    """Yield the name of each design, its setting, and the rule for a conversation."""
    by_source = {s: ratios([e for e in data if e["source"] != s]) for s in {each["source"] for each in data}}
    for least in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2):
        yield "threshold", f"{least}", lambda each, least=least: threshold(least)
        yield "sum", f"{least}", lambda each, least=least: family_sum(least)
    for least in (0.5, 0.6, 0.7, 0.8, 0.9):
        for turns in (2, 3, 4):
            yield "two stages", f"{least} for {turns}", lambda each, a=least, n=turns: two_stages(a, n)
    for slope in (0.5, 1.0):
        for least in (1.0, 1.2, 1.4, 1.6):
            yield "trend", f"{slope}, {least}", lambda each, a=slope, b=least: trend(a, b)
    for least in (4, 6, 8, 10, 12, 15):
        yield "sequential test", f"{least}", lambda each, b=least: sequential(by_source[each["source"]], b)


def figures(data: list[Labelled], alarms: list[int | None]) -> dict[str, Any]:
    """Return F1, false alarms, late alarms and the mean delay."""
    labelled = [(each, alarm) for each, alarm in zip(data, alarms, strict=True) if each["labels"]]
    found = [verdict(each, alarm) for each, alarm in labelled]
    onsets = [min(label["onset"] for label in each["labels"].values()) if loops(each) else 0 for each, _ in labelled]
    delays = [
        alarm - onset
        for (_, alarm), onset, v in zip(labelled, onsets, found, strict=True)
        if v in ("hit", "late") and alarm is not None and alarm >= onset
    ]
    unlabelled = sum(alarm is not None for each, alarm in zip(data, alarms, strict=True) if not each["labels"])
    return {
        "f1": round(f1(found), 3),
        "false": found.count("false") + unlabelled,
        "late": found.count("late"),
        "delay": round(sum(delays) / len(delays), 2),
    }


def main() -> None:
    data = conversations()
    tried: dict[str, list[dict[str, Any]]] = {}
    for name, setting, rule in designs(data):
        result = figures(data, [rule(each)(each["scores"]) for each in data])
        tried.setdefault(name, []).append({"setting": setting} | result)
    shipped = next(each for each in tried["threshold"] if each["setting"] == "1.0")
    best: dict[str, Any] = {"shipped": shipped}
    for name, results in tried.items():
        allowed = [each for each in results if each["false"] <= shipped["false"]]
        best[name] = min(allowed, key=lambda each: each["delay"], default="more false alarms in every setting")
    print(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()
