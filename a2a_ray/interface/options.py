"""Command-line arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NO_EMBEDDER = "none"
"""Value of --embedder with which no model is loaded."""

Source = Annotated[
    str, typer.Argument(metavar="RUN|FILE.jsonl", help="A run, or a file of transcripts in the exchange format.")
]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run; `a2a-ray ls` lists them.")]
Storage = Annotated[str, typer.Option(metavar="DIR|URI", help="Where runs are stored: a folder or an object store.")]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="auto|local|ray",
        help="local: in this process, without Ray; auto: local for at most 200 conversations of light agents.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Ray worker actors that run conversations; by default as many as fit."),
]
Address = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to use; by default a local Ray.")]
OnFailure = Annotated[
    str,
    typer.Option(metavar="recover|raise", help="After a process or node failure: recover, or stop (resumable)."),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="COST", min=0, help="Stop (resumable) before calls cost more than this; agents need a price."),
]
EmbedderName = Annotated[
    str,
    typer.Option(
        "--embedder",
        metavar="NAME|none",
        help="Sentence-embedding model, e.g. all-MiniLM-L6-v2; none loads no model.",
    ),
]
Threshold = Annotated[
    str | None,
    typer.Option(metavar="X|FILE.json", help="Alarm above this score, or a calibration on your own conversations."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
StudyFolder = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="Where report.html, figures/ and results.json are written.")
]
