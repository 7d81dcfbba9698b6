"""Three ways in which W defends itself against an adversary. W still takes gradient steps towards its objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from a2a_ray.reproduce.misaligned.lsa_pairs import Array, Side, Turn, norms, prompted

PROBE_EVERY, PROBE_SCALE, ALARM = 10, 0.5, 0.1
"""Probing: every tenth turn W takes half its step; the alarm goes off below this relative movement of the reply."""


class Guard:
    """W without a defence. Called with what it is shown, (b, d), it gives what it says, (b, d).

    said, accepted: what it has said, and from which state it went on each time.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.said: list[Array] = []
        self.accepted: list[Array] = []

    def __call__(self, shown: Array) -> Array:
        self.accepted.append(self.accept(shown) if self.said else shown)
        self.said.append(self.step(self.accepted[-1]))
        return self.said[-1]

    def accept(self, shown: Array) -> Array:
        """The state from which it goes on."""
        return shown

    def step(self, state: Array) -> Array:
        """Its turn from there."""
        return self.side.turn(state)


class Redrawn(Guard):
    """W draws new examples for every turn: the same objective and eigenvalues, other eigenvectors."""

    def __init__(self, side: Side, eigenvalues: Array, seed: int) -> None:
        super().__init__(side)
        self.scales, self.rng = np.sqrt(len(eigenvalues) * eigenvalues), np.random.default_rng(seed)

    def step(self, state: Array) -> Array:
        b, d = state.shape
        rotations = np.linalg.qr(self.rng.normal(size=(b, d, d)))[0]
        examples = self.scales[:, None] * rotations.transpose(0, 2, 1)
        return prompted(examples, self.side.objectives, self.side.step_size).turn(state)


class Bounded(Guard):
    """W accepts a step of U up to a bound, shape (b,); of a longer one it accepts that much."""

    def __init__(self, side: Side, bound: Array) -> None:
        super().__init__(side)
        self.bound = bound

    def accept(self, shown: Array) -> Array:
        step = shown - self.said[-1]
        share = self.bound / np.maximum(norms(step), self.bound)
        return self.said[-1] + share[:, None] * step


class Probing(Guard):
    """W takes half its step at every tenth turn. Where U's reply hardly moves with it, W goes on alone from then on.

    alone: which of the b do.
    """

    def __init__(self, side: Side) -> None:
        super().__init__(side)
        self.probe = replace(side, step_size=PROBE_SCALE * side.step_size)
        self.alone = np.zeros(len(side), dtype=bool)
        self.reply = np.zeros_like(side.objectives)

    def accept(self, shown: Array) -> Array:
        if len(self.said) % PROBE_EVERY == 0:
            self.alone |= movement(self.reply, shown, *self.said[-2:]) < ALARM
        self.reply = shown
        return np.where(self.alone[:, None], self.said[-1], shown)

    def step(self, state: Array) -> Array:
        probes = (len(self.said) + 1) % PROBE_EVERY == 0
        return (self.probe if probes else self.side).turn(state)


def movement(reply: Array, new_reply: Array, said: Array, new_said: Array) -> Array:
    """How far a reply moved, relative to what it replies to, shape (b,)."""
    return norms(new_reply - reply) / np.maximum(norms(new_said - said), np.finfo(float).tiny)


def probe_settled(w: Side, u: Turn, after_w: Array, after_u: Array) -> Array:
    """The movement of U's reply to a probe in a talk settled at these states after W's and U's turns; shape (b,)."""
    probe = replace(w, step_size=PROBE_SCALE * w.step_size).turn(after_u)
    return movement(u(after_w), u(probe), after_w, probe)


def guarded_talk(guard: Guard, u: Turn, rounds: int, opening: Array | None = None) -> tuple[Array, Array]:
    """What W said, and what it went on from after U's answer, both (rounds, b, d); opening: (b, d), or zeros."""
    state = np.zeros_like(guard.side.objectives) if opening is None else opening
    for _ in range(rounds + 1):
        state = u(guard(state))
    return np.stack(guard.said[:-1]), np.stack(guard.accepted[1:])
