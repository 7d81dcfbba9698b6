"""The results of an analysis: the findings of a run or of a file, as commands and reports read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

from a2a_ray.analysis.analyze import AnalysisSettings
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.findings import Finding, row_as_json
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.early_stops import EarlyStop, early_stop
from a2a_ray.report.embedding_cache import cache_file
from a2a_ray.report.finding_counts import COUNTED_FIELDS, FindingCounts, analyzer_titles
from a2a_ray.runtime.analyze_run import embeddings_file
from a2a_ray.store.findings_table import FindingsTable, Key
from a2a_ray.store.live_findings import live_keys
from a2a_ray.store.run import Run


@dataclass
class Results:
    """The findings of an analysis with one set of settings, and those of observers that watched live.

    run: None for a file; then `_file` has its conversations and `_file_findings` their findings.
    keys: of the analysis' findings, the loop detector's first. problems: one sentence for each unreadable line of a
    file.
    """

    source: str
    settings: AnalysisSettings
    run: Run | None
    keys: list[Key]
    problems: list[str] = field(default_factory=list)
    _file: dict[str, Transcript] = field(default_factory=dict)
    _file_findings: dict[str, list[Finding]] = field(default_factory=dict)

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the conversations, in order."""
        if self.run is None:
            return list(self._file)
        return sorted({id for seqs in self._table.known().values() for id in seqs})

    @cached_property
    def all_keys(self) -> list[Key]:
        """The keys of the analysis, then those of live observers with other settings and of custom analyzers."""
        if self.run is None:
            return self.keys
        stored = self._table.known()
        live = [key for key in live_keys(self.run.experiment) if key in stored]
        ours = {key[0] for key in self.keys}
        return list(dict.fromkeys([*self.keys, *live, *(key for key in sorted(stored) if key[0] not in ours)]))

    @cached_property
    def embedder(self) -> Embedder | None:
        """The embedder of the settings, with the vectors that the analysis cached."""
        if self.run is not None:
            return self.settings.load(embeddings_file(self.run.path))
        return self.settings.load(cache_file(self.source, self.settings.embedder))

    @cached_property
    def titles(self) -> dict[Key, str]:
        """A title for each analyzer and its settings."""
        return analyzer_titles(self.all_keys)

    @property
    def detector(self) -> Key:
        """The key of the loop detector."""
        return self.keys[0]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of the setting that each conversation belongs to, by id; "" for a file."""
        if self.run is None:
            return dict.fromkeys(self.ids, "")
        names = [cell_label(c) for c in self.run.experiment.changes]
        return {id: names[self.run.experiment.task(id).cell] for id in self.ids}

    def transcripts(self, ids: Sequence[str] | None = None) -> Iterator[Transcript]:
        """Yield these conversations, or all, in order."""
        if self.run is not None:
            yield from self.run.transcripts(ids)
        else:
            yield from (self._file[id] for id in (self._file if ids is None else ids))

    def findings(self, ids: Sequence[str] | None = None, analyzers: Sequence[str] = ()) -> Iterator[Finding]:
        """Yield findings by conversation. ids, analyzers: all by default."""
        ids = self.ids if ids is None else ids
        if self.run is not None:
            yield from self._table.read(ids, self._keys_of(analyzers))
        else:
            findings = (finding for id in ids for finding in self._file_findings[id])
            yield from (each for each in findings if not analyzers or each.analyzer in analyzers)

    def add_findings(self, id: str, findings: Sequence[Finding]) -> None:
        """Add findings on one conversation of a file, before anything was counted."""
        self._file_findings[id] += findings
        self.keys += [key for key in dict.fromkeys(f.key[1:] for f in findings) if key not in self.keys]

    @cached_property
    def counts(self) -> FindingCounts:
        """Counts over all findings, from one pass that does not read long fields."""
        counts = FindingCounts()
        if self.run is None:
            for each in self.findings():
                counts.add(each.key[1:], {name: getattr(each, name) for name in COUNTED_FIELDS})
            return counts
        columns = ["analyzer", "analyzer_version", "settings", *COUNTED_FIELDS]
        for batch in self._table.batches(keys=self.all_keys, columns=columns):
            for row in batch.to_pylist():
                counts.add((row["analyzer"], row["analyzer_version"], row["settings"]), row)
        return counts

    @cached_property
    def loops(self) -> dict[str, Finding]:
        """The detector's first loop of each looped conversation, by id, in order; only COUNTED_FIELDS are set."""
        loops = self.counts.loops.get(self.detector, {})
        order = {id: i for i, id in enumerate(self.ids)}
        return {id: loops[id] for id in sorted(loops, key=order.__getitem__)}

    @property
    def waiting(self) -> int:
        """Number of conversations that poll for an unchanged result."""
        return self.counts.waiting.get(self.detector, 0)

    @cached_property
    def texts(self) -> list[str]:
        """Ids of the conversations to which the detector applies, those with text; in order."""
        without_text = self.counts.not_applicable.get(self.detector, set())
        return [id for id in self.ids if id not in without_text]

    def looped(self, label: str | None = None) -> tuple[int, int]:
        """Return how many conversations looped and how many have text, in one setting or in all."""
        ids = [id for id in self.texts if label in (None, self.labels[id])]
        return sum(id in self.loops for id in ids), len(ids)

    def has_findings(self, analyzer: str) -> bool:
        """Return whether any finding of this analyzer reports something."""
        return any(self.counts.reported.get(key, 0) for key in self.all_keys if key[0] == analyzer)

    @cached_property
    def early_stops(self) -> list[EarlyStop]:
        """The conversations of a run that an observer stopped early."""
        if self.run is None:
            return []
        cells = self.run.experiment.cells
        ids = self.run.stopped_ids()
        findings: dict[str, list[Finding]] = {}
        for finding in self.findings(ids):
            findings.setdefault(finding.conversation_id, []).append(finding)
        return [
            early_stop(t, cells[t.metadata["cell"]].limit, findings.get(t.id, ())) for t in self.run.transcripts(ids)
        ]

    def write_json(self, out: IO[str], only: Sequence[str] = ()) -> None:
        """Write one JSON object on one line, piece by piece: the findings are never all in memory.

        only: names of the analyzers whose findings are written; all by default.
        """
        head = {
            "source": self.source,
            "conversations": len(self.ids),
            "looped": list(self.loops),
            "settings": {
                "embedder": self.settings.embedder,
                "threshold": self.settings.threshold,
                "conversation_kind": self.settings.conversation_kind,
            }
            | {"analyzers": [[name, version, json.loads(settings)] for name, version, settings in self.all_keys]},
            "stopped": [stop.to_dict() for stop in self.early_stops],
            "problems": self.problems,
        }
        out.write(json.dumps(head)[:-1] + ', "findings": [')
        for i, text in enumerate(self._json_findings(only)):
            out.write((", " if i else "") + text)
        out.write("]}\n")

    @cached_property
    def _table(self) -> FindingsTable:
        assert self.run is not None
        return FindingsTable(self.run.path)

    def _keys_of(self, analyzers: Sequence[str]) -> list[Key]:
        return [key for key in self.all_keys if not analyzers or key[0] in analyzers]

    def _json_findings(self, analyzers: Sequence[str]) -> Iterator[str]:
        if self.run is None:
            return (json.dumps(finding.to_dict()) for finding in self.findings(analyzers=analyzers))
        return map(row_as_json, self._table.rows(self.ids, self._keys_of(analyzers)))


def cell_label(changes: dict[str, Any]) -> str:
    """Return the name of a cell of a sweep: its label, or the keys that it changes."""
    if "label" in changes:
        return str(changes["label"])
    return ", ".join(f"{key} = {value}" for key, value in changes.items())
