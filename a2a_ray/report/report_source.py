"""The report of a run or a file: what it shows, from its turns and its findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from a2a_ray.analysis.text.exact_repetition import repeated_spans
from a2a_ray.core.findings import Finding
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.agent_pairs import Pair, pairs_of
from a2a_ray.report.equilibrium_tables import equilibria_table, pairs_table
from a2a_ray.report.negotiation_figure import games_of, negotiation_section
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.report_data import AgentEntry, ConversationItem, ReportData, TrajectoryPoint
from a2a_ray.report.results import Results, cell_label
from a2a_ray.store.run import Run

MOST_POINTS = 2_000
"""Turns on the t-SNE map, whose time grows with their square: 2 000 take some seconds."""


def report_data(
    results: Results, title: str = "", headline: Sequence[str] = (), numbers: Sequence[BigNumber] = ()
) -> ReportData:
    """Everything that the report shows."""
    import yaml

    run = results.run
    items = list(report_items(results))
    found = [f for item in items for _, f in item.findings]
    pairs, games = pairs_of(found, results.labels), games_of(found)
    texts = [item for item in items if item.transcript.messages and item.is_text]
    looped, stopped = len(results.loops), len(results.stopped)
    failed = sum(item.failed for item in items)
    if not headline and texts:
        headline = [f"{looped} of {len(texts)} conversations looped, as the loop detector judges."]
        if stopped:
            saved = sum(s.tokens_saved for s in results.stopped)
            headline.append(f"Observers stopped {stopped} of them early, which saved about {saved:,} tokens.")
    if not numbers:
        numbers = [BigNumber(f"{len(items):,}", "conversations")]
        if texts:
            numbers.append(BigNumber(f"{looped} of {len(texts)}", "looped"))
        if stopped:
            numbers.append(BigNumber(str(stopped), "stopped early"))
        if failed:
            numbers.append(BigNumber(str(failed), "failed"))
    points, placed = trajectory_points(results, texts)
    series = [each for p in pairs for each in p.series()]
    tables = [results.stopped_table, equilibria_table(found, results.labels), pairs_table(pairs)]
    return ReportData(
        title=title or (Path(run.path).name if run else Path(results.source).name),
        headline=headline,
        numbers=numbers,
        tables=[table for table in tables if table is not None],
        sections=[negotiation_section(games)] if games else [],
        plateau=[point for p in pairs for point in p.points()],
        errors=series,
        more_errors=_left_out(results, pairs),
        conversations=[item for item in items if item in texts or item.failed or not pairs],
        loops=results.loop_table,
        trajectory=points,
        placed=placed,
        run=_facts(run) if run else {"file": results.source},
        agents=[AgentEntry(a.name, str(a.kind), a.model_extra or {}) for a in run.experiment.agents] if run else [],
        specification=yaml.safe_dump(run.manifest["experiment"], sort_keys=False, allow_unicode=True) if run else "",
    )


def report_items(
    results: Results, wanted: Callable[[Transcript], bool] = lambda transcript: True
) -> Iterator[ConversationItem]:
    """The conversations that are wanted, as the report shows them, in order."""
    by_id = {id: list(found) for id, found in groupby(results.findings(), key=lambda f: f.conversation_id)}
    for transcript in results.transcripts():
        if wanted(transcript):
            yield report_item(results, transcript, by_id.get(transcript.id, ()))


def report_item(results: Results, transcript: Transcript, findings: Sequence[Finding]) -> ConversationItem:
    """One conversation as the report shows it."""
    return ConversationItem(
        transcript,
        results.labels.get(transcript.id, ""),
        [(results.titles[f.key[1:]], f) for f in findings],
        repeated_spans(transcript),
    )


def trajectory_points(results: Results, items: Sequence[ConversationItem]) -> tuple[list[TrajectoryPoint], str]:
    """The t-SNE map of the turns of these conversations, and a sentence if not all are on it; none without an embedder.

    Texts that the analysis did not keep the vectors of are embedded here.
    """
    embedder = results.embedder
    places = [(m, item) for item in items for m in item.transcript.messages if str(m.content).strip()]
    if embedder is None or len(places) < 3:
        return [], ""
    import numpy as np

    from a2a_ray.analysis.text.tsne import even_sample, tsne

    total = len(places)
    places = [places[i] for i in even_sample(total, MOST_POINTS)]
    points = tsne(np.asarray(embedder.encode([str(m.content) for m, _ in places])), MOST_POINTS)
    placed = f"{len(places):,} of {total:,} turns, evenly chosen, are on it." if len(places) < total else ""
    return [
        TrajectoryPoint(float(x), float(y), message.turn or 0, item.id, item.looped)
        for (x, y), (message, item) in zip(points, places, strict=True)
    ], placed


def _left_out(results: Results, pairs: Sequence[Pair]) -> str:
    """Which pairs' errors per round are not drawn, and where they are."""
    drawn = sum(bool(p.series()) for p in pairs)
    if drawn == len(pairs):
        return ""
    return (
        f"{drawn} of {len(pairs)} pairs are drawn; the errors of all are printed by a2a-ray analyze {results.source}"
        " --json, under the findings of equilibrium."
    )


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
        "settings": ", ".join(filter(None, map(cell_label, experiment.changes))) or "1",
        "git commit": str(manifest.get("git_commit") or "none"),
        "versions": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
    }


def _paid(run: Run) -> dict[str, str]:
    """What was paid for, if anything was."""
    ledger, took = run.ledger(), run.cost()
    facts = {}
    if ledger["calls"]:
        twice, lost = ledger["possibly_duplicated"], ledger["unanswered"]
        facts["paid calls"] = f"{ledger['calls']:,}; {twice:,} perhaps paid twice, {lost:,} without a stored answer"
    if took.get("cost"):
        facts["cost"] = f"{took['cost']:,.4f}"
    return facts
