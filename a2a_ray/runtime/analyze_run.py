"""The analysis of a run: finds and stores the findings that are missing, in this process or on Ray."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from a2a_ray.analysis.analyze import AnalysisSettings, Analyzer, analyze, key_of, loop_analyzers
from a2a_ray.analysis.equilibria.negotiation import has_offers
from a2a_ray.analysis.equilibria.negotiation_analyzer import NegotiationAnalyzer
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.errors import ConfigurationError, StorageError
from a2a_ray.core.findings import Finding, to_arrow
from a2a_ray.core.looped import conversation_looped
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.closed_form import equilibrium_analyzer
from a2a_ray.store.dataset import last_seqs, turns_of
from a2a_ray.store.findings_table import FindingsTable, Key
from a2a_ray.store.run import Run, open_run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IN_PROCESS = 20_000
"""Up to this many records are analyzed in this process; more on Ray, whose start takes seconds."""
TASK_RECORDS = 12_000
"""Records of one Ray task: some seconds of work."""
FLUSH_SECONDS, FLUSH_FINDINGS = 5.0, 5_000
"""How often findings are committed."""

OnProgress = Callable[[int, int], None]
"""Called with the number of records analyzed so far, and of all records to analyze."""


def analyze_run(
    run: Run,
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008  (it is frozen)
    *,
    workers: int | None = None,
    address: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Key]:
    """Find and store the findings that are missing, and return the keys of the findings of these settings.

    A conversation is analyzed once per analyzer, version and settings. With more than `IN_PROCESS` records, `workers`
    or an `address`, the analysis runs on Ray: tasks read ranges of the stored table, and the embedder runs in its own
    actors, on GPUs if there are any. This process keeps only ids and counts in memory.

    workers: the most tasks at the same time; by default the number of CPUs.

    Raises ConfigurationError, PlacementError or StorageError. Findings made before an error or KeyboardInterrupt are
    stored.
    """
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers: {workers}; expected at least 1")
    embedder = settings.load(embeddings_file(run.path))
    base = [key_of(each) for each in loop_analyzers(settings, embedder)]
    of_cell = {i: key_of(equilibrium_of(run, i)) for i in range(len(run.experiment.cells))}
    table = FindingsTable(run.path)
    seqs = last_seqs(turns_of(run.path))
    ids: list[str] = []
    sizes: list[int] = []
    known = table.known()
    for batch in seqs.to_batches():
        for id, seq in zip(batch["conversation_id"].to_pylist(), batch["seq"].to_pylist(), strict=True):
            keys = (*base, of_cell[run.experiment.task(id).cell])
            if any(known.get(key, {}).get(id, -1) < seq for key in keys):
                ids.append(id)
                sizes.append(seq + 1)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, sizes = [ids[i] for i in order], [sizes[i] for i in order]
    if ids:
        total = sum(sizes)
        if address is None and workers is None and total <= IN_PROCESS:
            batches = _in_process(run, settings, embedder, ids, known)
        else:
            path = run.path if "://" in run.path else str(Path(run.path).absolute())
            batches = _on_ray(path, settings, ids, sizes, known, workers, address)
        try:
            _store(table, batches, total, on_progress)
        finally:
            if embedder is not None:
                with contextlib.suppress(StorageError):  # they can be computed again
                    embedder.save()
    return [*base, *dict.fromkeys(of_cell.values()), *_negotiation_keys()]


def embeddings_file(path: str) -> Path | None:
    """Return the file that keeps the embeddings of a run on this machine from one analysis to the next."""
    return None if "://" in path else Path(path) / "embeddings.parquet"


def equilibrium_of(run: Run, cell: int) -> Analyzer:
    """Return the analyzer of a cell's equilibrium."""
    return equilibrium_analyzer(run.experiment.cells[cell])


def run_analyzers(run: Run) -> Callable[[Transcript], Sequence[Analyzer]]:
    """Return the function that chooses the analyzers which need the agents' objectives."""
    equilibrium = cache(lambda cell: equilibrium_of(run, cell))

    def chosen(transcript: Transcript) -> Sequence[Analyzer]:
        found: list[Analyzer] = [equilibrium(transcript.metadata["cell"])]
        return [*found, NegotiationAnalyzer()] if has_offers(transcript) else found

    return chosen


def looped_by_default(run: Run) -> int | None:
    """Return how many conversations looped by the detector's default settings; None if the run was not analyzed."""
    detector = key_of(loop_analyzers(AnalysisSettings(), None)[0])
    table = FindingsTable(run.path)
    if detector not in table.known():
        return None
    looped = 0
    for batch in table.batches(keys=[detector], columns=["number", "status"]):
        pairs = zip(batch["number"].to_pylist(), batch["status"].to_pylist(), strict=True)
        looped += sum(conversation_looped(number, status) for number, status in pairs)
    return looped


def _negotiation_keys() -> list[Key]:
    return [key_of(NegotiationAnalyzer())]


def _missing(known: Mapping[Key, Mapping[str, int]], seqs: Mapping[str, int]) -> Callable[[str, Analyzer], bool]:
    return lambda id, analyzer: known.get(key_of(analyzer), {}).get(id, -1) < seqs.get(id, 0)


def _rows(
    run: Run,
    settings: AnalysisSettings,
    embedder: Embedder | None,
    ids: Sequence[str],
    known: Mapping[Key, Mapping[str, int]],
) -> Iterator[tuple[int, list[Finding]]]:
    """Yield the number of records of each conversation, and its missing findings."""
    seqs: dict[str, int] = {}

    def read() -> Iterator[Transcript]:
        for transcript in run.transcripts(ids):
            seqs[transcript.id] = len(transcript)
            yield transcript

    wanted = _missing(known, seqs)
    for transcript, found in analyze(
        read(), settings, embedder=embedder, of_conversation=run_analyzers(run), wanted=wanted
    ):
        yield len(transcript) + 1, found


def _in_process(
    run: Run,
    settings: AnalysisSettings,
    embedder: Embedder | None,
    ids: Sequence[str],
    known: Mapping[Key, Mapping[str, int]],
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for records, found in _rows(run, settings, embedder, ids, known):
        yield records, to_arrow(found)


def _store(
    table: FindingsTable, batches: Iterator[tuple[int, pa.RecordBatch]], total: int, on_progress: OnProgress
) -> None:
    """Commit the findings in groups, even if an error or Ctrl-C interrupts the analysis."""
    waiting: list[pa.RecordBatch] = []
    done, last = 0, time.monotonic()

    def flush() -> None:
        nonlocal last
        if waiting:
            table.add(pa.concat_batches(waiting))
        waiting.clear()
        last = time.monotonic()

    try:
        for records, batch in batches:
            waiting.append(batch)
            done += records
            on_progress(done, total)
            if time.monotonic() - last > FLUSH_SECONDS or sum(map(len, waiting)) > FLUSH_FINDINGS:
                flush()
    finally:
        flush()


def _on_ray(
    path: str,
    settings: AnalysisSettings,
    ids: Sequence[str],
    sizes: Sequence[int],
    known: Mapping[Key, Mapping[str, int]],
    workers: int | None,
    address: str | None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the same from Ray tasks, each for a range of ids; at most `workers` at the same time."""
    import ray

    from a2a_ray.runtime.cluster import connect

    own = connect(address)
    try:
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote: Any = ray.remote(num_cpus=1, max_retries=3)(_task)
        embedders = _embedders(settings)
        waiting = _ranges(ids, sizes)
        running: dict[Any, int] = {}
        while True:
            while len(running) < limit and (part := next(waiting, None)) is not None:
                chosen, records = part
                here = {key: {id: seqs[id] for id in chosen if id in seqs} for key, seqs in known.items()}
                here = {key: seqs for key, seqs in here.items() if seqs}
                running[remote.remote(path, settings, chosen, here, embedders)] = records
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            for call in done:
                yield running.pop(call), _findings_of_task(call)
    finally:
        if own:
            ray.shutdown()


def _findings_of_task(call: Any) -> pa.RecordBatch:
    """Return the findings of a task. Raises errors of this package as they are."""
    import ray
    from ray.exceptions import RayTaskError

    from a2a_ray.core.errors import A2AError

    try:
        return ray.get(call)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, A2AError) else error from None


def _ranges(ids: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[list[str], int]]:
    """Yield neighbouring ids with about `TASK_RECORDS` records, and their number of records."""
    start = records = 0
    for i, size in enumerate(sizes):
        records += size
        if records >= TASK_RECORDS or i == len(sizes) - 1:
            yield list(ids[start : i + 1]), records
            start, records = i + 1, 0


def _task(
    path: str,
    settings: AnalysisSettings,
    ids: Sequence[str],
    known: Mapping[Key, Mapping[str, int]],
    embedders: Sequence[Any],
) -> pa.RecordBatch:
    """Return the findings of a range of conversations. Runs in a Ray worker process."""
    gc.set_threshold(100_000, 10, 10)  # transcripts are many small objects without cycles
    embedder = settings.load()
    if embedder is not None and embedders:
        embedder = _RemoteEmbedder(embedder, embedders[hash(ids[0]) % len(embedders)])
    run = open_run(path)
    return to_arrow([finding for _, found in _rows(run, settings, embedder, ids, known) for finding in found])


def _embedders(settings: AnalysisSettings) -> list[Any]:
    """Start the actors that embed: one on each GPU, or one on a CPU without GPUs; none without an embedder."""
    import ray

    if settings.embedder is None:
        return []
    gpus = int(ray.cluster_resources().get("GPU", 0))
    actor: Any = ray.remote(EmbeddingActor)
    options = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0}
    return [actor.options(**options).remote(settings) for _ in range(max(gpus, 1))]


class EmbeddingActor:
    """Actor with one copy of the embedder's model."""

    def __init__(self, settings: AnalysisSettings) -> None:
        embedder = settings.load()
        assert embedder is not None
        self._embedder = embedder

    def encode(self, texts: list[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (n, d). They are not cached."""
        return self._embedder.compute(texts)


class _RemoteEmbedder(Embedder):
    """An embedder whose model is in an actor."""

    batch = 1 << 20

    def __init__(self, like: Embedder, actor: Any) -> None:
        super().__init__(like.name, like.folder, like.cache, like.dtype)
        self._actor = actor

    def compute(self, texts: list[str]) -> NDArray[np.float32]:
        import ray

        found: NDArray[np.float32] = ray.get(self._actor.encode.remote(texts))
        return found
