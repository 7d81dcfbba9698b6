"""What a run will take, before it is started: conversations, turns, calls, tokens, money."""

from __future__ import annotations

from typing import Any, NamedTuple

from a2a_ray.agents.regression import ASKS
from a2a_ray.runtime.experiment import AgentSpec, Experiment

CHARACTERS_PER_TOKEN = 4
"""Of English text; the usual rule of thumb."""
ASSUMED_ANSWER = 500
"""Tokens of an answer where the agent's settings set no limit."""


class Estimate(NamedTuple):
    """At most so much: every conversation runs to its limit and every answer is as long as it may be.

    cost: in the currency of `price`; None where no agent has one. assumed: agents without a token limit.
    """

    conversations: int
    turns: int
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    assumed: list[str]


def estimate(experiment: Experiment) -> Estimate:
    """The estimate of an experiment. Calls are model calls and others alike, bids included."""
    calls = tokens_in = tokens_out = 0
    cost: float | None = None
    assumed: set[str] = set()
    for cell in experiment.cells:
        talks = len(cell.opening_contents) * cell.repeats
        models = [spec.inner for spec in cell.agents]
        answers = [_answer(spec, assumed) for spec in models]
        prompts = [
            None if model is spec else len(spec.build().prompt()) // CHARACTERS_PER_TOKEN
            for spec, model in zip(cell.agents, models, strict=True)
        ]
        opening = max((_length(o) for o in cell.opening_contents), default=0)
        by_bid = cell.protocol["kind"] == "adaptive" and cell.protocol.get("by", "bid") == "bid"
        bids = len(cell.agents) if by_bid else 0
        calls += talks * cell.limit * (1 + bids)
        for turn in range(cell.limit):
            who = turn % len(cell.agents)
            if answers[who] == 0:
                continue
            spec, shown, asks = models[who], prompts[who], talks
            if shown is None:
                shown = _shown(cell.protocol.get("show", "last"), turn, max(answers), opening)
            else:  # the prompt of an agent that may ask again
                asks = ASKS * talks
                calls += asks - talks
            shown += _instructions(spec)
            tokens_in += asks * shown
            tokens_out += asks * answers[who]
            if spec.rate is not None:
                cost = (cost or 0.0) + asks * (shown * spec.rate.input + answers[who] * spec.rate.output) / 1e6
    conversations, turns = experiment.size()
    return Estimate(conversations, turns, calls, tokens_in, tokens_out, cost, sorted(assumed))


def _answer(spec: AgentSpec, assumed: set[str]) -> int:
    """Most tokens of one answer; 0 for agents that are no language models."""
    if spec.kind == "hf":
        return int(spec.settings.get("max_new_tokens", 50))
    if spec.kind != "openai":
        return 0
    limit = spec.settings.get("max_tokens")
    if limit is None:
        assumed.add(spec.name)
    return int(limit or ASSUMED_ANSWER)


def _shown(show: Any, turn: int, answer: int, opening: int) -> int:
    """Tokens shown at a turn (counted from 0) when every answer is as long as it may be."""
    if show == "all":
        return opening + turn * answer
    if isinstance(show, dict) and "characters" in show:
        return int(min(show["characters"] / CHARACTERS_PER_TOKEN, opening + turn * answer))
    last = show.get("last", 1) if isinstance(show, dict) else 1
    return int(last) * answer if turn >= last else opening + turn * answer


def _instructions(spec: AgentSpec) -> int:
    return len(spec.settings.get("instructions") or "") // CHARACTERS_PER_TOKEN


def _length(opening: Any) -> int:
    return len(opening) // CHARACTERS_PER_TOKEN if isinstance(opening, str) else 0
