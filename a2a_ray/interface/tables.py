"""What commands print: tables on a terminal, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.console import Console

from a2a_ray.report.sanitize import clean, clean_line
from a2a_ray.report.terminal_table import cell_text, print_table

if TYPE_CHECKING:
    from a2a_ray.experiment.estimate import Estimate
    from a2a_ray.report.results import Results
    from a2a_ray.store.run import Run

SHOWN = 20
"""Most rows that a list of conversations prints."""
SHORTEST_QUOTE = 20
"""So many characters of what is repeated are shown at least, however narrow the terminal."""


def show_estimate(what: Estimate, as_json: bool) -> None:
    """The result of a dry run."""
    if as_json:
        print(json.dumps(what._asdict()))
        return
    cost = "no price given" if what.cost is None else f"{what.cost:,.2f}"
    rows = [
        ("conversations", f"{what.conversations:,}"),
        ("turns, at most", f"{what.turns:,}"),
        ("calls, at most", f"{what.calls:,}"),
        ("tokens in, about", f"{what.input_tokens:,}"),
        ("tokens out, at most", f"{what.output_tokens:,}"),
        ("money, at most about", cost),
    ]
    note = ""
    if what.assumed:
        note = f"Agents without a token limit were taken at 500 tokens an answer: {', '.join(what.assumed)}."
    print_table("Nothing was started. This run would take:", ("", ""), rows, note)


def show_runs(found: Sequence[dict[str, Any]], storage: str, as_json: bool) -> None:
    """The runs of a storage folder: path, time of creation and counts of each."""
    if as_json:
        print(json.dumps({"runs": found}))
        return
    if not found:
        print(f"No runs in {storage}. Start one: a2a-ray init && a2a-ray run experiment.yaml")
        return
    columns = ("run", "total", "done", "failed", "turns", "looped", "created")
    keys = ("run", "conversations", *columns[2:6])
    rows = [(*(r[key] for key in keys), r["created"][:10]) for r in found]
    note = (
        "Total: conversations. Looped: by the loop detector's default settings; - if the run was not analyzed"
        " (a2a-ray analyze RUN)."
    )
    print_table(f"Runs in {storage}", columns, rows, note)


def show_failures(run: Run) -> None:
    """The conversations that failed, with their errors, on standard error."""
    ids = sorted(id for id, status in run.statuses().items() if status == "failed")
    failed = list(run.transcripts(ids[:SHOWN]))
    console = Console(stderr=True, soft_wrap=True)
    count = "1 conversation" if len(ids) == 1 else f"{len(ids)} conversations"
    console.print(f"{count} failed:", markup=False, highlight=False)
    for transcript in failed:
        text = f"  {transcript.id} after {len(transcript.messages)} turns: {transcript.error}"
        console.print(clean(text), markup=False, highlight=False)
        if transcript.traceback and transcript is failed[0]:
            console.print(clean(indent(transcript.traceback, "    ")), markup=False, highlight=False)
    if len(ids) > SHOWN:
        console.print(f"  and {len(ids) - SHOWN} more (a2a-ray show {run.path} ID).", markup=False, highlight=False)
    hint = f"Mended? a2a-ray resume {run.path} --retry-failed lets them go on."
    console.print(hint, markup=False, highlight=False)


def show_results(results: Results) -> None:
    """The outcome of an analysis: how many conversations looped, by which rule, which did, and where agents settled."""
    from a2a_ray.report.agent_pairs import pairs_of
    from a2a_ray.report.equilibrium_tables import equilibria_table, pairs_table
    from a2a_ray.report.negotiation_figure import games_of, outcome_table

    games = games_of(results.findings(analyzers=("negotiation",)))
    settled = list(results.findings(analyzers=("equilibrium",))) if results.said("equilibrium") else []
    pairs = pairs_of(settled, results.labels)
    found = (results.loop_table, results.stopped_table, outcome_table(games) if games else None)
    for table in (*found, equilibria_table(settled, results.labels), pairs_table(pairs)):
        if table is not None:
            print_table(table.title, table.columns, table.rows, table.note)
    show_loops(results)


def show_loops(results: Results) -> None:
    """The loops that the detector found, and a sentence."""
    loops = results.loops
    shown = list(loops)[:SHOWN]
    rows, quotes = [], []
    for finding in results.findings(shown):
        if finding.key[1:] == results.detector and finding.looped:
            turns = (finding.onset_turn, finding.alarm_turn, finding.period)
            rows.append([clean_line(finding.conversation_id), finding.kind, *turns, finding.score])
            quotes.append(finding.span)
    if rows:
        columns = ("conversation", "kind", "onset", "alarm", "period", "score", "repeats")
        used = sum(max(len(cell_text(row[i])) for row in [columns, *rows]) + 3 for i in range(len(rows[0])))
        room = max(Console().width - used, SHORTEST_QUOTE)
        note = f"Turns are numbered from 1, the first message. Alarm: a score above {_threshold(results):g}."
        if len(loops) > SHOWN:
            note += f" {len(loops) - SHOWN:,} more conversations: --json lists all."
        print_table(
            "Loops found by the detector",
            columns,
            [[*row, clean_line(quote, room)] for row, quote in zip(rows, quotes, strict=True)],
            note,
        )
    print(" ".join(_in_words(results)))


def _in_words(results: Results) -> Iterator[str]:
    """The outcome of the loop detector in sentences."""
    count, looped = len(results.texts), len(results.loops)
    if not count:
        yield "There is no conversation of texts, so no loop was looked for."
        return
    said = f"{looped:,} of {count:,} conversation{'s' * (count != 1)} looped"
    if recovered := sum(f.recovered_turn is not None for f in results.loops.values()):
        said += f" ({recovered:,} went on to something new)"
    spent = sum(f.tokens_since_onset or 0 for f in results.loops.values())
    yield f"{said}; about {spent:,} tokens were spent from the onsets on." if looped else f"{said}."
    if mute := len(results.ids) - count:
        yield f"Without text, so not looked at: {mute:,}."
    if results.waiting:
        yield f"Waiting for a result that does not change, which is no loop: {results.waiting:,}."


def _threshold(results: Results) -> float:
    threshold: float = json.loads(results.detector[2])["threshold"]
    return threshold
