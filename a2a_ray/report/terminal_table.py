"""Print tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from a2a_ray.report.sanitize import clean


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> None:
    """Print a table on standard output: numbers are right-aligned, texts are cleaned (see `report/sanitize.py`)."""
    table = RichTable(show_edge=False, pad_edge=False, show_header=any(columns))
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        # A path must fit on one line so that it can be copied.
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=name == "run")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    console = Console()
    console.print(Text(clean(title), style="bold"), soft_wrap=True)
    console.print(table)
    if note:
        console.print(clean(note), markup=False, highlight=False)
    console.print()


def cell_text(value: Any) -> str:
    """Return a cell of a table as text: "-" for None and NaN, floats with four significant digits."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return clean(str(value))
