"""Estimate a run before it starts: conversations, turns, calls, tokens, cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.experiment.agent_spec import identity
from a2a_ray.experiment.spec import AgentSpec, Experiment

CHARACTERS_PER_TOKEN = 4
"""For English text; the usual rule of thumb."""
ASSUMED_ANSWER = 500
"""Tokens of an answer if neither the agent nor its settings set a limit."""


class Estimate(NamedTuple):
    """Upper bounds: every conversation runs to its limit and every answer has its maximum length.

    cost: in the currency of `price`; None if no agent has a price. assumed: agents without a token limit.
    judge_calls: those of `calls` that the judges of observers make if every observer is suspicious all the time.
    """

    conversations: int
    turns: int
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    assumed: list[str]
    judge_calls: int = 0


class _Cost(NamedTuple):
    """The cost of one step of an agent.

    output: tokens of an answer; 0 for agents that are not language models. input: tokens of a request; None for those
    of the context. requests: the number of requests in a step.
    """

    output: int
    input: int | None
    requests: int


@dataclass
class _Totals:
    calls: int = 0
    input: int = 0
    output: int = 0
    cost: float | None = None

    def add(self, spec: AgentSpec, step: _Cost, times: int, context: int) -> None:
        """Add this number of steps. context: tokens, unless the step knows what it reads."""
        requests = times * (step.requests if step.output else 1)
        self.calls += requests
        if step.output == 0:
            return
        context = (context if step.input is None else step.input) + _instructions(spec.inner)
        self.input += requests * context
        self.output += requests * step.output
        price = spec.rate or spec.inner.rate
        if price is not None:
            cost = requests * (context * price.input + step.output * price.output) / 1e6
            self.cost = (self.cost or 0.0) + cost


def estimate(experiment: Experiment) -> Estimate:
    """Return the estimate of an experiment. Calls include bids and calls of agents that are not models."""
    assumed: set[str] = set()
    known: dict[str, _Cost] = {}
    total, judge_calls = _Totals(), 0
    for cell in experiment.cells:
        conversations_here = len(cell.opening_contents) * cell.repeats
        steps = [_cost(spec, known, assumed) for spec in cell.agents]
        opening = max((_length(o) for o in cell.opening_contents), default=0)
        by_bid = cell.protocol["kind"] == "adaptive" and cell.protocol.get("by", "bid") == "bid"
        bids = len(cell.agents) if by_bid else 0
        total.calls += conversations_here * cell.limit * bids
        longest = max(step.output for step in steps)
        for turn in range(cell.limit):
            spec, step = cell.agents[turn % len(cell.agents)], steps[turn % len(cell.agents)]
            context = _context(cell.protocol.get("context", "last"), turn, longest, opening) if step.output else 0
            total.add(spec, step, conversations_here, context)
        before = total.calls
        for judge in cell.judges.values():
            times = judge.calls(cell.limit) * conversations_here
            total.add(judge, _cost(judge, known, assumed), times, judge.prompt_characters // CHARACTERS_PER_TOKEN)
        judge_calls += total.calls - before
    conversations, turns = experiment.size()
    return Estimate(
        conversations, turns, total.calls, total.input, total.output, total.cost, sorted(assumed), judge_calls
    )


def output_limit(spec: AgentSpec, agent: Any) -> int | None:
    """Return the most tokens of one answer; None without a limit, 0 if the agent is not a language model."""
    limit = agent_traits(agent).max_output_tokens
    if limit is None:
        return None if spec.paid else 0
    return limit()


def _cost(spec: AgentSpec, known: dict[str, _Cost], assumed: set[str]) -> _Cost:
    """Return the cost of a step as the agent reports it; each agent of a sweep is built once."""
    key = json.dumps([spec.settings, spec.paid], sort_keys=True, default=identity)
    if key not in known:
        agent = spec.build()
        limit = output_limit(spec, agent)
        if limit is None:
            assumed.add(spec.name)
        traits = agent_traits(agent)
        input_tokens = None if traits.max_input_tokens is None else traits.max_input_tokens()
        known[key] = _Cost(ASSUMED_ANSWER if limit is None else limit, input_tokens, traits.max_requests)
    return known[key]


def _context(setting: Any, turn: int, answer: int, opening: int) -> int:
    """Return the tokens of the context at a turn, counted from 0, if every answer has its maximum length."""
    if setting == "all":
        return opening + turn * answer
    if isinstance(setting, dict) and "characters" in setting:
        return int(min(setting["characters"] / CHARACTERS_PER_TOKEN, opening + turn * answer))
    last = setting.get("last", 1) if isinstance(setting, dict) else 1
    return int(last) * answer if turn >= last else opening + turn * answer


def _instructions(spec: AgentSpec) -> int:
    return len(spec.settings.get("instructions") or "") // CHARACTERS_PER_TOKEN


def _length(opening: Any) -> int:
    return len(opening) // CHARACTERS_PER_TOKEN if isinstance(opening, str) else 0
