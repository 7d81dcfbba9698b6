"""Pairs of LSA agents for an experiment: W and U of many pairs at once, every turn a pass of linear self-attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.agents.lsa.lsa_module import LSAModule, descend
from a2a_ray.analysis.dynamics.affine import linear_agents
from a2a_ray.analysis.dynamics.pair_population import PairPopulation
from a2a_ray.analysis.dynamics.pair_sources import DrawnPairs
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.reproduce.misaligned.study_settings import Settings

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.floating[Any]]]"
Turn: TypeAlias = Callable[[Array], Array]
"""Takes what b agents are shown, shape (b, d), to what they answer, shape (b, d)."""
Weights: TypeAlias = Literal["analytic", "trained"]

SHOWN_ANGLE = 90.0
"""Degrees between the objectives wherever an experiment looks at one angle: the gap is then the square root of two."""


@dataclass(frozen=True)
class Side:
    """One agent of each of b pairs; all arrays float64.

    examples: (b, n, d). covariances: (b, d, d). objectives: (b, d). step_size: eta. weights: of the LSA layer.
    """

    examples: Array
    covariances: Array
    objectives: Array
    step_size: float
    weights: Weights = "analytic"

    def __len__(self) -> int:
        return len(self.objectives)

    def turn(self, iterates: Array) -> Array:
        """The answers, shape (b, d), to what they are shown, shape (b, d): one pass of the layer over each prompt."""
        return descend(self._layer, self._tokens, iterates, 1)

    def part(self, first: int, last: int) -> Side:
        """Pairs first to last - 1."""
        rows = slice(first, last)
        return replace(
            self,
            examples=self.examples[rows],
            covariances=self.covariances[rows],
            objectives=self.objectives[rows],
        )

    @property
    def pulls(self) -> Array:
        """P = eta S, shape (b, d, d)."""
        return self.step_size * self.covariances

    @property
    def contractions(self) -> Array:
        """M = I - eta S, shape (b, d, d)."""
        return np.eye(self.objectives.shape[1]) - self.pulls

    @cached_property
    def _tokens(self) -> Array:
        targets = np.einsum("bnd,bd->bn", self.examples, self.objectives)
        return np.concatenate([self.examples, targets[:, :, None]], axis=2)

    @cached_property
    def _layer(self) -> LSAModule:
        import torch

        made = LSAModule.trained if self.weights == "trained" else LSAModule
        return made(self.objectives.shape[1], self.step_size, torch.float64)


def prompted(prompts: Sequence[Array], objectives: Array, step_size: float) -> Side:
    """Agents by the examples of their prompts, b arrays of shape (n, d), n as it is; objectives: (b, d).

    Rows of zeros make all prompts as long as the longest: scaled for their number, they leave the covariance as it is.
    """
    longest = max(len(x) for x in prompts)
    examples = np.zeros((len(prompts), longest, objectives.shape[1]))
    for i, x in enumerate(prompts):
        examples[i, : len(x)] = x * math.sqrt(longest / len(x))
    covariances = np.einsum("bni,bnj->bij", examples, examples) / examples.shape[1]
    return Side(examples, covariances, objectives, step_size)


def population(settings: Settings, angle: float = SHOWN_ANGLE, twin: bool = False, **source: Any) -> PairPopulation:
    """Pairs at an angle, or their twins, whose objectives are rotated by 90 degrees in their plane.

    source: further settings of DrawnPairs, in place of ours.
    """
    turned = 90.0 if twin else 0.0
    drawn: dict[str, Any] = {"pairs": settings.pairs, "seed": settings.seed} | source
    if "eigenvalues" not in source:
        drawn.setdefault("condition", settings.condition)
    pairs = DrawnPairs(dim=settings.dim, angles=(turned, angle + turned), **drawn)
    return PairPopulation(pairs, settings.step_size, settings.step_size, dtype="float64")


def pair_agents(drawn: PairPopulation, i: int, **more: Any) -> tuple[LSAAgent, LSAAgent]:
    """W and U of pair i as agents for a conversation; more: further settings of LSAAgent for both."""
    w, u = drawn.settings(i)
    return LSAAgent("w", **{**w, **more}), LSAAgent("u", **{**u, **more})


def sides(drawn: PairPopulation) -> tuple[Side, Side]:
    """W and U of all pairs, each with d examples along the axes of its covariance."""
    taken = drawn.source.take(0, drawn.pairs)
    w = _side(taken.covariance_w, taken.objective_w, drawn.step_w)
    return w, _side(taken.covariance_u, taken.objective_u, drawn.step_u)


def _side(covariances: Array, objectives: Array, step_size: float) -> Side:
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    scales = np.sqrt(objectives.shape[1] * np.maximum(eigenvalues, 0))
    return Side(scales[:, :, None] * eigenvectors.transpose(0, 2, 1), covariances, objectives, step_size)


@dataclass(frozen=True)
class Settled:
    """Where b pairs settle by the closed form: residuals of W and of U, (b, d), and spectral radii, (b,)."""

    residual_w: Array
    residual_u: Array
    radii: Array

    @property
    def radius(self) -> float:
        """The largest."""
        return float(self.radii.max())


def predicted(w: Side, u: Side) -> Settled:
    """The closed form of two alternating agents for each pair."""
    steps = (w.step_size, u.step_size)
    found = [
        alternating(linear_agents([s_w, s_u], objectives, steps), allow_divergence=True)
        for s_w, s_u, *objectives in zip(w.covariances, u.covariances, w.objectives, u.objectives, strict=True)
    ]
    residual_w, residual_u = np.stack([f.residuals for f in found], axis=1)
    return Settled(residual_w, residual_u, np.array([f.spectral_radius for f in found]))


def settle(w: Turn, u: Turn, start: Array, rounds: int) -> tuple[Array, Array]:
    """The last of `alternate`'s states, both of shape (b, d)."""
    after_w = after_u = start
    for _ in range(rounds):
        after_w = w(after_u)
        after_u = u(after_w)
    return after_w, after_u


def alternate(w: Turn, u: Turn, start: Array, rounds: int) -> tuple[Array, Array]:
    """States after W's and after U's turns, both of shape (rounds, b, d); start: (b, d)."""
    state, after_w, after_u = start, [], []
    for _ in range(rounds):
        after_w.append(state := w(state))
        after_u.append(state := u(state))
    return np.stack(after_w), np.stack(after_u)


def apply(matrices: Array, vectors: Array) -> Array:
    """(b, d, d) by (b, d)."""
    return np.asarray(np.einsum("bij,bj->bi", matrices, vectors))


def norms(vectors: Array) -> Array:
    """2-norms along the last axis."""
    return np.asarray(np.linalg.norm(vectors, axis=-1))


def root_mean_square(distances: Array, axis: int = -1) -> Array:
    """Over the pairs."""
    return np.asarray(np.sqrt((distances**2).mean(axis=axis)))


def gaps(w: Side, u: Side) -> Array:
    """|u* - w*| of each pair, shape (b,)."""
    return norms(u.objectives - w.objectives)
