"""Adversaries: U chooses the examples of its own prompt so that it reaches its objective and W does not.

The white-box adversary knows W; the black-box ones see only W's answers, and one of them fails. A prompt whose
covariance has the eigenvalue 1 / eta_U along some directions undoes W's pull within their span.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from a2a_ray.analysis.dynamics.asymmetry import adversary, projecting_examples
from a2a_ray.analysis.dynamics.helper_objectives import estimate_turn, probe_points
from a2a_ray.reproduce.misaligned.lsa_pairs import Array, Side, prompted


def white_box(w: Side, objectives: Array, rank: int = 1, bound: float = 1.0) -> Side:
    """Return U's that know W; rank: of S_U; bound: on eta_U lambda_max(S_U); objectives: (b, d)."""
    gaps = objectives - w.objectives
    found = [
        adversary(s, gap, w.step_size, w.step_size, rank=rank, bound=bound)
        for s, gap in zip(w.covariances, gaps, strict=True)
    ]
    return prompted([a.examples for a in found], objectives, w.step_size)


def projecting(directions: Sequence[Array], objectives: Array, step_size: float) -> Side:
    """Return U's whose turn reaches the objective within the span of `directions`, b arrays of shape (r, d)."""
    return prompted([projecting_examples(v, step_size) for v in directions], objectives, step_size)


class Attacker:
    """A U that knows only its own objectives and the messages, and may choose a new prompt at every turn.

    A call takes W's answers, (b, d), and returns U's, (b, d). objectives: (b, d). sent, received: the messages so far.
    """

    def __init__(self, objectives: Array, step_size: float) -> None:
        self.objectives, self.step_size = objectives, step_size
        self.sent: list[Array] = []
        self.received: list[Array] = []

    def __call__(self, answers: Array) -> Array:
        self.received.append(answers)
        self.sent.append(self.answer(answers))
        return self.sent[-1]

    def answer(self, answers: Array) -> Array:
        """Return U's next message, (b, d), to W's answers, (b, d)."""
        raise NotImplementedError

    def updates(self, last: int) -> Array:
        """Return W's last updates x_W - x_U = -eta_W S_W (x_U - w*), (b, r, d): r <= `last`, 0 before a reply."""
        pairs = list(zip(self.sent, self.received[1:], strict=False))[-last:]
        return (
            np.stack([received - sent for sent, received in pairs], axis=1)
            if pairs
            else np.empty((len(self.objectives), 0, 0))
        )

    def prompt(self, directions: Array) -> Side:
        """Return the prompt that reaches the objective within the span of these directions, (b, r, d)."""
        return projecting(list(directions), self.objectives, self.step_size)


class ShowsObjective(Attacker):
    """Send u* once, read the direction of W's pull from the reply, and keep the rank-one prompt along it."""

    kept: Side | None = None

    def answer(self, answers: Array) -> Array:
        """Return u* in the first turn, then the answer of the kept prompt."""
        if not self.sent:
            return self.objectives
        self.kept = self.kept or self.prompt(self.updates(1))
        return self.kept.turn(answers)


class Estimates(Attacker):
    """Send d + 1 probes, estimate eta_W S_W and w* from the replies, and keep the rank-one prompt."""

    kept: Side | None = None

    def answer(self, answers: Array) -> Array:
        """Return the next probe, then the answer of the kept prompt."""
        b, d = answers.shape
        points = probe_points(np.zeros(d))
        if len(self.sent) < len(points):
            return np.tile(points[len(self.sent)], (b, 1))
        self.kept = self.kept or self.prompt(self._pulls(points))
        return self.kept.turn(answers)

    def _pulls(self, points: Array) -> Array:
        """Return the estimate of eta_W S_W (u* - w*), shape (b, 1, d)."""
        replies = np.stack(self.received[1 : len(points) + 1], axis=1)
        found = [estimate_turn(points, own) for own in replies]
        pulls = [f.pull @ (wanted - f.objective) for f, wanted in zip(found, self.objectives, strict=True)]
        return np.stack(pulls)[:, None]


class SpansUpdates(Attacker):
    """At every turn use the prompt along the span of W's last d updates, which shrinks from d directions to one."""

    def answer(self, answers: Array) -> Array:
        """Return the answer of the prompt along the last d updates."""
        seen = self.updates(answers.shape[1])
        return self.prompt(seen).turn(answers) if seen.size else answers


class ReadsDirection(Attacker):
    """At every turn use the rank-one prompt along W's last update. It does not reach u*: no update points there."""

    def answer(self, answers: Array) -> Array:
        """Return the answer of the prompt along the last update."""
        seen = self.updates(1)
        return self.prompt(seen).turn(answers) if seen.size else answers
