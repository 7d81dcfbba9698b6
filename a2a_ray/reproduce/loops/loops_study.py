"""`a2a-ray reproduce loops`: runs the published experiment with its open factors, and shows what came out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from a2a_ray.analysis.analyze import AnalysisSettings
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.transcript import DONE, Transcript
from a2a_ray.report.page_parts import BigNumber, Section
from a2a_ray.report.report_data import ConversationItem
from a2a_ray.report.report_source import report_items
from a2a_ray.report.results import analyze_opened, analyze_transcripts
from a2a_ray.report.study_page import Study, write_study
from a2a_ray.reproduce.loops.drift import course_sections
from a2a_ray.reproduce.loops.factors import PUBLISHED_TOKENS, Setting, experiment, settings
from a2a_ray.reproduce.loops.looping_rates import PUBLISHED_RATE, Cell, LoopingRate, by_tokens, cell
from a2a_ray.reproduce.loops.rate_sections import in_words, rate_sections
from a2a_ray.reproduce.loops.rule_thresholds import grid_section, series_of, threshold_sections, write_sweep
from a2a_ray.runtime.progress import print_status
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.run import Run
from a2a_ray.transcripts.jsonl import read_jsonl


def reproduce_loops(
    models: Sequence[str],
    tokens: Sequence[int],
    temperatures: Sequence[float],
    openings: int,
    rounds: int,
    seed: int,
    embedder_name: str,
    labelled: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Runs every cell, writes out/report.html, results.json, sweep.csv and figures, and gives results.json's value.

    models: the first two are the main pair. labelled: transcripts with labels, for ROC and precision-recall curves.
    Raises ConfigurationError before anything is started.
    """
    cells = settings(models, tokens, temperatures)
    spec = experiment(cells, openings, rounds, seed)
    spec.check()
    known = read_labelled(labelled) if labelled is not None else None
    analysis = AnalysisSettings(None if embedder_name == "none" else embedder_name, detector_embeds=False)
    analysis.load()  # what is missing is said before anything is started
    count, turns = spec.size()
    print_status(f"{len(cells)} settings, {count} talks, {turns:,} turns of {', '.join(dict.fromkeys(models))}...")
    run = run_experiment(spec, storage=out)
    print_status("Analyzing...")
    results = analyze_opened(run, analysis)
    items = list(report_items(results, lambda t: t.status == DONE))
    measured = _measured(cells, items)
    sections = rate_sections(measured, {model: _parameters(model) for model in dict.fromkeys(models)})
    sections += course_sections(results, items, measured)
    series = [series_of(paper_of(item)) for item in items]
    sections += threshold_sections(series, None, "this run")
    if known is not None and labelled is not None:
        talks, looped = known
        of_file = analyze_transcripts(str(labelled), talks, analysis, only=("loops", "paper_rule"))
        of_labelled = [series_of(paper_of(item)) for item in report_items(of_file)]
        sections += threshold_sections(of_labelled, looped, labelled.name)[1:]
        sections.append(grid_section(write_sweep(out / "sweep.csv", of_labelled, looped), "sweep.csv"))
    else:
        write_sweep(out / "sweep.csv", series, None)
    command = _command(models, tokens, temperatures, openings, rounds, seed, embedder_name, labelled)
    return _written(out, run, measured, sections, command)


def read_labelled(path: Path) -> tuple[list[Transcript], list[bool]]:
    """Transcripts with labels: `loop: true`, or `labels: {reader: {loop: true}}` where all readers agree.

    Those on which readers disagree are left out. Raises ConfigurationError where no talk has a label.
    """
    talks, problems = read_jsonl(path)
    for problem in problems:
        print_status(problem)
    chosen, looped = [], []
    for talk in talks:
        labels = talk.metadata.get("labels")
        readers = labels.values() if isinstance(labels, dict) else [talk.metadata]
        said = {bool(r["loop"]) for r in readers if isinstance(r, dict) and "loop" in r}
        if len(said) == 1:
            chosen.append(talk)
            looped.append(said.pop())
    if not chosen:
        raise ConfigurationError(
            f'{path}: no talk has a label; expected "loop": true, or "labels": {{"reader": {{"loop": true}}}}'
        )
    return chosen, looped


def paper_of(item: ConversationItem) -> Finding:
    """The finding of the paper's rule."""
    return next(finding for _, finding in item.findings if finding.analyzer == "paper_rule")


def _measured(cells: Sequence[Setting], items: Sequence[ConversationItem]) -> list[Cell]:
    out = []
    for index, group in groupby(items, key=lambda each: int(each.transcript.metadata["cell"])):
        mine = list(group)
        out.append(cell(cells[index], [i.findings[0][1] for i in mine], [paper_of(i) for i in mine]))
    return out


def _written(out: Path, run: Run, cells: Sequence[Cell], sections: Sequence[Section], command: str) -> dict[str, Any]:
    published, opposite = (
        next(c for c in group if c.setting.tokens == PUBLISHED_TOKENS) for group in by_tokens(cells).values()
    )
    hits, of = PUBLISHED_RATE
    headline = [
        f"In the published setting (last output shown, temperature 0.7, 50 tokens) {in_words(published.detector)} of"
        f" the talks loop; the publication reports {hits} of {of}, {in_words(LoopingRate(hits, of))}.",
        f"Shown the last 400 characters, at temperature {opposite.setting.temperature:g},"
        f" {in_words(opposite.detector)} do.",
    ]
    study = Study(
        "Repetitive loops",
        headline,
        [
            BigNumber(f"{published.detector.share:.0%}", "loop in the published setting"),
            BigNumber(f"{opposite.detector.share:.0%}", "loop when shown 400 characters, coldest"),
            BigNumber(f"{sum(c.detector.talks for c in cells):,}", "talks"),
        ],
        sections,
        {"command": command, "run": run.path, "seed": str(run.experiment.seed)},
    )
    figures = write_study(out, study)
    result = {
        "cells": [c.to_dict() for c in cells],
        "published_setting": published.detector.to_dict(),
        "failed": run.summary()["failed"],
        "run": run.path,
        "report": str(out / "report.html"),
        "figures": [str(path) for path in figures],
    }
    (out / "results.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _command(
    models: Sequence[str],
    tokens: Sequence[int],
    temperatures: Sequence[float],
    openings: int,
    rounds: int,
    seed: int,
    embedder: str,
    labelled: Path | None,
) -> str:
    """What to type to do it again."""
    options = {
        "--models": ",".join(models),
        "--tokens": ",".join(map(str, tokens)),
        "--temperatures": ",".join(f"{t:g}" for t in temperatures),
        "--openings": str(openings),
        "--rounds": str(rounds),
        "--seed": str(seed),
        "--embedder": embedder,
        "--labelled": None if labelled is None else str(labelled),
    }
    return shlex.join(["a2a-ray", "reproduce", "loops", *(w for n, v in options.items() if v for w in (n, v))])


def _parameters(model: str) -> str:
    """How many parameters a model has, from the headers of its files; "?" where it is not on this machine."""
    import math

    from safetensors import safe_open

    from a2a_ray.agents.hf.hf_source import local_folder

    folder = local_folder(model)
    if folder is None:
        return "?"
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), "np") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return f"{total / 1e6:.2f} million"
