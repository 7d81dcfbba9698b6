"""An agent that takes one gradient step towards its own objective, in context, by linear self-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from a2a_ray.agents.lsa.trained_weights import trained_weights
from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import AgentError, ConfigurationError
from a2a_ray.core.linear_task import make_task, read_objective
from a2a_ray.core.message import Message

if TYPE_CHECKING:
    from a2a_ray.agents.lsa.lsa_module import LSAModule

    Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


class LSAAgent(BaseAgent):
    """Answers an iterate w, shape (d,), with w - eta S (w - w*): one pass of linear self-attention over its prompt.

    The prompt holds examples x_i with targets y_i = x_i . w*; S = X^T X / n is their covariance.

    objective: w*, as d numbers, or {angle: degrees, norm: 1.0, seed: 0}: norm (cos(angle) e1 + sin(angle) e2), with e1
        and e2 orthonormal and drawn from the seed. Agents with equal seed and dim have their objectives in one plane.
        `message.options["objective"]`, in either form, takes its place for one turn.
    dim: d, if no other setting determines it.
    examples: X, shape (n, d); or
    geometry: {examples: n, condition: c, seed: s} makes X with X^T X / n = Q diag(eigenvalues) Q^T to rounding: the
        eigenvalues log-spaced from 1/c to 1 (or given as `eigenvalues`), Q a random rotation of the seed. By default
        n = 4 d, c = 1 (isotropic), s = 0.
    step_size: eta, below 2 / lambda_max(S).
    dtype: of the computation and the answers.
    inner_steps: gradient steps (passes of the same layer) in a turn.
    weights: of the layer: "analytic", the step to rounding for any d and eta; or "trained", what training made of
        random weights: the step to about 1e-6 of it, for d = 2, 5, 10 and 20 (docs/method/trained_lsa.md).

    Raises ConfigurationError for settings that do not fit together. Attributes, float64: `objective` (d,), `covariance`
    (d, d), `examples` (n, d), `step_size`, `inner_steps`; and `weights`.
    """

    turn_options = frozenset({"objective"})

    def __init__(
        self,
        name: str,
        objective: list[float] | dict[str, Any],
        *,
        dim: int | None = None,
        examples: list[list[float]] | None = None,
        geometry: dict[str, Any] | None = None,
        step_size: float = 0.1,
        dtype: Literal["float64", "float32"] = "float64",
        inner_steps: int = 1,
        weights: Literal["analytic", "trained"] = "analytic",
    ) -> None:
        if dtype not in ("float64", "float32"):
            raise ConfigurationError(f"dtype: {dtype!r}; expected float64 or float32")
        if weights not in ("analytic", "trained"):
            raise ConfigurationError(f"weights: {weights!r}; expected analytic or trained")
        prompt = make_task(objective, dim, examples, geometry, step_size, inner_steps)
        self.name = name
        self.objective, self.covariance, self.examples = prompt.objective, prompt.covariance, prompt.examples
        self.step_size, self.inner_steps = prompt.step_size, prompt.inner_steps
        if weights == "trained":
            trained_weights(len(self.objective))  # a missing file fails before anything runs
        self.weights = weights
        self._dtype = np.dtype(dtype)
        self._tokens = self._tokens_for(self.objective)

    def setup(self) -> None:
        """Load torch and build the layer; otherwise the first step does."""
        _ = self.module

    @cached_property
    def module(self) -> LSAModule:
        """Return the layer, with the weights of the settings."""
        import torch

        from a2a_ray.agents.lsa.lsa_module import LSAModule

        make = LSAModule.trained if self.weights == "trained" else LSAModule
        return make(len(self.objective), self.step_size, getattr(torch, self._dtype.name))

    def step(self, message: Message) -> Message:
        """Return the next iterate, shape (d,), in the agent's dtype. Raises AgentError for text or another shape."""
        return self.step_batch((message,))[0]

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        """Return the answers in order; each has the same bits as if answered alone."""
        from a2a_ray.agents.lsa.lsa_module import descend

        if not messages:
            return []
        iterates = np.array([self._iterate(m) for m in messages], dtype=self._dtype)
        tokens = self._tokens
        if any("objective" in m.options for m in messages):
            tokens = np.stack([self._tokens_for(self._objective(m)) for m in messages])
        answers = descend(self.module, tokens, iterates, self.inner_steps)
        return [m.reply(row.copy(), self.name) for m, row in zip(messages, answers, strict=True)]

    def bid(self, message: Message) -> float:
        """Return the agent's residual at the iterate w: |y - X w| / sqrt(n), the 2-norm, in float64.

        This equals sqrt((w - w*)^T S (w - w*)); it is 0 if w fits all examples.
        """
        misses = _product(self.examples, self._iterate(message) - self._objective(message))
        return math.sqrt(float((misses * misses).sum()) / len(misses))

    def _iterate(self, message: Message) -> Array:
        content = message.content
        d = len(self.objective)
        if isinstance(content, str):
            raise AgentError(
                f"agent {self.name!r} received the text {content[:40]!r} at turn {message.turn}; expected a vector of"
                f" shape ({d},), such as openings: {{zeros: {d}}}"
            )
        if np.shape(content) != (d,):
            raise AgentError(
                f"agent {self.name!r} received an array of shape {np.shape(content)} at turn {message.turn};"
                f" expected ({d},), the shape of its objective"
            )
        return np.asarray(content)

    def _objective(self, message: Message) -> Array:
        given = message.options.get("objective")
        if given is None:
            return self.objective
        try:
            return read_objective(given, len(self.objective))
        except ConfigurationError as error:
            raise AgentError(f"agent {self.name!r} at turn {message.turn}: options: {error}") from None

    def _tokens_for(self, objective: Array) -> Array:
        """Return example tokens (x_i, y_i), shape (n, d + 1), in the agent's dtype."""
        n, d = self.examples.shape
        tokens = np.empty((n, d + 1), self._dtype)
        tokens[:, :d] = self.examples
        tokens[:, d] = _product(self.examples, objective)
        return tokens


def _product(matrix: Array, vector: Array) -> Array:
    """Return matrix @ vector with the same bits on every machine."""
    out: Array = (matrix * vector).sum(-1)
    return out
