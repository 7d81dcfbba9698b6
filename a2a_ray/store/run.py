"""A run on disk or in an object store: a manifest, and one Delta Lake table of turns."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.store.dataset import Snapshot, filesystem, last_seqs, reason, row_counts, snapshot, turns_of
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.schema import CALL, COUNTED, ENDS, NOT_SAID, OPENING, from_table

MANIFEST = "manifest.json"
GROUP_ROWS = 200_000
"""Rows that are read into memory at once where whole conversations are asked for; one conversation may have more."""
FEW = 100
"""So many conversations are read at once without counting their rows first."""
_RANKED = pa.array([OPENING, CALL, *ENDS])
"""Kinds of row that come before what was said, of the same seq."""
_RANKS = pa.array([0, 1, 2, 2, 3], pa.int64())
"""Their order; 3 is what was said."""
_REQUESTS = r'"requests": (?P<requests>\d{1,15})[,}]'
"""Requests in the JSON of `usage`: many agents tell none, so they have no column."""


class Run:
    """A run that exists: `open_run(path)` gives it, also while it still runs (it reads what is committed).

    path: folder or URI. manifest: specification, seeds, versions, git commit. turns: Arrow table (SCHEMA of columns.py)
    of what was said, so pandas, Polars and DuckDB read it; `transcript(id)` and `transcripts()` give conversations.
    """

    def __repr__(self) -> str:
        try:
            planned = f", {self.experiment.size()[0]} conversations planned"
        except Exception:  # of another version, or with agents that only another program has
            planned = ""
        return f"Run({self.path!r}{planned})"

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.stopped = ""  # why the start that gave this run ended before all was said, as a sentence

    @cached_property
    def experiment(self) -> Experiment:
        """The specification that the run was started with."""
        return Experiment.parse(self.manifest["experiment"], f"{self.path}/{MANIFEST}")

    @cached_property
    def rows(self) -> pa.Table:
        """Every row of the store, openings, ends and the ledger's calls included, sorted by conversation_id and seq."""
        return _sorted(self._table().to_table())

    @cached_property
    def turns(self) -> pa.Table:
        """What was said (bids, combinations and nudges included), by conversation_id and seq; columns as in SCHEMA."""
        return self.rows.filter(~pc.field("kind").isin(NOT_SAID))

    def transcripts(self, ids: Iterable[str] | None = None) -> Iterator[Transcript]:
        """Every conversation that was begun, or those of these ids that were, in order of id.

        They are read in groups of about GROUP_ROWS rows, so memory does not grow with the run. Files without any of the
        ids between the first and the last are not read. What is committed later is not seen.
        """
        turns, wanted = snapshot(self.path), None if ids is None else sorted(set(ids))
        few = wanted is not None and len(wanted) <= FEW
        for group in [wanted] if few else _groups(turns, wanted):
            if not group:
                continue
            first, last = group[0], group[-1]
            here = (pc.field("conversation_id") >= first) & (pc.field("conversation_id") <= last)
            if wanted is not None:
                here &= pc.field("conversation_id").isin(group)
            table = turns.rows(first, last).to_table(filter=here & (pc.field("kind") != CALL))
            for _, rows in groupby(from_table(_sorted(table)), key=attrgetter("conversation")):
                yield self._transcript(list(rows))

    def statuses(self) -> dict[str, str]:
        """Whether each conversation that was begun is "running", "done" or "failed", by id; in no order."""
        table = self._table()
        ended = _ended(table)
        out = dict.fromkeys(last_seqs(table).column("conversation_id").to_pylist(), RUNNING)
        out.update(zip(ended.column("conversation_id").to_pylist(), ended.column("kind").to_pylist(), strict=True))
        return out

    def transcript(self, conversation: str) -> Transcript:
        """One conversation. Raises ConfigurationError, with ids that exist, where there is none of this id."""
        for transcript in self.transcripts([conversation]):
            return transcript
        there = sorted(last_seqs(self._table()).column("conversation_id").to_pylist())
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise ConfigurationError(unknown("conversation", conversation, there[:20]).rstrip(".") + more + ".")

    def findings(self, ids: Sequence[str] | None = None) -> Iterator[Finding]:
        """What was found in these conversations, or in all, by every analyzer and settings; by conversation."""
        table = FindingsTable(self.path)
        if ids is None:
            ids = sorted({id for seqs in table.known().values() for id in seqs})
        yield from table.read(ids)

    def stopped_ids(self) -> list[str]:
        """The conversations that an observer ended, in order of id."""
        chosen = (pc.field("kind") == DONE) & (pc.field("sender") != "")
        found = turns_of(self.path).to_table(["conversation_id"], filter=chosen).column("conversation_id")
        return sorted(set(found.to_pylist()))

    def summary(self) -> dict[str, int]:
        """Counts: conversations planned, done, failed, and turns said (bids, combinations and nudges are none)."""
        table = self._table()
        how = _ended(table).column("kind")
        done, failed = (pc.sum(pc.equal(how, status)).as_py() or 0 for status in ENDS)
        said = table.count_rows(filter=~pc.field("kind").isin([*sorted(ASIDE), *NOT_SAID]))
        return {"conversations": self.experiment.size()[0], "done": done, "failed": failed, "turns": said}

    def ledger(self) -> dict[str, int]:
        """What is known of the calls to paid agents, each of which is on record before it is sent.

        calls: on record, so no more were made. answered: have their answer on record. possibly_duplicated: were made
        again, since it is not known whether they had reached the agent. unanswered: have no answer on record; they
        failed, were under way when the run was cut off, or never left. calls is the sum of the three others.
        """
        columns = ["conversation_id", "seq"]
        table = self._table()
        calls = table.to_table(columns, filter=pc.field("kind") == CALL)
        once = calls.group_by(columns).aggregate([])
        said = table.to_table(columns, filter=~pc.field("kind").isin(NOT_SAID)) if len(calls) else calls
        answered = once.join(said, columns, join_type="left semi").num_rows if len(calls) else 0
        return {
            "calls": len(calls),
            "answered": answered,
            "possibly_duplicated": len(calls) - len(once),
            "unanswered": len(once) - answered,
        }

    def cost(self) -> dict[str, float]:
        """Sums over the run of what answers carry in `usage`: input_tokens, output_tokens, cost and requests."""
        total: dict[str, float] = {}
        some = pc.field("usage").is_valid()
        for name in COUNTED:
            some |= pc.field(name).is_valid()
        for batch in self._table().to_batches(columns=[*COUNTED, "usage"], filter=some):
            requests = pc.struct_field(pc.extract_regex(batch.column("usage"), _REQUESTS), "requests")
            columns = (*batch.columns[:-1], pc.cast(requests, pa.int64()))
            for name, column in zip((*COUNTED, "requests"), columns, strict=True):
                if (value := pc.sum(column).as_py()) is not None:
                    total[name] = total.get(name, 0) + value
        return total

    def _table(self) -> pads.Dataset:
        return turns_of(self.path)

    def _transcript(self, rows: list[Message]) -> Transcript:
        id = rows[0].conversation
        task = self.experiment.task(id)
        names = tuple(a.name for a in self.experiment.cells[task.cell].agents)
        metadata: dict[str, Any] = {"cell": task.cell, "opening": task.opening, "repeat": task.repeat}
        if changes := self.experiment.changes[task.cell]:
            metadata["sweep"] = dict(changes)
        opening = rows[0].content if rows[0].kind == OPENING else ""
        transcript = Transcript(id, names, opening, task.seed, metadata)
        for row in rows:
            if row.kind in ENDS:  # the newest one stands; a retried conversation has several
                failed, sentence = row.kind == FAILED, str(row.content)
                transcript.status, transcript.stopped_by = row.kind, row.sender
                transcript.reason, transcript.error = ("", sentence) if failed else (sentence, "")
                transcript.traceback = row.metadata.get("traceback", "")
            elif row.kind != OPENING:
                transcript.append(row)
                transcript.status = RUNNING
        return transcript


def open_run(path: str | Path) -> Run:
    """The run in a folder or at a URI. Raises ConfigurationError where there is none."""
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
            raise ConfigurationError(f"{location}: there is no such run or file.{there}") from None
        raise ConfigurationError(
            f"{location}: not a run (no readable {MANIFEST} in it: {reason(error)}).{there}"
        ) from None
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
    """A new run under the storage path:

    its manifest is written. Raises ConfigurationError where that cannot be written.
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
        path = _own_folder(base)
        fs, root = filesystem(path)
        _write(fs, f"{root}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigurationError(
            f"storage: {storage}: cannot write there: {reason(error)}; choose another with --storage"
        ) from None
    return Run(path, manifest)


def _write(fs: pafs.FileSystem, path: str, content: bytes) -> None:
    """Writes a file that is there whole or not at all, as object stores do by themselves: `ls` may look at any time."""
    local = isinstance(fs, pafs.LocalFileSystem)
    unfinished = f"{path}.unfinished" if local else path
    with fs.open_output_stream(unfinished) as file:
        file.write(content)
    if local:
        fs.move(unfinished, path)


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
    raise ConfigurationError(f"storage: {base}: ten thousand runs began in this second; use several storage folders")


def remove_run(run: Run) -> bool:
    """Takes away a run in which nothing was said; whether that was so."""
    empty = not turns_of(run.path).count_rows()
    if empty:
        fs, root = filesystem(run.path)
        with contextlib.suppress(OSError):
            fs.delete_dir(root)
    return empty


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


def _ended(table: pads.Dataset) -> pa.Table:
    """The conversations that are over, in columns conversation_id and kind (of the newest end: "done" or "failed").

    One that failed and was retried goes on after its end: it is over if nothing was said since.
    """
    key = ["conversation_id", "seq", "attempt"]
    ends = table.to_table([*key, "kind"], filter=pc.field("kind").isin(ENDS))
    ends = ends.sort_by([(name, "ascending") for name in key])
    newest = ends.group_by("conversation_id", use_threads=False).aggregate([("seq", "last"), ("kind", "last")])
    both = newest.join(last_seqs(table), "conversation_id", join_type="left outer")
    over = both.filter(pc.field("seq_last") > pc.coalesce(pc.field("seq"), pc.scalar(-1)))
    return over.select(["conversation_id", "kind_last"]).rename_columns(["conversation_id", "kind"])


def _groups(turns: Snapshot, ids: Sequence[str] | None) -> Iterator[list[str]]:
    """The ids in order, all that there are or these, in groups of conversations with about GROUP_ROWS rows together."""
    which = pc.field("kind") != CALL
    if ids is not None:
        which &= pc.field("conversation_id").isin(ids)
    counts = row_counts(turns.rows(*((ids[0], ids[-1]) if ids else ())), which).sort_by("conversation_id")
    numbers = (np.cumsum(counts.column("rows").to_numpy()) - 1) // GROUP_ROWS
    found = counts.column("conversation_id").to_pylist()
    cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(found)]
    yield from (found[a:b] for a, b in pairwise(cuts) if b > a)


def _sorted(table: pa.Table) -> pa.Table:
    """In the order of what happened; of equal keys (runs of older versions may have a row twice) the newest is kept.

    Within one seq: opening, calls, an end (after which a conversation can go on), what was said. Attempts decide among
    ends, whatever the clocks said.
    """
    if len(table) < 2:
        return table
    ids = table.column("conversation_id").combine_chunks().dictionary_encode()
    place = np.empty(len(ids.dictionary), np.int64)
    place[pc.sort_indices(ids.dictionary).to_numpy()] = np.arange(len(place))
    kind = pc.fill_null(pc.index_in(table.column("kind"), _RANKED), len(_RANKED))
    rank = _RANKS.take(kind.combine_chunks()).to_numpy()
    seq = table.column("seq").to_numpy().astype(np.int64)
    key = place[ids.indices.to_numpy()] << 34 | seq << 2 | rank
    attempt = pc.fill_null(table.column("attempt"), 0).to_numpy()
    order = np.lexsort((table.column("created_at").cast(pa.int64()).to_numpy(), attempt, key))
    equal = (np.diff(key[order]) == 0) & (np.diff(attempt[order]) == 0) & (rank[order][1:] != 1)
    return table.take(pa.array(order[np.append(~equal, True)]))


def _git_commit() -> str | None:
    """Commit of the working directory, so that a run can be traced to the code that asked for it."""
    try:
        out = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
