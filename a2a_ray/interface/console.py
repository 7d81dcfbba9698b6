"""What commands share: sentences for people, exit statuses, and checks before any work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.runtime.progress import print_status

if TYPE_CHECKING:
    from a2a_ray.analysis.analyze import AnalysisSettings
    from a2a_ray.store.run import Run

INTERRUPTED = 130
"""Exit status after Ctrl-C; typer gives the same."""
WORDS_ALONE = "none"
"""The default of --embedder: no model is loaded."""


def finish(run: Run, as_json: bool) -> None:
    """Tells how a run ended; exit status 1 where conversations failed."""
    from a2a_ray.interface.tables import show_failures

    counts = run.summary()
    print_status(
        f"{run.path}: {counts['done']} of {counts['conversations']} conversations done, {counts['turns']:,} turns."
    )
    ledger = run.ledger()
    if ledger["possibly_duplicated"]:
        print_status(f"Of {ledger['calls']:,} paid calls, {ledger['possibly_duplicated']:,} may have been paid twice.")
    if run.stopped:
        print_status(f"Stopped: {run.stopped}")
    if as_json:
        result = {"run": run.path, **counts}
        if ledger["calls"]:
            result |= {"ledger": ledger, "usage": run.cost()}
        if run.stopped:
            result["stopped"] = run.stopped
        print(json.dumps(result))
    if counts["failed"]:
        show_failures(run)
        raise typer.Exit(1)
    if run.stopped:
        raise typer.Exit(1)
    if not as_json:
        print_status(f"Next: a2a-ray show {run.path}; a2a-ray report {run.path}")


@contextmanager
def resumable() -> Iterator[None]:
    """Says how to go on with a run that Ctrl-C ended."""
    try:
        yield
    except KeyboardInterrupt as error:
        path = str(error)
        how = f"What was said is kept; go on with: a2a-ray resume {path}" if path else "Nothing was started."
        print_status(f"Interrupted. {how}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def kept() -> Iterator[None]:
    """Says that what an interrupted analysis has found is kept."""
    try:
        yield
    except KeyboardInterrupt:
        print_status(
            "Interrupted. Embeddings and the findings of a run are kept. Run the same command again to continue."
        )
        raise


def analysis_settings(embedder: str, threshold: str | None) -> AnalysisSettings:
    """The settings of an analysis from the options of a command. Raises ConfigurationError."""
    from a2a_ray.analysis.analyze import AnalysisSettings
    from a2a_ray.analysis.loops.calibration import given_threshold

    name = None if embedder.lower() == WORDS_ALONE else embedder
    return AnalysisSettings(name, given_threshold(threshold, name))


def check_folder(out: Path) -> None:
    """Before any work: a file can be made at this path. Raises ConfigurationError."""
    if not out.parent.is_dir():
        raise ConfigurationError(f"{out}: there is no folder {out.parent}; make it first, or choose another file")
    if out.is_dir():
        raise ConfigurationError(f"{out}: is a folder; expected the name of a file to write")
    new = not out.exists()
    if not new and not out.is_file():  # a pipe or a device: opening it would be seen at its other end
        return
    try:
        out.open("ab").close()
    except OSError as error:
        raise ConfigurationError(f"{out}: cannot be written: {error.strerror or error}; choose another file") from None
    if new:
        out.unlink()
