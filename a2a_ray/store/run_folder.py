"""The folder of a run and its manifest: made, listed and removed, on disk or in an object store."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.experiment.spec import Experiment
from a2a_ray.store.dataset import filesystem, reason

MANIFEST = "manifest.json"


def read_manifest(location: str) -> dict[str, Any]:
    """Return the manifest in a folder or at a URI. Raises ConfigurationError if it is not a run."""
    try:
        fs, root = filesystem(location)
        with fs.open_input_stream(f"{root}/{MANIFEST}") as file:
            manifest = json.loads(file.read())
        if not isinstance(manifest, dict) or not {"created", "experiment", "versions"} <= manifest.keys():
            raise ValueError("it is no manifest of a run")
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        names = run_names(location) or run_names(location.rpartition("/")[0] or ".")
        names = [name.removeprefix("./") for name in names if name.removeprefix("./") != location]
        remedy = f" There is: {', '.join(names[-20:])}." if names else " a2a-ray ls lists runs."
        if "://" not in location and not Path(location).exists():
            raise ConfigurationError(f"{location}: there is no such run or file.{remedy}") from None
        raise ConfigurationError(
            f"{location}: not a run (no readable {MANIFEST} in it: {reason(error)}).{remedy}"
        ) from None
    return manifest


def run_names(storage: str | Path) -> list[str]:
    """Return the paths of the runs in a storage folder, oldest first; an empty list if there is no such folder."""
    try:
        fs, root = filesystem(str(storage))
        found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True, recursive=False))
        dirs = [f for f in found if f.type == pafs.FileType.Directory]
        infos = fs.get_file_info([f"{d.path}/{MANIFEST}" for d in dirs])
    except (OSError, pa.ArrowInvalid):
        return []
    base = str(storage).rstrip("/")
    pairs = zip(dirs, infos, strict=True)
    return [name for _, name in sorted((i.mtime, f"{base}/{d.base_name}") for d, i in pairs if i.is_file)]


def make_run_folder(experiment: Experiment, storage: str | Path) -> tuple[str, dict[str, Any]]:
    """Make the folder of a new run, write its manifest, and return the path and the manifest.

    Raises ConfigurationError if that cannot be written.
    """
    started = datetime.now(UTC)
    base = f"{str(storage).rstrip('/')}/{experiment.name}-{started:%Y%m%d-%H%M%S}"
    manifest = {
        "format": 1,
        "created": started.isoformat(timespec="seconds"),
        "experiment": experiment.to_dict(),
        "openings_sha256": experiment.openings_digest(),
        "versions": versions(),
        "git_commit": _git_commit(),
    }
    try:
        path = _unique_folder(base)
        fs, root = filesystem(path)
        _write(fs, f"{root}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigurationError(
            f"storage: {storage}: cannot write there: {reason(error)}; choose another with --storage"
        ) from None
    return path, manifest


def remove_folder(path: str) -> None:
    """Remove the folder of a run; errors are ignored."""
    fs, root = filesystem(path)
    with contextlib.suppress(OSError):
        fs.delete_dir(root)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a run's messages."""
    from importlib.metadata import PackageNotFoundError, version

    out = {"python": platform.python_version()}
    for name in ("a2a-ray", "ray", "torch", "transformers", "openai", "deltalake", "numpy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def _write(fs: pafs.FileSystem, path: str, content: bytes) -> None:
    """Write a file that exists whole or not at all, as in object stores: `ls` may read it at any time."""
    local = isinstance(fs, pafs.LocalFileSystem)
    unfinished = f"{path}.unfinished" if local else path
    with fs.open_output_stream(unfinished) as file:
        file.write(content)
    if local:
        fs.move(unfinished, path)


def _unique_folder(base: str) -> str:
    """Return a folder that no other run has, not even one that starts at this moment on the same machine."""
    for path in (base, *(f"{base}-{i}" for i in range(2, 10_000))):
        fs, root = filesystem(path)
        if isinstance(fs, pafs.LocalFileSystem):
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            try:
                Path(root).mkdir()
            except FileExistsError:
                if Path(root).is_dir():
                    continue
                raise
            return path
        if fs.get_file_info(f"{root}/{MANIFEST}").type == pafs.FileType.NotFound:
            return path
    raise ConfigurationError(f"storage: {base}: ten thousand runs started in this second; use several storage folders")


def _git_commit() -> str | None:
    """Return the commit of the working directory, so that a run can be traced to the code that started it."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
