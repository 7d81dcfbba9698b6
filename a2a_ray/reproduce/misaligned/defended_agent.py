"""Three defences of W against an adversary. W still takes gradient steps towards its objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from a2a_ray.reproduce.misaligned.lsa_pairs import Array, Side, Turn, norms, prompted

PROBE_EVERY, PROBE_SCALE, ALARM = 10, 0.5, 0.1
"""Probing: every tenth turn W takes half its step; the alarm goes off below this relative movement of the reply."""


class Guard:
    """W without a defence. A call takes U's answers, (b, d), and returns W's, (b, d).

    answers, accepted: W's answers so far, and the state from which each of its steps started.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.answers: list[Array] = []
        self.accepted: list[Array] = []

    def __call__(self, state: Array) -> Array:
        self.accepted.append(self.accept(state) if self.answers else state)
        self.answers.append(self.step(self.accepted[-1]))
        return self.answers[-1]

    def accept(self, state: Array) -> Array:
        """Return the state from which W takes its step."""
        return state

    def step(self, state: Array) -> Array:
        """Return W's answer from this state."""
        return self.side.turn(state)


class Redrawn(Guard):
    """W draws new examples for every turn: the same objective and eigenvalues, new eigenvectors."""

    def __init__(self, side: Side, eigenvalues: Array, seed: int) -> None:
        super().__init__(side)
        self.scales, self.rng = np.sqrt(len(eigenvalues) * eigenvalues), np.random.default_rng(seed)

    def step(self, state: Array) -> Array:
        """Return W's answer with newly drawn examples."""
        b, d = state.shape
        rotations = np.linalg.qr(self.rng.normal(size=(b, d, d)))[0]
        examples = self.scales[:, None] * rotations.transpose(0, 2, 1)
        return prompted(examples, self.side.objectives, self.side.step_size).turn(state)


class Bounded(Guard):
    """W shortens every step of U to a bound, shape (b,)."""

    def __init__(self, side: Side, bound: Array) -> None:
        super().__init__(side)
        self.bound = bound

    def accept(self, state: Array) -> Array:
        """Return the state after U's step, shortened to the bound."""
        step = state - self.answers[-1]
        share = self.bound / np.maximum(norms(step), self.bound)
        return self.answers[-1] + share[:, None] * step


class Probing(Guard):
    """W takes half its step at every tenth turn. If U's reply hardly moves with it, W continues alone.

    alone: whether W is alone, shape (b,).
    """

    def __init__(self, side: Side) -> None:
        super().__init__(side)
        self.probe = replace(side, step_size=PROBE_SCALE * side.step_size)
        self.alone = np.zeros(len(side), dtype=bool)
        self.reply = np.zeros_like(side.objectives)

    def accept(self, state: Array) -> Array:
        """Return U's state, or W's own last answer if W is alone."""
        if len(self.answers) % PROBE_EVERY == 0:
            self.alone |= movement(self.reply, state, *self.answers[-2:]) < ALARM
        self.reply = state
        return np.where(self.alone[:, None], self.answers[-1], state)

    def step(self, state: Array) -> Array:
        """Return W's answer, with half the step size at every tenth turn."""
        probes = (len(self.answers) + 1) % PROBE_EVERY == 0
        return (self.probe if probes else self.side).turn(state)


def movement(reply: Array, new_reply: Array, answer: Array, new_answer: Array) -> Array:
    """Return how far U's reply moved relative to the answer that it replies to, shape (b,)."""
    return norms(new_reply - reply) / np.maximum(norms(new_answer - answer), np.finfo(float).tiny)


def probe_settled(w: Side, u: Turn, after_w: Array, after_u: Array) -> Array:
    """Return the movement of U's reply to a probe at these equilibrium states after W's and U's turns; shape (b,)."""
    probe = replace(w, step_size=PROBE_SCALE * w.step_size).turn(after_u)
    return movement(u(after_w), u(probe), after_w, probe)


def guarded_conversation(guard: Guard, u: Turn, rounds: int, opening: Array | None = None) -> tuple[Array, Array]:
    """Return W's answers and the states that it accepted after U's, both (rounds, b, d); opening: (b, d), or zeros."""
    state = np.zeros_like(guard.side.objectives) if opening is None else opening
    for _ in range(rounds + 1):
        state = u(guard(state))
    return np.stack(guard.answers[:-1]), np.stack(guard.accepted[1:])
