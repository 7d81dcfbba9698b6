"""Tables of loops: how many conversations looped, and what stopping them early saved."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from a2a_ray.report.finding_counts import EQUILIBRIUM_ANALYZERS
from a2a_ray.report.page_parts import Cell, Table
from a2a_ray.report.results import Results
from a2a_ray.report.wilson import wilson_interval
from a2a_ray.store.findings_table import Key

LOOPS = "Loops"
STOPPED = "Stopped by an observer"
"""Titles of the tables."""


def loop_table(results: Results) -> Table | None:
    """Count the looped conversations of each setting, by each analyzer. None if no conversation has text."""
    if not results.texts:
        return None
    titles = {key: title for key, title in results.titles.items() if key[0] not in EQUILIBRIUM_ANALYZERS}
    texts = Counter(results.labels[id] for id in results.texts)
    looped = {key: Counter(results.labels[id] for id in results.counts.loops.get(key, {})) for key in titles}
    onsets: dict[str, list[int]] = {}
    for id, loop in results.loops.items():
        if loop.onset_turn is not None:
            onsets.setdefault(results.labels[id], []).append(loop.onset_turn)
    labels = [label for label in dict.fromkeys(results.labels[id] for id in results.ids) if label in texts]
    rows = [_loop_row(label or "all", [label], texts, looped, onsets) for label in labels]
    if len(labels) > 1:
        rows.append(_loop_row("all", labels, texts, looped, onsets))
    detector, *baselines = titles.values()
    columns = ("setting", "total", detector, "share", "95 % interval", "median onset", *baselines)
    note = (
        "Total: conversations. The columns named after a rule count the conversations in which it found a loop. Share,"
        " interval (Wilson) and median onset (the first turn that repeats) refer to the loop detector."
    )
    return Table(LOOPS, columns, rows, note)


def stopped_table(results: Results) -> Table | None:
    """Count the conversations of each setting that observers stopped, and what that saved. None if there are none."""
    stops = results.early_stops
    if not stops:
        return None
    rows = []
    for label in dict.fromkeys(results.labels.values()):
        count = sum(each == label for each in results.labels.values())
        own = [stop for stop in stops if results.labels[stop.id] == label]
        wasted, saved = (sum(getattr(stop, name) for stop in own) for name in ("tokens_since_onset", "tokens_saved"))
        rows.append((label or "all", count, len(own), sum(stop.turns_left for stop in own), wasted, saved))
    columns = ("setting", "conversations", "stopped", "turns left", "tokens since onset", "tokens saved, about")
    counted = "as the agents report them" if all(stop.counted for stop in stops) else "words times 4/3"
    note = (
        "Tokens saved: an estimate, the turns left to the limit times the mean tokens per message of the conversation."
        f" Tokens: {counted}."
    )
    return Table(STOPPED, columns, rows, note)


def _loop_row(
    name: str,
    labels: Sequence[str],
    texts: Mapping[str, int],
    looped: Mapping[Key, Counter[str]],
    onsets: Mapping[str, Sequence[int]],
) -> list[Cell]:
    """Return one row of the table, for these settings together."""
    total = sum(texts[label] for label in labels)
    first, *others = (sum(counts[label] for label in labels) for counts in looped.values())
    low, high = wilson_interval(first, total)
    turns = [turn for label in labels for turn in onsets.get(label, ())]
    median = statistics.median(turns) if turns else None
    return [name, total, first, f"{first / total:.0%}", f"{low:.0%} to {high:.0%}", median, *others]
