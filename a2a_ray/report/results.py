"""What commands show of an analysis: the findings of a run or of a file, and tables of them."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

from a2a_ray.analysis.analyze import AnalysisSettings, Analyzer, analyze, key_of, loop_analyzers
from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer
from a2a_ray.analysis.equilibria.negotiation import has_offers
from a2a_ray.analysis.equilibria.negotiation_analyzer import NegotiationAnalyzer
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.errors import ConfigurationError, StorageError, unknown
from a2a_ray.core.findings import Finding, row_as_json
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.finding_counts import COUNTED, OF_AGENTS, Counts, titles_of
from a2a_ray.report.page_parts import Table
from a2a_ray.report.report_page import wilson_interval
from a2a_ray.report.stopped import StoppedTalk, stopped_talk
from a2a_ray.runtime.analyze_run import analyze_run, embeddings_file
from a2a_ray.runtime.progress import progress_bar
from a2a_ray.store.findings_table import FindingsTable, Key
from a2a_ray.store.live_findings import live_keys
from a2a_ray.store.run import MANIFEST, Run, open_run
from a2a_ray.transcripts.jsonl import read_jsonl

LOOPS = "Loops"
"""Title of the table that says how many conversations looped."""
STOPPED = "Stopped by an observer"
"""Title of the table that says what observers saved."""


@dataclass
class Results:
    """The findings of an analysis with one set of settings, beside those of observers that watched live.

    run: None for a file; then `_file` holds its conversations and `_found` their findings.
    keys: of the analysis' findings, the loop detector's first. problems: what of a file could not be read.
    """

    source: str
    settings: AnalysisSettings
    run: Run | None
    keys: list[Key]
    problems: list[str] = field(default_factory=list)
    _file: dict[str, Transcript] = field(default_factory=dict)
    _found: dict[str, list[Finding]] = field(default_factory=dict)

    @cached_property
    def ids(self) -> list[str]:
        """Of the conversations, in order."""
        if self.run is None:
            return list(self._file)
        return sorted({id for seqs in self._table.known().values() for id in seqs})

    @cached_property
    def all_keys(self) -> list[Key]:
        """The keys of the analysis, then those of live observers: with other settings, or of somebody's own."""
        if self.run is None:
            return self.keys
        stored = self._table.known()
        live = [key for key in live_keys(self.run.experiment) if key in stored]
        ours = {key[0] for key in self.keys}
        return list(dict.fromkeys([*self.keys, *live, *(key for key in sorted(stored) if key[0] not in ours)]))

    @cached_property
    def embedder(self) -> Embedder | None:
        """The embedder of the settings, with the vectors that the analysis kept."""
        if self.run is not None:
            return self.settings.load(embeddings_file(self.run.path))
        return self.settings.load(cache_file(self.source, self.settings.embedder))

    @cached_property
    def titles(self) -> dict[Key, str]:
        """The analyzers in words."""
        return titles_of(self.all_keys)

    @property
    def detector(self) -> Key:
        """The key of the loop detector."""
        return self.keys[0]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The setting that each conversation belongs to, in words; by id."""
        if self.run is None:
            return dict.fromkeys(self.ids, "")
        names = [cell_label(c) for c in self.run.experiment.changes]
        return {id: names[self.run.experiment.task(id).cell] for id in self.ids}

    def transcripts(self, ids: Sequence[str] | None = None) -> Iterator[Transcript]:
        """These conversations, or all, in order."""
        if self.run is not None:
            yield from self.run.transcripts(ids)
        else:
            yield from (self._file[id] for id in (self._file if ids is None else ids))

    def findings(self, ids: Sequence[str] | None = None, analyzers: Sequence[str] = ()) -> Iterator[Finding]:
        """The findings of these conversations, or of all, by conversation; of these analyzers, or of all."""
        ids = self.ids if ids is None else ids
        if self.run is not None:
            keys = [key for key in self.all_keys if not analyzers or key[0] in analyzers]
            yield from self._table.read(ids, keys)
        else:
            found = (finding for id in ids for finding in self._found[id])
            yield from (each for each in found if not analyzers or each.analyzer in analyzers)

    @cached_property
    def counts(self) -> Counts:
        """What one pass over all findings counts, without what is long in them."""
        counts = Counts()
        if self.run is None:
            for each in self.findings():
                counts.add(each.key[1:], {name: getattr(each, name) for name in COUNTED})
            return counts
        columns = ["analyzer", "analyzer_version", "settings", *COUNTED]
        for batch in self._table.batches(keys=self.all_keys, columns=columns):
            for row in batch.to_pylist():
                counts.add((row["analyzer"], row["analyzer_version"], row["settings"]), row)
        return counts

    @cached_property
    def loops(self) -> dict[str, Finding]:
        """The detector's first loop of each conversation that has one, without what is long; by id, in order."""
        found = self.counts.loops.get(self.detector, {})
        return {id: found[id] for id in sorted(found, key=self._places.__getitem__)}

    @property
    def waiting(self) -> int:
        """Conversations that wait for a result that does not change."""
        return self.counts.waiting.get(self.detector, 0)

    @cached_property
    def texts(self) -> list[str]:
        """The conversations that the detector could read: those with text; ids, in order."""
        mute = self.counts.mute.get(self.detector, set())
        return [id for id in self.ids if id not in mute]

    def looped(self, label: str | None = None) -> tuple[int, int]:
        """How many conversations looped, of how many with text, in one setting or in all."""
        mine = [id for id in self.texts if label in (None, self.labels[id])]
        return sum(id in self.loops for id in mine), len(mine)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    @cached_property
    def _table(self) -> FindingsTable:
        assert self.run is not None
        return FindingsTable(self.run.path)

    @cached_property
    def stopped(self) -> list[StoppedTalk]:
        """The conversations of a run that an observer ended early."""
        if self.run is None:
            return []
        cells = self.run.experiment.cells
        ids = self.run.stopped_ids()
        loops: dict[str, list[Finding]] = {}
        for finding in self.findings(ids):
            loops.setdefault(finding.conversation_id, []).append(finding)
        return [
            stopped_talk(t, cells[t.metadata["cell"]].limit, loops.get(t.id, ())) for t in self.run.transcripts(ids)
        ]

    @cached_property
    def loop_table(self) -> Table | None:
        """How many conversations looped in each setting, by each analyzer; None without conversations of texts."""
        titles = {key: title for key, title in self.titles.items() if key[0] not in OF_AGENTS}
        texts, looped, onsets = Counter[str](), dict[Key, Counter[str]](), dict[str, list[int]]()
        for id in self.texts:
            texts[self.labels[id]] += 1
        for key in titles:
            found = self.counts.loops.get(key, {})
            looped[key] = Counter(self.labels[id] for id in found)
        for id, loop in self.loops.items():
            if loop.onset_turn is not None:
                onsets.setdefault(self.labels[id], []).append(loop.onset_turn)
        if not texts:
            return None
        rows = []
        labels = [label for label in dict.fromkeys(self.labels[id] for id in self.ids) if label in texts]
        for row in [[label] for label in labels] + ([labels] if len(labels) > 1 else []):
            total = sum(texts[label] for label in row)
            first, *others = (sum(looped[key][label] for label in row) for key in titles)
            low, high = wilson_interval(first, total)
            turns = [turn for label in row for turn in onsets.get(label, ())]
            rows.append(
                (
                    "all" if len(row) > 1 else row[0] or "all",
                    total,
                    first,
                    f"{first / total:.0%}",
                    f"{low:.0%} to {high:.0%}",
                    statistics.median(turns) if turns else None,
                    *others,
                )
            )
        detector, *baselines = titles.values()
        columns = ("setting", "total", detector, "share", "95 % interval", "median onset", *baselines)
        note = (
            "Total: conversations; then those in which each rule found a loop. Share, its interval (Wilson's) and the"
            " median onset (the turn that first repeats) are the loop detector's."
        )
        return Table(LOOPS, columns, rows, note)

    @cached_property
    def stopped_table(self) -> Table | None:
        """What observers saved, per setting; None if they stopped nothing."""
        if not self.stopped:
            return None
        rows = []
        for label in dict.fromkeys(self.labels.values()):
            count = sum(each == label for each in self.labels.values())
            mine = [s for s in self.stopped if self.labels[s.id] == label]
            wasted, saved = (sum(getattr(s, n) for s in mine) for n in ("tokens_since_onset", "tokens_saved"))
            rows.append((label or "all", count, len(mine), sum(s.turns_left for s in mine), wasted, saved))
        columns = ("setting", "conversations", "stopped", "turns left", "tokens since onset", "tokens saved, about")
        counted = "as the agents report them" if all(s.counted for s in self.stopped) else "words times 4/3"
        note = (
            "Tokens saved: the turns left to the limit times the mean tokens of a message of that conversation; an"
            f" estimate. Tokens: {counted}."
        )
        return Table(STOPPED, columns, rows, note)

    def _json_texts(self, analyzers: Sequence[str]) -> Iterator[str]:
        if self.run is None:
            return (json.dumps(finding.to_dict()) for finding in self.findings(analyzers=analyzers))
        keys = [key for key in self.all_keys if not analyzers or key[0] in analyzers]
        return map(row_as_json, self._table.rows(self.ids, keys))

    def said(self, analyzer: str) -> bool:
        """Whether any finding of this analyzer says something."""
        return any(self.counts.said.get(key, 0) for key in self.all_keys if key[0] == analyzer)

    def write_json(self, out: IO[str], only: Sequence[str] = ()) -> None:
        """One JSON object on one line, written piece by piece: findings of many conversations are never all in memory.

        only: names of analyzers whose findings are written; all by default.
        """
        head = {
            "source": self.source,
            "conversations": len(self.ids),
            "looped": list(self.loops),
            "settings": {"embedder": self.settings.embedder, "threshold": self.settings.threshold}
            | {"analyzers": [[name, version, json.loads(settings)] for name, version, settings in self.all_keys]},
            "stopped": [s.to_dict() for s in self.stopped],
            "problems": self.problems,
        }
        out.write(json.dumps(head)[:-1] + ', "findings": [')
        for place, text in enumerate(self._json_texts(only)):
            out.write((", " if place else "") + text)
        out.write("]}\n")


def analyze_source(
    source: str,
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008  (it is frozen)
    *,
    workers: int | None = None,
    address: str | None = None,
    only: Sequence[str] = (),
) -> Results:
    """Analyzes a run, as far as that was not done before, or a file of transcripts.

    only: names of analyzers that are to read a file; all by default. Raises ConfigurationError, PlacementError,
    StorageError.
    """
    if not is_file(source):
        return analyze_opened(open_run(source), settings, workers=workers, address=address)
    transcripts, problems = read_file(source)
    return analyze_transcripts(source, transcripts, settings, problems, only)


def analyze_opened(
    run: Run,
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008
    *,
    workers: int | None = None,
    address: str | None = None,
) -> Results:
    """The same for a run that is open."""
    with _bar(run.path) as told, half_the_cores(settings):
        keys = analyze_run(run, settings, workers=workers, address=address, told=told)
    return Results(run.path, settings, run, keys)


def analyze_transcripts(
    source: str,
    transcripts: Sequence[Transcript],
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008
    problems: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Results:
    """The same for transcripts at hand; their embeddings are kept in the user's cache folder."""
    embedder = settings.load(cache_file(source, settings.embedder))
    nobody = EquilibriumAnalyzer(None)
    common = [*loop_analyzers(settings, embedder), nobody]
    keys = [key_of(each) for each in common if not only or each.name in only]
    more: list[Analyzer] = [nobody, NegotiationAnalyzer()] if any(map(has_offers, transcripts)) else [nobody]
    found: dict[str, list[Finding]] = {}
    total = sum(len(t) + 1 for t in transcripts)
    try:
        with _bar(source) as told, half_the_cores(settings):
            done = 0
            for transcript, findings in analyze(
                transcripts,
                settings,
                embedder=embedder,
                of_conversation=lambda t: more,
                wanted=lambda id, analyzer: not only or analyzer.name in only,
            ):
                found[transcript.id] = findings
                done += len(transcript) + 1
                told(done, total)
    finally:
        if embedder is not None:
            try:
                embedder.save()
            except StorageError as error:
                print(f"Note: {error}. They are made anew next time.", file=sys.stderr)
    offers = {f.key[1:] for findings in found.values() for f in findings if f.analyzer == "negotiation"}
    return Results(source, settings, None, [*keys, *offers], list(problems), {t.id: t for t in transcripts}, found)


def is_file(source: str) -> bool:
    """Whether the source is a file of transcripts, and no run."""
    return "://" not in source and Path(source).is_file() and Path(source).name != MANIFEST


def read_file(source: str) -> tuple[list[Transcript], list[str]]:
    """The conversations of a file and what of it cannot be read, which goes to standard error as well."""
    transcripts, problems = read_jsonl(source)
    for problem in problems:
        print(problem, file=sys.stderr)
    return transcripts, problems


def check_conversation(results: Results, conversation: str) -> None:
    """Raises ConfigurationError, with ids that exist, if the source has no conversation of this id."""
    if conversation not in results._places:
        raise ConfigurationError(f"{results.source}: " + unknown("conversation", conversation, results.ids[:20]))


def cell_label(changes: dict[str, Any]) -> str:
    """A cell of a sweep in words: its label, else what it changes."""
    if "label" in changes:
        return str(changes["label"])
    return ", ".join(f"{key} = {value}" for key, value in changes.items())


def cache_file(source: str, embedder: str | None) -> Path | None:
    """Where the embeddings of a file's texts are kept: in the user's cache folder, if there is one."""
    if embedder is None:
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "a2a_ray"
    except RuntimeError:  # no home
        return None
    path = Path(source).resolve()
    key = blake2b(f"{path}\0{embedder}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return folder / f"{path.stem}-{key}.parquet"


@contextmanager
def _bar(source: str) -> Iterator[Any]:
    """What is to be called with how many records are done, of how many; a bar on a terminal, an estimate on others."""
    with progress_bar(Path(source).name, "analyzing", transient=True) as update:
        yield lambda done, total: update(done, total, "")


@contextmanager
def half_the_cores(settings: AnalysisSettings) -> Iterator[None]:
    """With an embedder torch works on half of the cores: with all of them taken it is five times slower once anything
    else runs."""
    if settings.embedder is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
