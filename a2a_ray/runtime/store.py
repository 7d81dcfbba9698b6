"""A run on disk or in an object store: a manifest, and one Delta Lake table of turns."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from a2a_ray.core.contracts import Verdict
from a2a_ray.core.errors import BadInput, StorageError, unknown
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.transcript import RUNNING, Transcript
from a2a_ray.runtime.columns import CALL, END, OPENING, SCHEMA, from_table
from a2a_ray.runtime.experiment import Experiment, Task

if TYPE_CHECKING:
    from deltalake import DeltaTable

MANIFEST = "manifest.json"


class Run:
    """A run that exists: `open_run(path)` gives it, also while it still runs (it reads what is committed).

    path: folder or URI. manifest: specification, seeds, versions, git commit. turns: Arrow table (SCHEMA of columns.py)
    of what was said, so pandas, Polars and DuckDB read it; `transcript(id)` and `transcripts()` give conversations.
    """

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.stopped = ""  # why the start that gave this run ended before all was said, as a sentence

    @cached_property
    def experiment(self) -> Experiment:
        """The specification that the run was started with."""
        return Experiment.parse(self.manifest["experiment"], f"{self.path}/{MANIFEST}")

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Every conversation of the run, by id."""
        return {task.id: task for task in self.experiment.tasks()}

    @cached_property
    def rows(self) -> pa.Table:
        """Every row of the store, openings and ends included, sorted by conversation and turn, each key once."""
        return _sorted(_read(self.path))

    @cached_property
    def turns(self) -> pa.Table:
        """What was said (bids, combinations and nudges included), by conversation and turn; columns as in SCHEMA."""
        kind = self.rows.column("kind")
        return self.rows.filter(pc.invert(pc.is_in(kind, pa.array([OPENING, END, CALL]))))

    def transcripts(self) -> Iterator[Transcript]:
        """Every conversation that was begun, in order of id."""
        rows: list[Message] = []
        for message in from_table(self.rows.filter(pc.not_equal(self.rows.column("kind"), CALL))):
            if rows and rows[0].conversation != message.conversation:
                yield self._transcript(rows)
                rows = []
            rows.append(message)
        if rows:
            yield self._transcript(rows)

    def transcript(self, conversation: str) -> Transcript:
        """One conversation. Raises BadInput, with ids that exist, where there is none of this id."""
        rows = list(from_table(self.rows.filter(pc.equal(self.rows.column("conversation"), conversation))))
        if not rows:
            there = pc.unique(self.rows.column("conversation")).to_pylist()
            more = f" and {len(there) - 20} more" if len(there) > 20 else ""
            raise BadInput(unknown("conversation", conversation, there[:20]).rstrip(".") + more + ".")
        return self._transcript(rows)

    def summary(self) -> dict[str, int]:
        """Counts: conversations planned, done, failed, and turns said (bids, combinations and nudges are none)."""
        how = [json.loads(m)["status"] for m in self._ends().column("metadata").to_pylist()]
        done, failed = how.count("done"), how.count("failed")
        said = pc.sum(pc.invert(pc.is_in(self.turns.column("kind"), pa.array(sorted(ASIDE))))).as_py() or 0
        return {"conversations": len(self.tasks), "done": done, "failed": failed, "turns": said}

    def _ends(self) -> pa.Table:
        """The last row of each conversation that has ended."""
        if not len(self.rows):
            return self.rows
        ids = self.rows.column("conversation").combine_chunks()
        changes = pc.not_equal(ids.slice(0, len(ids) - 1), ids.slice(1))
        last = self.rows.filter(pa.concat_arrays([changes, pa.array([True])]))
        return last.filter(pc.equal(last.column("kind"), END))

    def _transcript(self, rows: list[Message]) -> Transcript:
        id = rows[0].conversation
        task = self.tasks[id]
        names = tuple(a.name for a in self.experiment.cells[task.cell].agents)
        metadata: dict[str, Any] = {"cell": task.cell, "opening": task.opening, "repeat": task.repeat}
        if changes := self.experiment.changes[task.cell]:
            metadata["sweep"] = dict(changes)
        opening = rows[0].content if rows[0].kind == OPENING else ""
        transcript = Transcript(id, names, opening, task.seed, metadata)
        for row in rows:
            if row.kind == END:  # the newest one stands; a retried conversation has several
                transcript.status, transcript.reason = row.metadata["status"], str(row.content)
                transcript.error = row.metadata.get("error", "")
                transcript.verdicts = [(t, n, Verdict(**v)) for t, n, v in row.metadata.get("verdicts", ())]
            elif row.kind not in (OPENING, CALL):
                transcript.append(row)
                transcript.status = RUNNING
        return transcript


def open_run(path: str | Path) -> Run:
    """The run in a folder or at a URI. Raises BadInput where there is none."""
    location = str(path).rstrip("/").removesuffix(f"/{MANIFEST}")
    try:
        fs, root = filesystem(location)
        with fs.open_input_stream(f"{root}/{MANIFEST}") as file:
            manifest = json.loads(file.read())
        if not isinstance(manifest, dict) or not {"created", "experiment", "versions"} <= manifest.keys():
            raise ValueError("it is no manifest of a run")
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        names = run_names(location) or run_names(location.rpartition("/")[0] or ".")
        names = [name.removeprefix("./") for name in names if name.removeprefix("./") != location]
        there = f" There is: {', '.join(names[-20:])}." if names else " a2a-ray ls lists runs."
        if "://" not in location and not Path(location).exists():
            raise BadInput(f"{location}: there is no such run or file.{there}") from None
        raise BadInput(f"{location}: not a run (no readable {MANIFEST} in it: {_reason(error)}).{there}") from None
    return Run(location, manifest)


def run_names(storage: str | Path) -> list[str]:
    """Paths of the runs in a storage folder, oldest first. An empty list where there is no such folder."""
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


def create_run(experiment: Experiment, storage: str | Path) -> Run:
    """A new run under the storage path: its manifest is written. Raises BadInput where that cannot be written."""
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
        path = _own_folder(base)
        fs, root = filesystem(path)
        with fs.open_output_stream(f"{root}/{MANIFEST}") as file:
            file.write(json.dumps(manifest, indent=1).encode())
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(
            f"storage: {storage}: cannot write there: {_reason(error)}; choose another with --storage"
        ) from None
    return Run(path, manifest)


def _own_folder(base: str) -> str:
    """A folder that no other run has, not even one that is started at this moment on the same machine."""
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
    raise BadInput(f"storage: {base}: ten thousand runs began in this second; use several storage folders")


def remove_run(run: Run) -> None:
    """Takes away a run in which nothing was said."""
    if not len(run.rows):
        fs, root = filesystem(run.path)
        with contextlib.suppress(OSError):
            fs.delete_dir(root)


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system of a folder or URI, and the path in it."""
    if "://" in path:
        fs, root = pafs.FileSystem.from_uri(path)
        return fs, root
    return pafs.LocalFileSystem(), str(Path(path).absolute())


def table_uri(path: str) -> str:
    """Where the Delta table of a run lies."""
    return f"{path}/turns" if "://" in path else str(Path(path).absolute() / "turns")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change what is said."""
    from importlib.metadata import PackageNotFoundError, version

    out = {"python": platform.python_version()}
    for name in ("a2a-ray", "ray", "torch", "transformers", "openai", "deltalake", "numpy"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def _read(path: str) -> pa.Table:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        table: DeltaTable = DeltaTable(table_uri(path))
        names = pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
        fs, root = filesystem(path)
        # Not by the table's own reader: its file system is a Python object, which Arrow's threads may still let go of
        # when the interpreter has ended; the process is aborted then.
        files = [f"{root}/turns/{name}" for name in names]
        return pads.dataset(files, SCHEMA, "parquet", fs).to_table() if files else SCHEMA.empty_table()
    except TableNotFoundError:
        return SCHEMA.empty_table()
    except (DeltaError, OSError, pa.ArrowInvalid) as error:
        raise StorageError(f"{path}: cannot read its turns: {_reason(error)}") from error


def _sorted(table: pa.Table) -> pa.Table:
    """Sorted by conversation and turn; of equal keys (a row sent twice) the newest is kept."""
    table = table.sort_by([("conversation", "ascending"), ("turn", "ascending"), ("created_at", "ascending")])
    if len(table) < 2:
        return table
    keys = [table.column(name).combine_chunks() for name in ("conversation", "turn", "kind")]
    equal = [pc.equal(key.slice(0, len(key) - 1), key.slice(1)) for key in keys]
    superseded = pc.and_(pc.and_(equal[0], equal[1]), equal[2])
    return table.filter(pa.concat_arrays([pc.invert(superseded), pa.array([True])]))


def _git_commit() -> str | None:
    """Commit of the working directory, so that a run can be traced to the code that asked for it."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()


def _reason(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).split("\n")[0] or type(error).__name__
