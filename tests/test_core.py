"""The ground floor: messages, transcripts, the exchange format, stop conditions, the registry, errors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.core import errors, registry
from a2a_ray.core.errors import A2AError, ConfigurationError
from a2a_ray.core.message import BID, COMBINE, EMPTY, Content, Message
from a2a_ray.core.seeds import conversation_seed, turn_seed
from a2a_ray.core.termination import Converged, MaxTokens, MaxTurns, TerminationCondition, TextMention
from a2a_ray.core.transcript import DONE, Transcript
from a2a_ray.transcripts.jsonl import read_jsonl, write_jsonl
from tests.strategies import exchange_objects, messages, seeds, texts, transcripts

# --- messages


@given(messages())
def test_a_message_comes_back_from_json(message: Message) -> None:
    text = json.dumps(message.to_dict())
    back = Message.from_dict(json.loads(text))
    assert back == message
    assert json.dumps(back.to_dict()) == text
    assert type(back.content) is type(message.content)
    assert getattr(back.content, "dtype", None) == getattr(message.content, "dtype", None)


@given(messages())
def test_a_message_comes_back_from_a_pickle(message: Message) -> None:
    back = pickle.loads(pickle.dumps(message))
    assert back == message
    assert hash(back) == hash(message)
    assert (back.options is EMPTY) == (message.options is EMPTY)


def test_messages_differ_in_every_part() -> None:
    message = Message("c", 1, "ann", np.array([1.0]))
    others = [Message("d", 1, "ann", np.array([1.0])), Message("c", 1, "ann", np.array([1.0], np.float32))]
    others += [Message("c", 1, "ann", np.array([1.0]), seed=1), Message("c", 1, "ann", "[1.]")]
    assert all(message != other for other in others)
    assert message != "a message"


def test_the_shared_empty_mapping_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="read-only"):
        Message("c", 1, "ann", "Hi.").options["temperature"] = 1.0  # type: ignore[index]


@given(messages(), texts)
def test_a_reply_keeps_its_place(message: Message, content: str) -> None:
    reply = message.reply(content, "bob")
    assert (reply.conversation, reply.seq, reply.seed) == (message.conversation, message.seq, message.seed)
    assert reply.turn == message.seq - message.asides
    assert (reply.sender, reply.content, reply.history) == ("bob", content, ())


def test_unknown_keys_of_a_message_are_refused() -> None:
    with pytest.raises(TypeError, match="text"):
        Message.from_dict({"conversation": "c", "seq": 1, "sender": "a", "content": "x", "text": "y"})


# --- seeds


@given(seeds, texts)
def test_seeds_fit_a_signed_64_bit_column(seed: int, conversation: str) -> None:
    of_conversation = conversation_seed(seed, conversation)
    assert 0 <= of_conversation < 2**63
    turns = [turn_seed(of_conversation, t) for t in range(50)]
    assert len(set(turns)) == 50
    assert all(0 <= s < 2**63 for s in turns)


def test_seeds_stay_what_they_are() -> None:
    """Stored runs depend on these values."""
    seed = conversation_seed(0, "a")
    assert seed == 140742745180244919
    assert [turn_seed(seed, t) for t in (1, 2)] == [4582035810123395260, 2937042916569826776]


# --- transcripts and the exchange format


@given(transcripts())
def test_a_transcript_comes_back_from_the_exchange_format(transcript: Transcript) -> None:
    line = json.dumps(transcript.to_exchange())
    back = Transcript.from_exchange(json.loads(line))
    np.testing.assert_array_equal(back.opening.content, transcript.opening.content)
    assert back.to_exchange() == {"status": DONE, **json.loads(line)}
    assert [(m.turn, m.sender, m.created_at, m.usage) for m in back.messages] == [
        (m.turn, m.sender, m.created_at, m.usage) for m in transcript.messages
    ]
    for one, other in zip(back.messages, transcript.messages, strict=True):
        np.testing.assert_array_equal(one.content, other.content)


@given(exchange_objects())
def test_unknown_keys_are_kept(value: dict[str, Any]) -> None:
    back = Transcript.from_exchange(value).to_exchange()
    assert {**value, "status": DONE} == back


@given(transcripts())
def test_a_transcript_comes_back_from_a_pickle(transcript: Transcript) -> None:
    back = pickle.loads(pickle.dumps(transcript))
    assert back.turns == transcript.turns
    assert back.to_exchange() == transcript.to_exchange()


@given(transcripts())
def test_rounds_hold_every_message_once(transcript: Transcript) -> None:
    rounds = transcript.rounds()
    assert [m for r in rounds for m in r] == transcript.messages
    assert all(len(r) == len(transcript.agents) for r in rounds[:-1])


def test_bids_and_combinations_are_not_exported() -> None:
    transcript = Transcript("c", ("ann",), "Opening.")
    transcript.append(Message("c", 1, "ann", "0.5", kind=BID))
    transcript.append(Message("c", 2, "ann", "Hi."))
    transcript.append(Message("c", 3, "all", "ann: Hi.", kind=COMBINE))
    assert [t["text"] for t in transcript.to_exchange()["turns"]] == ["Hi."]
    assert [(m.seq, m.turn) for m in transcript] == [(1, None), (2, 1), (3, None)]
    assert transcript.opening.turn == 0
    assert Message.from_dict(transcript.turns[1].to_dict()) == transcript.turns[1]
    assert transcript.last.content == "Hi."
    with pytest.raises(ValueError, match="record 2 cannot follow record 3"):
        transcript.append(Message("c", 2, "ann", "Again."))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "expected an object"),
        ({"id": "c"}, "'turns' is missing"),
        ({"turns": "Hi."}, "'turns' is str"),
        ({"turns": ["Hi."]}, "turn 1 is str"),
        ({"turns": [{"speaker": "ann"}]}, "turn 1: key 'text' is missing"),
        ({"turns": [{"speaker": 3, "text": ""}]}, "turn 1: key 'speaker' is int 3"),
        ({"turns": [{"speaker": "ann", "text": "", "vector": ["x"]}]}, "turn 1: key 'vector'"),
    ],
)
def test_what_is_not_in_the_format_is_named(value: object, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Transcript.from_exchange(value)


def test_a_damaged_line_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    good = {"id": "a", "turns": [{"speaker": "ann", "text": "Hi\u2028there."}], "mood": "calm"}
    path = tmp_path / "talks.jsonl"
    lines = [json.dumps(good, ensure_ascii=False), "", '{"id": "half", "turns": [{"spe', "null", '{"turns": []}']
    lines += [json.dumps(good), "[" * 100_000]
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}\n')
    found, problems = read_jsonl(path)
    assert [t.id for t in found] == ["a", "line-5", "a#6"]
    assert found[0].messages[0].content == "Hi\u2028there."
    assert found[0].metadata == {"mood": "calm"}
    assert [p.split(":")[0].removeprefix(f"{path}, ") for p in problems] == [f"line {n}" for n in (3, 4, 6, 7, 8)]


@pytest.mark.parametrize("text", ["", "\n\n", "nothing\n"])
def test_a_file_without_a_conversation_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="no conversation in it"):
        read_jsonl(path)
    with pytest.raises(ConfigurationError, match="No such file"):
        read_jsonl(tmp_path / "other.jsonl")
    with pytest.raises(ConfigurationError, match="choose another"):
        write_jsonl([], tmp_path / "no" / "folder.jsonl")


@given(st.lists(transcripts(texts), min_size=1, max_size=3, unique_by=lambda t: t.id))
def test_a_file_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, talks: list[Transcript]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    assert write_jsonl(talks, path) == len(talks)
    found, problems = read_jsonl(path)
    assert not problems
    assert [[m.content for m in t.messages] for t in found] == [[m.content for m in t.messages] for t in talks]


# --- stop conditions


def talk(*contents: Content, agents: tuple[str, ...] = ("ann", "bob"), tokens: int = 0) -> Transcript:
    transcript = Transcript("c", agents, "Opening.")
    for number, content in enumerate(contents):
        usage = {"output_tokens": tokens} if tokens else EMPTY
        transcript.append(Message("c", number + 1, agents[number % len(agents)], content, usage=usage))
    return transcript


def test_stop_conditions_give_their_reason() -> None:
    assert MaxTurns(2).check(talk("a")) is None
    assert MaxTurns(2).check(talk("a", "b")) == "turn limit 2"
    assert TextMention("over").check(talk("it is over now")) == "'over' was said"
    assert TextMention("Opening").check(talk()) is None
    assert MaxTokens(10).check(talk("a", "b", tokens=5)) == "token limit 10"
    assert MaxTokens(11).check(talk("a", "b", tokens=5)) is None


def test_stop_conditions_combine() -> None:
    both, either = MaxTurns(2) & TextMention("b"), MaxTurns(2) | TextMention("b")
    assert both.check(talk("b")) is None
    assert both.check(talk("a", "b")) == "turn limit 2 and 'b' was said"
    assert either.check(talk("b")) == "'b' was said"
    assert (both | TerminationCondition(lambda _: "always")).check(talk()) == "always"


@given(st.lists(st.booleans(), min_size=2, max_size=4))
def test_stop_conditions_combine_as_their_truth_does(truths: list[bool]) -> None:
    any_, all_ = (TerminationCondition(lambda _, t=truths[0]: "0" if t else None) for _ in range(2))
    for number, truth in enumerate(truths[1:], 1):
        one = TerminationCondition(lambda _, n=number, t=truth: str(n) if t else None)
        any_, all_ = any_ | one, all_ & one
    assert bool(any_.check(talk())) is any(truths)
    assert bool(all_.check(talk())) is all(truths)


def test_settled_needs_quiet_rounds() -> None:
    still, moved = np.array([1.0, 2.0]), np.array([1.0, 2.5])
    assert Converged().check(talk(still, moved)) is None
    assert (
        Converged().check(talk(still, moved, still, moved)) == "settled: no agent moved by more than 1e-12 in a round"
    )
    assert Converged(rounds=2).check(talk(still, moved, still, moved)) is None
    assert Converged(0.1).check(talk(still, moved, still, still)) is None
    assert Converged(0.6).check(talk(still, moved, still, still))
    assert Converged().check(talk("a", "b", "a", "b")) is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaxTurns(0),
        lambda: MaxTokens(0),
        lambda: TextMention(""),
        lambda: Converged(-1),
        lambda: Converged(rounds=0),
    ],
)
def test_impossible_stop_conditions_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        make()


# --- the registry


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"kind": "ecko", "name": "a"},
            r"where.kind: unknown agent kind 'ecko'. Did you mean 'echo'\? There is: echo, ",
        ),
        ({"name": "a"}, "where: no 'kind'; expected one of echo, function"),
        ({"kind": "echo"}, "where: key 'name' is missing"),
        ({"kind": "echo", "name": "a", "prefx": "x"}, r"where.prefx: unknown key 'prefx'. Did you mean 'prefix'\?"),
        ({"kind": "echo", "name": "a", "prefix": 3}, "where.prefix: 3; expected text"),
        ({"kind": "nowhere:Agent"}, "where.kind: agent 'nowhere:Agent': cannot import 'nowhere'"),
        ({"kind": "json:Agent"}, "module 'json' has no 'Agent'"),
        ({"kind": "a2a_ray.agents.echo:"}, "expected module:attr"),
    ],
)
def test_what_the_registry_cannot_build_is_named(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        registry.agents.build(config, "where")


def test_the_registry_builds_by_name_path_and_class() -> None:
    for kind in ("echo", "a2a_ray.agents.echo:EchoAgent", EchoAgent):
        assert isinstance(registry.agents.build({"kind": kind, "name": "ann"}, "agent"), EchoAgent)
    own = registry.Registry("a2a_ray.tests", {})
    own.register("mine", "a2a_ray.agents.echo:EchoAgent")
    assert own.names() == ["mine"]
    assert list(own.keys("mine")) == ["name", "prefix"]


def test_a_broken_plug_in_takes_nothing_else_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_part.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="importing 'broken_part' failed: ZeroDivisionError"):
        registry.agents.build({"kind": "broken_part:Agent", "name": "a"}, "agent")


@pytest.mark.parametrize("kinds", [registry.agents, registry.protocols, registry.observers, registry.terminations])
def test_every_built_in_name_can_be_loaded(kinds: registry.Registry) -> None:
    assert all(callable(kinds.get(name)) for name in kinds.names())


def test_every_error_crosses_a_process_boundary() -> None:
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, A2AError)]
    assert len(kinds) == 10
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("one sentence")))
        assert (type(error), str(error)) == (kind, "one sentence")
        assert kind.__name__ in str(errors.__doc__)
