"""A run on disk or in an object store: a manifest, and Delta Lake tables of turns and findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.store.dataset import last_seqs, snapshot, turns_of
from a2a_ray.store.findings_table import FindingsTable
from a2a_ray.store.row_order import last_ends, row_groups, sort_rows
from a2a_ray.store.run_folder import MANIFEST, make_run_folder, read_manifest, remove_folder
from a2a_ray.store.schema import CALL, COUNTED, ENDS, NOT_SAID, OPENING, from_table

UNCOUNTED = 100
"""Up to this many conversations are read at once, without counting their rows first."""


class Run:
    """A stored run, which `open_run(path)` returns. It can be read while it runs: all committed turns are visible.

    `transcript(id)` and `transcripts()` return conversations. `turns` is an Arrow table that pandas, Polars and DuckDB
    read.

    path: folder or URI. manifest: specification, seeds, versions, git commit.
    """

    def __repr__(self) -> str:
        try:
            planned = f", {self.experiment.size()[0]} conversations planned"
        except Exception:  # of another version, or with agents of another program
            planned = ""
        return f"Run({self.path!r}{planned})"

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.stopped = ""  # why the start that returned this run ended early, as a sentence

    @cached_property
    def experiment(self) -> Experiment:
        """The specification of the run."""
        return Experiment.parse(self.manifest["experiment"], f"{self.path}/{MANIFEST}")

    @cached_property
    def rows(self) -> pa.Table:
        """Every row of the store, with openings, ends and the ledger's calls, sorted by conversation_id and seq."""
        return sort_rows(self._table().to_table())

    @cached_property
    def turns(self) -> pa.Table:
        """All records, with bids, combinations, nudges and reviews; sorted as `rows`, columns of SCHEMA."""
        return self.rows.filter(~pc.field("kind").isin(NOT_SAID))

    def transcripts(self, ids: Iterable[str] | None = None) -> Iterator[Transcript]:
        """Yield every conversation that has started, or those of these ids, in order of id.

        They are read in groups of about GROUP_ROWS rows, so memory does not grow with the run. Files without ids
        between the first and the last are not read. Turns that are committed later are not included.
        """
        turns, wanted = snapshot(self.path), None if ids is None else sorted(set(ids))
        few = wanted is not None and len(wanted) <= UNCOUNTED
        for group in [wanted] if few else row_groups(turns, wanted):
            if not group:
                continue
            first, last = group[0], group[-1]
            here = (pc.field("conversation_id") >= first) & (pc.field("conversation_id") <= last)
            if wanted is not None:
                here &= pc.field("conversation_id").isin(group)
            table = turns.rows(first, last).to_table(filter=here & (pc.field("kind") != CALL))
            for _, rows in groupby(from_table(sort_rows(table)), key=attrgetter("conversation")):
                yield self._transcript(list(rows))

    def statuses(self) -> dict[str, str]:
        """Return "running", "done" or "failed" for each conversation that has started, by id; in no order."""
        table = self._table()
        ended = last_ends(table)
        out = dict.fromkeys(last_seqs(table).column("conversation_id").to_pylist(), RUNNING)
        out.update(zip(ended.column("conversation_id").to_pylist(), ended.column("kind").to_pylist(), strict=True))
        return out

    def transcript(self, conversation: str) -> Transcript:
        """Return one conversation. Raises ConfigurationError, with ids that exist, if there is none of this id."""
        for transcript in self.transcripts([conversation]):
            return transcript
        there = sorted(last_seqs(self._table()).column("conversation_id").to_pylist())
        more = f" and {len(there) - 20} more" if len(there) > 20 else ""
        raise ConfigurationError(unknown("conversation", conversation, there[:20]).rstrip(".") + more + ".")

    def findings(self, ids: Sequence[str] | None = None) -> Iterator[Finding]:
        """Yield the findings of these conversations, or of all, by every analyzer and settings; by conversation."""
        table = FindingsTable(self.path)
        if ids is None:
            ids = sorted({id for seqs in table.known().values() for id in seqs})
        yield from table.read(ids)

    def stopped_ids(self) -> list[str]:
        """Return the conversations that an observer stopped, in order of id."""
        chosen = (pc.field("kind") == DONE) & (pc.field("sender") != "")
        found = turns_of(self.path).to_table(["conversation_id"], filter=chosen).column("conversation_id")
        return sorted(set(found.to_pylist()))

    def summary(self) -> dict[str, int]:
        """Return counts: conversations planned, done and failed, and turns (messages, not nudges and the like)."""
        table = self._table()
        how = last_ends(table).column("kind")
        done, failed = (pc.sum(pc.equal(how, status)).as_py() or 0 for status in ENDS)
        said = table.count_rows(filter=~pc.field("kind").isin([*sorted(ASIDE), *NOT_SAID]))
        return {"conversations": self.experiment.size()[0], "done": done, "failed": failed, "turns": said}

    def ledger(self) -> dict[str, int]:
        """Return counts of the calls to paid agents, each of which is stored before it is sent.

        calls: stored; no more were made. It is the sum of the three others.
        answered: calls whose response is stored.
        possibly_duplicated: calls that were retried, because it is unknown whether they had reached the agent.
        unanswered: calls without a stored response. They failed, were in flight when the run was killed, or were never
            sent.
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
        """Return the sums of input_tokens, output_tokens, cost and requests over the usage of all responses."""
        total: dict[str, float] = {}
        some = pc.scalar(False)
        for name in COUNTED:
            some |= pc.field(name).is_valid()
        for batch in self._table().to_batches(columns=[*COUNTED], filter=some):
            for name in COUNTED:
                if (value := pc.sum(batch.column(name)).as_py()) is not None:
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
    """Return the run in a folder or at a URI. Raises ConfigurationError if there is none."""
    location = str(path).rstrip("/").removesuffix(f"/{MANIFEST}")
    return Run(location, read_manifest(location))


def create_run(experiment: Experiment, storage: str | Path) -> Run:
    """Make a new run under the storage path. Raises ConfigurationError if its manifest cannot be written there."""
    return Run(*make_run_folder(experiment, storage))


def remove_run(run: Run) -> bool:
    """Remove a run that has no turns; return whether it had none."""
    empty = not turns_of(run.path).count_rows()
    if empty:
        remove_folder(run.path)
    return empty
