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
"""Map the inputs of b agents, (b, d), to their answers, (b, d)."""
Weights: TypeAlias = Literal["analytic", "trained"]

SHOWN_ANGLE = 90.0
"""The angle in degrees between the objectives in experiments with one angle; the gap is the square root of two."""


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
        """Return the answers, (b, d), to these iterates, (b, d): one pass of the layer over each prompt."""
        return descend(self._layer, self._tokens, iterates, 1)

    def part(self, first: int, last: int) -> Side:
        """Return the pairs first to last - 1."""
        rows = slice(first, last)
        return replace(
            self,
            examples=self.examples[rows],
            covariances=self.covariances[rows],
            objectives=self.objectives[rows],
        )

    @property
    def pulls(self) -> Array:
        """Return P = eta S, shape (b, d, d)."""
        return self.step_size * self.covariances

    @property
    def contractions(self) -> Array:
        """Return M = I - eta S, shape (b, d, d)."""
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
    """Return agents with these prompts: b arrays of examples, (n, d), where n may differ; objectives: (b, d).

    Zero rows pad all prompts to the same length; the examples are rescaled so that the covariances stay the same.
    """
    longest = max(len(x) for x in prompts)
    examples = np.zeros((len(prompts), longest, objectives.shape[1]))
    for i, x in enumerate(prompts):
        examples[i, : len(x)] = x * math.sqrt(longest / len(x))
    covariances = np.einsum("bni,bnj->bij", examples, examples) / examples.shape[1]
    return Side(examples, covariances, objectives, step_size)


def population(settings: Settings, angle: float = SHOWN_ANGLE, twin: bool = False, **source: Any) -> PairPopulation:
    """Return pairs at an angle, or their twins: the objectives rotated by 90 degrees in their plane.

    source: settings of DrawnPairs that replace the study's.
    """
    turned = 90.0 if twin else 0.0
    drawn: dict[str, Any] = {"pairs": settings.pairs, "seed": settings.seed} | source
    if "eigenvalues" not in source:
        drawn.setdefault("condition", settings.condition)
    pairs = DrawnPairs(dim=settings.dim, angles=(turned, angle + turned), **drawn)
    return PairPopulation(pairs, settings.step_size, settings.step_size, dtype="float64")


def pair_agents(drawn: PairPopulation, i: int, **more: Any) -> tuple[LSAAgent, LSAAgent]:
    """Return W and U of pair i as agents for a conversation; more: further settings of LSAAgent for both."""
    w, u = drawn.settings(i)
    return LSAAgent("w", **{**w, **more}), LSAAgent("u", **{**u, **more})


def sides(drawn: PairPopulation) -> tuple[Side, Side]:
    """Return W and U of all pairs, each with d examples along the axes of its covariance."""
    taken = drawn.source.take(0, drawn.pairs)
    w = _side(taken.covariance_w, taken.objective_w, drawn.step_w)
    return w, _side(taken.covariance_u, taken.objective_u, drawn.step_u)


def _side(covariances: Array, objectives: Array, step_size: float) -> Side:
    eigenvalues, eigenvectors = np.linalg.eigh(covariances)
    scales = np.sqrt(objectives.shape[1] * np.maximum(eigenvalues, 0))
    return Side(scales[:, :, None] * eigenvectors.transpose(0, 2, 1), covariances, objectives, step_size)


@dataclass(frozen=True)
class Settled:
    """The closed form of b pairs: settled residuals of W and of U, (b, d), and spectral radii, (b,)."""

    residual_w: Array
    residual_u: Array
    radii: Array

    @property
    def radius(self) -> float:
        """Return the largest spectral radius."""
        return float(self.radii.max())


def predicted(w: Side, u: Side) -> Settled:
    """Return the closed form of two alternating agents for each pair."""
    steps = (w.step_size, u.step_size)
    found = [
        alternating(linear_agents([s_w, s_u], objectives, steps), allow_divergence=True)
        for s_w, s_u, *objectives in zip(w.covariances, u.covariances, w.objectives, u.objectives, strict=True)
    ]
    residual_w, residual_u = np.stack([f.residuals for f in found], axis=1)
    return Settled(residual_w, residual_u, np.array([f.spectral_radius for f in found]))


def settle(w: Turn, u: Turn, start: Array, rounds: int) -> tuple[Array, Array]:
    """Return the last states of `alternate`, both of shape (b, d)."""
    after_w = after_u = start
    for _ in range(rounds):
        after_w = w(after_u)
        after_u = u(after_w)
    return after_w, after_u


def alternate(w: Turn, u: Turn, start: Array, rounds: int) -> tuple[Array, Array]:
    """Return the states after W's and after U's turns, both of shape (rounds, b, d); start: (b, d)."""
    state, after_w, after_u = start, [], []
    for _ in range(rounds):
        after_w.append(state := w(state))
        after_u.append(state := u(state))
    return np.stack(after_w), np.stack(after_u)


def apply(matrices: Array, vectors: Array) -> Array:
    """Multiply matrices, (b, d, d), by vectors, (b, d)."""
    return np.asarray(np.einsum("bij,bj->bi", matrices, vectors))


def norms(vectors: Array) -> Array:
    """Return the 2-norms along the last axis."""
    return np.asarray(np.linalg.norm(vectors, axis=-1))


def root_mean_square(distances: Array, axis: int = -1) -> Array:
    """Return the root mean square over the pairs."""
    return np.asarray(np.sqrt((distances**2).mean(axis=axis)))


def gaps(w: Side, u: Side) -> Array:
    """Return |u* - w*| of each pair, shape (b,)."""
    return norms(u.objectives - w.objectives)
