"""Whole runs of the embedded language models: the same transcripts however the work is spread, exactly in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from a2a_ray.runtime.run_experiment import run_experiment


def talks(**more: Any) -> dict[str, Any]:
    """Twelve short talks of two models, in two settings; `more` goes to each agent."""
    model = {"kind": "hf", "dtype": "float64", "max_new_tokens": 12, "threads": 1, **more}
    return {
        "agents": [{"name": "lou", "model": "tiny-llama", **model}, {"name": "neo", "model": "tiny-neox", **model}],
        "protocol": {"kind": "alternating", "context": {"last": 2}},
        "openings": {"first": 3},
        "repeats": 2,
        "max_turns": 5,
        "seed": 7,
        "sweep": {"agents.*.temperature": [0.3, 1.0]},
    }


def said(value: dict[str, Any], storage: Path, workers: int | None = None) -> dict[str, list[Any]]:
    run = run_experiment(value, storage=storage, workers=workers, progress=False)
    assert run.summary() == {"conversations": 12, "done": 12, "failed": 0, "turns": 60}
    return {t.id: [(m.sender, m.content, m.seed, m.usage, m.metadata) for m in t] for t in run.transcripts()}


@pytest.fixture(scope="module")
def alone(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """One message at a time, one worker."""
    return said(talks(resources={"max_batch_size": 1}), tmp_path_factory.mktemp("alone"), workers=1)


@pytest.mark.parametrize(
    ("workers", "where"),
    [
        (4, {"resources": {"max_batch_size": 64}, "batch_size": 5}),
        (2, {"resources": {"max_batch_size": 3, "replicas": 2}}),
        (4, {"placement": "worker"}),
    ],
)
def test_same_transcripts_however_the_work_is_spread(
    alone: dict[str, list[Any]], tmp_path: Path, workers: int, where: dict[str, Any]
) -> None:
    assert said(talks(**where), tmp_path, workers) == alone


def test_seeds_and_settings_make_a_difference(alone: dict[str, list[Any]]) -> None:
    assert len({tuple(content for _, content, *_ in turns) for turns in alone.values()}) == 12
