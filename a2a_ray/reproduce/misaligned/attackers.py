"""Adversaries: U chooses the examples of its own prompt so that it reaches its objective and W does not.

Knowing W (white box), from what W says alone (black box), and one way that fails. A prompt whose covariance has the
eigenvalue 1 / eta_U along some directions undoes, within their span, whatever W has pulled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from a2a_ray.analysis.dynamics.asymmetry import adversary, projecting_examples
from a2a_ray.analysis.dynamics.helper_objectives import estimate_turn, probe_points
from a2a_ray.reproduce.misaligned.lsa_pairs import Array, Side, prompted


def white_box(w: Side, objectives: Array, rank: int = 1, bound: float = 1.0) -> Side:
    """U's that know W's geometry and objective; rank: of S_U, bound: on eta_U lambda_max(S_U); objectives: (b, d)."""
    gaps = objectives - w.objectives
    found = [
        adversary(s, gap, w.step_size, w.step_size, rank=rank, bound=bound)
        for s, gap in zip(w.covariances, gaps, strict=True)
    ]
    return prompted([a.examples for a in found], objectives, w.step_size)


def projecting(directions: Sequence[Array], objectives: Array, step_size: float) -> Side:
    """U's whose turn reaches the objective within the span of these directions, b arrays of shape (r, d)."""
    return prompted([projecting_examples(v, step_size) for v in directions], objectives, step_size)


class Attacker:
    """A U that knows only its own objectives and what was said, and may choose a new prompt at every turn.

    Called with what it hears, shape (b, d), it gives what it says, shape (b, d). objectives: (b, d).
    """

    def __init__(self, objectives: Array, step_size: float) -> None:
        self.objectives, self.step_size = objectives, step_size
        self.said: list[Array] = []
        self.heard: list[Array] = []

    def __call__(self, heard: Array) -> Array:
        self.heard.append(heard)
        self.said.append(self.answer(heard))
        return self.said[-1]

    def answer(self, heard: Array) -> Array:
        """What it says next."""
        raise NotImplementedError

    def updates(self, last: int) -> Array:
        """W's last updates x_W - x_U = -eta_W S_W (x_U - w*), (b, r, d): r at most `last`, 0 before it has answered."""
        pairs = list(zip(self.said, self.heard[1:], strict=False))[-last:]
        return (
            np.stack([heard - said for said, heard in pairs], axis=1)
            if pairs
            else np.empty((len(self.objectives), 0, 0))
        )

    def prompt(self, directions: Array) -> Side:
        """The prompt that reaches the objective within the span of these directions, (b, r, d)."""
        return projecting(list(directions), self.objectives, self.step_size)


class ShowsObjective(Attacker):
    """Says u* once, reads the direction of W's pull there from the reply, and keeps the rank-one prompt along it."""

    kept: Side | None = None

    def answer(self, heard: Array) -> Array:
        if not self.said:
            return self.objectives
        self.kept = self.kept or self.prompt(self.updates(1))
        return self.kept.turn(heard)


class Estimates(Attacker):
    """Shows d + 1 points, estimates eta_W S_W and w* from the replies, and keeps the rank-one prompt."""

    kept: Side | None = None

    def answer(self, heard: Array) -> Array:
        b, d = heard.shape
        points = probe_points(np.zeros(d))
        if len(self.said) < len(points):
            return np.tile(points[len(self.said)], (b, 1))
        self.kept = self.kept or self.prompt(self._pulls(points))
        return self.kept.turn(heard)

    def _pulls(self, points: Array) -> Array:
        """eta_W S_W (u* - w*) as estimated, shape (b, 1, d)."""
        replies = np.stack(self.heard[1 : len(points) + 1], axis=1)
        found = [estimate_turn(points, own) for own in replies]
        pulls = [f.pull @ (wanted - f.objective) for f, wanted in zip(found, self.objectives, strict=True)]
        return np.stack(pulls)[:, None]


class SpansUpdates(Attacker):
    """At every turn the prompt along the span of W's last d updates: d directions at first, one in the end."""

    def answer(self, heard: Array) -> Array:
        seen = self.updates(heard.shape[1])
        return self.prompt(seen).turn(heard) if seen.size else heard


class ReadsDirection(Attacker):
    """At every turn the rank-one prompt along W's last update. This rests elsewhere: nothing points to u*."""

    def answer(self, heard: Array) -> Array:
        seen = self.updates(1)
        return self.prompt(seen).turn(heard) if seen.size else heard
