"""From a run, or a file of transcripts, to what was found in it, and to the data of a report."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from a2a_ray.analysis.embedding import Embedder, load_embedder
from a2a_ray.analysis.negotiation_findings import NegotiationAnalyzer
from a2a_ray.analysis.repetition import repeated_spans
from a2a_ray.analysis.text import Loop, TextAnalysis, analyze_texts, is_text
from a2a_ray.core.errors import BadInput, unknown
from a2a_ray.core.exchange import read_jsonl
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import EMPTY
from a2a_ray.core.transcript import FAILED, Transcript
from a2a_ray.interface.negotiation_figure import NEGOTIATIONS, games_of, negotiation_section, outcome_table
from a2a_ray.interface.plateau import Pair, pairs_of
from a2a_ray.interface.report_data import AgentEntry, BigNumber, ConversationItem, ReportData, Table, TrajectoryPoint
from a2a_ray.interface.stopped import StoppedTalk, observed_loop, stopped_after, stopped_talk
from a2a_ray.runtime.objectives import equilibrium_analyzer
from a2a_ray.runtime.store import MANIFEST, Run, open_run

LOOPS = "Loops per setting"
"""Title of the table that says how many conversations looped."""
STOPPED = "Stopped by an observer"
"""Title of the table that says what observers saved."""
TRAJECTORIES = 40
"""Most conversations on the t-SNE map: more cannot be told apart."""


@dataclass
class Results:
    """What was found: `texts` per text conversation, `pairs` per LSA pair, `negotiations` per conversation where turns
    carry offers; `run` is None for a file."""

    source: str
    run: Run | None
    transcripts: list[Transcript]
    texts: list[TextAnalysis]
    pairs: list[Pair]
    embedder: Embedder | None
    problems: list[str] = field(default_factory=list)
    negotiations: list[Finding] = field(default_factory=list)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The setting that each conversation belongs to, in words; by id."""
        if self.run is None:
            return dict.fromkeys((t.id for t in self.transcripts), "")
        names = [cell_label(c) for c in self.run.experiment.changes]
        return {t.id: names[t.metadata["cell"]] for t in self.transcripts}

    @cached_property
    def observed(self) -> dict[str, Loop]:
        """The earliest loop that an observer saw in each conversation, where one did; by id."""
        found = {t.id: observed_loop(t, self.observer_kinds(t)) for t in self.transcripts if t.verdicts}
        return {id: loop for id, loop in found.items() if loop is not None}

    @cached_property
    def loops(self) -> dict[str, Loop]:
        """The earliest loop of each conversation that has one, found by the analysis or by an observer; by id."""
        found = {a.id: earliest(a.loop, self.observed.get(a.id)) for a in self.texts}
        return {id: loop for id, loop in found.items() if loop is not None}

    @cached_property
    def stopped(self) -> list[StoppedTalk]:
        """The conversations of a run that an observer ended early."""
        if self.run is None:
            return []
        cells = self.run.experiment.cells
        found = (
            stopped_talk(t, cells[t.metadata["cell"]].limit, self.observer_kinds(t))
            for t in self.transcripts
            if t.stopped_by
        )
        return [each for each in found if each is not None]

    def observer_kinds(self, transcript: Transcript) -> dict[str, str]:
        """The kinds of a conversation's observers, by their names in it."""
        if self.run is None:
            return {}
        cell = self.run.experiment.cells[transcript.metadata["cell"]]
        return {name: str(settings["kind"]) for name, settings in cell.named_observers.items()}

    @cached_property
    def tables(self) -> list[Table]:
        """Summary tables: loops, talks stopped early, negotiations, and pairs measured against predicted."""
        out = []
        if self.texts:
            out.append(self._loop_table())
        if self.stopped:
            out.append(self._stopped_table())
        if self.negotiations:
            out.append(outcome_table(self.negotiations))
        if self.pairs:
            rows = [
                (
                    p.label,
                    p.gap,
                    p.measured[0],
                    p.predicted[0],
                    p.measured[1],
                    p.predicted[1],
                    p.largest_error(),
                    p.settled_round,
                )
                for p in self.pairs
            ]
            w, u = self.pairs[0].agent_names
            columns = ("pair", "gap", w, "closed form", u, "closed form", "error / gap", "settled in round")
            note = "Each agent's distance from its own objective, read after its own last turn, beside the closed form."
            out.append(Table("Where pairs of LSA agents settled", columns, rows, note))
        return out

    def _loop_table(self) -> Table:
        groups: dict[str, list[TextAnalysis]] = {}
        for analysis in self.texts:
            groups.setdefault(self.labels[analysis.id], []).append(analysis)
        rows = []
        for label, group in groups.items():
            onsets = [self.loops[a.id].onset for a in group if a.id in self.loops]
            exact = sum(a.exact is not None for a in group)
            published = sum(a.published is not None for a in group)
            onset = statistics.median(onsets) if onsets else None
            observed = sum(a.id in self.observed for a in group)
            counts = (exact, published, observed) if self.observed else (exact, published)
            rows.append((label or "all", len(group), len(onsets), len(onsets) / len(group), *counts, onset))
        kinds = ("exact", "published", "observed") if self.observed else ("exact", "published")
        columns = ("setting", "talks", "looped", "rate", *kinds, "onset")
        note = "A talk looped if exact repetition, the published rule or an observer says so. Onset: median turn."
        return Table(LOOPS, columns, rows, note)

    def _stopped_table(self) -> Table:
        rows = []
        for label in dict.fromkeys(self.labels.values()):
            talks = sum(each == label for each in self.labels.values())
            mine = [s for s in self.stopped if self.labels[s.id] == label]
            wasted, saved = (sum(getattr(s, n) for s in mine) for n in ("tokens_since_onset", "tokens_saved"))
            rows.append((label or "all", talks, len(mine), sum(s.turns_left for s in mine), wasted, saved))
        columns = ("setting", "talks", "stopped", "turns left", "tokens since onset", "tokens saved, about")
        counted = "as the agents report them" if all(s.counted for s in self.stopped) else "words times 4/3"
        note = (
            "Tokens saved: the turns left to the limit times the mean tokens of a message of that talk; an estimate of"
            f" what was not spent, had the talk gone on. Tokens: {counted}."
        )
        return Table(STOPPED, columns, rows, note)

    def to_dict(self) -> dict[str, Any]:
        """JSON value of everything found."""
        return {
            "source": self.source,
            "conversations": len(self.transcripts),
            "failed": sum(t.status == FAILED for t in self.transcripts),
            "looped": len(self.loops),
            "stopped": {
                "conversations": len(self.stopped),
                "turns_left": sum(s.turns_left for s in self.stopped),
                "tokens_since_onset": sum(s.tokens_since_onset for s in self.stopped),
                "tokens_saved": sum(s.tokens_saved for s in self.stopped),
                "talks": [s.to_dict() for s in self.stopped],
            },
            "problems": self.problems,
            "embedder": self.embedder.name if self.embedder else None,
            "pairs": [p.to_dict() for p in self.pairs],
            "negotiations": [{"id": g.conversation_id, **g.evidence} for g in self.negotiations],
            "texts": [
                {"setting": self.labels[a.id], **a.to_dict(), "loop": loop._asdict() if loop else None}
                for a in self.texts
                for loop in (self.loops.get(a.id),)
            ],
        }


def load_source(source: str, conversation: str | None = None) -> tuple[Run | None, list[Transcript], list[str]]:
    """A run and its transcripts, or those of a JSONL file (no run) and what of it cannot be read.

    Such problems go to standard error as well.
    """
    if "://" not in source and Path(source).is_file() and Path(source).name != MANIFEST:
        transcripts, problems = read_jsonl(source)
        for problem in problems:
            print(problem, file=sys.stderr)
        if conversation is not None:
            chosen = [t for t in transcripts if t.id == conversation]
            if not chosen:
                raise BadInput(f"{source}: " + unknown("conversation", conversation, [t.id for t in transcripts[:20]]))
            transcripts = chosen
        return None, transcripts, problems
    run = open_run(source)
    return run, [run.transcript(conversation)] if conversation is not None else list(run.transcripts()), []


def analyze_source(source: str, embedder_name: str) -> Results:
    """Analyses a run or a file. Embeddings are kept in the run's folder, so that a second time costs none."""
    run, transcripts, problems = load_source(source)
    results = analyze(source, run, transcripts, embedder_name)
    results.problems.extend(problems)
    return results


def analyze(source: str, run: Run | None, transcripts: list[Transcript], embedder_name: str) -> Results:
    """The same for transcripts at hand."""
    texts = [t for t in transcripts if t.messages and is_text(t)]
    embedder: Embedder | None = None
    if texts:
        folder = Path(run.path) if run is not None and "://" not in run.path else None
        embedder = load_embedder(embedder_name, folder / "embeddings.parquet" if folder else None, dtype="auto")
    found = with_progress(texts, embedder) if embedder else analyze_texts(texts, None)
    if embedder is not None:
        embedder.save()
    games = games_of(f for t in transcripts for f in NegotiationAnalyzer().findings(t))
    return Results(source, run, transcripts, found, _pairs(run, transcripts), embedder, negotiations=games)


def _pairs(run: Run | None, transcripts: list[Transcript]) -> list[Pair]:
    if run is None:
        return []
    cells, labels = run.experiment.cells, [cell_label(changes) for changes in run.experiment.changes]
    found = [f for t in transcripts for f in equilibrium_analyzer(cells[t.metadata["cell"]]).findings(t)]
    return pairs_of(found, {t.id: labels[t.metadata["cell"]] for t in transcripts})


def report_data(
    results: Results, title: str = "", headline: Sequence[str] = (), numbers: Sequence[BigNumber] = ()
) -> ReportData:
    """Everything that the report shows."""
    import yaml

    by_id = {a.id: a for a in results.texts}
    run = results.run
    shown = [t for t in results.transcripts if t.id in by_id or t.status == FAILED or not results.pairs]
    looped, stopped = len(results.loops), len(results.stopped)
    failed = sum(t.status == FAILED for t in results.transcripts)
    if not headline and results.texts:
        headline = [f"{looped} of {len(results.texts)} conversations converged into a loop."]
        if stopped:
            saved = sum(s.tokens_saved for s in results.stopped)
            headline.append(f"Observers stopped {stopped} of them early, which saved about {saved:,} tokens.")
    if not numbers:
        numbers = [BigNumber(f"{len(results.transcripts):,}", "conversations")]
        if results.texts:
            numbers.append(BigNumber(f"{looped} of {len(results.texts)}", "looped"))
        if stopped:
            numbers.append(BigNumber(str(stopped), "stopped early"))
        if failed:
            numbers.append(BigNumber(str(failed), "failed"))
    return ReportData(
        title=title or (Path(run.path).name if run else Path(results.source).name),
        headline=headline,
        numbers=numbers,
        # the report makes its own table of loops, and a section has that of negotiations
        tables=[t for t in results.tables if t.title not in (LOOPS, NEGOTIATIONS)],
        sections=[negotiation_section(results.negotiations)] if results.negotiations else [],
        plateau=[point for p in results.pairs for point in p.points()],
        errors=[series for p in results.pairs for series in p.series()],
        conversations=[report_item(t, by_id.get(t.id), results.labels[t.id], results.observer_kinds(t)) for t in shown],
        trajectory=trajectory_points(results),
        run=_facts(run) if run else {"file": results.source},
        agents=[AgentEntry(a.name, str(a.kind), a.model_extra or {}) for a in run.experiment.agents] if run else [],
        specification=yaml.safe_dump(run.manifest["experiment"], sort_keys=False, allow_unicode=True) if run else "",
    )


def cell_label(changes: dict[str, Any]) -> str:
    """A cell of a sweep in words: its label, else what it changes."""
    if "label" in changes:
        return str(changes["label"])
    return ", ".join(f"{key} = {value}" for key, value in changes.items())


def earliest(*loops: Loop | None) -> Loop | None:
    """The loop with the earliest onset; of equals the first."""
    return min((loop for loop in loops if loop is not None), key=lambda loop: loop.onset, default=None)


def report_item(
    transcript: Transcript, analysis: TextAnalysis | None, label: str, kinds: Mapping[str, str] = EMPTY
) -> ConversationItem:
    """One conversation as the report shows it. kinds: of its observers, by name."""
    if analysis is None:
        return ConversationItem(transcript, label)
    loop = earliest(analysis.loop, observed_loop(transcript, kinds))
    return ConversationItem(
        transcript,
        label,
        rule=loop.rule if loop else None,
        onset=loop.onset if loop else None,
        phrase=loop.phrase if loop else None,
        distances={name: values.tolist() for name, values in analysis.rounds.items()},
        drift=analysis.drift.tolist(),
        spans=repeated_spans(transcript),
        stopped=stopped_after(transcript),
    )


def trajectory_points(results: Results) -> list[TrajectoryPoint]:
    """The t-SNE map of the outputs of up to TRAJECTORIES conversations, looped ones first."""
    if results.embedder is None or not results.texts:
        return []
    import numpy as np

    from a2a_ray.analysis.trajectory import even_sample, tsne

    chosen = sorted(results.texts, key=lambda a: a.id not in results.loops)[:TRAJECTORIES]
    by_id = {t.id: t for t in results.transcripts}
    places = [(m, a) for a in chosen for m in by_id[a.id].messages if str(m.content).strip()]
    if len(places) < 3:
        return []
    places = [places[i] for i in even_sample(len(places))]
    points = tsne(np.asarray(results.embedder.encode([str(m.content) for m, _ in places])))
    return [
        TrajectoryPoint(float(x), float(y), message.turn, analysis.id, analysis.id in results.loops)
        for (x, y), (message, analysis) in zip(points, places, strict=True)
    ]


def _facts(run: Run) -> dict[str, str]:
    experiment, manifest = run.experiment, run.manifest
    counts = run.summary()
    return {
        "run": run.path,
        "created": manifest["created"],
        "conversations": f"{counts['done']} done, {counts['failed']} failed, of {counts['conversations']}",
        "turns": f"{counts['turns']:,}",
        **_paid(run),
        "seed": str(experiment.seed),
        "protocol": str(experiment.protocol),
        "limit": f"{experiment.limit} turns",
        "repeats": str(experiment.repeats),
        "settings": str(len(experiment.cells)),
        "git commit": str(manifest.get("git_commit") or "none"),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }


def _paid(run: Run) -> dict[str, str]:
    """What was paid for, if anything was."""
    ledger, took = run.ledger(), run.cost()
    facts = {}
    if ledger["calls"]:
        twice, lost = ledger["perhaps_paid_twice"], ledger["unanswered"]
        facts["paid calls"] = f"{ledger['calls']:,}; {twice:,} perhaps paid twice, {lost:,} without an answer on record"
    if took.get("cost"):
        facts["cost"] = f"{took['cost']:,.4f}"
    return facts


def with_progress(texts: list[Transcript], embedder: Embedder) -> list[TextAnalysis]:
    """`analyze_texts` with a bar on a terminal, on half of the cores."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with half_the_cores(), Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("embedding", total=None)
        return analyze_texts(texts, embedder, progress=lambda n, total: bar.update(task, completed=n, total=total))


@contextmanager
def half_the_cores() -> Iterator[None]:
    """Torch works on half of the cores: with all of them taken it is five times slower once anything else runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
