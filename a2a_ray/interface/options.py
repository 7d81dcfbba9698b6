"""Command-line arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NO_EMBEDDER = "none"
"""Value of --embedder with which no model is loaded."""
AUTO = "auto"
"""Value of an option that the command chooses by itself."""

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
DetectorEmbedder = Annotated[
    str,
    typer.Option(
        "--embedder",
        metavar="auto|NAME|none",
        help="Model for repetition in other words, in self_talk. auto: all-MiniLM-L6-v2 for a file, if it is here.",
    ),
]
AlarmsFile = Annotated[
    Path | None,
    typer.Option(metavar="OUT.jsonl", help="Write one line per conversation: its id and the index of its alarm."),
]
Judge = Annotated[
    Path | None,
    typer.Option(metavar="JUDGE.yaml", help="Ask a language model where the detector is suspicious; costs calls."),
]
Kind = Annotated[
    str,
    typer.Option(
        "--kind",
        metavar="auto|tools|chat|self_talk|human",
        help="What the conversations are, for the loop detector; auto detects it for each.",
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
