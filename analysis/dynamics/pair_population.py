"""Millions of pairs of agents that take turns, and the states that a simulation keeps of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from torch import Tensor

from a2a_ray.analysis.checks import check_array, check_below, check_count, check_positive, step_bound
from a2a_ray.analysis.dynamics.pair_sources import DrawnPairs, GivenPairs, array_or_file, examples_of
from a2a_ray.core.errors import ConfigurationError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class PairPopulation:
    """Pairs W, U that take turns, W first.

    source: the pairs, DrawnPairs or GivenPairs.
    step_w, step_u: eta, one number or shape (B,), below 2 / lambda_max of the agent's covariance.
    inner_steps_w, inner_steps_u: gradient steps in a turn.
    order: "alternating"; or "simultaneous": both answer the same state, and the mean of the answers is the next state.
    noise_w, noise_u: standard deviation of the Gaussian noise that is added to each number of each answer.
    noise_seed: a pair's noise depends on it, the pair's number, the turn, the dtype and the kind of device only.
    start: the opening, shape (d,) or (B, d), an array or the path of a .npy file; zeros by default.
    dtype: of the kept states and of the noise. Turns are computed in float64.
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
                value = check_positive(np.asarray(array_or_file(value, name)), name, (self.pairs,))
            object.__setattr__(self, name, value if np.ndim(value) else float(check_positive(value, name)))
        if isinstance(self.source, DrawnPairs):
            for name, steps, spectrum in zip(
                ("step_w", "step_u"), self.steps(0, self.pairs), self.source.spectra, strict=True
            ):
                check_below(steps, step_bound(np.diag(spectrum)), name, self.first)
        start = array_or_file(np.zeros(self.dim) if self.start is None else self.start, "start")
        if start.shape not in ((self.dim,), (self.pairs, self.dim)):
            raise ConfigurationError(
                f"start: shape {start.shape}; expected ({self.dim},) or ({self.pairs}, {self.dim})"
            )
        object.__setattr__(self, "start", start)

    @property
    def pairs(self) -> int:
        """Return B, the number of pairs."""
        return self.source.pairs

    @property
    def dim(self) -> int:
        """Return d."""
        return self.source.dim

    def part(self, first: int, last: int) -> PairPopulation:
        """Return pairs `first` to `last` - 1, each with the geometry and the noise that it has here."""
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
        """Return the keyword arguments of `LSAAgent` for W and for U of a pair, without the noise.

        The agents' d examples have the pair's covariance, to rounding.
        """
        check_count(pair, "pair", 0, self.pairs - 1)
        s_w, s_u, w, u = (np.asarray(v[0], np.float64) for v in self.source.take(pair, pair + 1))
        step_w, step_u = self.steps(pair, pair + 1)

        def agent(covariance: Any, objective: Any, step: Any, inner_steps: int) -> dict[str, Any]:
            prompt = {"objective": objective.tolist(), "examples": examples_of(covariance).tolist()}
            return {**prompt, "step_size": float(step[0]), "inner_steps": inner_steps, "dtype": self.dtype}

        return agent(s_w, w, step_w, self.inner_steps_w), agent(s_u, u, step_u, self.inner_steps_u)

    def steps(self, first: int, last: int) -> tuple[Array, Array]:
        """Return W's and U's step sizes of pairs `first` to `last` - 1, each (b,)."""
        w, u = (v[first:last] if np.ndim(v) else np.full(last - first, v) for v in (self.step_w, self.step_u))
        return w, u


@dataclass(frozen=True, eq=False)
class States:
    """b pairs in K kept rounds.

    rounds: their numbers, shape (K,), counted from 1. first: the number of the first pair.
    after_w, after_u: the state after W's and after U's turn of these rounds, shape (b, K, d), in the population's
        dtype; None for an agent that `after` leaves out. With simultaneous turns both are the mean of the answers.
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
        """Return after_w - w*, (b, K, d). Raises ConfigurationError if W's states were not kept."""
        return _kept(self.after_w, "w") - self.objective_w[:, None]

    @property
    def residual_u(self) -> Tensor:
        """Return after_u - u*, (b, K, d). Raises ConfigurationError if U's states were not kept."""
        return _kept(self.after_u, "u") - self.objective_u[:, None]


Reduce: TypeAlias = Callable[[States], Mapping[str, Tensor]]


def residual_norms(states: States) -> dict[str, Tensor]:
    """Return {"w": |after_w - w*|, "u": |after_u - u*|}, 2-norms, each (b, K), of the kept states."""
    norms = {}
    if states.after_w is not None:
        norms["w"] = states.residual_w.norm(dim=-1)
    if states.after_u is not None:
        norms["u"] = states.residual_u.norm(dim=-1)
    return norms


def _kept(after: Tensor | None, name: str) -> Tensor:
    if after is None:
        raise ConfigurationError(f"after: {name.upper()}'s states were not kept; expected after='both' or {name!r}")
    return after
