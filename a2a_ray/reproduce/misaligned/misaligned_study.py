"""The study: it runs the experiments one after the other and writes a page, figures and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.report.page import write_page
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.study_page import Study, write_study
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
from a2a_ray.reproduce.misaligned.study_settings import Settings


class Entry(NamedTuple):
    """An experiment: its topic, and its module with `run(settings) -> ExperimentResult`."""

    topic: str
    module: str


EXPERIMENTS = {
    "plateau": Entry("plateau against 19 angles", "plateau_by_angle"),
    "rounds": Entry("error per round", "error_by_round"),
    "order": Entry("order of turns", "turn_order"),
    "geometry": Entry("geometry of the prompts", "prompt_geometry"),
    "adversary": Entry("adversary under a rank limit", "adversary"),
    "defences": Entry("defences and their cost", "defences"),
    "helper": Entry("helper", "uninformed_helper"),
    "noise": Entry("noise and verdicts", "noisy_agents"),
}
HEADLINES = ("plateau", "adversary", "defences", "helper")
"""Experiments whose outcome is at the top of the page; every outcome is in its section."""
NUMBERS = {
    "max_relative_error_analytic": "of the gap: largest error against the closed form",
    "median_relative_error_trained": "of the gap: median error of trained agents",
    "adversary_error": "of the gap: the adversary's distance from its objective",
    "helper_rounds": "round until the helped agent is at its objective",
}
"""Numbers at the top of the page."""
SUMMARY = (
    "max_relative_error_analytic",
    "median_relative_error_trained",
    "monotone_in_angle",
    "adversary_error",
    "victim_error",
    "helper_rounds",
)
"""The last keys of the JSON, before `figures`; null if the experiment was not run."""


def chosen(only: str | None) -> list[str]:
    """Return the experiments to run. Raises ConfigurationError for an unknown name."""
    if only is not None and only not in EXPERIMENTS:
        raise ConfigurationError("--only: " + unknown("experiment", only, EXPERIMENTS))
    return [only] if only else list(EXPERIMENTS)


def run_study_experiment(name: str, settings: Settings) -> ExperimentResult:
    """Run one experiment."""
    run: Callable[[Settings], ExperimentResult] = import_module(
        f"a2a_ray.reproduce.misaligned.{EXPERIMENTS[name].module}"
    ).run
    return run(settings)


def prepare(folder: Path) -> None:
    """Create the folder before any work. Raises ConfigurationError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror or error}; choose another folder with -o") from None


def write_results(
    folder: Path, settings: Settings, results: Mapping[str, ExperimentResult], seconds: float, command: str
) -> dict[str, Any]:
    """Write report.html, figures/ and results.json to the folder and return the object that `--json` prints."""
    figures = write_study(folder, _study(settings, results, seconds, command))
    summary = {key: value for result in results.values() for key, value in result.summary.items()}
    head = {"command": command, "settings": asdict(settings), "seconds": round(seconds, 1)}
    head["report"] = str(folder / "report.html")
    tail = {key: summary.get(key) for key in SUMMARY} | {"figures": [str(path) for path in figures]}
    outcomes = {name: result.outcome for name, result in results.items()}
    everything = {name: {"outcome": f.outcome, **f.values} for name, f in results.items()}
    write_page(folder / "results.json", json.dumps(_plain({**head, "experiments": everything, **tail}), indent=1))
    found: dict[str, Any] = _plain({**head, "outcomes": outcomes, **tail})
    return found


def _study(settings: Settings, results: Mapping[str, ExperimentResult], seconds: float, command: str) -> Study:
    summary = {key: value for result in results.values() for key, value in result.summary.items()}
    known = {key: label for key, label in NUMBERS.items() if summary.get(key) is not None}
    return Study(
        "Agents with misaligned objectives",
        [results[name].outcome for name in HEADLINES if name in results] or [f.outcome for f in results.values()],
        [BigNumber(f"{summary[key]:.2g}", label) for key, label in known.items()],
        [replace(f.section, text=f"{f.section.text} Outcome: {f.outcome}") for f in results.values()],
        {
            "command": command,
            "dimensions": str(settings.dim),
            "pairs": str(settings.pairs),
            "rounds": "until the conversations converge" if settings.rounds is None else str(settings.rounds),
            "condition number": f"{settings.condition:g}",
            "step size": f"{settings.step_size:g}",
            "seed": str(settings.seed),
            "seconds": f"{seconds:.0f}",
            "source": "arXiv 2511.08710; closed forms: docs/method/misaligned_agents.md",
        },
    )


def _plain(value: Any) -> Any:
    """Return the value as JSON with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
