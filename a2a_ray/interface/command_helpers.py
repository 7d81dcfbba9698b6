"""Helpers that several commands share: checks before the work starts, and what Ctrl-C prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.options import AUTO, NO_EMBEDDER
from a2a_ray.runtime.progress import print_status

if TYPE_CHECKING:
    from a2a_ray.analysis.analyze import AnalysisSettings

INTERRUPTED = 130
"""Exit status after Ctrl-C, as typer sets it."""


@contextmanager
def explain_resume() -> Iterator[None]:
    """After Ctrl-C, print how to resume the run and exit with status INTERRUPTED."""
    try:
        yield
    except KeyboardInterrupt as error:
        path = str(error)
        remedy = f"All stored turns are kept. Resume with: a2a-ray resume {path}" if path else "Nothing was started."
        print_status(f"Interrupted. {remedy}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def explain_continue() -> Iterator[None]:
    """After Ctrl-C, print that an analysis can be continued."""
    try:
        yield
    except KeyboardInterrupt:
        print_status(
            "Interrupted. Embeddings and the findings of a run are kept. Run the same command again to continue."
        )
        raise


def analysis_settings(embedder: str, threshold: str | None, kind: str = AUTO) -> AnalysisSettings:
    """Return the analysis settings that the options of a command describe. Raises ConfigurationError."""
    from a2a_ray.analysis.analyze import AnalysisSettings
    from a2a_ray.analysis.loops.threshold import given_threshold

    name = None if embedder.lower() == NO_EMBEDDER else embedder
    return AnalysisSettings(name, given_threshold(threshold, name), kind)


def detector_embedder(source: str, threshold: str | None) -> str:
    """Return the embedder that `detect` chooses by itself: that of a calibration, or the default model for a file.

    Without the model on this machine, and for a run, whose conversations may be very many, none.
    """
    from a2a_ray.analysis.loops.threshold import stored_calibration
    from a2a_ray.analysis.text.embedding import DEFAULT_MODEL, has_default_model
    from a2a_ray.report.analyze_source import is_transcript_file

    calibration = stored_calibration(threshold)
    if calibration is not None:
        return calibration.embedder or NO_EMBEDDER
    return DEFAULT_MODEL if is_transcript_file(source) and has_default_model() else NO_EMBEDDER


def check_writable(out: Path) -> None:
    """Check, before any work, that a file can be written at this path. Raises ConfigurationError."""
    if not out.parent.is_dir():
        raise ConfigurationError(f"{out}: folder {out.parent} does not exist; create it, or choose another file")
    if out.is_dir():
        raise ConfigurationError(f"{out}: is a folder; expected the name of a file to write")
    new = not out.exists()
    if not new and not out.is_file():  # opening a pipe or a device has an effect at its other end
        return
    try:
        out.open("ab").close()
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error.strerror or error}; choose another file") from None
    if new:
        out.unlink()
