"""Analyze a run or a file of transcripts for a command, with a progress bar, and return its `Results`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from a2a_ray.analysis.analyze import AnalysisSettings, Analyzer, analyze, key_of, loop_analyzers
from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer
from a2a_ray.analysis.equilibria.negotiation import has_offers
from a2a_ray.analysis.equilibria.negotiation_analyzer import NegotiationAnalyzer
from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import Finding
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.embedding_cache import cache_file
from a2a_ray.report.results import Results
from a2a_ray.runtime.analyze_run import analyze_run
from a2a_ray.runtime.progress import print_status, progress_bar
from a2a_ray.store.run import Run, open_run
from a2a_ray.store.run_folder import MANIFEST
from a2a_ray.transcripts.jsonl import read_jsonl


def analyze_source(
    source: str,
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008  (it is frozen)
    *,
    workers: int | None = None,
    address: str | None = None,
    only: Sequence[str] = (),
) -> Results:
    """Analyze a run, as far as it is not analyzed yet, or a file of transcripts.

    only: names of the analyzers that read a file; all by default. Raises ConfigurationError, PlacementError,
    StorageError.
    """
    if not is_transcript_file(source):
        return analyze_opened(open_run(source), settings, workers=workers, address=address)
    transcripts, problems = read_jsonl(source)
    for problem in problems:
        print_status(problem)
    return analyze_transcripts(source, transcripts, settings, problems, only)


def read_source(source: str) -> list[Transcript]:
    """Return the conversations of a run or of a file of transcripts. Raises ConfigurationError."""
    if not is_transcript_file(source):
        return list(open_run(source).transcripts())
    transcripts, problems = read_jsonl(source)
    for problem in problems:
        print_status(problem)
    return transcripts


def analyze_opened(
    run: Run,
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008  (it is frozen)
    *,
    workers: int | None = None,
    address: str | None = None,
) -> Results:
    """Analyze an open run. Raises as `analyze_source`."""
    with _bar(run.path) as report_progress, _half_the_cores(settings):
        keys = analyze_run(run, settings, workers=workers, address=address, on_progress=report_progress)
    return Results(run.path, settings, run, keys)


def analyze_transcripts(
    source: str,
    transcripts: Sequence[Transcript],
    settings: AnalysisSettings = AnalysisSettings(),  # noqa: B008  (it is frozen)
    problems: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Results:
    """Analyze transcripts that were read from `source`; their embeddings are cached in the user's cache folder."""
    embedder = settings.load(cache_file(source, settings.embedder))
    no_objectives = EquilibriumAnalyzer(None)  # a file does not say what its agents want
    common = [*loop_analyzers(settings, embedder), no_objectives]
    keys = [key_of(each) for each in common if not only or each.name in only]
    more: list[Analyzer] = [no_objectives]
    if any(map(has_offers, transcripts)):
        more.append(NegotiationAnalyzer())
    findings_by_id: dict[str, list[Finding]] = {}
    done, total = 0, sum(len(t) + 1 for t in transcripts)
    try:
        with _bar(source) as report_progress, _half_the_cores(settings):
            for transcript, findings in analyze(
                transcripts,
                settings,
                embedder=embedder,
                of_conversation=lambda t: more,
                wanted=lambda id, analyzer: not only or analyzer.name in only,
            ):
                findings_by_id[transcript.id] = findings
                done += len(transcript) + 1
                report_progress(done, total)
    finally:
        if embedder is not None:
            try:
                embedder.save()
            except StorageError as error:
                print(f"Note: {error}. They are computed again next time.", file=sys.stderr)
    offers = {f.key[1:] for findings in findings_by_id.values() for f in findings if f.analyzer == "negotiation"}
    by_id = {t.id: t for t in transcripts}
    return Results(source, settings, None, [*keys, *offers], list(problems), by_id, findings_by_id)


def is_transcript_file(source: str) -> bool:
    """Return whether the source is a file of transcripts, not a run."""
    return "://" not in source and Path(source).is_file() and Path(source).name != MANIFEST


@contextmanager
def _bar(source: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress; yields the function to call with the number of records done and their total."""
    with progress_bar(Path(source).name, "analyzing", transient=True) as update:
        yield lambda done, total: update(done, total, "")


@contextmanager
def _half_the_cores(settings: AnalysisSettings) -> Iterator[None]:
    """Limit torch to half of the cores while embedding: with all of them it is five times slower as soon as another
    process runs."""
    if settings.embedder is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
