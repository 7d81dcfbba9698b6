"""The conversation loop: who speaks and what is shown, failures, bids, observers, resuming."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.agents.function import FunctionAgent
from a2a_ray.core.contracts import Observer
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, InvalidResponseError
from a2a_ray.core.message import BID, Content, Message
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.termination import MaxTurns, TextMention
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from tests.strategies import agent_names, contents, seeds


class Voice:
    """Says something that follows from the seed and all that it is shown."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def step(self, message: Message) -> Message:
        await asyncio.sleep(0)
        shown = [m.content for m in message.history] + [message.content]
        return message.reply(f"{self.name} {message.seed % 997} {sum(len(str(s)) for s in shown)}", self.name)

    def bid(self, message: Message) -> float:
        return message.seed % 5


def said(transcript: Transcript) -> list[tuple[Any, ...]]:
    """All but time stamps."""
    return [(m.seq, m.kind, m.sender, str(m.content), m.seed) for m in transcript.turns]


@given(agent_names, contents, st.integers(1, 9), seeds)
def test_agents_alternate(names: tuple[str, ...], opening: Content, turns: int, seed: int) -> None:
    transcript = Conversation([EchoAgent(n) for n in names], opening=opening, max_turns=turns, seed=seed).run()
    assert [m.sender for m in transcript.turns] == [names[i % len(names)] for i in range(turns)]
    assert [m.turn for m in transcript.turns] == list(range(1, turns + 1))
    assert [m.seed for m in transcript.turns] == [turn_seed(seed, t) for t in range(1, turns + 1)]
    for message in transcript.turns:
        np.testing.assert_array_equal(message.content, opening)
    assert (transcript.status, transcript.reason) == (DONE, f"turn limit {turns}")


def test_each_is_shown_what_the_protocol_says() -> None:
    def show(show: Any) -> list[list[str]]:
        seen: list[list[str]] = []

        def listen(shown: list[str]) -> str:
            seen.append(shown)
            return f"{len(seen)}"

        agents = [FunctionAgent(n, listen, "history") for n in ("ann", "bob")]
        Conversation(agents, Alternating(show), "0", max_turns=4).run()
        return seen

    assert show("last") == [["0"], ["1"], ["2"], ["3"]]
    assert show("all") == [["0"], ["0", "1"], ["0", "1", "2"], ["0", "1", "2", "3"]]
    assert show({"last": 2}) == [["0"], ["0", "1"], ["1", "2"], ["2", "3"]]
    assert show({"characters": 3}) == [["0"], ["0", "1"], ["0", "1", "2"], ["1", "2", "3"]]


def test_the_default_is_25_rounds() -> None:
    assert len(Conversation([EchoAgent("ann"), EchoAgent("bob")]).run().messages) == 50


def test_options_reach_the_agent_and_the_protocols_own_go_first() -> None:
    seen: list[Mapping[str, Any]] = []

    def listen(message: Message) -> str:
        seen.append(message.options)
        return "Hi."

    class Cooling(Alternating):
        def context(self, transcript: Transcript, speaker: str) -> Any:
            return super().context(transcript, speaker)._replace(options={"temperature": 0.1})

    agents = [FunctionAgent("ann", listen, "message")]
    Conversation(agents, Cooling(), max_turns=1, options={"ann": {"temperature": 0.9, "top_p": 0.5}}).run()
    assert seen == [{"temperature": 0.1, "top_p": 0.5}]


FAILURES: list[tuple[Any, Content, type[AgentError], str]] = [
    (lambda _: 1 / 0, "Hello.", AgentError, "agent 'bob' failed at turn 2: ZeroDivisionError: division by zero"),
    (lambda _: None, "Hello.", InvalidResponseError, "agent 'bob' returned None at turn 2; expected a Message"),
    (lambda _: 3, "Hello.", InvalidResponseError, "agent 'bob' returned int '3' at turn 2; expected a Message"),
    (lambda w: w[:1], np.ones(2), InvalidResponseError, r"shape \(1,\); expected \(2,\)"),
    (lambda w: np.stack([w, w]), np.ones(2), InvalidResponseError, r"shape \(2, 2\); expected a 1-D array"),
    (lambda w: w * np.nan, np.ones(2), InvalidResponseError, r"NaN or infinite values \(2 of 2\)"),
    (lambda w: w / 0.0, np.ones(2), InvalidResponseError, "NaN or infinite"),
    (lambda w: [str(x) for x in w], np.ones(2), InvalidResponseError, "expected text or a 1-D array of floats"),
    (lambda w: [[1.0], [1.0, 2.0]], np.ones(2), InvalidResponseError, "expected text or a 1-D array"),
]


@pytest.mark.parametrize(("function", "opening", "kind", "sentence"), FAILURES)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_failure_is_named_and_what_was_said_is_kept(
    function: Any, opening: Content, kind: type[AgentError], sentence: str
) -> None:
    conversation = Conversation([EchoAgent("ann"), FunctionAgent("bob", function)], opening=opening)
    with pytest.raises(kind, match=sentence):
        conversation.run()
    transcript = conversation.transcript
    assert transcript.status == FAILED
    assert [m.sender for m in transcript.turns] == ["ann"]
    assert transcript.error


def test_an_answer_for_another_is_refused() -> None:
    class Liar(EchoAgent):
        def step(self, message: Message) -> Message:
            return message.reply("Hi.", "bob")

    with pytest.raises(InvalidResponseError, match="signed 'bob'"):
        Conversation([Liar("ann")]).run()


def test_whole_numbers_become_floats() -> None:
    def halve(w: Any) -> list[int]:
        return [int(x) for x in w]

    transcript = Conversation([FunctionAgent("ann", halve)], opening=np.array([1.0, 2.0]), max_turns=1).run()
    assert np.asarray(transcript.last.content).dtype == np.float64


def test_the_turn_goes_to_the_highest_bid() -> None:
    transcript = Conversation([Voice("ann"), Voice("bob"), Voice("cid")], Adaptive(), "Hello.", max_turns=6).run()
    records = transcript.turns
    assert len(transcript.messages) == 6
    for start in range(0, len(records), 4):
        bids, message = records[start : start + 3], records[start + 3]
        assert [b.kind for b in bids] == [BID] * 3
        assert message.sender in {b.sender for b in bids if b.content == max(str(b.content) for b in bids)}


@pytest.mark.parametrize(("value", "sentence"), [(float("nan"), "bid nan"), ("much", "bid 'much'"), (None, "bid None")])
def test_a_bid_must_be_a_number(value: Any, sentence: str) -> None:
    agent = FunctionAgent("ann", str, bid=lambda _: value)
    with pytest.raises(InvalidResponseError, match=sentence):
        Conversation([agent], Adaptive()).run()


def test_an_agent_without_bids_is_named() -> None:
    with pytest.raises(AgentError, match=r"agent 'ann': EchoAgent has no bid\(message\)"):
        Conversation([EchoAgent("ann")], Adaptive()).run()


class Watcher:
    """Stops when it has seen so many messages."""

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0

    def update(self, message: Message) -> ObserverVerdict:
        self.seen += 1
        return ObserverVerdict("loop", "stop", f"{self.seen} seen") if self.seen == self.most else ObserverVerdict()


def test_an_observer_can_stop_the_talk() -> None:
    watcher: Observer = Watcher(3)
    transcript = Conversation([EchoAgent("ann")], observers={"watcher": watcher}).run()
    assert len(transcript) == 3
    assert transcript.reason == "watcher: 3 seen"
    assert [(turn, name, v.status) for turn, name, v in transcript.verdicts] == [(3, "watcher", "loop")]


def test_a_stop_condition_ends_the_talk() -> None:
    agents = [FunctionAgent("ann", lambda text: text + "!")]
    transcript = Conversation(agents, opening="Stop", termination=TextMention("!!!") | MaxTurns(9)).run()
    assert (len(transcript), transcript.reason) == (3, "'!!!' was said")


@pytest.mark.parametrize(
    "protocol", [Alternating("all"), Simultaneous(), Simultaneous("join"), Adaptive(context="all")]
)
@given(cut=st.integers(0, 24))
def test_a_resumed_talk_equals_the_undisturbed_one(protocol: Any, cut: int) -> None:
    def conversation(transcript: Transcript | None = None) -> Conversation:
        voices = [Voice("ann"), Voice("bob")]
        return Conversation(voices, protocol, "Hello.", max_rounds=5, seed=3, transcript=transcript)

    whole = conversation().run()
    assume(cut < len(whole))
    part = Transcript(whole.id, whole.agents, "Hello.", 3)
    for record in whole.turns[:cut]:
        part.append(record)
    assert part.status == RUNNING
    resumed = conversation(part).run()
    assert said(resumed) == said(whole)
    assert resumed.reason == whole.reason


def test_a_resumed_talk_shows_its_observers_what_went_before() -> None:
    part = Transcript("c", ("ann", "bob"), "Opening.")
    for number, name in ((1, "ann"), (2, "bob")):
        part.append(Message("c", number, name, "Hi."))
    transcript = Conversation([EchoAgent("ann"), EchoAgent("bob")], observers=[Watcher(4)], transcript=part).run()
    assert (len(transcript), transcript.reason) == (4, "Watcher: 4 seen")


async def test_run_works_inside_a_running_loop() -> None:
    transcript = Conversation([Voice("ann"), Voice("bob")], opening="Hello.", max_rounds=2).run()
    again = await Conversation([Voice("ann"), Voice("bob")], opening="Hello.", max_rounds=2).run_async()
    assert said(transcript) == said(again)


async def test_turns_come_as_they_are_said() -> None:
    conversation = Conversation([Voice("ann"), Voice("bob")], opening="Hello.", max_rounds=2)
    seen = [(turn.turn, turn.sender) async for turn in conversation]
    assert seen == [(1, "ann"), (2, "bob"), (3, "ann"), (4, "bob")]


@pytest.mark.parametrize(
    ("names", "settings", "sentence"),
    [
        ([], {}, "agents: none given"),
        (["ann", "ann"], {}, "'ann' is given twice"),
        (["a b"], {}, "'a b'; expected a Python identifier"),
        (["ann"], {"max_rounds": 0}, "max_rounds: 0; expected at least 1"),
        (["ann"], {"max_turns": 0}, "max_turns: 0; expected at least 1"),
        (["ann"], {"max_turns": 1, "max_rounds": 1}, "give one of them"),
        (["ann"], {"protocol": "alternate"}, r"Did you mean 'alternating'\?"),
    ],
)
def test_what_cannot_be_started_is_refused(names: list[str], settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Conversation([EchoAgent(n) for n in names], **settings)


# --- parts that are none, or that answer with something else ------------------------------------------------------


def greet(text: str) -> str:
    return "Good day."


class Nameless:
    def step(self, message: Message) -> Message:
        return message.reply("x", "ann")


class Odd:
    """An observer, a protocol and a stop condition that return a value which none of them may."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def update(self, *what: Any) -> Any:
        return self.value

    speakers = context = check = update


@pytest.mark.parametrize(
    ("agents", "settings", "sentence"),
    [
        ([greet], {}, r"agents.0: the function greet; .*wrap it: FunctionAgent\('greet', greet\)"),
        ([lambda text: text], {}, r"the function <lambda>; .*FunctionAgent\('answer', answer\)"),
        ([EchoAgent], {}, r"agents.0: the class EchoAgent; expected an agent. Make one: EchoAgent\(\.\.\.\)"),
        ([Nameless()], {}, "agents.0: Nameless .* has no name; expected an agent, an object with a name and step"),
        ([5], {}, "agents.0: int '5' has no name and no step"),
        ([{"name": "ann", "kind": "echo"}], {}, "agents.0: dict .* has no name and no step"),
        (EchoAgent("ann"), {}, "agents: EchoAgent .*; expected a list of agents"),
        ("ann", {}, "agents: str 'ann'; expected a list of agents"),
        (None, {"observers": [Watcher]}, "observers.type: the class Watcher; expected an observer"),
        (None, {"observers": {"w": greet}}, "observers.w: the function greet; .*with update"),
        (None, {"observers": {"w": object()}}, "observers.w: object .* has no update; expected an observer"),
        (None, {"observers": Watcher(4)}, "observers: Watcher; expected a list"),
        (None, {"termination": greet}, r"termination: the function greet; .*wrap it: TerminationCondition\(greet\)"),
        (None, {"termination": MaxTurns}, "termination: the class MaxTurns; expected a termination condition"),
        (None, {"termination": "TERMINATE"}, "termination: str 'TERMINATE' has no check"),
        (None, {"protocol": Alternating}, "protocol: the class Alternating; expected a protocol"),
        (None, {"protocol": greet}, "protocol: the function greet; .*subclass of TurnProtocol"),
        (None, {"protocol": 5}, "protocol: int '5' has no speakers and no context"),
    ],
)
def test_what_is_no_part_is_named_with_the_remedy(agents: Any, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Conversation([EchoAgent("ann")] if agents is None else agents, **settings)


@pytest.mark.parametrize("value", [None, True, "loop", 3, {"action": "stop"}])
def test_an_observer_must_return_a_verdict(value: Any) -> None:
    conversation = Conversation([EchoAgent("ann")], observers={"mine": Odd(value)}, opening="x")
    with pytest.raises(
        InvalidResponseError,
        match=r"observer 'mine' returned .* at turn 1; expected an ObserverVerdict \(return NOTHING",
    ):
        conversation.run()
    assert (conversation.transcript.status, len(conversation.transcript)) == (FAILED, 1)


def test_a_verdict_must_ask_for_something_known() -> None:
    with pytest.raises(
        InvalidResponseError, match="observer 'Odd' returned action 'halt' at turn 1; expected one of record,"
    ):
        Conversation([EchoAgent("ann")], observers=[Odd(ObserverVerdict("loop", "halt", "x"))]).run()


def test_a_failing_observer_is_named_and_what_was_said_is_given_out() -> None:
    class Fails:
        def update(self, message: Message) -> ObserverVerdict:
            return ObserverVerdict() if message.turn < 2 else 1 / 0  # type: ignore[return-value]

    conversation = Conversation([EchoAgent("ann")], observers=[Fails()])

    turns = []

    async def listen() -> None:
        async for message in conversation:
            turns.append(message.turn)

    with pytest.raises(AgentError, match=r"^observer 'Fails' failed at turn 2: ZeroDivisionError: division by zero$"):
        asyncio.run(listen())
    assert turns == [1, 2] == [m.turn for m in conversation.transcript]


@pytest.mark.parametrize("value", [None, 5, True, {"ann"}, ["ann", 5], {"ann": 1}])
def test_a_protocol_must_say_who_speaks(value: Any) -> None:
    with pytest.raises(
        InvalidResponseError, match=r"protocol Odd returned .* from speakers\(\) at turn 1; expected a name"
    ):
        Conversation([EchoAgent("ann")], Odd(value)).run()  # type: ignore[arg-type]


def test_a_protocol_must_show_a_context() -> None:
    with pytest.raises(
        InvalidResponseError,
        match=r"protocol Odd returned str 'ann' from context\(\) at turn 1; expected a TurnContext",
    ):
        Conversation([EchoAgent("ann")], Odd("ann")).run()  # type: ignore[arg-type]


def test_a_stop_condition_must_give_a_reason() -> None:
    with pytest.raises(
        InvalidResponseError, match="termination condition Odd returned bool 'True'; expected the reason as text"
    ):
        Conversation([EchoAgent("ann")], termination=Odd(True)).run()  # type: ignore[arg-type]
