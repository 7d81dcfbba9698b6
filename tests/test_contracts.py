"""Every built-in part keeps the contracts; and the contract tests find the parts that do not."""

from __future__ import annotations

import hashlib
import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.agents.function import FunctionAgent
from a2a_ray.agents.hf.hf_agent import HFAgent
from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.agents.lsa.regression import RegressionAgent
from a2a_ray.agents.openai.openai_agent import OpenAIAgent
from a2a_ray.agents.replay import ReplayAgent
from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.analysis.text.exact_repetition import ExactRepetitionRule
from a2a_ray.core import registry
from a2a_ray.core.base_agent import BaseAgent, agent_traits
from a2a_ray.core.errors import AgentError
from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import BidRequest, Next, ProtocolMessage, Stop, TurnContext
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.newton_helper import NewtonHelper
from a2a_ray.protocols.simultaneous import Simultaneous
from a2a_ray.testing import check_agent, check_observer, check_protocol
from tests.rounding_server import gradient_step

LSA = {"objective": {"angle": 40, "seed": 3}, "dim": 4, "geometry": {"condition": 10}, "step_size": 0.5}
W = np.array([1.0, -2.0, 0.5, 3.0])


class OpenAIOnPaper(OpenAIAgent):
    """Its server answers with a hash of the request, and refuses every fourth."""

    def _http_client(self) -> httpx2.AsyncClient:
        def handle(request: httpx2.Request) -> httpx2.Response:
            said = hashlib.blake2b(request.content, digest_size=8).hexdigest()
            if said[0] in "0123":
                return httpx2.Response(400, json={"error": {"message": "refused"}})
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
            return httpx2.Response(200, json={"id": "r", "model": "m", "choices": [choice]})

        return httpx2.AsyncClient(transport=httpx2.MockTransport(handle))


class Calculator:
    """Takes the step that a prompt asks for, to three digits; no language model. One ask in four it chatters."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        digest = hashlib.blake2b(f"{message.seed} {message.content}".encode(), digest_size=1).digest()[0]
        text = "Let me think." if digest < 64 else str(gradient_step(str(message.content)).round(3).tolist())
        return message.reply(text, self.name)


def seeded(message: Message) -> str:
    return f"{message.seed} after {len(message.history)}"


async def later(content: str) -> str:
    if content.endswith("then?"):
        raise ValueError("no second question")
    return content.upper()


AGENTS: list[tuple[str, Callable[[], Any], Content, dict[str, Any]]] = [
    ("echo", lambda: EchoAgent("ann", "> "), "Hello.", {}),
    ("echo", lambda: EchoAgent("ann"), W, {}),
    ("function", lambda: FunctionAgent("ann", seeded, "message"), "Hello.", {}),
    ("function", lambda: FunctionAgent("ann", later, bid=len), "Hello.", {}),
    ("function", lambda: FunctionAgent("ann", np.tanh), W.astype(np.float32), {}),
    ("replay", lambda: ReplayAgent("ann", {1: "One.", 2: "Two.", 4: "Four."}), "Hello.", {}),
    ("lsa", lambda: LSAAgent("ann", **LSA), W, {"objective": [0.0, 1.0, 0.0, 0.0]}),
    ("lsa", lambda: LSAAgent("ann", **LSA, dtype="float32", inner_steps=3), W, {"objective": {"angle": 5}}),
    (
        "lsa",
        lambda: LSAAgent("ann", **(LSA | {"dim": 5}), weights="trained"),
        np.append(W, 0.5),
        {"objective": {"angle": 5}},
    ),
    (
        "regression",
        lambda: RegressionAgent("ann", **LSA, model_agent=Calculator("cal")),
        W,
        {"objective": {"angle": 5}},
    ),
    ("hf", lambda: HFAgent("ann", "tiny-llama", dtype="float64", max_new_tokens=8), "The value", {"temperature": 0.0}),
    ("hf", lambda: HFAgent("ann", "tiny-neox", dtype="float64", max_new_tokens=8), "The value", {"top_p": 0.5}),
    ("openai", lambda: OpenAIOnPaper("ann", "m", base_url="http://server.test/v1", api_key_env=None), "Hi.", {}),
]


@pytest.mark.parametrize(("kind", "make", "content", "options"), AGENTS, ids=lambda v: v if isinstance(v, str) else "")
def test_agents(kind: str, make: Callable[[], Any], content: Content, options: dict[str, Any]) -> None:
    check_agent(make(), content, another=make(), options=options)


@pytest.mark.parametrize("kind", ["echo", "replay", "lsa", "hf", "openai"])
def test_pickled_agents_answer_the_same(kind: str) -> None:
    make, content = next((make, content) for name, make, content, _ in AGENTS if name == kind)
    check_agent(make(), content, another=pickle.loads(pickle.dumps(make())))


def test_an_agent_in_an_actor_answers_the_same(ray_cluster: None) -> None:
    from a2a_ray.runtime.agents.pool import remote

    make, content = next((make, content) for name, make, content, _ in AGENTS if name == "lsa")
    check_agent(make(), content, another=remote(make, num_cpus=0))


PROTOCOLS: list[tuple[str, Any, Content]] = [
    ("alternating", Alternating(), "Hello."),
    ("alternating", Alternating("all", order=["ann", "ann", "bob"]), W),
    ("alternating", Alternating({"last": 3}), "Hello."),
    ("alternating", Alternating({"characters": 30}), "Hello."),
    ("simultaneous", Simultaneous(), "Hello."),
    ("simultaneous", Simultaneous("mean", "all"), W),
    ("simultaneous", Simultaneous("join"), "Hello."),
    ("adaptive", Adaptive(), "Hello."),
    ("adaptive", Adaptive(repeat=False, context="all"), W),
    ("adaptive", Adaptive("score", lambda transcript, name: len(name) * len(transcript) % 3), "Hello."),
    ("adaptive", Adaptive("observer"), "Hello."),
    ("newton_helper", NewtonHelper(LSA, {"geometry": {"condition": 5, "seed": 2}}), W),
]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(("kind", "protocol", "opening"), PROTOCOLS, ids=lambda v: v if isinstance(v, str) else "")
def test_protocols(kind: str, protocol: Any, opening: Content, number: int) -> None:
    if kind == "newton_helper" and number != 2:
        pytest.skip("the helper is for two")
    check_protocol(protocol, ("ann", "bob", "cid")[:number], opening)


DETECTORS: list[tuple[str, Callable[[], Any]]] = [
    ("exact_repetition", ExactRepetitionRule),
    ("exact_repetition", lambda: ExactRepetitionRule(1, "stop")),
    ("loops", LoopDetector),
    ("loops", lambda: LoopDetector(threshold=2.5, action="stop")),
    ("loops", lambda: LoopDetector(action="nudge", cooldown=2)),
]


@pytest.mark.parametrize(("kind", "factory"), DETECTORS)
def test_detectors(kind: str, factory: Callable[[], Any]) -> None:
    check_observer(factory)


@pytest.mark.parametrize(
    ("kinds", "tried"), [(registry.agents, AGENTS), (registry.protocols, PROTOCOLS), (registry.observers, DETECTORS)]
)
def test_every_built_in_part_is_tried(kinds: registry.Registry, tried: list[Any]) -> None:
    assert sorted({case[0] for case in tried}) == kinds.names()


# --- parts that break a promise are found


class Broken(EchoAgent):
    """Breaks one promise, named by the test."""

    def __init__(self, how: str) -> None:
        super().__init__("ann")
        self.how, self.calls = how, itertools.count()

    def step(self, message: Message) -> Message:
        if self.how == "remembers":
            return message.reply(f"call {next(self.calls)}", self.name)
        if self.how == "draws":
            return message.reply(str(np.random.default_rng().random()), self.name)
        if self.how == "raises":
            raise AgentError("never")
        if self.how == "none":
            return None  # type: ignore[return-value]
        if self.how == "signs":
            return message.reply("Hi.", "bob")
        if self.how == "vector":
            return message.reply(W, self.name)
        if self.how == "metadata":
            return message.reply("Hi.", self.name, metadata={"set": {1}})
        return super().step(message)

    def step_batch(self, messages: Any) -> list[Message]:
        if self.how == "batch":
            return [m.reply(f"one of {len(messages)}", self.name) for m in messages]
        if self.how == "short":
            return [self.step(m) for m in messages[1:]]
        return super().step_batch(messages)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("remembers", "second time"),
        ("draws", "second time"),
        ("raises", "no message was answered"),
        ("none", "no message was answered"),
        ("signs", "signed 'bob'"),
        ("vector", "ndarray answers"),
        ("metadata", "not JSON"),
        ("batch", "a batch of 1 compared with single steps"),
        ("short", "0 answers to 1 messages"),
    ],
)
def test_a_broken_agent_is_found(how: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_agent(Broken(how), "Hello.")


def test_other_faults_of_agents_are_found() -> None:
    with pytest.raises(AssertionError, match="to `another`"):
        check_agent(EchoAgent("ann", "a"), another=EchoAgent("ann", "b"))
    with pytest.raises(AssertionError, match="Python identifier"):
        check_agent(EchoAgent("no name"))
    with pytest.raises(AssertionError, match="expected a finite number"):
        check_agent(FunctionAgent("ann", str, bid=lambda _: float("nan")))


class Wrong(Alternating):
    """Breaks one promise, named by the test."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.calls = how, itertools.count()

    def speakers(self, transcript: Transcript) -> Next:  # type: ignore[override]
        how = self.how
        if how == "counts":
            return transcript.agents[next(self.calls) % 2]
        if how == "stranger":
            return "eve"
        if how == "bids" or (how == "late" and len(transcript)):
            return BidRequest(transcript.agents)
        if how == "nobody":
            return ()
        if how == "stops":
            return Stop("no wish to talk")
        if how == "says" and len(transcript) % 3 == 2:
            return ProtocolMessage("all", f"{next(self.calls)}")
        return super().speakers(transcript)

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        view = super().context(transcript, speaker)
        return view._replace(options={"calls": next(self.calls)}) if self.how == "shows" else view


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("counts", "two answers|continues differently"),
        ("shows", "two answers"),
        ("says", "two answers"),
        ("stranger", "named 'eve'"),
        ("bids", "no end"),
        ("late", "no end"),
        ("nobody", "named no speaker"),
        ("stops", "before anybody spoke"),
    ],
)
def test_a_broken_protocol_is_found(how: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_protocol(Wrong(how))


class Careless:
    """Breaks one promise, named by the test."""

    shared: set[str] = set()  # noqa: RUF012 - the mistake itself

    def __init__(self, how: str) -> None:
        self.how = how

    def update(self, message: Message) -> ObserverVerdict:
        if self.how == "shares":
            key = f"{message.conversation}{message.turn}"
            self.shared.add(key)
            return ObserverVerdict("warning", evidence={"seen": len(self.shared)})
        if self.how == "names":
            return ObserverVerdict("warning" if message.sender == "ann" else "none")
        if self.how == "clock":
            return ObserverVerdict("warning" if message.created_at else "none")
        if self.how == "reason":
            return ObserverVerdict("loop", "stop")
        if self.how == "action":
            return ObserverVerdict("loop", "shout")
        return ObserverVerdict(evidence={"vector": W})


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("shares", "read back from the store|at once"),
        ("names", "other names"),
        ("clock", "read back"),
        ("reason", "without a reason"),
        ("action", "has action 'shout'"),
        ("evidence", "not JSON"),
    ],
)
def test_a_broken_detector_is_found(how: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_observer(lambda: Careless(how))


class Wordy:
    """Says that its answers are shorter than they are, or something that is no number."""

    def __init__(self, most: object) -> None:
        self.name, self.most = "ann", most

    def max_output_tokens(self) -> object:
        return self.most

    def step(self, message: Message) -> Message:
        return message.reply("x", self.name, {"output_tokens": 5})


def test_what_an_agent_says_of_its_tokens_must_hold() -> None:
    for most in (5, None):
        check_agent(Wordy(most))
    with pytest.raises(AssertionError, match=r"5 output tokens; max_output_tokens\(\) is 4"):
        check_agent(Wordy(4))
    for most in (-1, True, "many"):
        with pytest.raises(AssertionError, match="expected a whole number of at least 0, or None"):
            check_agent(Wordy(most))


class Shouting(BaseAgent):
    """Overrides nothing but `step`."""

    def step(self, message: Message) -> Message:
        return message.reply(str(message.content).upper(), self.name)


class Plain:
    """A plain object with only a name and a `step`."""

    name = "ann"

    def step(self, message: Message) -> Message:
        return message.reply("Hello.", self.name)


class Everything(BaseAgent):
    """Overrides every optional feature."""

    placement = "actor"
    turn_options = frozenset({"volume"})
    own_limits = frozenset({"timeout"})
    paid = stateful = True
    max_requests = 3

    def __init__(self, name: str, volume: int = 1) -> None:
        super().__init__(name)
        self.counts: dict[str, int] = {}

    def step(self, message: Message) -> Message:
        self.counts[message.conversation] = self.counts.get(message.conversation, 0) + 1
        return message.reply(f"{self.counts[message.conversation]}", self.name, {"output_tokens": 1})

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        return [self.step(m) for m in messages]

    def bid(self, message: Message) -> float:
        return float(self.counts.get(message.conversation, 0))

    def check(self) -> None:
        self.counts["checked"] = 1

    def setup(self) -> None:
        self.counts["set up"] = 1

    def max_output_tokens(self) -> int:
        return 1

    def max_input_tokens(self) -> int:
        return 7

    def get_state(self, conversation: str) -> int | None:
        return self.counts.get(conversation)

    def set_state(self, conversation: str, state: int | None) -> None:
        self.counts.pop(conversation, None)
        if state is not None:
            self.counts[conversation] = state


METHODS = ("step_batch", "bid", "max_output_tokens", "max_input_tokens", "get_state", "set_state")


@pytest.mark.parametrize(
    "agent",
    [Shouting("ann"), Plain(), Shouting, Plain, print],
    ids=["made", "plain", "class", "plain class", "function"],
)
def test_without_overrides_every_optional_feature_has_its_default(agent: object) -> None:
    traits = agent_traits(agent)
    assert traits[:6] == ("worker", frozenset(), frozenset(), False, False, 1)
    assert [name for name in METHODS if getattr(traits, name) is not None] == []
    traits.check()
    traits.setup()


def test_every_optional_feature_can_be_overridden() -> None:
    agent = Everything("ann")
    traits = agent_traits(agent)
    assert traits[:6] == ("actor", frozenset({"volume"}), frozenset({"timeout"}), True, True, 3)
    assert [name for name in METHODS if getattr(traits, name) is None] == []
    traits.check()
    traits.setup()
    assert agent.counts == {"checked": 1, "set up": 1}
    assert agent_traits(Everything)[:6] == traits[:6]


@pytest.mark.parametrize("agent", [Shouting("ann"), Plain(), Everything("ann")], ids=lambda a: type(a).__name__)
def test_base_agents_and_plain_objects_keep_the_contract(agent: Any) -> None:
    check_agent(agent, "Hello.")
