"""Settings of the study, without heavy imports, so that the command line reports invalid values at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from a2a_ray.core.errors import ConfigurationError

MOST_DIMENSIONS = 50
"""The limit of the theory of random orders (analysis/dynamics/random_order.py)."""
MOST_ROUNDS = 10_000
"""Rounds of one conversation; more take memory and minutes without a new result."""
SETTLED = 1e-13
"""The default share of the start that is left when a conversation ends."""


@dataclass(frozen=True)
class Settings:
    """Settings of the study.

    dim: d. pairs: how many. rounds: None to compute them from the rates. condition: of both geometries, whose
    largest eigenvalue is 1. step_size: eta of both agents, below 2. Raises ConfigurationError.
    """

    dim: int = 10
    pairs: int = 200
    rounds: int | None = None
    seed: int = 0
    condition: float = 10.0
    step_size: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.dim <= MOST_DIMENSIONS:
            raise ConfigurationError(
                f"--dim: {self.dim}; expected a whole number from 2 (an angle needs a plane) to {MOST_DIMENSIONS}"
            )
        for name, value, least in (("--pairs", self.pairs, 1), ("--seed", self.seed, 0)):
            if value < least:
                raise ConfigurationError(f"{name}: {value}; expected a whole number of at least {least}")
        if self.rounds is not None and not 2 <= self.rounds <= MOST_ROUNDS:
            raise ConfigurationError(
                f"--rounds: {self.rounds}; expected 2 to {MOST_ROUNDS:,}, or leave it out to compute it from the rates"
            )
        if not 1 <= self.condition < math.inf:
            raise ConfigurationError(f"--condition: {self.condition:g}; expected a number of at least 1")
        if not 0 < self.step_size < 2:
            raise ConfigurationError(
                f"--step-size: {self.step_size:g}; expected above 0 and below 2: there every step contracts (the"
                " largest eigenvalue is 1)"
            )
        slowest = max(abs(1 - self.step_size), abs(1 - self.step_size / self.condition))  # of one agent's turn
        if self.rounds is None and (needed := rounds_until(SETTLED, slowest)) > MOST_ROUNDS:
            raise ConfigurationError(
                f"--step-size: {self.step_size:g} with --condition {self.condition:g} needs {needed:,} rounds to"
                f" settle; expected at most {MOST_ROUNDS:,}: give a step nearer to 1, a smaller condition number, or"
                " --rounds"
            )

    @property
    def has_trained(self) -> bool:
        """Return whether trained weights exist for this number of dimensions."""
        from a2a_ray.agents.lsa.trained_weights import trained_weights

        try:
            trained_weights(self.dim)
        except ConfigurationError:
            return False
        return True

    def rounds_for(self, radius: float, left: float = SETTLED) -> int:
        """Return the rounds until `left` of the start is left at this spectral radius, or the user's number."""
        return self.rounds or rounds_until(left, radius)


def rounds_until(left: float, radius: float) -> int:
    """Return the rounds until this share of the start is left, plus two; 2 at a radius of 1 or more."""
    return 2 + (math.ceil(math.log(left) / math.log(radius)) if 0 < radius < 1 else 0)
