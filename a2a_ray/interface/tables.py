"""What commands print: tables on a terminal, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from textwrap import indent
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from a2a_ray.interface.hostile import clean

if TYPE_CHECKING:
    from a2a_ray.interface.results import Results
    from a2a_ray.runtime.estimate import Estimate
    from a2a_ray.runtime.store import Run

SHOWN = 20
"""Most rows that a list of conversations prints."""


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """A table on standard output; numbers to the right, every text neutralised."""
    table = Table(show_edge=False, pad_edge=False, show_header=any(columns))
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        # A path is not cut into lines: it is to be copied.
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name == "run")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console()
    console.print(Text(clean(title), style="bold"), soft_wrap=True)
    console.print(table)
    if note:
        console.print(clean(note), markup=False, highlight=False)
    console.print()


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
        print(f"No runs in {storage}. Start one: a2a-ray new && a2a-ray run experiment.yaml")
        return
    columns = ("run", "talks", "done", "failed", "turns", "created")
    rows = [(*(r[c] for c in ("run", "conversations", *columns[2:5])), f"{r['created'][:16]}Z") for r in found]
    print_table(f"Runs in {storage}", columns, rows)


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


def show_results(results: Results, as_json: bool) -> None:
    """The outcome of an analysis."""
    if as_json:
        print(json.dumps(results.to_dict()))
        return
    for table in results.tables:
        print_table(table.title, table.columns, table.rows, table.note)
    rows = [(id, loop.rule, loop.onset, loop.phrase[:70]) for id, loop in list(results.loops.items())[:SHOWN]]
    if rows:
        more = f"{len(results.loops) - SHOWN} more: --json lists all." if len(results.loops) > SHOWN else ""
        print_table("Loops found", ("conversation", "rule", "onset", "phrase"), rows, more)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(str(value))
