"""`a2a-ray reproduce loops`: run the published experiment with its open factors, and write its page and data."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from a2a_ray.analysis.analyze import AnalysisSettings
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.transcript import DONE, Transcript
from a2a_ray.report.analyze_source import analyze_opened, analyze_transcripts
from a2a_ray.report.page_parts import BigNumber, Section
from a2a_ray.report.report_data import ConversationItem
from a2a_ray.report.report_source import report_items
from a2a_ray.report.study_page import Study, write_study
from a2a_ray.reproduce.loops.drift import drift_sections
from a2a_ray.reproduce.loops.loop_settings import PUBLISHED_TOKENS, LoopSetting, loop_experiment, loop_settings
from a2a_ray.reproduce.loops.looping_rates import (
    PUBLISHED_RATE,
    LoopingRate,
    SettingRates,
    by_tokens,
    rate_sections,
    setting_rates,
)
from a2a_ray.reproduce.loops.rule_thresholds import (
    all_thresholds_section,
    paper_finding,
    series_of,
    threshold_sections,
    write_sweep,
)
from a2a_ray.runtime.progress import print_status
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.run import Run
from a2a_ray.transcripts.jsonl import read_jsonl

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class LoopStudy:
    """The options of the study.

    models: the first two are the main pair. tokens, temperatures: values in addition to the published ones.
    embedder: a model, or "none". labelled: transcripts with labels, for ROC and precision-recall curves.
    """

    models: Sequence[str]
    tokens: Sequence[int]
    temperatures: Sequence[float]
    openings: int
    rounds: int
    seed: int
    embedder: str
    labelled: Path | None

    def run(self, out: Path) -> dict[str, Any]:
        """Run every setting; write report.html, results.json, sweep.csv and figures/; return the data of results.json.

        Raises ConfigurationError before anything starts.
        """
        settings = loop_settings(self.models, self.tokens, self.temperatures)
        spec = loop_experiment(settings, self.openings, self.rounds, self.seed)
        spec.check()
        labelled = read_labelled(self.labelled) if self.labelled is not None else None
        analysis = AnalysisSettings(None if self.embedder == "none" else self.embedder, detector_embeds=False)
        analysis.load()  # reports a missing model before anything starts
        conversations, turns = spec.size()
        models = ", ".join(dict.fromkeys(self.models))
        print_status(f"{len(settings)} settings, {conversations} conversations, {turns:,} turns of {models}...")
        run = run_experiment(spec, storage=out)
        print_status("Analyzing...")
        results = analyze_opened(run, analysis)
        items = list(report_items(results, lambda t: t.status == DONE))
        rates = _rates(settings, items)
        sections = rate_sections(rates, {model: _parameters(model) for model in dict.fromkeys(self.models)})
        sections += drift_sections(results, items, rates)
        series = [series_of(paper_finding(item)) for item in items]
        sections += threshold_sections(series, None, "this run")
        if labelled is None:
            write_sweep(out / "sweep.csv", series, None)
        else:
            sections += self._labelled_sections(*labelled, analysis, out)
        return self._write(out, run, rates, sections)

    @property
    def command(self) -> str:
        """The command line that repeats the study."""
        options = {
            "--models": ",".join(self.models),
            "--tokens": ",".join(map(str, self.tokens)),
            "--temperatures": ",".join(f"{t:g}" for t in self.temperatures),
            "--openings": str(self.openings),
            "--rounds": str(self.rounds),
            "--seed": str(self.seed),
            "--embedder": self.embedder,
            "--labelled": None if self.labelled is None else str(self.labelled),
        }
        words = [word for name, value in options.items() if value for word in (name, value)]
        return shlex.join(["a2a-ray", "reproduce", "loops", *words])

    def _labelled_sections(
        self, transcripts: list[Transcript], looped: list[bool], analysis: AnalysisSettings, out: Path
    ) -> list[Section]:
        results = analyze_transcripts(str(self.labelled), transcripts, analysis, only=("loops", "paper_rule"))
        series = [series_of(paper_finding(item)) for item in report_items(results)]
        rows = write_sweep(out / "sweep.csv", series, looped)
        name = self.labelled.name if self.labelled is not None else ""
        return [*threshold_sections(series, looped, name)[1:], all_thresholds_section(rows, "sweep.csv")]

    def _write(self, out: Path, run: Run, rates: Sequence[SettingRates], sections: Sequence[Section]) -> dict[str, Any]:
        published, opposite = (
            next(r for r in group if r.setting.tokens == PUBLISHED_TOKENS) for group in by_tokens(rates).values()
        )
        looped, total = PUBLISHED_RATE
        headline = [
            f"In the published setting (context: the last output; temperature 0.7; 50 tokens) {published.detector} of"
            f" the conversations loop. The publication reports {looped} of {total}, {LoopingRate(looped, total)}.",
            f"With a context of 400 characters and temperature {opposite.setting.temperature:g}, {opposite.detector} of"
            " the conversations loop.",
        ]
        study = Study(
            "Repetitive loops",
            headline,
            [
                BigNumber(f"{published.detector.share:.0%}", "loop in the published setting"),
                BigNumber(f"{opposite.detector.share:.0%}", "loop with 400 characters, lowest temperature"),
                BigNumber(f"{sum(r.detector.conversations for r in rates):,}", "conversations"),
            ],
            sections,
            {"command": self.command, "run": run.path, "seed": str(self.seed)},
        )
        figures = write_study(out, study)
        result = {
            "cells": [r.to_dict() for r in rates],
            "published_setting": published.detector.to_dict(),
            "failed": run.summary()["failed"],
            "run": run.path,
            "report": str(out / "report.html"),
            "figures": [str(path) for path in figures],
        }
        (out / "results.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        return result


def parse_numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Return the numbers of a list such as "25,100". Raises ConfigurationError."""
    try:
        numbers = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(n) for n in numbers):
        expected = "whole numbers" if kind is int else "numbers"
        raise ConfigurationError(f"{option}: {text!r}; expected {expected} separated by commas")
    return numbers


def read_labelled(path: Path) -> tuple[list[Transcript], list[bool]]:
    """Read transcripts with labels: `loop: true`, or `labels: {reader: {loop: true}}` if all readers agree.

    Skips conversations without a label and those on which readers disagree. Raises ConfigurationError if none is left.
    """
    transcripts, problems = read_jsonl(path)
    for problem in problems:
        print_status(problem)
    labelled, looped = [], []
    for transcript in transcripts:
        labels = transcript.metadata.get("labels")
        readers = labels.values() if isinstance(labels, dict) else [transcript.metadata]
        answers = {bool(r["loop"]) for r in readers if isinstance(r, dict) and "loop" in r}
        if len(answers) == 1:
            labelled.append(transcript)
            looped.append(answers.pop())
    if not labelled:
        raise ConfigurationError(
            f'{path}: no conversation has a label; expected "loop": true, or "labels": {{"reader": {{"loop": true}}}}'
        )
    return labelled, looped


def _rates(settings: Sequence[LoopSetting], items: Sequence[ConversationItem]) -> list[SettingRates]:
    rates = []
    for cell, group in groupby(items, key=lambda item: int(item.transcript.metadata["cell"])):
        conversations = list(group)
        detector = [item.findings[0][1] for item in conversations]
        rates.append(setting_rates(settings[cell], detector, [paper_finding(item) for item in conversations]))
    return rates


def _parameters(model: str) -> str:
    """Return the number of parameters of a model, from the headers of its files; "?" if it is not on this machine."""
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
