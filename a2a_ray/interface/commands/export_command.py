"""`a2a-ray export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.interface.command_helpers import check_writable
from a2a_ray.interface.options import RunPath
from a2a_ray.runtime.progress import print_status


def export(
    path: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="JSONL file to write.")] = Path("run.jsonl"),
) -> None:
    """Write the transcripts of a run in the exchange format: one conversation per line."""
    from a2a_ray.store.run import open_run
    from a2a_ray.transcripts.jsonl import write_jsonl

    check_writable(out)
    count = write_jsonl(open_run(path).transcripts(), out)
    print_status(f"Wrote {count} conversations to {out}")
