"""Populations on Ray: the same results as in one process with any number of workers; invalid input is reported."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from a2a_ray.analysis.dynamics.pair_population import PairPopulation, States, residual_norms
from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.analysis.dynamics.pair_sources import BLOCK, DrawnPairs, GivenPairs
from a2a_ray.core.errors import ConfigurationError, PlacementError
from a2a_ray.runtime.pair_shards import PopulationProgress, run_pair_population


def drawn(pairs: int = 20 * BLOCK + 30, **settings: Any) -> PairPopulation:
    return PairPopulation(DrawnPairs(pairs, 4, seed=5, condition=6.0), 0.7, 0.4, **settings)


def given(folder: Path | None = None, pairs: int = 1000, **settings: Any) -> PairPopulation:
    values = list(DrawnPairs(pairs, 3, condition=4.0).take(0, pairs))
    if folder is not None:
        for i, value in enumerate(values):
            np.save(folder / f"{i}.npy", value)
        values = [folder / f"{i}.npy" for i in range(4)]
    return PairPopulation(GivenPairs(*values), 0.7, np.linspace(0.1, 1.9, pairs), **settings)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_states_equal_those_of_one_process(ray_cluster: None, workers: int, noise: float) -> None:
    population = drawn(noise_w=noise, noise_u=noise / 2)
    seen: list[PopulationProgress] = []
    found = run_pair_population(population, 40, every=10, workers=workers, progress=seen.append)
    expected = simulate_pairs(population, 40, every=10)
    for name in ("rounds", "after_w", "after_u", "objective_w", "objective_u"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert len(seen) > workers
    assert [p.done for p in seen] == sorted({p.done for p in seen})
    assert (seen[-1].done, seen[-1].pairs, seen[-1].turns) == (
        population.pairs,
        population.pairs,
        80 * population.pairs,
    )


def test_only_the_requested_states_are_returned(ray_cluster: None) -> None:
    population = drawn(600).part(100, 550)
    states = run_pair_population(population, 5, after="w", progress=False)
    assert states.after_u is None
    assert states.first == 100
    assert torch.equal(states.after_w, simulate_pairs(population, 5, after="w").after_w)  # type: ignore[arg-type]


def test_pairs_in_files_and_in_memory_are_reduced_in_the_workers(ray_cluster: None, tmp_path: Path) -> None:
    def reduce(states: States) -> dict[str, torch.Tensor]:
        here = torch.full((len(states.objective_w),), os.getpid())
        return {"process": here, **residual_norms(states)}

    for population in (given(), given(tmp_path), given(tmp_path, start=np.ones((1000, 3)), noise_w=0.1)):
        expected = simulate_pairs(population, 30, every=3, reduce=residual_norms)
        found = run_pair_population(population, 30, every=3, reduce=reduce, workers=2, progress=False)
        assert os.getpid() not in found.pop("process")
        for name, value in expected.items():
            assert torch.equal(found[name], value)


def test_a_shard_whose_worker_dies_is_computed_again(ray_cluster: None, tmp_path: Path) -> None:
    def reduce(states: States) -> dict[str, torch.Tensor]:
        died = tmp_path / "died"
        if states.first >= 2 * BLOCK and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return residual_norms(states)

    population = drawn(5 * BLOCK, noise_w=0.1)
    found = run_pair_population(population, 20, reduce=reduce, workers=2, progress=False)
    assert (tmp_path / "died").exists()
    assert torch.equal(found["u"], simulate_pairs(population, 20, reduce=residual_norms)["u"])


def test_invalid_input_is_reported(ray_cluster: None) -> None:
    for settings, words in (
        ({"workers": 0}, "workers: 0; expected at least 1"),
        ({"every": 9}, "every: 9"),
        ({"after": "v"}, "after: 'v'"),
        ({"device": "tpu"}, "device: 'tpu'"),
        ({"reduce": lambda s: {"r": s.rounds}}, "reduce: returned r"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            run_pair_population(drawn(300), 8, progress=False, **settings)  # type: ignore[call-overload]
    population = given()
    with pytest.raises(ConfigurationError, match=r"step_u\[700\]: 2.5; expected less than 2, which"):
        run_pair_population(replace(population, step_u=np.where(np.arange(1000) == 700, 2.5, 1.0)), 3, progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(PlacementError, match="device: 'cuda'; the Ray cluster has no GPU"):
            run_pair_population(drawn(300), 8, device="cuda", progress=False)
