"""A population of pairs on Ray: each worker computes shards, a number of blocks of pairs each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias, Unpack, overload

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch import Tensor

from a2a_ray.analysis.dynamics.pair_population import PairPopulation, Reduce, States
from a2a_ray.analysis.dynamics.pair_simulation import PairSimulation, SimulationOptions
from a2a_ray.analysis.dynamics.pair_sources import BLOCK, GivenPairs
from a2a_ray.core.errors import A2AError, ConfigurationError, PlacementError
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.progress import progress_bar

SHARDS = 8
"""The least number of shards for each worker, so that all workers finish at about the same time."""
SHARD_BYTES = 64 * 2**20
"""The most that the given pairs and the states of a shard may take between processes."""

Block: TypeAlias = "tuple[int, dict[str, np.ndarray[Any, np.dtype[Any]]]]"
"""The first pair of a block and its results by name."""


class PopulationProgress(NamedTuple):
    """Progress of a population: pairs computed, of all pairs; turns computed for them; seconds since the start."""

    done: int
    pairs: int
    turns: int
    seconds: float


ProgressCallback: TypeAlias = Callable[[PopulationProgress], None]


class ClusterOptions(SimulationOptions, total=False):
    """Options of `run_pair_population`, all with a default.

    workers: shards that are computed at the same time; by default as many as there are free CPUs (GPUs).
    address: a Ray cluster; without it, the Ray that runs in this process, or a new local one that ends afterwards.
    progress: True (the default) shows a bar, False nothing; a function is called with a PopulationProgress after every
        shard.
    """

    workers: int | None
    address: str | None
    progress: ProgressCallback | bool


@overload
def run_pair_population(
    population: PairPopulation, rounds: int, *, reduce: None = None, **options: Unpack[ClusterOptions]
) -> States:
    """Return the kept states of all pairs."""


@overload
def run_pair_population(
    population: PairPopulation, rounds: int, *, reduce: Reduce, **options: Unpack[ClusterOptions]
) -> dict[str, Tensor]:
    """Return the reduced states of all pairs."""


def run_pair_population(
    population: PairPopulation,
    rounds: int,
    *,
    reduce: Reduce | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: ProgressCallback | bool = True,
    **options: Unpack[SimulationOptions],
) -> States | dict[str, Tensor]:
    """Return what `simulate_pairs` returns, computed by Ray workers with one thread per CPU, or one per GPU on "cuda".

    reduce: as for `simulate_pairs`; it runs in the workers, and only its results are sent back.
    options: see `SimulationOptions` and `ClusterOptions`.

    Results arrive in this process's memory, on the CPU. Workers read .npy files themselves and must have access to
    them; arrays are sent. A shard whose worker dies is computed again, with the same result. Raises as `simulate_pairs`
    does, and PlacementError if the cluster has no CPU (GPU).
    """
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers: {workers}; expected at least 1")
    simulation = PairSimulation(population, rounds, reduce, **options)
    own = connect(address)
    try:
        with _progress_callback(progress) as report:
            return simulation.gather(_compute(simulation, workers, report))
    finally:
        if own:
            ray.shutdown()


def _compute(
    simulation: PairSimulation, workers: int | None, report: ProgressCallback
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield the blocks of all shards as they arrive; `workers` shards are in flight."""
    resource = "GPU" if simulation.device.startswith("cuda") else "CPU"
    if ray.cluster_resources().get(resource, 0) < 1:
        raise PlacementError(f"device: {simulation.device!r}; the Ray cluster has no {resource}")
    workers = workers or max(1, int(ray.available_resources().get(resource, 1)))
    remote: Any = ray.remote  # its types know these options only by name
    compute = remote(num_cpus=1, num_gpus=int(resource == "GPU"))(_compute_shard)
    pairs, started, done = simulation.population.pairs, time.monotonic(), 0
    shards = simulation.blocks(_blocks_per_shard(simulation, workers))
    in_flight: dict[Any, tuple[int, int]] = {}
    try:
        while True:
            while len(in_flight) < workers and (shard := next(shards, None)):
                in_flight[compute.remote(simulation.part(*shard))] = shard
            if not in_flight:
                return
            (ready,), _ = ray.wait(list(in_flight), num_returns=1)
            first, last = in_flight.pop(ready)
            for start, tensors in ray.get(ready):
                yield first + start, {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
            done += last - first
            report(PopulationProgress(done, pairs, 2 * simulation.rounds * done, time.monotonic() - started))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, A2AError) else error from None
    finally:
        for reference in in_flight:
            ray.cancel(reference)


def _blocks_per_shard(simulation: PairSimulation, workers: int) -> int:
    population, d = simulation.population, simulation.population.dim
    numbers = 2 * d * (d + 1) if isinstance(population.source, GivenPairs) else 0
    if simulation.reduce is None:
        numbers += 2 * d * simulation.kept_rounds
    blocks, most = -(-population.pairs // BLOCK), SHARD_BYTES // (8 * numbers * BLOCK or 1)
    return max(1, min(most, -(-blocks // (SHARDS * workers))))


def _compute_shard(simulation: PairSimulation) -> list[Block]:
    """In a worker: compute one shard."""
    torch.set_num_threads(1)
    return [
        (first, {name: value.cpu().numpy() for name, value in simulation.compute(first, last).items()})
        for first, last in simulation.blocks()
    ]


@contextmanager
def _progress_callback(progress: ProgressCallback | bool) -> Iterator[ProgressCallback]:
    """Yield the caller's function, one that does nothing, or one that draws a bar on standard error."""
    if progress is not True:
        yield progress or (lambda _: None)
        return
    with progress_bar("pairs") as update:

        def draw(now: PopulationProgress) -> None:
            rate = now.turns / now.seconds if now.seconds else 0.0
            update(now.done, now.pairs, f"{now.done:,} of {now.pairs:,}, {rate:,.0f} turns/s")

        yield draw
