"""`a2a-ray calibrate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import check_writable
from a2a_ray.interface.options import NO_EMBEDDER, AsJson, EmbedderName, Source
from a2a_ray.runtime.progress import print_status

if TYPE_CHECKING:
    from a2a_ray.analysis.loops.threshold import Calibration

_LISTED = 5
"""This many conversations with the highest scores are named."""


def calibrate(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")] = Path("calibration.json"),
    rate: Annotated[
        float,
        typer.Option(metavar="R", min=0, max=1, help="Largest share of such conversations that may raise an alarm."),
    ] = 0.05,
    horizon: Annotated[
        int | None, typer.Option(metavar="TURNS", min=1, help="Length up to which it holds; by default the longest.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(metavar="C", help="Hold for this very threshold with confidence C, such as 0.95.")
    ] = None,
    embedder: EmbedderName = NO_EMBEDDER,
    as_json: AsJson = False,
) -> None:
    """Set the loop threshold on your own conversations, for a false-alarm rate that you choose.

    \b
    Take conversations that do not loop, and look at those with the highest
    scores: one that loops raises the threshold.

    \b
    a2a-ray calibrate normal.jsonl --rate 0.05
    a2a-ray detect others.jsonl --threshold calibration.json
    """
    from a2a_ray.analysis.loops.calibration import fit
    from a2a_ray.analysis.loops.scan import scan_many
    from a2a_ray.analysis.text.embedding import load_embedder
    from a2a_ray.report.analyze_source import read_source

    check_writable(out)
    transcripts = [t for t in read_source(source) if t.messages]
    if not transcripts:
        raise ConfigurationError(
            f"{source}: no conversation with a message in it; expected conversations without loops"
        )
    model = load_embedder(None if embedder.lower() == NO_EMBEDDER else embedder)
    longest = max(len(t.messages) for t in transcripts)
    fitted = fit(transcripts, rate, horizon or longest, confidence=confidence, embedder=model)
    fitted.save(out)
    if as_json:
        print(json.dumps(fitted.to_dict()))
    scores = [(scan.highest, each.id) for scan, each in zip(scan_many(transcripts, model), transcripts, strict=True)]
    for line in _sentences(fitted, scores, source):
        print_status(line)
    print_status(f"Wrote {out}. Use it: a2a-ray detect FILE --threshold {out}")


def _sentences(fitted: Calibration, scores: list[tuple[float, str]], source: str) -> Iterator[str]:
    """Yield what the threshold promises, and the conversations to look at."""
    how = "on average over such sets" if fitted.confidence is None else f"with {fitted.confidence:.0%} confidence"
    yield (
        f"Threshold {fitted.threshold:.3g}: of conversations like these {fitted.runs}, at most {fitted.rate:.3g} raise"
        f" an alarm within {fitted.horizon} turns, {how}. Nothing is known about conversations of other kinds."
    )
    if fitted.achieved is not None:
        yield f"Alarms in conversations that were left out of the fit: {fitted.achieved}."
    named = ", ".join(f"{id} ({score:.2f})" for score, id in sorted(scores, reverse=True)[:_LISTED] if score > 0)
    if named:
        yield f"Highest scores: {named}. Do any of them loop? a2a-ray show {source} ID"
