"""Choose the constants of the loop detector, leaving one source of conversations out at a time.

The shipped constants are the ones that all sources together choose. The report says how the detector does on each
source with the constants that the OTHER sources choose, so no figure in it is judged on data that chose its constants.

Sources: those of ../shared/data/loops_llm.jsonl by repository, loops_dev, loops_mas, prose, and, for false alarms only,
the unlabelled customer-service and negotiation conversations of ordinary_llm.jsonl, which are essentially healthy. The
families are designed in sight of loops_llm, dev and mas; only the constants are left out.

The objective is the F1 over conversations; an alarm in an unlabelled one counts as a false alarm. Coordinate descent
starts at the values in `GRIDS` that stand first, and moves only if the objective rises by `MARGIN`: a difference of
one conversation, 0.008, decides nothing. There is no random number in it.

    python scripts/fit_loops.py --cache embeddings.parquet      writes docs/method/loop_constants.json

About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from loops import SHARED, Labelled, f1, read, verdict  # noqa: E402

from a2a_ray.analysis.loops import detector  # noqa: E402
from a2a_ray.analysis.loops.conversation_kind import FAMILIES  # noqa: E402
from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE  # noqa: E402
from a2a_ray.analysis.text.embedding import Embedder, load_embedder  # noqa: E402
from a2a_ray.core.transcript import Transcript  # noqa: E402

REPORT = ROOT / "docs" / "method" / "loop_constants.json"
MARGIN = 0.012
PASSES = 2

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "copies": {
        "copies.WINDOW": (12, 8, 20),
        "copies.GRAM": (5, 4, 6),
        "copies.NEITHER": (0.75, 0.65, 0.85),
        "copies.RISE": (0.5, 0.25, 0.75),
        "copies.HALF_WEIGHT": (8, 4, 12),
        "copies.OF_USUAL": (0.25, 0.5, 1.0),
        "copies.COPY_WEIGHT": (0.4, 0.2, 0.6),
        "copies.EQUAL_LINES": (6, 4, 8),
        "copies.ALARM": (1.99, 1.69, 2.49),
    },
    "rounds": {
        "repeated_rounds.WINDOW": (10, 6, 14),
        "repeated_rounds.FAILED_CALL": (0.55, 0.4, 0.7),
        "repeated_rounds.OTHER_CALL": (0.85, 0.75, 0.95),
        "repeated_rounds.SAME_RESULT": (0.9, 0.8, 1.0),
        "repeated_rounds.SHORT": (80, 40, 160),
        "repeated_rounds.NEW_NUMBER": (0.5, 0.25, 1.0),
        "repeated_rounds.PENDING": (0.34, 0.2, 0.5),
        "repeated_rounds.NEW": (1.0, 0.5, 1.5),
        "repeated_rounds.UNANSWERED": (0.5, 0.25, 1.0),
        "repeated_rounds.ALARM": (1.99, 1.69, 2.49),
    },
    "empty acts": {
        "empty_acts.SENTENCE": (24, 18, 30),
        "empty_acts.AGREES": (14, 10, 20),
        "empty_acts.THANKS_LONG": (36, 28, 44),
        "empty_acts.MOSTLY": (0.5, 0.4, 0.6),
        "empty_acts.USUAL": (0.2, 0.1, 0.3),
        "empty_acts.TURNS": (6.99, 5.99, 7.99),
        "empty_acts.WORDS": (124.9, 99.9, 159.9),
    },
    "meaning": {
        "meaning.USUAL": (0.5, 0.4, 0.6),
        "meaning.SPAN": (0.2, 0.15, 0.3),
        "meaning.BY_NEWS": (0.6, 0.4, 0.8),
        "meaning.BY_WORDING": (0.7, 0.5, 0.9),
        "meaning.HALF_WEIGHT": (8, 4, 12),
        "meaning.READ": (1200, 2400),
        "meaning.ALARM": (1.99, 1.49, 2.49),
        "conversation_kind.ASKS": (0.34, 0.2, 0.5),
        "conversation_kind.NUMBERS": (0.01, 0.005, 0.02),
    },
}
"""For each family its constants, the value to start from first. Constants of reading and of memory are not in it."""

HEALTHY = {"botbots": "radi-cho/botbots", "casino": "kushalchawla/CaSiNo"}
"""Unlabelled sources of ordinary_llm.jsonl that count as healthy, with the repository of the same conversations."""

Alarms = list[float]
"""The index of the first alarm of each conversation; infinity for none."""


def conversations() -> list[Labelled]:
    """Return the conversations with their source, transcript and labels; None for unlabelled ones."""
    found = [each | {"source": each["source"]["repo"]} for each in read(SHARED / "loops_llm.jsonl")]
    for name in ("loops_dev", "loops_mas", "prose"):
        found += [each | {"source": name} for each in read(SHARED / f"{name}.jsonl")]
    for line in (SHARED / "ordinary_llm.jsonl").read_text(encoding="utf-8").splitlines():
        value = json.loads(line)
        source = HEALTHY.get(value["id"].removeprefix("o-").rpartition("-")[0])
        if source is not None:
            found.append(value | {"source": source, "labels": None, "transcript": Transcript.from_exchange(value)})
    return found


def alarm(transcript: Transcript, family: str, embedder: Embedder | None) -> float:
    """Return the index of the first turn after which the family is above its alarm."""
    found = detector.LoopDetector(embedder if family == "meaning" else None, math.nextafter(MAX_SCORE, 0))
    for message in transcript.turns:
        found.update(message)
        if found.family_scores.get(family, 0.0) > 1:
            return message.turn - 1
    return math.inf


class Fit:
    """Alarms of each family under each choice of its constants, computed once."""

    def __init__(self, data: list[Labelled], embedder: Embedder | None) -> None:
        self._data, self._embedder = data, embedder
        self._known: dict[tuple[Any, ...], Alarms] = {}

    def alarms(self, family: str, values: Mapping[str, float]) -> Alarms:
        """Return the first alarm of the family in each conversation, with these constants."""
        key = (family, *sorted(values.items()))
        if key not in self._known:
            only = {kind: {family: alarms[family]} for kind, alarms in FAMILIES.items() if family in alarms}
            with patched(values), only_families(only):
                self._known[key] = [alarm(each["transcript"], family, self._embedder) for each in self._data]
            print(f"{len(self._known)}: {family} {dict(values)}", file=sys.stderr, flush=True)
        return self._known[key]

    def verdicts(self, chosen: Mapping[str, Mapping[str, float]], places: Iterable[int]) -> list[str]:
        """Return the verdict on each conversation at these places."""
        columns = [self.alarms(family, values) for family, values in chosen.items()]
        columns.append(self.alarms("silent", {}))
        found = []
        for i in places:
            first = min(column[i] for column in columns)
            index = None if first == math.inf else int(first)
            each = self._data[i]
            found.append(verdict(each, index) if each["labels"] else "quiet" if index is None else "false")
        return found

    def choose(self, places: list[int]) -> dict[str, dict[str, float]]:
        """Return the constants that these conversations choose."""
        chosen = {family: {name: grid[0] for name, grid in grids.items()} for family, grids in GRIDS.items()}
        best = f1(self.verdicts(chosen, places))
        for _ in range(PASSES):
            before = best
            for family, grids in GRIDS.items():
                for name, grid in grids.items():
                    for value in grid:
                        tried = chosen | {family: chosen[family] | {name: value}}
                        score = f1(self.verdicts(tried, places))
                        if score >= best + MARGIN:
                            best, chosen = score, tried
            if best == before:
                break
        return chosen


@contextmanager
def patched(values: Mapping[str, float]) -> Iterator[None]:
    """Set constants, named module.CONSTANT, and restore them."""
    before = {name: constant(name) for name in values}
    try:
        for name, value in values.items():
            set_constant(name, value)
        yield
    finally:
        for name, value in before.items():
            set_constant(name, value)


@contextmanager
def only_families(families: Mapping[str, Mapping[str, float]]) -> Iterator[None]:
    """Let only these families count."""
    before = dict(FAMILIES)
    FAMILIES.update({kind: dict(families.get(kind, {"silent": math.inf})) for kind in before})
    try:
        yield
    finally:
        FAMILIES.update(before)


def constant(name: str) -> float:
    """Return a constant of the detector."""
    module, _, own = name.partition(".")
    value: float = getattr(importlib.import_module(f"a2a_ray.analysis.loops.{module}"), own)
    return value


def set_constant(name: str, value: float) -> None:
    """Set a constant of the detector."""
    module, _, own = name.partition(".")
    setattr(importlib.import_module(f"a2a_ray.analysis.loops.{module}"), own, value)


def counts(verdicts: list[str]) -> dict[str, Any]:
    """Return F1, loops found in time, and false alarms."""
    loops = sum(v not in ("false", "quiet") for v in verdicts)
    healthy = len(verdicts) - loops
    return {
        "f1": round(f1(verdicts), 3),
        "loops": loops,
        **{name: verdicts.count(name) for name in ("hit", "late", "missed", "early")},
        "healthy": healthy,
        "false": verdicts.count("false"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="Parquet file in which embeddings are stored")
    parser.add_argument("--out", type=Path, default=REPORT)
    settings = parser.parse_args()
    data = conversations()
    embedder = load_embedder("all-MiniLM-L6-v2", settings.cache)
    fit = Fit(data, embedder)
    everything = list(range(len(data)))
    shipped = fit.choose(everything)
    sources = sorted({each["source"] for each in data})
    by_source, moved = {}, {}
    left_out = [""] * len(data)
    for source in sources:
        chosen = fit.choose([i for i in everything if data[i]["source"] != source])
        own = [i for i in everything if data[i]["source"] == source]
        for i, found in zip(own, fit.verdicts(chosen, own), strict=True):
            left_out[i] = found
        by_source[source] = counts([left_out[i] for i in own])
        moved[source] = {n: v for f, values in chosen.items() for n, v in values.items() if v != shipped[f][n]}
    kinds = [detector.kind_of(each["transcript"].turns) for each in data]
    labelled = [i for i in everything if data[i]["labels"]]
    groups = {"loops_llm": [i for i in labelled if "/" in data[i]["source"]]}
    for kind in FAMILIES:
        groups[f"{kind}, all labelled"] = [i for i in labelled if kinds[i] == kind]
    report = {
        "constants": {name: value for values in shipped.values() for name, value in values.items()},
        "left_out": by_source | {name: counts([left_out[i] for i in own]) for name, own in groups.items() if own},
        "constants_moved_by_leaving_out": {source: values for source, values in moved.items() if values},
        "in_sight": counts(fit.verdicts(shipped, groups["loops_llm"])),
    }
    settings.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if embedder is not None and settings.cache:
        embedder.save()
    print(json.dumps(report, indent=1))
    drift = {n: (v, constant(n)) for n, v in report["constants"].items() if v != constant(n)}  # type: ignore[attr-defined]
    if drift:
        sys.exit(f"These constants of the modules are not the fitted ones (fitted, in the module): {drift}")


if __name__ == "__main__":
    main()
