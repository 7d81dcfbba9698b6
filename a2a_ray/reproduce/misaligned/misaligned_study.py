"""The experiments put together: run one after the other, written as a page, figures and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.report.page import write_page
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.study_page import Study, write_study
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
from a2a_ray.reproduce.misaligned.study_settings import Settings

EXPERIMENTS = {
    "plateau": "plateau against 19 angles",
    "rounds": "error per round",
    "order": "order of turns",
    "geometry": "geometry of the prompts",
    "adversary": "adversary under a rank limit",
    "defences": "defences and what they cost",
    "helper": "helper",
    "noise": "noise and verdicts",
}
"""Name of each experiment and what it is about."""
MODULES = {
    "plateau": "plateau_by_angle",
    "rounds": "error_by_round",
    "order": "turn_order",
    "geometry": "prompt_geometry",
    "adversary": "adversary",
    "defences": "defences",
    "helper": "uninformed_helper",
    "noise": "noisy_agents",
}
"""Module of each experiment, with `run(settings) -> ExperimentResult`."""
HEADLINES = ("plateau", "adversary", "defences", "helper")
"""Whose outcome stands at the top of the page; every outcome stands with its section."""
NUMBERS = {
    "max_relative_error_analytic": "of the gap: largest error against the closed form",
    "median_relative_error_trained": "of the gap: median error of trained agents",
    "adversary_error": "of the gap: the adversary's distance from its objective",
    "helper_rounds": "round until the helped agent is at its objective",
}
"""What the page shows in large figures."""
SUMMARY = (
    "max_relative_error_analytic",
    "median_relative_error_trained",
    "monotone_in_angle",
    "adversary_error",
    "victim_error",
    "helper_rounds",
)
"""The last keys of the JSON, before `figures`; null where the experiment was not run."""


def chosen(only: str | None) -> list[str]:
    """The experiments to run. Raises ConfigurationError for a name that is none."""
    if only is not None and only not in EXPERIMENTS:
        raise ConfigurationError("--only: " + unknown("experiment", only, EXPERIMENTS))
    return [only] if only else list(EXPERIMENTS)


def run_study_experiment(name: str, settings: Settings) -> ExperimentResult:
    """One of them."""
    run: Callable[[Settings], ExperimentResult] = import_module(f"a2a_ray.reproduce.misaligned.{MODULES[name]}").run
    return run(settings)


def prepare(folder: Path) -> None:
    """Before any work: makes the folder. Raises ConfigurationError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror or error}; choose another folder with -o") from None


def write_results(
    folder: Path, settings: Settings, results: Mapping[str, ExperimentResult], seconds: float, command: str
) -> dict[str, Any]:
    """Writes report.html, figures/ and results.json into the folder, and gives the object that `--json` prints."""
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
            "rounds": "as many as the rates ask for" if settings.rounds is None else str(settings.rounds),
            "condition number": f"{settings.condition:g}",
            "step size": f"{settings.step_size:g}",
            "seed": str(settings.seed),
            "seconds": f"{seconds:.0f}",
            "source": "arXiv 2511.08710; closed forms: docs/method/misaligned_agents.md",
        },
    )


def _plain(value: Any) -> Any:
    """As JSON: what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
