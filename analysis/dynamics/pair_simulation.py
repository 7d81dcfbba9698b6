"""The turns of a population of pairs: what conversations of two LSA agents compute, for many pairs at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from a2a_ray.analysis.checks import check_array, check_count, check_covariance, check_steps
from a2a_ray.analysis.dynamics.batched_rounds import block_noise, make_turn, mean_turn, run_rounds
from a2a_ray.analysis.dynamics.pair_population import PairPopulation, Reduce, States
from a2a_ray.analysis.dynamics.pair_sources import BLOCK, GivenPairs, Pairs
from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
After: TypeAlias = Literal["both", "w", "u"]

BLOCKS_TOGETHER = {"cpu": 1, "cuda": 32}
"""Blocks of pairs that are computed together: on a CPU, the matrices of one stay in a core's cache."""


class SimulationOptions(TypedDict, total=False):
    """Options of `simulate_pairs` and `run_pair_population`, all with a default.

    every: keep rounds every, 2 every, ...: 1 keeps all rounds, None (the default) the last one.
    after: whose turns' states to keep: "both" (the default), "w" or "u".
    device: "cpu" (the default), "cuda" or "cuda:1": where states are computed and kept. Pairs are drawn on the CPU.
    check: False skips the checks of the values of given pairs and of the start.
    """

    every: int | None
    after: After
    device: str
    check: bool


@overload
def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: None = None, **options: Unpack[SimulationOptions]
) -> States:
    """Return the kept states of all pairs."""


@overload
def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: Reduce, **options: Unpack[SimulationOptions]
) -> dict[str, Tensor]:
    """Return the reduced states of all pairs."""


def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: Reduce | None = None, **options: Unpack[SimulationOptions]
) -> States | dict[str, Tensor]:
    """Return the States of all pairs after `rounds` rounds, or what `reduce` computes from them.

    reduce: receives the States of a few hundred pairs at a time and returns tensors by name, each with the axis of
        pairs first. The result is a dict of the same names, for all pairs. Without `reduce` all kept states stay in
        memory: B K d numbers for each agent.
    options: see `SimulationOptions`.

    Raises ConfigurationError for invalid settings or pairs, and for a device that this machine lacks.
    """
    simulation = PairSimulation(population, rounds, reduce, **options)
    return simulation.gather((first, simulation.compute(first, last)) for first, last in simulation.blocks())


@dataclass(frozen=True)
class PairSimulation:
    """The computation of one call, a block of pairs at a time, in this process or in others."""

    population: PairPopulation
    rounds: int
    reduce: Reduce | None = None
    every: int | None = None
    after: After = "both"
    device: str = "cpu"
    check: bool = True

    def __post_init__(self) -> None:
        check_count(self.rounds, "rounds")
        check_count(self.interval, "every", 1, self.rounds)
        if self.after not in ("both", "w", "u"):
            raise ConfigurationError(f"after: {self.after!r}; expected both, w or u")
        if _device_type(self.device) not in BLOCKS_TOGETHER:
            raise ConfigurationError(f"device: {self.device!r}; expected cpu or cuda")

    @property
    def interval(self) -> int:
        """Return the rounds from one kept round to the next."""
        return self.rounds if self.every is None else self.every

    @property
    def kept_rounds(self) -> int:
        """Return K."""
        return self.rounds // self.interval

    def part(self, first: int, last: int) -> PairSimulation:
        """Return the same simulation of pairs `first` to `last` - 1."""
        return replace(self, population=self.population.part(first, last))

    def blocks(self, together: int | None = None) -> Iterator[tuple[int, int]]:
        """Yield the first pair and the pair after the last, for `together` blocks of pairs at a time."""
        size = BLOCK * (together or BLOCKS_TOGETHER[_device_type(self.device)])
        offset, pairs = self.population.first, self.population.pairs
        for start in range(offset // size * size, offset + pairs, size):
            yield max(start - offset, 0), min(start + size - offset, pairs)

    def compute(self, first: int, last: int) -> dict[str, Tensor]:
        """Return what `reduce` computes of pairs `first` to `last` - 1, or the tensors of their States by name."""
        with torch.inference_mode():
            tensors = self._states(first, last)
        return tensors if self.reduce is None else _reduced(self.reduce, self._as_states(tensors, first))

    def gather(self, blocks: Iterable[tuple[int, Mapping[str, Tensor]]]) -> States | dict[str, Tensor]:
        """Return the results of all pairs from those of blocks, each with its first pair, in any order."""
        whole: dict[str, Tensor] = {}
        for first, tensors in blocks:
            for name, value in tensors.items():
                if name not in whole:
                    whole[name] = value.new_empty((self.population.pairs, *value.shape[1:]))
                whole[name][first : first + len(value)] = value
        return whole if self.reduce is not None else self._as_states(whole, 0)

    def _states(self, first: int, last: int) -> dict[str, Tensor]:
        population, device = self.population, _device(self.device)
        dtype = torch.float32 if population.dtype == "float32" else torch.float64
        number = population.first + first
        pairs, steps = population.source.take(first, last), population.steps(first, last)
        start = np.asarray(population.start[first:last] if population.start.ndim == 2 else population.start)
        if self.check:
            check_array(start, "start", start.shape, number if start.ndim == 2 else 0)
            if isinstance(population.source, GivenPairs):
                check_pairs(pairs, steps, number)

        def tensor(array: Any) -> Tensor:
            return torch.from_numpy(np.array(array, np.float64)).to(device)

        (s_w, s_u, w, u), (eta_w, eta_u) = map(tensor, pairs), map(tensor, steps)
        turns = [make_turn(s_w, w, eta_w, population.inner_steps_w), make_turn(s_u, u, eta_u, population.inner_steps_u)]
        kept = [self.after != "u", self.after != "w"]
        if population.order == "simultaneous":
            turns, kept = [mean_turn(*turns)], [True]
        noise, scales = None, (population.noise_w, population.noise_u)
        if any(scales):
            noise = block_noise(population.noise_seed, scales, number, number + len(w), population.dim, dtype, device)
        shape = (len(w), self.kept_rounds, population.dim)
        out = [torch.empty(shape, dtype=dtype, device=device) if keep else None for keep in kept]
        run_rounds(turns, tensor(start).expand_as(w), self.rounds, self.interval, out, noise)
        states = {"after_w": out[0] if self.after != "u" else None, "after_u": out[-1] if self.after != "w" else None}
        objectives = {"objective_w": w.to(dtype), "objective_u": u.to(dtype)}
        return {name: value for name, value in (states | objectives).items() if value is not None}

    def _as_states(self, tensors: Mapping[str, Tensor], first: int) -> States:
        rounds = torch.arange(self.interval, self.rounds + 1, self.interval)
        after_w, after_u = tensors.get("after_w"), tensors.get("after_u")
        number = self.population.first + first
        return States(number, rounds, after_w, after_u, tensors["objective_w"], tensors["objective_u"])


def check_pairs(pairs: Pairs, steps: Sequence[Array], first: int) -> None:
    """Raise ConfigurationError unless values are finite, covariances valid, and steps contract.

    steps: W's and U's, each (b,). first: the number of the first pair. The message names the first wrong pair.
    """
    for name in ("objective_w", "objective_u"):
        check_array(getattr(pairs, name), name, ("b", "d"), first)
    for agent, value, step in zip("wu", pairs[:2], steps, strict=True):
        covariance = check_covariance(value, f"covariance_{agent}", ("b", "d", "d"), first)
        check_steps(step, covariance, f"step_{agent}", first)


def _reduced(reduce: Reduce, states: States) -> dict[str, Tensor]:
    """Return what `reduce` computes from the states, checked."""
    out = reduce(states)
    if not isinstance(out, Mapping):
        raise ConfigurationError(f"reduce: returned {type(out).__name__}; expected a dict of tensors")
    for name, value in out.items():
        if not isinstance(value, Tensor) or value.shape[:1] != states.objective_w.shape[:1]:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigurationError(
                f"reduce: returned {name}: {found}; expected a tensor of shape ({len(states.objective_w)}, ...)"
            )
    return dict(out)


def _device_type(name: str) -> str:
    try:
        return torch.device(name).type
    except (RuntimeError, TypeError):
        raise ConfigurationError(f"device: {name!r}; expected cpu, cuda or cuda:0, cuda:1, ...") from None


def _device(name: str) -> torch.device:
    """Return the device. Raises ConfigurationError if this machine lacks it."""
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device: {name!r}; this machine has {torch.cuda.device_count()} CUDA devices; expected one of them, or cpu"
        )
    return device
