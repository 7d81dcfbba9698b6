"""Parts of a page: large numbers, tables, figures and sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from a2a_ray.report.plotly_traces import Figure

Cell: TypeAlias = "str | int | float | None"


@dataclass(frozen=True, slots=True)
class BigNumber:
    """One figure that the reader should take home, e.g. BigNumber("9 of 12", "conversations looped")."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table. None is shown as a dash; floats with four significant digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure.

    name: of its file, and its anchor on the page; unique in a study, of letters, digits and hyphens.
    figure: plotly JSON, with colours named as in `report/plotly_traces.py`.
    title: above it, where a section has several.
    """

    name: str
    figure: Figure
    title: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One question of a study: what was done, figures, what they show, tables.

    legend: (text, colour) of each thing drawn, the colour as in the style sheet, such as "agent-1" or "cell-3"; an
    empty colour for a key that has none ("● measured").
    """

    title: str
    text: str
    panels: Sequence[Panel] = ()
    legend: Sequence[tuple[str, str]] = ()
    caption: str = ""
    tables: Sequence[Table] = ()
