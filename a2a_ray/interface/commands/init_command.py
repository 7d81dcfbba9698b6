"""`a2a-ray init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import check_writable
from a2a_ray.runtime.progress import print_status


def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented specification to start from."""
    from importlib import resources

    check_writable(path)
    if path.exists() and not force:
        raise ConfigurationError(f"{path}: already exists; choose another name, or overwrite it with --force")
    text = resources.files("a2a_ray").joinpath("data/experiment.yaml").read_text(encoding="utf-8")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None
    print_status(f"Wrote {path}. Try: a2a-ray run {path} --dry-run")
