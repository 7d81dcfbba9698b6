"""Print the results of commands: tables on a terminal, or one JSON object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.console import Console

from a2a_ray.interface.options import AUTO
from a2a_ray.report.sanitize import clean, clean_line
from a2a_ray.report.terminal_table import cell_text, print_table

if TYPE_CHECKING:
    from a2a_ray.experiment.estimate import Estimate
    from a2a_ray.report.results import Results
    from a2a_ray.store.run import Run

LISTED = 20
"""Tables and lists of conversations have at most this many rows."""
SHORTEST_QUOTE = 20
"""Characters of a repeated passage that are shown at least, on a terminal of any width."""


def print_estimate(estimate: Estimate, as_json: bool) -> None:
    """Print the result of a dry run."""
    if as_json:
        print(json.dumps(estimate._asdict()))
        return
    cost = "no price given" if estimate.cost is None else f"{estimate.cost:,.2f}"
    rows = [
        ("conversations", f"{estimate.conversations:,}"),
        ("turns, at most", f"{estimate.turns:,}"),
        ("calls, at most", f"{estimate.calls:,}"),
        *([("of these by judges, at most", f"{estimate.judge_calls:,}")] if estimate.judge_calls else []),
        ("input tokens, about", f"{estimate.input_tokens:,}"),
        ("output tokens, at most", f"{estimate.output_tokens:,}"),
        ("cost, at most about", cost),
    ]
    note = ""
    if estimate.assumed:
        note = f"Agents without a token limit are estimated at 500 tokens an answer: {', '.join(estimate.assumed)}."
    print_table("Nothing was started. This run would take:", ("", ""), rows, note)


def print_runs(runs: Sequence[dict[str, Any]], storage: str, as_json: bool) -> None:
    """Print the runs of a storage folder: path, counts and date of each."""
    if as_json:
        print(json.dumps({"runs": runs}))
        return
    if not runs:
        print(f"No runs in {storage}. Start one: a2a-ray init && a2a-ray run experiment.yaml")
        return
    columns = ("run", "total", "done", "failed", "turns", "looped", "created")
    keys = ("run", "conversations", *columns[2:6])
    rows = [(*(run[key] for key in keys), run["created"][:10]) for run in runs]
    note = (
        "Total: conversations. Looped: according to the loop detector's default settings; - if the run is not"
        " analyzed yet (a2a-ray analyze RUN)."
    )
    print_table(f"Runs in {storage}", columns, rows, note)


def print_failures(run: Run) -> None:
    """Print the failed conversations with their errors on standard error."""
    ids = sorted(id for id, status in run.statuses().items() if status == "failed")
    failed = list(run.transcripts(ids[:LISTED]))
    console = Console(stderr=True, soft_wrap=True)
    count = "1 conversation" if len(ids) == 1 else f"{len(ids)} conversations"
    console.print(f"{count} failed:", markup=False, highlight=False)
    for transcript in failed:
        text = f"  {transcript.id} after {len(transcript.messages)} turns: {transcript.error}"
        console.print(clean(text), markup=False, highlight=False)
        if transcript.traceback and transcript is failed[0]:
            console.print(clean(indent(transcript.traceback, "    ")), markup=False, highlight=False)
    if len(ids) > LISTED:
        console.print(f"  and {len(ids) - LISTED} more (a2a-ray show {run.path} ID).", markup=False, highlight=False)
    hint = f"After fixing the cause, retry them with: a2a-ray resume {run.path} --retry-failed"
    console.print(hint, markup=False, highlight=False)


def print_results(results: Results) -> None:
    """Print the result of an analysis: looped conversations by setting and rule, equilibria, and the loops."""
    from a2a_ray.report.agent_pairs import pairs_of
    from a2a_ray.report.equilibrium_tables import equilibria_table, pairs_table
    from a2a_ray.report.loop_tables import loop_table, stopped_table
    from a2a_ray.report.negotiation_figure import negotiations_of, outcome_table

    games = negotiations_of(results.findings(analyzers=("negotiation",)))
    equilibria = list(results.findings(analyzers=("equilibrium",))) if results.has_findings("equilibrium") else []
    tables = (
        loop_table(results),
        stopped_table(results),
        outcome_table(games) if games else None,
        equilibria_table(equilibria, results.labels),
        pairs_table(pairs_of(equilibria, results.labels)),
    )
    for table in tables:
        if table is not None:
            print_table(table.title, table.columns, table.rows, table.note)
    print_loops(results)


def print_loops(results: Results) -> None:
    """Print a table of the loops that the detector found, and a summary sentence."""
    listed = list(results.loops)[:LISTED]
    rows, quotes = [], []
    for finding in results.findings(listed):
        if finding.key[1:] == results.detector and finding.looped:
            turns = (finding.onset_turn, finding.alarm_turn, finding.period)
            rows.append([clean_line(finding.conversation_id), finding.kind, *turns, finding.score])
            quotes.append(finding.span)
    if rows:
        columns = ("conversation", "kind", "onset", "alarm", "period", "score", "repeats")
        used = sum(max(len(cell_text(row[i])) for row in [columns, *rows]) + 3 for i in range(len(rows[0])))
        room = max(Console().width - used, SHORTEST_QUOTE)
        threshold = json.loads(results.detector[2])["threshold"]
        note = f"Turns are numbered from 1, the first message. Alarm: a score above {threshold:g}."
        if len(results.loops) > LISTED:
            note += f" {len(results.loops) - LISTED:,} more conversations: --json lists all."
        quoted = [[*row, clean_line(quote, room)] for row, quote in zip(rows, quotes, strict=True)]
        print_table("Loops found by the detector", columns, quoted, note)
    print(_summary(results))


def print_judged(results: Results, used: Mapping[str, float]) -> None:
    """Print the conversations that the judge of a file says have stopped. used: sums over its answers."""
    found = [finding for finding in results.findings(analyzers=("judge",)) if finding.looped]
    rows = [[clean_line(f.conversation_id), f.onset_turn, f.alarm_turn, clean_line(f.reason)] for f in found[:LISTED]]
    if rows:
        note = f"{len(found) - LISTED:,} more: --json lists all." if len(found) > LISTED else ""
        print_table("No progress, says the judge", ("conversation", "since", "asked after", "reason"), rows, note)
    tokens = int(used.get("input_tokens", 0) + used.get("output_tokens", 0))
    cost = f" at a cost of {used['cost']:,.4f}" if "cost" in used else ""
    print(f"The judge answered {int(used['answers']):,} questions with {tokens:,} tokens{cost}.")


def print_guarantee(results: Results, threshold: str | None, kind: str) -> None:
    """Print what is known about false alarms, for a file of transcripts.

    threshold, kind: the options of the command. Only a calibration on conversations of the same kind promises anything.
    """
    from a2a_ray.analysis.loops.detector import kind_of
    from a2a_ray.analysis.loops.threshold import stored_calibration

    if results.run is not None or not results.texts:
        return
    kinds = Counter(kind_of(t.turns) if kind == AUTO else kind for t in results.transcripts(results.texts))
    calibration = stored_calibration(threshold)
    if calibration is not None and kinds.pop(calibration.kind, 0):
        print(f"False alarms: {calibration.guarantee}")
    if kinds:
        listed = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common())
        print(f"False alarms: no calibration for these conversations ({listed}); `a2a-ray calibrate FILE` makes one.")


def _summary(results: Results) -> str:
    """Return the result of the loop detector in one to three sentences."""
    count, looped = len(results.texts), len(results.loops)
    if not count:
        return "No conversation has text, so the loop detector does not apply."
    sentence = f"{looped:,} of {count:,} conversation{'s' * (count != 1)} looped"
    if recovered := sum(f.recovered_turn is not None for f in results.loops.values()):
        sentence += f" ({recovered:,} recovered)"
    if looped:
        spent = sum(f.tokens_since_onset or 0 for f in results.loops.values())
        sentence += f"; the loops took about {spent:,} tokens"
    sentences = [f"{sentence}."]
    if without_text := len(results.ids) - count:
        sentences.append(f"Skipped, because they have no text: {without_text:,}.")
    if results.waiting:
        sentences.append(f"Polling for an unchanged result, which is not a loop: {results.waiting:,}.")
    return " ".join(sentences)
