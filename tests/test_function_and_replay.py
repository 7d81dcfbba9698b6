"""Wrapped callables, and recorded answers given again."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.agents.function import FunctionAgent
from a2a_ray.agents.replay import ReplayAgent
from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, InvalidResponseError
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import BidRequest, ProtocolMessage, TurnContext
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.transcripts.jsonl import write_jsonl


def shout(text: str) -> str:
    return text.upper()


async def shout_later(text: str) -> str:
    await asyncio.sleep(0)
    if text == "bad":
        raise ValueError("no")
    return text.upper()


class Counting:
    def __call__(self, contents: list[Any]) -> str:
        return f"{len(contents)}: {contents[-1]}"

    async def later(self, message: Message) -> Message:
        return message.reply(f"{message.turn}/{message.seed}", "ann", {"requests": 1})


def one_turn(function: Any, opening: Any = "hello", **settings: Any) -> Message:
    agent = FunctionAgent("ann", function, **settings)
    return Conversation([agent], opening=opening, max_turns=1).run().turns[0]


# --- functions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [shout, shout_later, lambda text: text.upper()])
def test_content(function: Any) -> None:
    assert one_turn(function).content == "HELLO"


def test_history_and_message() -> None:
    agent = FunctionAgent("ann", Counting(), takes="history")
    transcript = Conversation([agent, EchoAgent("bob")], Alternating(context="all"), "go", max_turns=3).run()
    assert [m.content for m in transcript] == ["1: go", "1: go", "3: 1: go"]
    answer = one_turn(Counting().later, takes="message")
    assert (str(answer.content).split("/")[0], answer.usage) == ("1", {"requests": 1})


@pytest.mark.parametrize("value", [[1, 2.5], (1.0, 2.5), np.array([1, 2.5])])
def test_vectors(value: Any) -> None:
    content = one_turn(lambda x: value, np.zeros(2)).content
    assert isinstance(content, np.ndarray)
    np.testing.assert_array_equal(content, [1, 2.5], strict=True)


def test_float32_is_kept() -> None:
    content: Any = one_turn(lambda x: x + np.float32(1), np.zeros(2, np.float32)).content
    assert content.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "agent 'ann' returned None at turn 1"),
        (3, "returned int '3'"),
        ([1, 2, 3], "shape"),
        ([float("nan"), 0], "NaN"),
        (["a"], "expected text or a 1-D array"),
        (Message("c", 1, "eve", "x"), "signed 'eve'"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_bad_answers_are_named_by_the_conversation(value: Any, said: str, later: bool) -> None:
    async def function(x: Any) -> Any:
        return value

    with pytest.raises(InvalidResponseError, match="agent 'ann'") as caught:
        one_turn(function if later else lambda x: value, np.zeros(2))
    assert said in str(caught.value)


def test_a_function_that_raises() -> None:
    with pytest.raises(AgentError, match="agent 'ann' failed at turn 1: ZeroDivisionError: division by zero"):
        one_turn(lambda x: 1 / 0)


def test_by_path_from_a_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_functions.py").write_text("def twice(x):\n    return x + x\nNUMBER = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    agent = agents.build({"kind": "function", "name": "ann", "function": "my_functions:twice"}, "agents.0")
    assert agent.step(Message("c", 1, "", "ha")).content == "haha"
    assert pickle.loads(pickle.dumps(agent)).step(Message("c", 1, "", "ha")).content == "haha"
    for path, said in (
        ("my_functions:none", "has no 'none'"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("my_functions", "expected module:attr"),
        ("my_functions:NUMBER", "expected a callable"),
    ):
        with pytest.raises(ConfigurationError, match=r"agents\.0: function") as caught:
            agents.build({"kind": "function", "name": "ann", "function": path}, "agents.0")
        assert said in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"agents\.0\.takes: 'contents'"):
        agents.build({"kind": "function", "name": "a", "function": shout, "takes": "contents"}, "agents.0")
    with pytest.raises(ConfigurationError, match="Did you mean 'content'"):
        FunctionAgent("a", shout, takes="contents")  # type: ignore[arg-type]


def test_bids() -> None:
    assert agent_traits(FunctionAgent("ann", shout)).bid is None
    agent = FunctionAgent("ann", shout, bid=len)
    message = Message("c", 1, "", "abc")
    assert agent.bid(message) == 3
    assert pickle.loads(pickle.dumps(agent)).bid(message) == 3


def test_asynchronous_functions_run_together() -> None:
    assert not inspect.iscoroutinefunction(FunctionAgent("ann", shout).step)

    async def answers(agent: FunctionAgent, texts: str) -> list[Any]:
        steps = [agent.step(Message("c", 1, "", text)) for text in texts.split()]
        return await asyncio.gather(*steps, return_exceptions=True)  # type: ignore[arg-type]

    agent = FunctionAgent("ann", shout_later)
    assert inspect.iscoroutinefunction(agent.step), "so that an actor lets its steps overlap"
    assert [getattr(a, "content", type(a)) for a in asyncio.run(answers(agent, "a bad c"))] == ["A", ValueError, "C"]
    together = asyncio.Barrier(3)

    async def meet(text: str) -> str:
        async with asyncio.timeout(5):
            await together.wait()
        return text

    met = asyncio.run(answers(FunctionAgent("ann", meet), "a b c"))
    assert [m.content for m in met if isinstance(m, Message)] == ["a", "b", "c"]


# --- replay -------------------------------------------------------------------------------------------------------


def said(transcript: Transcript) -> list[tuple[Any, ...]]:
    return [(m.seq, m.sender, m.kind, str(m.content)) for m in transcript]


class Auction(TurnProtocol):
    """Everybody bids, the highest speaks, and the protocol adds a record of its own."""

    def speakers(self, transcript: Transcript) -> Any:
        place = len(transcript.turns) % 4
        if place == 0:
            return BidRequest(transcript.agents)
        if place == 3:
            return ProtocolMessage("all", transcript.messages[-1].content)
        return max(transcript.turns[-2:], key=lambda m: float(str(m.content))).sender if place == 2 else ()

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        return TurnContext("", transcript.opening.content)


def test_a_transcript_is_held_again_with_bids_and_combinations() -> None:
    def bid(name: str) -> Any:
        return FunctionAgent(
            name,
            lambda m: f"{name} {m.seed}",
            takes="message",
            bid=lambda m: (m.seed ^ len(name)) % 1000,
        )

    first = Conversation([bid("ann"), bid("bobby")], Auction(), "go", max_turns=6, seed=4).run()
    assert {m.kind for m in first} == {"message", "bid", "combine"}
    assert {m.sender for m in first.messages} == {"ann", "bobby"}
    again = Conversation(ReplayAgent.from_transcript(first), Auction(), "go", max_turns=6, seed=99, id="other").run()
    assert said(again) == said(first)
    ann, bobby = ReplayAgent.from_transcript(first)
    silent = ann if first.messages[0].sender == "bobby" else bobby
    assert ann.bid(Message("c", 1, "", "go")) == float(str(first.turns[0].content))
    with pytest.raises(AgentError, match="at turn 1 of conversation 'c': no answer is recorded"):
        silent.step(Message("c", 3, "", "go", asides=2))  # a bid is no answer
    with pytest.raises(AgentError, match="no bid is recorded; there is one at turns: "):
        Conversation(ReplayAgent.from_transcript(first), Auction(), "go", max_turns=7).run()


def test_vectors_kinds_and_metadata_but_no_usage() -> None:
    transcript = Transcript("c", ("ann", "bob"), "")
    vector = np.array([1.5, -2], dtype=np.float32)
    transcript.append(Message("c", 1, "ann", "run tests", usage={"cost": 1.0}, metadata={"tool": "sh"}, kind="action"))
    transcript.append(Message("c", 2, "bob", vector))
    replayed = pickle.loads(pickle.dumps(ReplayAgent.from_transcript(transcript)))
    again = Conversation(replayed, max_turns=2).run().turns
    assert (again[0].kind, again[0].metadata, again[0].usage) == ("action", {"tool": "sh"}, {})
    content: Any = again[1].content
    np.testing.assert_array_equal(content, vector, strict=True)


def test_a_file_is_matched_by_conversation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "talks.jsonl"
    talks = [
        Conversation(
            [FunctionAgent(n, lambda x, n=n: [*x, 1][:2]) for n in ("ann", "bob")], opening=o, max_turns=4, id=i
        )
        for i, o in (("c1", np.array([0.0, 1 / 3])), ("c2", np.array([5.0, 6.0])))
    ]
    first = [talk.run() for talk in talks]
    write_jsonl(first, file)
    with file.open("a") as out:
        out.write('{"id": "half')
    pair = [agents.build({"kind": "replay", "name": n, "file": str(file)}, "agents.0") for n in ("ann", "bob")]
    for agent in pair:
        agent.check()
    assert "line 3" in caplog.text
    for transcript in first:
        again = Conversation(pair, opening=transcript.opening.content, max_turns=4, id=transcript.id).run()
        assert said(again) == said(transcript)
    with pytest.raises(AgentError, match=r"says nothing in that conversation in .*talks\.jsonl; there is: c1, c2"):
        Conversation(pair, max_turns=4, id="c3").run()
    too_long = Conversation(pair, opening=np.zeros(2), max_turns=6, id="c1")
    with pytest.raises(AgentError, match=r"'ann' at turn 5 of conversation 'c1': no answer .* at turns: 1, 3$"):
        too_long.run()
    assert len(too_long.transcript) == 4


def test_scripts() -> None:
    ann = ReplayAgent("ann", ["One.", None, "Three."])
    numbered = json.loads('{"2": "Two."}')  # JSON knows no whole numbers as keys
    bob = agents.build({"kind": "replay", "name": "bob", "turns": numbered}, "agents.1")
    transcript = Conversation([ann, bob], max_turns=3).run()
    assert [m.content for m in transcript] == ["One.", "Two.", "Three."]
    vector: Any = Conversation([ReplayAgent("ann", [[1, 2]])], max_turns=1).run().turns[0].content
    assert vector.dtype == np.float64
    silent = Conversation([ReplayAgent("ann", {})], max_turns=1)
    with pytest.raises(AgentError, match=r"at turn 1 of conversation 'conversation': no answer is recorded;.*: none"):
        silent.run()


def test_bad_replays(tmp_path: Path) -> None:
    for settings in ({}, {"turns": [], "file": "x"}):
        with pytest.raises(ConfigurationError, match="exactly one"):
            ReplayAgent("ann", **settings)
    with pytest.raises(ConfigurationError, match=r"turns\.2: .*expected text"):
        ReplayAgent("ann", {2: ["a"]})  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="No such file"):
        ReplayAgent("ann", file=str(tmp_path / "none.jsonl")).check()
    file = tmp_path / "talk.jsonl"
    file.write_text('{"id": "c", "turns": [{"speaker": "eve", "text": "x"}]}')
    with pytest.raises(ConfigurationError, match="'ann' says nothing in it; speakers there: eve"):
        ReplayAgent("ann", file=str(file)).check()
