"""Compare the loop detector with simple rules, on labelled conversations. Prints one JSON object.

step limit: stop after N turns. equal: a message, or a call, occurs for the third time. jaccard: three messages in a row
share this much of their set of words with one of the twelve before. containment: the same with the share of their
sequences of three words that the earlier message contains. Each has one number. It is chosen for each source of
../shared/data/loops_llm.jsonl, and for loops_dev and loops_mas, on the other sources: the lowest that stops at most
5 % of their healthy conversations. The detector has its shipped constants, which were chosen in sight of all of them.

Groups are the kinds of conversation that the detector tells apart. saved: the share of the words of looping
conversations, from the labelled onset to the end, that stopping at the alarm spares.

    python benchmarks/loop_baselines.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from loops import SHARED, Labelled, f1, index, read, verdict

from a2a_ray.analysis.loops import scan
from a2a_ray.analysis.loops.detector import kind_of
from a2a_ray.analysis.loops.tokenize import words

FALSE_STOPS = 0.05
WINDOW, IN_A_ROW = 12, 3

Turns = list[list[str]]
"""The words of each turn."""


def step_limit(turns: Turns, limit: float) -> int | None:
    return int(limit) if len(turns) > limit else None


def equal(turns: Turns, times: float) -> int | None:
    seen: Counter[str] = Counter()
    for i, turn in enumerate(turns):
        seen[" ".join(turn)] += bool(turn)
        if seen[" ".join(turn)] >= times:
            return i
    return None


def jaccard(turns: Turns, least: float) -> int | None:
    sets = [set(turn) for turn in turns]
    return _similar(sets, least, lambda now, old: len(now & old) / len(now | old))


def containment(turns: Turns, least: float) -> int | None:
    sets = [set(zip(turn, turn[1:], turn[2:], strict=False)) for turn in turns]
    return _similar(sets, least, lambda now, old: len(now & old) / len(now))


def _similar(sets: list[set[Any]], least: float, similarity: Callable[[set[Any], set[Any]], float]) -> int | None:
    run = 0
    for i, now in enumerate(sets):
        earlier = [old for old in sets[max(0, i - WINDOW) : i] if old]
        run = run + 1 if now and any(similarity(now, old) >= least for old in earlier) else 0
        if run == IN_A_ROW:
            return i
    return None


RULES: dict[str, tuple[Callable[[Turns, float], int | None], Sequence[float]]] = {
    "step limit": (step_limit, range(5, 101)),
    "equal": (equal, (3,)),
    "jaccard": (jaccard, [i / 20 for i in range(4, 21)]),
    "containment": (containment, [i / 20 for i in range(4, 21)]),
}


def labelled() -> list[Labelled]:
    """Return the labelled conversations with their source, kind and words."""
    found = [each | {"source": each["source"]["repo"]} for each in read(SHARED / "loops_llm.jsonl")]
    for name in ("loops_dev", "loops_mas"):
        found += [each | {"source": name} for each in read(SHARED / f"{name}.jsonl")]
    for each in found:
        each["kind"] = kind_of(each["transcript"].turns)
        each["words"] = [words(turn["text"]) for turn in each["turns"]]
    return found


def chosen(rule: str, data: list[Labelled]) -> float:
    """Return the lowest number of a rule that stops at most 5 % of the healthy conversations."""
    find, grid = RULES[rule]
    healthy = [each["words"] for each in data if not each["labels"]["A"]["loop"]]
    allowed = FALSE_STOPS * len(healthy)
    return next((n for n in grid if sum(find(turns, n) is not None for turns in healthy) <= allowed), grid[-1])


def saved(data: list[Labelled], alarms: list[int | None]) -> float:
    """Return the share of words after the onset of loops that stopping at the alarm spares."""
    spared = total = 0
    for each, alarm in zip(data, alarms, strict=True):
        if each["labels"]["A"]["loop"]:
            onset = min(label["onset"] for label in each["labels"].values())
            sizes = [len(turn) for turn in each["words"]]
            total += sum(sizes[onset:])
            spared += sum(sizes[max(alarm + 1, onset) :]) if alarm is not None else 0
    return round(spared / total, 3) if total else 0.0


def figures(data: list[Labelled], alarms: list[int | None]) -> dict[str, Any]:
    """Return F1, loops found in time, false alarms and the share of words saved."""
    found = [verdict(each, alarm) for each, alarm in zip(data, alarms, strict=True)]
    healthy = found.count("false") + found.count("quiet")
    return {
        "f1": round(f1(found), 3),
        "loops": f"{found.count('hit')} of {len(found) - healthy}",
        "false_alarms": f"{found.count('false')} of {healthy}",
        "saved": saved(data, alarms),
    }


def main() -> None:
    data = labelled()
    alarms: dict[str, list[int | None]] = {"detector": [index(scan(each["transcript"])) for each in data]}
    for rule, (find, _) in RULES.items():
        number = {s: chosen(rule, [e for e in data if e["source"] != s]) for s in {e["source"] for e in data}}
        alarms[rule] = [find(each["words"], number[each["source"]]) for each in data]
    groups: dict[str, list[int]] = {}
    for i, each in enumerate(data):
        groups.setdefault(each["kind"] if "/" in each["source"] else each["source"], []).append(i)
    result = {
        group: {name: figures([data[i] for i in own], [found[i] for i in own]) for name, found in alarms.items()}
        for group, own in groups.items()
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
