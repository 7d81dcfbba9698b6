"""Millions of pairs of agents that take turns, as tensors: what a conversation of two LSA agents does, many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor

from a2a_ray.analysis.checks import check_array, check_count, check_positive
from a2a_ray.analysis.dynamics.batched_rounds import Scratch, block_noise, by_powers, turn_by_turn, turn_maps
from a2a_ray.analysis.dynamics.pair_geometry import (
    BLOCK,
    DrawnPairs,
    GivenPairs,
    check_pairs,
    examples_of,
    readable,
    refuse_steps,
)
from a2a_ray.core.errors import ConfigurationError

After: TypeAlias = Literal["both", "w", "u"]
Engine: TypeAlias = Literal["auto", "turns", "powers"]

CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2 * 2**30}
"""What the states of a chunk may take: on a CPU, a part of its cache."""
STRETCH = {"cpu": BLOCK, "cuda": 128 * BLOCK}
"""Pairs that are computed together: on a CPU, as many as stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class PairPopulation:
    """Pairs W, U that take turns: first W, then U.

    source: the pairs, DrawnPairs or GivenPairs.
    step_w, step_u: eta, one number or shape (B,), below 2 / lambda_max of the agent's covariance.
    inner_steps_w, inner_steps_u: gradient steps in a turn.
    order: "alternating"; or "simultaneous": both answer the same state, and the mean of the answers is the next.
    noise_w, noise_u: standard deviation of the Gaussian noise that is added to each number of each answer.
    noise_seed: pair i's noise follows from it, the pair's number, the turn and the kind of device alone.
    start: the opening, shape (d,) or (B, d), an array or the path of a .npy file; zeros by default.
    dtype: in which turns are computed and states are kept.
    first: the number of the first pair, for its noise.

    Raises ConfigurationError.
    """

    source: DrawnPairs | GivenPairs
    step_w: Any = 0.1
    step_u: Any = 0.1
    inner_steps_w: int = 1
    inner_steps_u: int = 1
    order: Literal["alternating", "simultaneous"] = "alternating"
    noise_w: float = 0.0
    noise_u: float = 0.0
    noise_seed: int = 0
    start: Any = None
    dtype: Literal["float32", "float64"] = "float32"
    first: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.source, (DrawnPairs, GivenPairs)):
            raise ConfigurationError(f"source: {type(self.source).__name__}; expected DrawnPairs or GivenPairs")
        if self.order not in ("alternating", "simultaneous"):
            raise ConfigurationError(f"order: {self.order!r}; expected alternating or simultaneous")
        if self.dtype not in ("float32", "float64"):
            raise ConfigurationError(f"dtype: {self.dtype!r}; expected float32 or float64")
        for name, least in (("inner_steps_w", 1), ("inner_steps_u", 1), ("noise_seed", 0), ("first", 0)):
            check_count(getattr(self, name), name, least)
        for name in ("noise_w", "noise_u"):
            if not float(check_array(getattr(self, name), name, ())) >= 0:
                raise ConfigurationError(f"{name}: {getattr(self, name)}; expected a standard deviation of at least 0")
        for name in ("step_w", "step_u"):
            value = getattr(self, name)
            if np.ndim(value):
                value = check_positive(np.asarray(readable(value, name)), name, (self.pairs,))
            object.__setattr__(self, name, value if np.ndim(value) else float(check_positive(value, name)))
        if isinstance(self.source, DrawnPairs):
            for name, steps, largest in zip(
                ("step_w", "step_u"), self.steps(0, self.pairs), self.source.spectra.max(axis=1), strict=True
            ):
                refuse_steps(name, steps, np.broadcast_to(largest, steps.shape), self.first)
        start = readable(np.zeros(self.dim) if self.start is None else self.start, "start")
        if start.shape not in ((self.dim,), (self.pairs, self.dim)):
            raise ConfigurationError(
                f"start: shape {start.shape}; expected ({self.dim},) or ({self.pairs}, {self.dim})"
            )
        object.__setattr__(self, "start", start)

    @property
    def pairs(self) -> int:
        """B."""
        return self.source.pairs

    @property
    def dim(self) -> int:
        """d."""
        return self.source.dim

    @property
    def noisy(self) -> bool:
        """Whether any turn has noise."""
        return self.noise_w > 0 or self.noise_u > 0

    def part(self, first: int, last: int) -> PairPopulation:
        """Pairs `first` to `last` - 1 of these, each with the geometry and the noise that it has here."""
        check_count(first, "first", 0, self.pairs - 1)
        check_count(last, "last", first + 1, self.pairs)
        return replace(
            self,
            source=self.source.part(first, last),
            step_w=self.step_w[first:last] if np.ndim(self.step_w) else self.step_w,
            step_u=self.step_u[first:last] if np.ndim(self.step_u) else self.step_u,
            start=self.start[first:last] if self.start.ndim == 2 else self.start,
            first=self.first + first,
        )

    def settings(self, pair: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keyword arguments of `LSAAgent` for W and for U of a pair; its noise is not among them.

        Their d examples have the pair's covariance, to rounding.
        """
        check_count(pair, "pair", 0, self.pairs - 1)
        s_w, s_u, w, u = (np.asarray(v[0], np.float64) for v in self.source.take(pair, pair + 1))
        step_w, step_u = self.steps(pair, pair + 1)

        def agent(covariance: Any, objective: Any, step: Any, inner_steps: int) -> dict[str, Any]:
            told = {"objective": objective.tolist(), "examples": examples_of(covariance).tolist()}
            return {**told, "step_size": float(step[0]), "inner_steps": inner_steps, "dtype": self.dtype}

        return agent(s_w, w, step_w, self.inner_steps_w), agent(s_u, u, step_u, self.inner_steps_u)

    def steps(self, first: int, last: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """W's and U's step sizes, each (b,)."""
        w, u = (v[first:last] if np.ndim(v) else np.full(last - first, v) for v in (self.step_w, self.step_u))
        return w, u


@dataclass(frozen=True, eq=False)
class States:
    """b pairs in K kept rounds.

    rounds: their numbers, shape (K,), counted from 1. first: the number of the first pair.
    after_w, after_u: the state after W's and after U's turn of these rounds, shape (b, K, d), in the population's
        dtype; None where it was not asked for. Where turns are simultaneous both are the one state, the mean.
    objective_w, objective_u: (b, d).
    """

    first: int
    rounds: Tensor
    after_w: Tensor | None
    after_u: Tensor | None
    objective_w: Tensor
    objective_u: Tensor

    @property
    def residual_w(self) -> Tensor:
        """after_w - w*, (b, K, d). Raises ConfigurationError where `after_w` was not asked for."""
        return _asked(self.after_w, "w") - self.objective_w[:, None]

    @property
    def residual_u(self) -> Tensor:
        """after_u - u*, (b, K, d). Raises ConfigurationError where `after_u` was not asked for."""
        return _asked(self.after_u, "u") - self.objective_u[:, None]


Reduce: TypeAlias = Callable[[States], Mapping[str, Tensor]]


def residual_norms(states: States) -> dict[str, Tensor]:
    """{"w": |after_w - w*|, "u": |after_u - u*|}, 2-norms, each (b, K); of what was asked for."""
    kept = {"w": states.after_w, "u": states.after_u}
    return {
        name: (states.residual_w if name == "w" else states.residual_u).norm(dim=-1)
        for name, after in kept.items()
        if after is not None
    }


class Options(TypedDict, total=False):
    """What `simulate_pairs`, `simulate_chunks` and `run_pair_population` take; each has a default.

    every: keeps rounds every, 2 every, ...: 1 keeps all round ends, None (the default) the last round.
    after: the states after which agent's turns are kept, "both" (the default), "w" or "u".
    device: "cpu" (the default), "cuda" or "cuda:1": where states are computed and kept. Pairs are drawn on the CPU.
    engine: "turns" computes every turn; "powers", without noise, gets many rounds from one product of matrices; "auto"
        (the default) is the quicker one that can. They agree to rounding.
    chunk: pairs that are handed on together; by default as many as take some 8 MB.
    check: False takes given pairs as they are: wrong ones then go unnoticed.
    """

    every: int | None
    after: After
    device: str
    engine: Engine
    chunk: int | None
    check: bool


@overload
def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: None = None, **options: Unpack[Options]
) -> States: ...
@overload
def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: Reduce, **options: Unpack[Options]
) -> dict[str, Tensor]: ...
def simulate_pairs(
    population: PairPopulation, rounds: int, *, reduce: Reduce | None = None, **options: Unpack[Options]
) -> States | dict[str, Tensor]:
    """The States of all pairs after so many rounds, or what `reduce` makes of them.

    reduce: is called with the States of one chunk of pairs after the other, in the same memory, and gives tensors by
        name, each with the axis of pairs first; what comes back is a dict of the same names, for all pairs. Without it
        all states that are kept lie in memory: B K d numbers for each agent.
    options: see `Options`.

    Raises ConfigurationError for bad settings, for a device that is not there, and for given pairs that `check_pairs`
    refuses.
    """
    simulation = Simulation(population, rounds, **options)
    if reduce is None:
        return simulation.fill(simulation.memory(population.pairs), 0, population.pairs)
    parts: dict[str, list[Tensor]] = {}
    memory = simulation.memory(simulation.chunk)
    for first, last in simulation.chunks():
        states = simulation.fill(memory.rows(0, last - first), first, last)
        for name, value in _reduced(reduce, states).items():
            parts.setdefault(name, []).append(value.clone())  # it may be a view
    return {name: torch.cat(values) for name, values in parts.items()}


def simulate_chunks(population: PairPopulation, rounds: int, **options: Unpack[Options]) -> Iterator[States]:
    """The States of one chunk of pairs after the other, each in memory of its own; otherwise as `simulate_pairs`."""
    simulation = Simulation(population, rounds, **options)
    for first, last in simulation.chunks():
        yield simulation.fill(simulation.memory(last - first), first, last)


class _Memory(NamedTuple):
    """What a simulation fills: states by turn, (b, K, d) or under a row of ones (b, d + 1, K); objectives (2, b, d)."""

    after: tuple[Tensor | None, ...]
    objectives: Tensor

    def rows(self, first: int, last: int) -> _Memory:
        after = tuple(None if a is None else a[first:last] for a in self.after)
        return _Memory(after, self.objectives[:, first:last])


class Simulation:
    """One call of `simulate_pairs`: its settings, checked, and the work on a stretch of pairs."""

    def __init__(
        self,
        population: PairPopulation,
        rounds: int,
        *,
        every: int | None = None,
        after: After = "both",
        device: str = "cpu",
        engine: Engine = "auto",
        chunk: int | None = None,
        check: bool = True,
    ) -> None:
        self._population, self._check = population, check
        self._rounds = check_count(rounds, "rounds")
        self._every = rounds if every is None else check_count(every, "every", 1, rounds)
        if after not in ("both", "w", "u"):
            raise ConfigurationError(f"after: {after!r}; expected both, w or u")
        if engine not in ("auto", "turns", "powers"):
            raise ConfigurationError(f"engine: {engine!r}; expected auto, turns or powers")
        if engine == "powers" and population.noisy:
            raise ConfigurationError("engine: 'powers'; expected auto or turns: with noise every turn must be computed")
        self._device = _device(device)
        self._powers = not population.noisy if engine == "auto" else engine == "powers"
        self._dtype = getattr(torch, population.dtype)
        self._wanted = (after != "u", after != "w") if population.order == "alternating" else (True,)
        self._after = after
        self.chunk = min(self._fitting() if chunk is None else check_count(chunk, "chunk"), population.pairs)

    def _fitting(self) -> int:
        """Pairs whose states take CHUNK_BYTES: whole blocks, where that many fit."""
        numbers = sum(self._wanted) * (self._population.dim + 1) * (self._rounds // self._every)
        fitting = max(1, CHUNK_BYTES[self._device.type] // (numbers * np.dtype(self._population.dtype).itemsize))
        return fitting // BLOCK * BLOCK or fitting

    @property
    def rounds(self) -> Tensor:
        """The numbers of the rounds that are kept, (K,)."""
        return torch.arange(self._every, self._rounds + 1, self._every)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """The first pair of each chunk, and the first one after it."""
        for first in range(0, self._population.pairs, self.chunk):
            yield first, min(first + self.chunk, self._population.pairs)

    def memory(self, pairs: int) -> _Memory:
        """Memory for the results of so many pairs."""
        d, kept = self._population.dim, self._rounds // self._every
        shape = (pairs, d + 1, kept) if self._powers else (pairs, kept, d)
        after = tuple(self._empty(shape) if wanted else None for wanted in self._wanted)
        return _Memory(after, self._empty((2, pairs, d)))

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type != "cpu":
            return torch.empty(shape, dtype=self._dtype, device=self._device)
        return torch.from_numpy(np.empty(shape, self._population.dtype))  # NumPy asks for huge pages, torch does not

    def fill(self, memory: _Memory, first: int, last: int) -> States:
        """Computes pairs `first` to `last` - 1 into the memory, as many at a time as stay in a core's cache."""
        offset = self._population.first
        size = STRETCH[self._device.type]
        scratch = Scratch.empty(min(size, last - first), self._population.dim, self._dtype, self._device)
        for number in range((offset + first) // size, -(-(offset + last) // size)):
            begin, end = max(first, number * size - offset), min(last, (number + 1) * size - offset)
            with torch.inference_mode():
                self._fill(memory.rows(begin - first, end - first), begin, end, scratch.rows(end - begin))
        after = [None if a is None else a[:, :-1].mT if self._powers else a for a in memory.after]
        return States(
            offset + first,
            self.rounds,
            after[0] if self._after != "u" else None,
            after[-1] if self._after != "w" else None,
            *memory.objectives,
        )

    def _fill(self, memory: _Memory, first: int, last: int, scratch: Scratch) -> None:
        population = self._population
        pairs, (step_w, step_u) = population.source.take(first, last), population.steps(first, last)
        start = np.asarray(population.start[first:last] if population.start.ndim == 2 else population.start)
        if self._check:
            if isinstance(population.source, GivenPairs):
                check_pairs(pairs, step_w, step_u, population.first + first)
            if not np.isfinite(start).all():
                raise ConfigurationError(
                    f"start: NaN or infinite values in pairs {first} to {last - 1}; expected finite numbers"
                )
        s_w, s_u = map(self._tensor, pairs[:2])
        w, u, eta_w, eta_u, x = (self._tensor(v).double() for v in (*pairs[2:], step_w, step_u, start))
        torch.stack([w, u], out=memory.objectives)
        inner = (population.inner_steps_w, population.inner_steps_u)
        turns = turn_maps((s_w, s_u), (w, u), (eta_w, eta_u), inner, scratch)
        if population.order == "simultaneous":
            turns = [(turns[0] + turns[1]) / 2]
        x = x.expand(w.shape)
        if self._powers:
            by_powers(turns, x, self._every, memory.after, scratch)
            return
        noise = None
        if population.noisy:
            scales, offset = (population.noise_w, population.noise_u), population.first
            noise = block_noise(population.noise_seed, scales, offset + first, offset + last, self._device)
        turn_by_turn(turns, x.to(self._dtype), self._rounds, self._every, memory.after, noise)

    def _tensor(self, array: Any) -> Tensor:
        # Of integers, half precision and such, and of read-only views (what all pairs share), torch gets a copy.
        kept = array.dtype if array.dtype in (np.float32, np.float64) else np.float64
        return torch.from_numpy(np.require(array, kept, ["C", "W"])).to(self._device)


def _reduced(reduce: Reduce, states: States) -> Mapping[str, Tensor]:
    """What `reduce` makes of the states, checked."""
    out = reduce(states)
    if not isinstance(out, Mapping):
        raise ConfigurationError(f"reduce: gave {type(out).__name__}; expected a dict of tensors")
    for name, value in out.items():
        if not isinstance(value, Tensor) or value.shape[:1] != states.objective_w.shape[:1]:
            told = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigurationError(
                f"reduce: gave {name}: {told}; expected a tensor of shape ({len(states.objective_w)}, ...)"
            )
    return out


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigurationError(f"device: {name!r}; expected cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type not in CHUNK_BYTES:
        raise ConfigurationError(f"device: {name!r}; expected cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(
            f"device: {name!r}; {torch.cuda.device_count()} CUDA devices are here; expected one, or cpu"
        )
    return device


def _asked(after: Tensor | None, name: str) -> Tensor:
    if after is None:
        raise ConfigurationError(f"after: {name.upper()}'s turns were not kept; expected after='both' or {name!r}")
    return after
