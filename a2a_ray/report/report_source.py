"""Collect the data of a report from the turns and findings of a run or a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from a2a_ray.analysis.text.exact_repetition import repeated_spans
from a2a_ray.core.findings import Finding
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.agent_pairs import Pair, pairs_of
from a2a_ray.report.equilibrium_tables import equilibria_table, pairs_table
from a2a_ray.report.loop_tables import loop_table, stopped_table
from a2a_ray.report.negotiation_figure import negotiation_section, negotiations_of
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.report_data import AgentEntry, ConversationItem, ReportData, TrajectoryPoint
from a2a_ray.report.results import Results, cell_label
from a2a_ray.store.run import Run

MOST_POINTS = 2_000
"""Turns on the t-SNE map. Its time grows with their square; 2,000 take some seconds."""


def report_data(
    results: Results, title: str = "", headline: Sequence[str] = (), numbers: Sequence[BigNumber] = ()
) -> ReportData:
    """Return everything that the report shows. headline, numbers: by default counts of conversations and loops."""
    import yaml

    run = results.run
    items = list(report_items(results))
    findings = [f for item in items for _, f in item.findings]
    pairs, games = pairs_of(findings, results.labels), negotiations_of(findings)
    texts = [item for item in items if item.transcript.messages and item.is_text]
    points, sampled = trajectory_points(results, texts)
    series = [each for p in pairs for each in p.series()]
    tables = [stopped_table(results), equilibria_table(findings, results.labels), pairs_table(pairs)]
    return ReportData(
        title=title or (Path(run.path).name if run else Path(results.source).name),
        headline=headline or _headline(results, texts),
        numbers=numbers or _numbers(results, items, texts),
        tables=[table for table in tables if table is not None],
        sections=[negotiation_section(games)] if games else [],
        plateau=[point for p in pairs for point in p.points()],
        errors=series,
        more_errors=_more_errors(results, pairs),
        conversations=[item for item in items if item in texts or item.failed or not pairs],
        loops=loop_table(results),
        trajectory=points,
        sampled=sampled,
        run=_facts(run) if run else {"file": results.source},
        agents=[AgentEntry(a.name, str(a.kind), a.model_extra or {}) for a in run.experiment.agents] if run else [],
        specification=yaml.safe_dump(run.manifest["experiment"], sort_keys=False, allow_unicode=True) if run else "",
    )


def report_items(
    results: Results, wanted: Callable[[Transcript], bool] = lambda transcript: True
) -> Iterator[ConversationItem]:
    """Yield the conversations that `wanted` selects, as the report shows them, in order."""
    by_id = {id: list(group) for id, group in groupby(results.findings(), key=lambda f: f.conversation_id)}
    for transcript in results.transcripts():
        if wanted(transcript):
            yield report_item(results, transcript, by_id.get(transcript.id, ()))


def report_item(results: Results, transcript: Transcript, findings: Sequence[Finding]) -> ConversationItem:
    """Return one conversation as the report shows it."""
    return ConversationItem(
        transcript,
        results.labels.get(transcript.id, ""),
        [(results.titles[f.key[1:]], f) for f in findings],
        repeated_spans(transcript),
    )


def trajectory_points(results: Results, items: Sequence[ConversationItem]) -> tuple[list[TrajectoryPoint], str]:
    """Return the t-SNE map of the turns of these conversations, and a sentence if it is a sample of them.

    The map is empty without an embedder. Embeds texts whose vectors are not cached.
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
    sampled = f"The map has {len(places):,} of {total:,} turns, evenly chosen." if len(places) < total else ""
    return [
        TrajectoryPoint(float(x), float(y), message.turn or 0, item.id, item.looped)
        for (x, y), (message, item) in zip(points, places, strict=True)
    ], sampled


def _headline(results: Results, texts: Sequence[ConversationItem]) -> list[str]:
    if not texts:
        return []
    sentences = [f"The loop detector found loops in {len(results.loops)} of {len(texts)} conversations."]
    if stops := results.early_stops:
        saved = sum(stop.tokens_saved for stop in stops)
        sentences.append(f"Observers stopped {len(stops)} of them early, which saved about {saved:,} tokens.")
    return sentences


def _numbers(results: Results, items: Sequence[ConversationItem], texts: Sequence[ConversationItem]) -> list[BigNumber]:
    numbers = [BigNumber(f"{len(items):,}", "conversations")]
    if texts:
        numbers.append(BigNumber(f"{len(results.loops)} of {len(texts)}", "looped"))
    if results.early_stops:
        numbers.append(BigNumber(str(len(results.early_stops)), "stopped early"))
    if failed := sum(item.failed for item in items):
        numbers.append(BigNumber(str(failed), "failed"))
    return numbers


def _more_errors(results: Results, pairs: Sequence[Pair]) -> str:
    """Return a sentence about the pairs whose errors per round are not drawn; empty if all are."""
    drawn = sum(bool(p.series()) for p in pairs)
    if drawn == len(pairs):
        return ""
    return (
        f"The figure shows {drawn} of {len(pairs)} pairs; a2a-ray analyze {results.source} --json prints the errors of"
        " all, in the findings of the analyzer equilibrium."
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
    """Return the facts about paid calls; empty if there were none."""
    ledger, usage = run.ledger(), run.cost()
    facts = {}
    if ledger["calls"]:
        duplicated, lost = ledger["possibly_duplicated"], ledger["unanswered"]
        facts["paid calls"] = (
            f"{ledger['calls']:,}; {duplicated:,} possibly paid twice, {lost:,} without a stored answer"
        )
    if usage.get("cost"):
        facts["cost"] = f"{usage['cost']:,.4f}"
    return facts
