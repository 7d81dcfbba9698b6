"""Whole runs of the embedded language models: the same transcripts however the work is spread, exactly in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.registry import protocols
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.spec import Experiment
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


def content_of(transcript: Transcript) -> list[Any]:
    return [(m.sender, m.content, m.seed, m.usage, m.metadata) for m in transcript]


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Any]]:
    """One message at a time, in this process."""
    experiment = Experiment.parse(talks())
    done = {}
    for task in experiment.tasks():
        cell = experiment.cells[task.cell]
        agents, protocol = [a.build() for a in cell.agents], protocols.build(cell.protocol, "protocol")
        opening, options = cell.opening_contents[task.opening], {a.name: a.turn_settings() for a in cell.agents}
        talk = Conversation(
            agents, protocol, opening, max_turns=cell.limit, options=options, seed=task.seed, id=task.id
        )
        done[task.id] = content_of(talk.run())
    return done


@pytest.mark.parametrize(
    ("workers", "where"),
    [
        (1, {"resources": {"max_batch_size": 64}, "batch_size": 5}),
        pytest.param(2, {"resources": {"max_batch_size": 3, "replicas": 2}}, marks=pytest.mark.slow),
        (1, {"placement": "worker"}),
    ],
)
def test_same_transcripts_however_the_work_is_spread(
    ray_cluster: None, alone: dict[str, list[Any]], tmp_path: Path, workers: int, where: dict[str, Any]
) -> None:
    run = run_experiment(talks(**where), storage=tmp_path, workers=workers, progress=False)
    assert run.summary() == {"conversations": 12, "done": 12, "failed": 0, "turns": 60}
    assert {t.id: content_of(t) for t in run.transcripts()} == alone


def test_seeds_and_settings_make_a_difference(alone: dict[str, list[Any]]) -> None:
    assert len({tuple(content for _, content, *_ in turns) for turns in alone.values()}) == 12
