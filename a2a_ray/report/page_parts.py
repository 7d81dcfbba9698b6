"""Parts of an HTML page: large numbers, tables, figures and sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from a2a_ray.report.plotly_traces import Figure

Cell: TypeAlias = "str | int | float | None"


@dataclass(frozen=True, slots=True)
class BigNumber:
    """One key figure at the top of a page, e.g. BigNumber("9 of 12", "conversations looped")."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table. None is printed as a dash; floats with four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure.

    name: of its file, and its anchor on the page: letters, digits and hyphens; unique in a study.
    figure: plotly JSON, with colours named as in `report/plotly_traces.py`.
    title: printed above it; needed only if a section has several figures.
    """

    name: str
    figure: Figure
    title: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One question of a study: what was done, figures, what they show, tables.

    legend: (text, colour) of each line or marker; the colour as in the style sheet, such as "agent-1" or "cell-3",
    or empty for a key without a colour ("● measured").
    """

    title: str
    text: str
    panels: Sequence[Panel] = ()
    legend: Sequence[tuple[str, str]] = ()
    caption: str = ""
    tables: Sequence[Table] = ()
