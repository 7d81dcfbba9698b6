"""The contract of agents."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from a2a_ray.core.base_agent import AgentTraits, agent_traits
from a2a_ray.core.contracts import Agent
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import EMPTY, Content, Message, checked_answer
from a2a_ray.core.seeds import turn_seed
from a2a_ray.testing.comparing import awaited, expect, expect_same, run_anywhere


def check_agent(
    agent: Agent,
    content: Content = "The old bridge was closed, so the traders took the longer road.",
    *,
    another: Agent | None = None,
    options: Mapping[str, Any] = EMPTY,
) -> None:
    """Check that an agent's answers are valid and depend on the message alone.

    They must not depend on earlier messages, their order, or the other messages of a batch. The check makes about 40
    calls. An agent may raise for some messages if it does so every time and answers at least one.

    A stateful agent gets each message as the first of its conversation. A conversation cut after any turn must continue
    from `get_state` with the same answers (in `another` too), whatever other conversation runs beside it.

    Args:
        content: a message that the agent can answer: text, or a 1-D array of floats of the right length.
        another: a second agent with the same settings (a new one, or a pickled copy) that must give the same answers.
            This is what lets any replica take any turn.
        options: a turn's overrides, sent with one of the messages.

    Raises:
        AssertionError: a promise is broken; the message says which one, and by what.
    """
    run_anywhere(_check_agent(agent, content, another, options))


async def _check_agent(agent: Agent, content: Content, another: Agent | None, options: Mapping[str, Any]) -> None:
    name, traits = agent.name, agent_traits(agent)
    expect(isinstance(name, str) and name.isidentifier(), f"name is {name!r}; expected a Python identifier")
    place = traits.placement
    expect(place in ("worker", "actor"), f"placement is {place!r}; expected 'worker' or 'actor'")
    _check_turn_options(agent, traits)
    for one in (agent, another):
        if one is not None:
            agent_traits(one).check()
            agent_traits(one).setup()
    if traits.stateful:
        await _check_memory(agent, another or agent, _requests(content, EMPTY))
        agent, another = _Forgetful(agent), None if another is None else _Forgetful(another)
        traits = agent_traits(agent)._replace(max_output_tokens=traits.max_output_tokens)
    messages = _requests(content, options)
    before = [m.to_dict() for m in messages]
    first = [await _outcome(agent.step, m) for m in messages]
    answers = [m for m in first if isinstance(m, Message)]
    expect(bool(answers), f"no message was answered; the first error: {first[0]!r}")
    for message, answer in zip(messages, first, strict=True):
        if isinstance(answer, Message):
            _check_answer(answer, message, name)
    _check_tokens(traits, answers)
    expect([m.to_dict() for m in messages] == before, "the agent changed a message that it received")
    again = [await _outcome(agent.step, m) for m in messages]
    expect_same(first, again, "the same messages for the second time")
    backwards = [await _outcome(agent.step, m) for m in reversed(messages)]
    expect_same(first, backwards[::-1], "the same messages in reverse order (does the agent keep state between turns?)")
    if another is not None:
        expect_same(first, [await _outcome(another.step, m) for m in messages], "the same messages to `another`")
    if traits.step_batch is not None:
        await _check_batches(traits.step_batch, messages, first)
    if traits.bid is not None:
        await _check_bids(traits.bid, messages)


class _Forgetful:
    """A stateful agent that gets each message as the first of its conversation."""

    def __init__(self, agent: Any) -> None:
        self.name, self._agent = agent.name, agent
        if agent_traits(agent).bid is not None:
            self.bid = self._bid

    def step(self, message: Message) -> Any:
        self._agent.set_state(message.conversation, None)
        return self._agent.step(message)

    def _bid(self, message: Message) -> Any:
        self._agent.set_state(message.conversation, None)
        return self._agent.bid(message)


async def _check_memory(agent: Any, another: Any, requests: list[Message]) -> None:
    """Check that the state is all that a stateful agent remembers of a conversation, and of that conversation alone."""
    traits = agent_traits(agent)
    for method in ("get_state", "set_state"):
        expect(getattr(traits, method) is not None, f"stateful is True, but there is no {method}")
    messages = [replace(m, conversation="first", seq=i + 1) for i, m in enumerate(requests)]
    agent.set_state("first", None)
    answers, states = [], []
    for message in messages:
        answers.append(await _outcome(agent.step, message))
        try:
            states.append(json.loads(json.dumps(agent.get_state("first"))))
        except (TypeError, ValueError) as error:
            raise AssertionError(f"get_state returned {agent.get_state('first')!r:.100}; not JSON: {error}") from None
    for number in range(1, len(messages)):
        another.set_state("first", states[number - 1])
        resumed = [await _outcome(another.step, messages[number])]
        expect_same(
            answers[number : number + 1], resumed, f"turn {number + 1} after set_state of turn {number}'s state"
        )
    for conversation in ("first", "second"):
        agent.set_state(conversation, None)
    mixed = []
    for message in messages:
        mixed.append(await _outcome(agent.step, message))
        await _outcome(agent.step, replace(message, conversation="second"))
    expect_same(answers, mixed, "the conversation again, after set_state of None, beside another conversation")


def _requests(content: Content, options: Mapping[str, Any]) -> list[Message]:
    """Return messages that differ in conversation, turn, seed, content, history and options."""
    other: Content = f"{content} And then?" if isinstance(content, str) else content * 0.5
    earlier = tuple(Message("a", i, who, content, seed=i) for i, who in ((0, ""), (1, "other_1"), (2, "other_2")))
    requests = [
        Message("a", 1, "", content),
        Message("a", 1, "", content, seed=turn_seed(7, 1)),
        Message("b", 2, "other_1", other, seed=turn_seed(7, 2)),
        Message("a", 3, "other_2", other, earlier[:2], turn_seed(7, 3)),
        Message("c", 4, "other_1", content, earlier, turn_seed(8, 4)),
        Message("c", 4, "other_1", content, earlier, turn_seed(8, 4), options),
    ]
    return requests if options else requests[:-1]


async def _outcome(method: Callable[[Message], Any], message: Message) -> Any:
    """Return what a method gives for a message, or the error that it raises."""
    try:
        return await awaited(method(message))
    except Exception as error:
        return error


async def _check_bids(bid: Callable[[Message], Any], messages: list[Message]) -> None:
    bids = [await _outcome(bid, m) for m in messages]
    for one in bids:
        finite = isinstance(one, int | float) and math.isfinite(one)
        expect(finite or isinstance(one, A2AError), f"a bid is {one!r}; expected a finite number")
    expect_same(bids, [await _outcome(bid, m) for m in messages], "bids for the same messages")


async def _check_batches(batch: Callable[[Sequence[Message]], Any], messages: list[Message], alone: list[Any]) -> None:
    for size in (1, 2, len(messages)):
        for part in (slice(0, size), slice(len(messages) - size, len(messages))):
            answers = list(await awaited(batch(messages[part])))
            expect_same(alone[part], answers, f"a batch of {size} compared with single steps")
    answers = list(await awaited(batch(messages[::-1])))
    expect_same(alone, answers[::-1], "a batch in reverse order compared with single steps")


def _check_answer(answer: Message, message: Message, name: str) -> None:
    try:
        checked_answer(answer, message, name)
    except A2AError as error:
        raise AssertionError(str(error)) from None
    text = isinstance(message.content, str)
    expect(isinstance(answer.content, str) is text, f"{type(answer.content).__name__} answers {message.content!r:.60}")
    expect(answer.seed == message.seed, f"the answer has seed {answer.seed}; expected the turn's, {message.seed}")
    try:
        json.dumps(answer.to_dict())
    except TypeError as error:
        raise AssertionError(f"usage or metadata of an answer is not JSON: {error}") from None


def _check_tokens(traits: AgentTraits, answers: Sequence[Message]) -> None:
    """Check `max_output_tokens`, because budgets reserve that many tokens."""
    if traits.max_output_tokens is None:
        return
    most: Any = traits.max_output_tokens()
    valid = most is None or (isinstance(most, int) and not isinstance(most, bool) and most >= 0)
    expect(valid, f"max_output_tokens() is {most!r}; expected a whole number of at least 0, or None for no limit")
    over = [m.usage["output_tokens"] for m in answers if most is not None and m.usage.get("output_tokens", 0) > most]
    expect(not over, f"an answer has {over and over[0]} output tokens; max_output_tokens() is {most}")


def _check_turn_options(agent: Agent, traits: AgentTraits) -> None:
    allowed: Any = traits.turn_options
    expect(isinstance(allowed, frozenset | set), f"turn_options is {allowed!r}; expected a frozenset of settings")
    settings = inspect.signature(type(agent)).parameters
    missing = sorted(set(allowed) - set(settings))
    expect(
        not missing,
        f"turn_options: {missing}; expected parameters of the constructor, which are {', '.join(settings)}",
    )
