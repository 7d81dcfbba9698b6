"""In-context regression: a language model receives examples, an iterate and a rule, and answers the next iterate."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.agents.openai.openai_retry import excerpt
from a2a_ray.core.base_agent import BaseAgent, agent_traits
from a2a_ray.core.contracts import Agent
from a2a_ray.core.errors import AgentError, ConfigurationError, InvalidResponseError
from a2a_ray.core.linear_task import make_task, read_objective
from a2a_ray.core.message import Message, checked_answer
from a2a_ray.core.registry import agents
from a2a_ray.core.seeds import turn_seed

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.floating[Any]]]"

ASKS = 2
"""Requests to the model for one turn: the first, and one retry that says what is wrong."""
QUOTED = 500
"""Characters of an invalid answer that the retry quotes."""

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)


class RegressionAgent(BaseAgent):
    """Let a language model take the turn of an `LSAAgent`: its answer to w should be w - eta S (w - w*).

    model_agent: the language model: its settings, such as {kind: openai, model: gpt-5-mini}, or, in Python, any
        agent that answers texts. An agent built from settings has this agent's name.
    objective, dim, examples, geometry, step_size, inner_steps: as `LSAAgent` has them; `message.options["objective"]`
        takes the objective's place for one turn.
    digits: significant digits of every number in the prompt.

    The model sees the examples, the iterate and the rule, not the conversation (`prompt` returns the text). Its answer
    must be valid for `parse_vector`. Otherwise one retry quotes the answer and says what is wrong with it, with a seed
    drawn from the turn's. A second invalid answer raises InvalidResponseError, which quotes both.

    Messages in and out: arrays of shape (d,); answers float64. usage: the sum over the requests. metadata: the model's
    own for its last answer, `asks`, `raw` (its answers, unchanged) and, after a retry, `rejected` (the reason).
    placement: the model agent's. Attributes, float64: `objective` (d,), `covariance` (d, d), `examples` (n, d),
    `step_size`, `inner_steps`. Raises ConfigurationError for settings that do not fit together.
    """

    max_requests = ASKS
    placement = "actor"  # what is known before the model agent is made: language models have processes of their own
    turn_options = frozenset({"objective"})

    def __init__(
        self,
        name: str,
        objective: list[float] | dict[str, Any],
        *,
        model_agent: dict[str, Any] | Agent,
        dim: int | None = None,
        examples: list[list[float]] | None = None,
        geometry: dict[str, Any] | None = None,
        step_size: float = 0.1,
        inner_steps: int = 1,
        digits: int = 6,
    ) -> None:
        if not 1 <= digits <= 17:
            raise ConfigurationError(f"digits: {digits}; expected 1 to 17")
        prompt = make_task(objective, dim, examples, geometry, step_size, inner_steps)
        self.name = name
        self.objective, self.covariance, self.examples = prompt.objective, prompt.covariance, prompt.examples
        self.step_size, self.inner_steps = prompt.step_size, prompt.inner_steps
        self.digits = digits
        self.model_agent: Any = model_agent
        if isinstance(model_agent, dict):
            self.model_agent = agents.build(model_agent, "model_agent", name=name)
        elif not isinstance(model_agent, Agent):
            raise ConfigurationError(f"model_agent: {model_agent!r}; expected settings with a kind, or an agent")
        self.placement = agent_traits(self.model_agent).placement  # type: ignore[assignment]

    def check(self) -> None:
        """Run the model agent's own check. Raises ConfigurationError."""
        agent_traits(self.model_agent).check()

    def max_output_tokens(self) -> int | None:
        """Return the model agent's limit, for each request."""
        traits = agent_traits(self.model_agent)
        if traits.max_output_tokens is not None:
            return traits.max_output_tokens()
        return None if traits.paid else 0

    def max_input_tokens(self) -> int:
        """Return the tokens of the prompt, at four characters a token."""
        return len(self.prompt()) // 4

    def setup(self) -> None:
        """Set up the model agent."""
        agent_traits(self.model_agent).setup()

    async def step(self, message: Message) -> Message:
        """Return the next iterate, shape (d,), float64. Raises AgentError, including InvalidResponseError."""
        (answer,) = await self.step_batch((message,))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def step_batch(self, messages: Sequence[Message]) -> list[Message | Exception]:
        """Return the answers in order, errors for failed ones. All first requests go out together, then all retries."""
        turns = [_Turn(self, message) for message in messages]
        for _ in range(ASKS):
            waiting = [turn for turn in turns if turn.outcome is None]
            questions = [turn.question() for turn in waiting]
            answers = await _request_all(self.model_agent, questions)
            for turn, question, answer in zip(waiting, questions, answers, strict=True):
                turn.take(question, answer)
        return [turn.result() for turn in turns]

    def prompt(self, iterate: Array | None = None, objective: Array | None = None) -> str:
        """Return the prompt at an iterate w, shape (d,). Defaults: the origin and this agent's objective."""
        target = self.objective if objective is None else objective
        n, d = self.examples.shape
        rows = (
            f"x = {self._vector(x)}, y = {self._shown(float(y))}"
            for x, y in zip(self.examples, (self.examples * target).sum(axis=1), strict=True)
        )
        rule = f"w_new = w - (eta/{n}) * sum over all examples of (x . w - y) * x"
        if self.inner_steps > 1:
            rule += f", done {self.inner_steps} times, each time from the w that came out before"
        return "\n".join(
            (
                f"Linear regression by gradient descent. {n} examples, each an input x of {d} numbers and a target y:",
                *rows,
                f"The current weights: w = {self._vector(np.zeros(d) if iterate is None else iterate)}",
                f"The step size: eta = {self._shown(self.step_size)}",
                f"The rule: a gradient step on half the mean squared error, L(w) = 1/(2*{n}) * sum of (x . w - y)^2;"
                f" in full, {rule}.",
                f"Answer with w_new alone, as a JSON array of exactly {d} numbers ([0.12, -0.5] would be one of 2)."
                " No words, no code.",
            )
        )

    def _vector(self, values: Array) -> str:
        return f"[{', '.join(self._shown(float(v)) for v in values)}]"

    def _shown(self, value: float) -> str:
        return f"{value:.{self.digits}g}"


def parse_vector(text: str, dim: int) -> Array:
    """Return the vector in an answer, shape (dim,), float64. Raises ValueError with the reason.

    Strict: a JSON array of exactly `dim` finite numbers and nothing else but white space. The one thing forgiven is a
    code fence around the whole, which chat models add even if asked not to.
    """
    body = text.strip()
    fenced = _FENCE.fullmatch(body)
    try:
        value = json.loads(fenced[1] if fenced else body)
    except (ValueError, RecursionError):
        raise ValueError("it is not a JSON array and nothing else" if body else "it is empty") from None
    if not isinstance(value, list):
        raise ValueError("it is JSON, but not an array")
    if len(value) != dim:
        raise ValueError(f"it has {len(value)} entries; expected {dim}")
    if strange := [v for v in value if isinstance(v, bool) or not isinstance(v, int | float)]:
        raise ValueError(f"{json.dumps(strange[0])[:40]} in it is not a number")
    try:
        vector = np.array([float(v) for v in value])
    except OverflowError:
        vector = np.array([math.inf])
    if not np.isfinite(vector).all():
        raise ValueError("a number in it is NaN or infinite")
    return vector


class _Turn:
    """One turn in progress and its answers so far. `outcome` is None while a retry is possible."""

    def __init__(self, agent: RegressionAgent, message: Message) -> None:
        self.agent, self.message = agent, message
        self.where = f"agent {agent.name!r} at turn {message.turn}"
        self.raw: list[str] = []
        self.reasons: list[str] = []
        self.usage: dict[str, Any] = {}
        self.outcome: Message | Exception | None = None
        try:
            self.prompt = agent.prompt(self._iterate(), self._objective())
        except AgentError as error:
            self.outcome = error

    def question(self) -> Message:
        """Return the next request. It is one message, so that a model with a short context cannot drop half of it."""
        text, seed = self.prompt, self.message.seed
        if self.raw:
            text += (
                f"\nYou answered before: {self.raw[-1][:QUOTED]}\nThat answer cannot be used: {self.reasons[-1]}."
                f" Answer again, with the JSON array of {len(self.agent.objective)} numbers only."
            )
            seed = turn_seed(seed, len(self.raw))
        return Message(self.message.conversation, self.message.seq, "", text, seed=seed, asides=self.message.asides)

    def take(self, question: Message, answer: Message | Exception) -> None:
        """Process the model agent's answer to a question."""
        try:
            if isinstance(answer, Exception):
                raise answer
            answer = checked_answer(answer, question, self.agent.model_agent.name)
        except Exception as error:
            self.outcome = error
            return
        for key, count in answer.usage.items():
            if isinstance(count, int | float):
                self.usage[key] = self.usage.get(key, 0) + count
        text = answer.content if isinstance(answer.content, str) else repr(answer.content)
        self.raw.append(text)
        try:
            vector = parse_vector(text, len(self.agent.objective))
        except ValueError as error:
            cut = answer.metadata.get("finish_reason") == "length"
            self.reasons.append(f"{error}{' (cut off at the token limit)' if cut else ''}")
            return
        metadata = {**answer.metadata, "asks": len(self.raw), "raw": self.raw}
        if self.reasons:
            metadata["rejected"] = self.reasons[0]
        self.outcome = self.message.reply(vector, self.agent.name, self.usage, metadata)

    def result(self) -> Message | Exception:
        """Return the answer, or the error."""
        if self.outcome is not None:
            return self.outcome
        answers = "; ".join(f"{excerpt(raw, None)!r}: {why}" for raw, why in zip(self.raw, self.reasons, strict=True))
        return InvalidResponseError(f"{self.where}: no vector in {len(self.raw)} answers of the model: {answers}")

    def _iterate(self) -> Array:
        content, d = self.message.content, len(self.agent.objective)
        if isinstance(content, str) or np.shape(content) != (d,):
            what = f"text {content[:40]!r}" if isinstance(content, str) else f"array of shape {np.shape(content)}"
            raise AgentError(
                f"{self.where} received {what}; expected a vector of shape ({d},), such as openings: {{zeros: {d}}}"
            )
        return content

    def _objective(self) -> Array | None:
        given = self.message.options.get("objective")
        try:
            return None if given is None else read_objective(given, len(self.agent.objective))
        except ConfigurationError as error:
            raise AgentError(f"{self.where}: options: {error}") from None


async def _request_all(agent: Any, questions: list[Message]) -> list[Message | Exception]:
    """Return the agent's answers in order, errors for failed ones. Uses `step_batch` if the agent has it."""
    batch = agent_traits(agent).step_batch
    if batch is not None and questions:
        answers = batch(questions)
        return list(await answers if inspect.isawaitable(answers) else answers)

    async def one(question: Message) -> Message | Exception:
        try:
            answer = agent.step(question)
            return await answer if inspect.isawaitable(answer) else answer  # type: ignore[no-any-return]
        except Exception as error:
            return error

    return await asyncio.gather(*(one(q) for q in questions))
