"""Write the page of a reproduced experiment, and each of its figures as a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from a2a_ray.report.page import TEMPLATES, render_page, write_page
from a2a_ray.report.page_parts import BigNumber, Panel, Section
from a2a_ray.report.plotly_traces import Figure


@dataclass(frozen=True, slots=True)
class Study:
    """The page of a study. settings: name -> value, including the command line that repeats the study."""

    title: str
    headline: Sequence[str] = ()
    numbers: Sequence[BigNumber] = ()
    sections: Sequence[Section] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def write_study(folder: Path, study: Study) -> list[Path]:
    """Write folder/report.html, and folder/figures/NAME.html for each panel. Return the paths of the figures.

    The figure files share one plotly.min.js in the same folder. They can be zoomed, and saved as SVG from the tool bar.
    Raises ConfigurationError if a file cannot be written.
    """
    panels = [panel for section in study.sections for panel in section.panels]
    page = render_page("study.html.j2", {"figures": {p.name: p.figure for p in panels}}, data=study)
    write_page(folder / "report.html", page)
    return [_write_figure(folder / "figures", panel, study.title) for panel in panels]


def _write_figure(folder: Path, panel: Panel, title: str) -> Path:
    import plotly.io
    from plotly.offline import get_plotlyjs

    script = folder / "plotly.min.js"
    if not script.exists():
        write_page(script, get_plotlyjs())
    figure = _light(panel.figure)
    figure["layout"] |= {
        "title": {"text": panel.title or title, "font": {"size": 15}},
        "showlegend": True,
        "width": 900,
        "margin": {"l": 70, "r": 20, "t": 60, "b": 60},
        "dragmode": "zoom",
    }
    options: dict[str, Any] = {"toImageButtonOptions": {"format": "svg", "filename": panel.name}}
    page = plotly.io.to_html(figure, config=options, include_plotlyjs="plotly.min.js", validate=False)
    return write_page(folder / f"{panel.name}.html", page)


def _light(figure: Figure) -> Figure:
    """Return the figure with its named colours replaced by those of the light page."""
    light = (TEMPLATES / "report.css").read_text(encoding="utf-8").split("@media", 1)[0]
    colours = dict(re.findall(r"(--[\w-]+): (#\w+);", light))

    def resolved(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: resolved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [resolved(inner) for inner in value]
        named = re.fullmatch(r"var\((--[\w-]+)\)", value) if isinstance(value, str) else None
        return colours[named[1]] if named else value

    out: Figure = resolved(figure)
    return out
