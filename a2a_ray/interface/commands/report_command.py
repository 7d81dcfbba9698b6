"""`a2a-ray report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.interface.command_helpers import analysis_settings, check_writable, explain_continue
from a2a_ray.interface.options import NO_EMBEDDER, EmbedderName, Source, Threshold
from a2a_ray.runtime.progress import print_status


def report(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    embedder: EmbedderName = NO_EMBEDDER,
    threshold: Threshold = None,
) -> None:
    """Write one self-contained HTML page: figures, tables, and the conversations as chats.

    Analyzes the run first if needed, as `a2a-ray analyze` does. With --embedder the page also shows distances
    and trajectories in embedding space.
    """
    from a2a_ray.report.analyze_source import analyze_source
    from a2a_ray.report.report_page import write_report
    from a2a_ray.report.report_source import report_data

    check_writable(out)
    with explain_continue():
        results = analyze_source(source, analysis_settings(embedder, threshold))
    write_report(out, report_data(results))
    print_status(f"Wrote {out}")
