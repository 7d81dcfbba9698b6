"""Contract tests for agents, protocols and detectors of your own; the built-in parts pass the same.

    from a2a_ray.testing import check_agent, check_detector, check_protocol

    def test_my_agent() -> None:
        check_agent(MyAgent("ann"))

Each raises AssertionError with one sentence: which promise was broken, and by what. They need nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import math
import pickle
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from a2a_ray.core.contracts import Agent, Bids, Observer, Say, Stop, TurnProtocol, Verdict, View
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import EMPTY, Content, Message, checked_answer
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.transcript import RUNNING, Transcript

T = TypeVar("T")


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
    _finish(_check_agent(agent, content, another, options))


async def _check_agent(agent: Agent, content: Content, another: Agent | None, options: Mapping[str, Any]) -> None:
    name = agent.name
    _hold(isinstance(name, str) and name.isidentifier(), f"name is {name!r}; expected a Python identifier")
    place = getattr(agent, "placement", "worker")
    _hold(place in ("worker", "actor"), f"placement is {place!r}; expected 'worker' or 'actor'")
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
    _hold(bool(said), f"no message was answered; the first error: {first[0]!r}")
    for message, answer in zip(messages, first, strict=True):
        if isinstance(answer, Message):
            _check_answer(answer, message, name)
    _check_tokens(agent, said)
    _hold([m.to_dict() for m in messages] == before, "a message was changed by the step that got it")
    again = [await _ask(agent, m) for m in messages]
    _same(first, again, "the same messages for the second time")
    backwards = [await _ask(agent, m) for m in reversed(messages)]
    _same(first, backwards[::-1], "the same messages in reverse order (is something kept between turns?)")
    if another is not None:
        _same(first, [await _ask(another, m) for m in messages], "the same messages to `another`")
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
        _hold(hasattr(agent, method), f"stateful is True, but there is no {method}")
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
        _same(answers[number : number + 1], told, f"turn {number + 1} after set_state of turn {number}'s state")
    for conversation in ("talk", "aside"):
        agent.set_state(conversation, None)
    mixed = []
    for message in talk:
        mixed.append(await _ask(agent, message))
        await _ask(agent, replace(message, conversation="aside"))
    _same(answers, mixed, "the talk anew, after set_state of None, with another talk beside it")


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
        return await _awaited(method(message))
    except Exception as error:
        return error


async def _check_bids(bid: Callable[[Message], Any], messages: list[Message]) -> None:
    bids = [await _outcome(bid, m) for m in messages]
    for one in bids:
        finite = isinstance(one, int | float) and math.isfinite(one)
        _hold(finite or isinstance(one, A2AError), f"a bid is {one!r}; expected a finite number")
    _same(bids, [await _outcome(bid, m) for m in messages], "bids for the same messages")


async def _check_batches(agent: Agent, messages: list[Message], alone: list[Any]) -> None:
    batch: Callable[[Sequence[Message]], Any] = getattr(agent, "step_batch")  # noqa: B009 - optional in the contract
    for size in (1, 2, len(messages)):
        for part in (slice(0, size), slice(len(messages) - size, len(messages))):
            answers = list(await _awaited(batch(messages[part])))
            _same(alone[part], answers, f"a batch of {size} against one by one")
    answers = list(await _awaited(batch(messages[::-1])))
    _same(alone, answers[::-1], "a batch in reverse order against one by one")


def _check_answer(answer: Message, message: Message, name: str) -> None:
    try:
        checked_answer(answer, message, name)
    except A2AError as error:
        raise AssertionError(str(error)) from None
    text = isinstance(message.content, str)
    _hold(isinstance(answer.content, str) is text, f"{type(answer.content).__name__} answers {message.content!r:.60}")
    _hold(answer.seed == message.seed, f"the answer has seed {answer.seed}; expected the turn's, {message.seed}")
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
    _hold(right, f"max_output_tokens() is {most!r}; expected a whole number of at least 0, or None for no limit")
    over = [m.usage["output_tokens"] for m in said if most is not None and m.usage.get("output_tokens", 0) > most]
    _hold(not over, f"an answer has {over and over[0]} output tokens; max_output_tokens() is {most}")


def _check_turn_options(agent: Agent) -> None:
    allowed: Any = getattr(agent, "turn_options", frozenset())
    _hold(isinstance(allowed, frozenset | set), f"turn_options is {allowed!r}; expected a frozenset of settings")
    settings = inspect.signature(type(agent)).parameters
    missing = sorted(set(allowed) - set(settings))
    _hold(not missing, f"turn_options names {missing}, which the constructor does not take: {', '.join(settings)}")


def check_protocol(
    protocol: TurnProtocol,
    agents: Sequence[str] = ("ann", "bob"),
    opening: Content = "Hello.",
    turns: int = 12,
) -> None:
    """A pure function of the transcript: who speaks and what is shown, asked at any time, in any order, on any copy.

    agents: names of the agents it is to lead; it must name no others. opening: text or a 1-D array of floats.
    A talk of `turns` messages is held; cut after any record, it must go on to the very same end.
    """
    names = tuple(agents)
    whole = _talk(protocol, Transcript("check", names, opening, seed=5), turns)
    _hold(bool(whole.turns), "it stopped before anybody spoke")
    cuts = [_cut(whole, length) for length in range(len(whole) + 1)]
    asked = [_asked(protocol, cut, names) for cut in cuts]
    for cut, before in reversed(list(zip(cuts, asked, strict=True))):
        where = f"after {len(cut)} records"
        _hold(_asked(protocol, cut, names) == before, f"{where}, it gives two answers for the same transcript")
        copy: Transcript = pickle.loads(pickle.dumps(cut))
        _hold(_asked(protocol, copy, names) == before, f"{where}, it gives another answer for an equal transcript")
        _hold(len(cut) == len(copy) and cut.status == RUNNING, f"{where}, it changed the transcript")
        resumed = _talk(protocol, copy, turns)
        _hold(_told(resumed) == _told(whole), f"cut {where}, the talk goes on otherwise than undisturbed")


def _talk(protocol: TurnProtocol, transcript: Transcript, turns: int) -> Transcript:
    """The transcript, led to its end by the protocol; its agents are pure functions of what they are shown."""
    voices = [_Voice(name) for name in transcript.agents]
    conversation = Conversation(voices, protocol, turns=turns, transcript=transcript)
    transcript = conversation.transcript
    most = (turns + 1) * (2 + len(voices))

    async def hold() -> None:
        async for record in conversation:
            _hold(record.seq <= most, f"{record.seq} records, but only {len(transcript.messages)} messages: no end")

    try:
        _finish(hold())
    except A2AError as error:
        raise AssertionError(f"the talk failed: {error}") from None
    _hold(bool(transcript.reason), "it stopped without a reason")
    return transcript


class _Voice:
    """Answers and bids by a hash of all that it is shown."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        number = self._number(message)
        if isinstance(message.content, str):
            return message.reply(f"{self.name} says {number}.", self.name)
        return message.reply(message.content * 0.5 + number % 7, self.name)

    def bid(self, message: Message) -> float:
        return self._number(message) % 5

    def _number(self, message: Message) -> int:
        shown = {k: v for k, v in message.to_dict().items() if k != "created_at"}
        shown["history"] = [(m.sender, m.to_dict()["content"]) for m in message.history]
        digest = hashlib.blake2b(f"{self.name}{shown}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little")


def _asked(protocol: TurnProtocol, transcript: Transcript, names: tuple[str, ...]) -> Any:
    """What the protocol says of a transcript, in a form that can be compared."""
    chosen = protocol.speakers(transcript)
    if isinstance(chosen, Stop):
        return chosen
    if isinstance(chosen, Say):
        return Message("", 0, chosen.sender, chosen.content, kind=chosen.kind).to_dict()
    speakers = (chosen,) if isinstance(chosen, str) else tuple(chosen.speakers if isinstance(chosen, Bids) else chosen)
    strange = [s for s in speakers if s not in names]
    _hold(bool(speakers) and not strange, f"it named {speakers}; expected names out of {names}")
    return type(chosen).__name__, [(s, _shown(protocol.view(transcript, s), s)) for s in speakers]


def _shown(view: View, speaker: str) -> dict[str, Any]:
    _hold(isinstance(view, View), f"the view of {speaker!r} is {type(view).__name__}; expected a View")
    return Message("", 0, view.sender, view.content, tuple(view.history), options=view.options).to_dict()


def _cut(whole: Transcript, length: int) -> Transcript:
    cut = Transcript(whole.id, whole.agents, whole.opening.content, whole.seed, whole.metadata)
    for record in whole.turns[:length]:
        cut.append(record)
    return cut


def _told(transcript: Transcript) -> list[Any]:
    return [_comparable(m) for m in transcript.turns] + [transcript.status, transcript.reason]


def check_detector(factory: Callable[[], Observer], transcripts: Sequence[Transcript] | None = None) -> None:
    """Verdicts follow from the messages alone: not from other conversations, the clock, or how speakers are named.

    factory: makes a fresh detector; one watches one conversation.
    transcripts: what to show it; by default talks of two and three speakers that loop and that do not, with blank
        texts, other scripts, bids, and one of vectors.
    """
    talks = list(transcripts) if transcripts is not None else list(_talks())
    alone = [_verdicts(factory(), talk.turns) for talk in talks]
    for talk, verdicts in zip(talks, alone, strict=True):
        for message, verdict in zip(talk.turns, verdicts, strict=True):
            _check_verdict(verdict, message)
        stored = [replace(Message.from_dict(json.loads(json.dumps(m.to_dict()))), created_at=1.0) for m in talk.turns]
        replayed = _verdicts(factory(), stored)
        _hold(replayed == verdicts, f"talk {talk.id!r}: other verdicts when it is read back from the store")
        names = {s: f"speaker_{i}" for i, s in enumerate(sorted({m.sender for m in talk.turns}, reverse=True))}
        renamed = _verdicts(factory(), [replace(m, sender=names[m.sender]) for m in talk.turns])
        same = [(v.status, v.action, {names.get(k, k): x for k, x in v.scores.items()}) for v in verdicts]
        other = [(v.status, v.action, dict(v.scores)) for v in renamed]
        _hold(same == other, f"talk {talk.id!r}: other verdicts when the speakers have other names")
    together = [factory() for _ in talks]
    mixed: list[list[Verdict]] = [[] for _ in talks]
    for place in range(max(len(t) for t in talks)):
        for detector, talk, out in zip(together, talks, mixed, strict=True):
            out.extend(detector.update(m) for m in talk.turns[place : place + 1])
    _hold(mixed == alone, "other verdicts when several conversations are watched at once")


def _verdicts(detector: Observer, messages: Sequence[Message]) -> list[Verdict]:
    return [detector.update(m) for m in messages]


def _check_verdict(verdict: Verdict, message: Message) -> None:
    where = f"the verdict after turn {message.turn}"
    _hold(isinstance(verdict, Verdict), f"{where} is {type(verdict).__name__}; expected a Verdict")
    actions = ("record", "nudge", "stop")
    _hold(verdict.action in actions, f"{where} has action {verdict.action!r}; expected one of {actions}")
    _hold(verdict.action != "stop" or bool(verdict.reason), f"{where} stops without a reason")
    _hold(all(math.isfinite(s) for s in verdict.scores.values()), f"{where} has scores {verdict.scores}; not finite")
    try:
        json.dumps(dict(verdict.evidence))
    except TypeError as error:
        raise AssertionError(f"{where} has evidence that is no JSON: {error}") from None


def _talks() -> Iterator[Transcript]:
    """Talks of two and three speakers: a varied one, loops of several periods, blanks, bids, vectors."""
    varied = [f"Point {i}: {hashlib.blake2b(bytes([i]), digest_size=9).hexdigest()}." for i in range(12)]
    for speakers in (("ann", "bob"), ("ann", "bob", "cid")):
        yield _spoken(f"varied-{len(speakers)}", speakers, varied)
        for period in (1, 2, 3):
            said = [*varied[:4], *(["Yes, we agree.", "So we do.", "Let us go on."][:period] * 5), *varied[8:]]
            yield _spoken(f"period-{period}-{len(speakers)}", speakers, said)
    yield _spoken(
        "blank",
        ("ann", "bob"),
        ["", " ", "", "\n", "", "", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。", "猫は鳴いた。"],
    )
    bids = _spoken("bids", ("ann", "bob"), varied[:3])
    bids.append(Message("bids", 4, "ann", "0.5", kind="bid"))
    yield bids
    try:
        import numpy as np
    except ImportError:
        return
    yield _spoken("vectors", ("ann", "bob"), [np.array([0.5**i, 1.0]) for i in range(8)])


def _spoken(id: str, speakers: tuple[str, ...], said: Sequence[Content]) -> Transcript:
    transcript = Transcript(id, speakers, "Hello.")
    for i, content in enumerate(said):
        transcript.append(Message(id, i + 1, speakers[i % len(speakers)], content))
    return transcript


def _comparable(value: Any) -> Any:
    """An answer without its time stamp; an error as its class and text."""
    if isinstance(value, Message):
        return {k: v for k, v in value.to_dict().items() if k != "created_at"}
    return (type(value).__name__, str(value)) if isinstance(value, BaseException) else value


def _same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    _hold(len(first) == len(second), f"{what}: {len(second)} answers to {len(first)} messages")
    for number, (a, b) in enumerate(zip(first, second, strict=True), 1):
        one, other = _comparable(a), _comparable(b)
        _hold(one == other, f"{what}: message {number} was answered {one!r:.300}, then {other!r:.300}")


def _hold(condition: bool, sentence: str) -> None:
    """`assert` that python -O leaves in."""
    if not condition:
        raise AssertionError(sentence)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _finish(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, also where an event loop runs already (a notebook, an asynchronous test)."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
