"""A population of pairs on Ray: shards of it in as many processes as there are cores."""

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

from a2a_ray.analysis.dynamics.pair_geometry import BLOCK, GivenPairs
from a2a_ray.analysis.dynamics.pair_population import (
    Options,
    PairPopulation,
    Reduce,
    Simulation,
    States,
    simulate_pairs,
)
from a2a_ray.core.errors import A2AError, ConfigurationError, PlacementError
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.progress import progress_bar

SHARDS = 8
"""Shards that a worker gets one after the other, at least, so that all end at about the same time."""
SHARD_BYTES = 64 * 2**20
"""What a shard's given pairs and states may take on their way between processes."""

Arrays: TypeAlias = "dict[str, np.ndarray[Any, np.dtype[Any]]]"


class PopulationProgress(NamedTuple):
    """How far a population is: pairs done of all, turns computed for them, seconds since the start."""

    done: int
    pairs: int
    turns: int
    seconds: float


Watch: TypeAlias = Callable[[PopulationProgress], None]


@overload
def run_pair_population(
    population: PairPopulation,
    rounds: int,
    *,
    reduce: None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    **options: Unpack[Options],
) -> States: ...
@overload
def run_pair_population(
    population: PairPopulation,
    rounds: int,
    *,
    reduce: Reduce,
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    **options: Unpack[Options],
) -> dict[str, Tensor]: ...
def run_pair_population(
    population: PairPopulation,
    rounds: int,
    *,
    reduce: Reduce | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Watch | bool = True,
    **options: Unpack[Options],
) -> States | dict[str, Tensor]:
    """What `simulate_pairs` gives, computed by Ray workers: one process with one thread per CPU, or per GPU on "cuda".

    reduce, options: as for `simulate_pairs`; `reduce` works in the workers, and only what it gives comes back.
    workers: shards at work at the same time; by default as many as there are CPUs (GPUs) free.
    address: a Ray cluster; without it, the Ray that runs in this process, or a new local one (ended afterwards).
    progress: shows a bar (True), nothing (False), or is called with a PopulationProgress after every shard.

    Results come back to this process's memory, on the CPU. Pairs given as .npy files are read by the workers, which
    must reach them; arrays are sent. A shard whose worker dies is computed again, with the same result. Raises as
    `simulate_pairs`, and PlacementError where the cluster has no CPU (GPU).
    """
    if workers is not None and workers < 1:
        raise ConfigurationError(f"workers: {workers}; expected at least 1")
    elsewhere: Options = {**options, "device": "cpu"}  # whether there is a GPU is for the workers to say
    simulation = Simulation(population, rounds, **elsewhere)
    own = connect(address)
    try:
        gathered = _Gathered(population.pairs)
        with _watching(progress) as watch:
            _compute(population, rounds, reduce, options, workers, gathered, watch)
    finally:
        if own:
            ray.shutdown()
    found = gathered.tensors
    if reduce is not None:
        return found
    after_w, after_u = found.get("after_w"), found.get("after_u")
    return States(population.first, simulation.rounds, after_w, after_u, found["objective_w"], found["objective_u"])


def _compute(
    population: PairPopulation,
    rounds: int,
    reduce: Reduce | None,
    options: Options,
    workers: int | None,
    gathered: _Gathered,
    watch: Watch,
) -> None:
    """Has all shards computed, and puts what comes back where it belongs."""
    resource = "GPU" if options.get("device", "cpu").startswith("cuda") else "CPU"
    if ray.cluster_resources().get(resource, 0) < 1:
        raise PlacementError(f"device {options.get('device', 'cpu')!r}: the Ray cluster has no {resource}")
    workers = workers or max(1, int(ray.available_resources().get(resource, 1)))
    remote: Any = ray.remote  # its types know these options only by name
    call = remote(num_cpus=1, num_gpus=int(resource == "GPU"))(_shard)
    shards = _shards(population, rounds, reduce, options, workers)
    started, done, pending = time.monotonic(), 0, {}
    try:
        for first, last in shards:
            pending[call.remote(population.part(first, last), rounds, reduce, options)] = first, last
            if len(pending) < workers:
                continue
            done += gathered.add(pending)
            watch(PopulationProgress(done, population.pairs, 2 * rounds * done, time.monotonic() - started))
        while pending:
            done += gathered.add(pending)
            watch(PopulationProgress(done, population.pairs, 2 * rounds * done, time.monotonic() - started))
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, A2AError) else error from None
    finally:
        for shard in pending:
            ray.cancel(shard)


def _shards(
    population: PairPopulation, rounds: int, reduce: Reduce | None, options: Options, workers: int
) -> Iterator[tuple[int, int]]:
    """The first pair of each shard and the first one after it, cut between blocks."""
    d = population.dim
    numbers = 2 * d * (d + 1) if isinstance(population.source, GivenPairs) else 0
    if reduce is None:
        numbers += 2 * d * (rounds // (options.get("every") or rounds))
    blocks, most = -(-population.pairs // BLOCK), SHARD_BYTES // (8 * numbers * BLOCK or 1)
    size = BLOCK * max(1, min(most, -(-blocks // (SHARDS * workers))))
    first = 0
    while first < population.pairs:
        last = min((population.first + first) // size * size + size - population.first, population.pairs)
        yield first, last
        first = last


def _shard(population: PairPopulation, rounds: int, reduce: Reduce | None, options: Options) -> Arrays:
    """In a worker: one shard."""
    torch.set_num_threads(1)
    if reduce is None:
        states = simulate_pairs(population, rounds, **options)
        out = {name: value for name in _KEPT if (value := getattr(states, name)) is not None}
    else:
        out = simulate_pairs(population, rounds, reduce=reduce, **options)
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in out.items()}


_KEPT = ("after_w", "after_u", "objective_w", "objective_u")
"""What comes back of a shard's States."""


class _Gathered:
    """Arrays for all pairs, filled as shards come back."""

    def __init__(self, pairs: int) -> None:
        self._pairs = pairs
        self._arrays: Arrays = {}

    def add(self, pending: dict[Any, tuple[int, int]]) -> int:
        """Waits for one of the shards under way, takes what it gives, and tells how many pairs it had."""
        (ready,), _ = ray.wait(list(pending), num_returns=1)
        first, last = pending.pop(ready)
        shard: Arrays = ray.get(ready)
        for name, value in shard.items():
            if name not in self._arrays:
                self._arrays[name] = np.empty((self._pairs, *value.shape[1:]), value.dtype)
            self._arrays[name][first:last] = value
        return last - first

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What there is, in the same memory."""
        return {name: torch.from_numpy(array) for name, array in self._arrays.items()}


@contextmanager
def _watching(progress: Watch | bool) -> Iterator[Watch]:
    """What is called with the progress: the caller's own, nothing, or a bar on standard error."""
    if progress is not True:
        yield progress or (lambda _: None)
        return
    with progress_bar("pairs") as update:

        def watch(now: PopulationProgress) -> None:
            rate = now.turns / now.seconds if now.seconds else 0.0
            update(now.done, now.pairs, f"{now.done:,} of {now.pairs:,}, {rate:,.0f} turns/s")

        yield watch
