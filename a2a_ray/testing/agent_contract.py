"""The contract of agents."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from a2a_ray.core.contracts import Agent
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import EMPTY, Content, Message, checked_answer
from a2a_ray.core.seeds import turn_seed
from a2a_ray.testing.comparing import awaited, finish, hold, same


def check_agent(
    agent: Agent,
    content: Content = "The old bridge was closed, so the traders took the longer road.",
    *,
    another: Agent | None = None,
    options: Mapping[str, Any] = EMPTY,
) -> None:
    """An answer is right, and depends on its message alone: not on earlier ones, their order, or who shares a batch.

    content: something that the agent can answer: text, or a 1-D array of floats of the right length.
    another: a second agent of the same settings (made anew, or a pickled copy) that must give the same answers; this is
        what lets any replica take any turn.
    options: a turn's overrides that are sent with one of the messages.

    A stateful agent is asked each message as the first of its conversation; and a talk, cut after any turn, must go on
    from `get_state` to the very same answers (in `another` too), whatever other talk is beside it.
    The agent is asked about 40 times. An agent may raise for some messages, but it must do so every time, and answer
    at least one.
    """
    finish(_check_agent(agent, content, another, options))


async def _check_agent(agent: Agent, content: Content, another: Agent | None, options: Mapping[str, Any]) -> None:
    name = agent.name
    hold(isinstance(name, str) and name.isidentifier(), f"name is {name!r}; expected a Python identifier")
    place = getattr(agent, "placement", "worker")
    hold(place in ("worker", "actor"), f"placement is {place!r}; expected 'worker' or 'actor'")
    _check_turn_options(agent)
    for one in (agent, another):
        for preparation in ("check", "setup"):
            if one is not None and hasattr(one, preparation):
                getattr(one, preparation)()
    if getattr(agent, "stateful", False):
        await _check_memory(agent, another or agent, _questions(content, EMPTY))
        agent, another = _Anew(agent), None if another is None else _Anew(another)
    messages = _questions(content, options)
    before = [m.to_dict() for m in messages]
    first = [await _ask(agent, m) for m in messages]
    said = [m for m in first if isinstance(m, Message)]
    hold(bool(said), f"no message was answered; the first error: {first[0]!r}")
    for message, answer in zip(messages, first, strict=True):
        if isinstance(answer, Message):
            _check_answer(answer, message, name)
    _check_tokens(agent, said)
    hold([m.to_dict() for m in messages] == before, "a message was changed by the step that got it")
    again = [await _ask(agent, m) for m in messages]
    same(first, again, "the same messages for the second time")
    backwards = [await _ask(agent, m) for m in reversed(messages)]
    same(first, backwards[::-1], "the same messages in reverse order (is something kept between turns?)")
    if another is not None:
        same(first, [await _ask(another, m) for m in messages], "the same messages to `another`")
    if hasattr(agent, "step_batch"):
        await _check_batches(agent, messages, first)
    if hasattr(agent, "bid"):
        await _check_bids(agent.bid, messages)


class _Anew:
    """A stateful agent that is asked each message as the first of its conversation."""

    def __init__(self, agent: Any) -> None:
        self.name, self._agent = agent.name, agent
        if hasattr(agent, "bid"):
            self.bid = self._bid

    def step(self, message: Message) -> Any:
        self._agent.set_state(message.conversation, None)
        return self._agent.step(message)

    def _bid(self, message: Message) -> Any:
        self._agent.set_state(message.conversation, None)
        return self._agent.bid(message)


async def _check_memory(agent: Any, another: Any, questions: list[Message]) -> None:
    """What a stateful agent remembers of a conversation is its state, all of it, and of that conversation alone."""
    for method in ("get_state", "set_state"):
        hold(hasattr(agent, method), f"stateful is True, but there is no {method}")
    talk = [replace(m, conversation="talk", seq=i + 1) for i, m in enumerate(questions)]
    agent.set_state("talk", None)
    answers, states = [], []
    for message in talk:
        answers.append(await _ask(agent, message))
        try:
            states.append(json.loads(json.dumps(agent.get_state("talk"))))
        except (TypeError, ValueError) as error:
            raise AssertionError(
                f"get_state gives {agent.get_state('talk')!r:.100}, which is no JSON: {error}"
            ) from None
    for number in range(1, len(talk)):
        another.set_state("talk", states[number - 1])
        told = [await _ask(another, talk[number])]
        same(answers[number : number + 1], told, f"turn {number + 1} after set_state of turn {number}'s state")
    for conversation in ("talk", "aside"):
        agent.set_state(conversation, None)
    mixed = []
    for message in talk:
        mixed.append(await _ask(agent, message))
        await _ask(agent, replace(message, conversation="aside"))
    same(answers, mixed, "the talk anew, after set_state of None, with another talk beside it")


def _questions(content: Content, options: Mapping[str, Any]) -> list[Message]:
    """Messages that differ in conversation, turn, seed, content, history and options."""
    other: Content = f"{content} And then?" if isinstance(content, str) else content * 0.5
    earlier = tuple(Message("a", i, who, content, seed=i) for i, who in ((0, ""), (1, "other_1"), (2, "other_2")))
    ask = [
        Message("a", 1, "", content),
        Message("a", 1, "", content, seed=turn_seed(7, 1)),
        Message("b", 2, "other_1", other, seed=turn_seed(7, 2)),
        Message("a", 3, "other_2", other, earlier[:2], turn_seed(7, 3)),
        Message("c", 4, "other_1", content, earlier, turn_seed(8, 4)),
        Message("c", 4, "other_1", content, earlier, turn_seed(8, 4), options),
    ]
    return ask if options else ask[:-1]


async def _ask(agent: Agent, message: Message) -> Any:
    return await _outcome(agent.step, message)


async def _outcome(method: Callable[[Message], Any], message: Message) -> Any:
    """What a method gives for a message, or the error that it raises."""
    try:
        return await awaited(method(message))
    except Exception as error:
        return error


async def _check_bids(bid: Callable[[Message], Any], messages: list[Message]) -> None:
    bids = [await _outcome(bid, m) for m in messages]
    for one in bids:
        finite = isinstance(one, int | float) and math.isfinite(one)
        hold(finite or isinstance(one, A2AError), f"a bid is {one!r}; expected a finite number")
    same(bids, [await _outcome(bid, m) for m in messages], "bids for the same messages")


async def _check_batches(agent: Agent, messages: list[Message], alone: list[Any]) -> None:
    batch: Callable[[Sequence[Message]], Any] = getattr(agent, "step_batch")  # noqa: B009 - optional in the contract
    for size in (1, 2, len(messages)):
        for part in (slice(0, size), slice(len(messages) - size, len(messages))):
            answers = list(await awaited(batch(messages[part])))
            same(alone[part], answers, f"a batch of {size} against one by one")
    answers = list(await awaited(batch(messages[::-1])))
    same(alone, answers[::-1], "a batch in reverse order against one by one")


def _check_answer(answer: Message, message: Message, name: str) -> None:
    try:
        checked_answer(answer, message, name)
    except A2AError as error:
        raise AssertionError(str(error)) from None
    text = isinstance(message.content, str)
    hold(isinstance(answer.content, str) is text, f"{type(answer.content).__name__} answers {message.content!r:.60}")
    hold(answer.seed == message.seed, f"the answer has seed {answer.seed}; expected the turn's, {message.seed}")
    try:
        json.dumps(answer.to_dict())
    except TypeError as error:
        raise AssertionError(f"usage or metadata of an answer is no JSON: {error}") from None


def _check_tokens(agent: Agent, said: Sequence[Message]) -> None:
    """Budgets reserve what `max_output_tokens` says."""
    told: Callable[[], Any] | None = getattr(agent, "max_output_tokens", None)
    if told is None:
        return
    most = told()
    right = most is None or (isinstance(most, int) and not isinstance(most, bool) and most >= 0)
    hold(right, f"max_output_tokens() is {most!r}; expected a whole number of at least 0, or None for no limit")
    over = [m.usage["output_tokens"] for m in said if most is not None and m.usage.get("output_tokens", 0) > most]
    hold(not over, f"an answer has {over and over[0]} output tokens; max_output_tokens() is {most}")


def _check_turn_options(agent: Agent) -> None:
    allowed: Any = getattr(agent, "turn_options", frozenset())
    hold(isinstance(allowed, frozenset | set), f"turn_options is {allowed!r}; expected a frozenset of settings")
    settings = inspect.signature(type(agent)).parameters
    missing = sorted(set(allowed) - set(settings))
    hold(not missing, f"turn_options names {missing}, which the constructor does not take: {', '.join(settings)}")
