"""`a2a-ray demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.interface.command_helpers import explain_resume
from a2a_ray.interface.options import AsJson


def demo(
    full: Annotated[bool, typer.Option("--full", help="Use 50 openings instead of 12; takes some minutes.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the run and report.html are written.")] = Path("demo"),
    as_json: AsJson = False,
) -> None:
    """Run both phenomena on this machine: a biased equilibrium, and convergence into loops.

    Needs no API key and no download. Takes about a minute on two cores and writes DIR/report.html.
    """
    from a2a_ray.reproduce.demo import run_demo

    with explain_resume():
        result = run_demo(out, full)
    if as_json:
        print(json.dumps(result))
