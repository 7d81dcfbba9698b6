"""Every protocol: who speaks, what each is shown, and that both follow from the transcript alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import A2AError, AgentError, ConfigurationError
from a2a_ray.core.message import BID, COMBINE, Message
from a2a_ray.core.registry import agents as agent_kinds
from a2a_ray.core.registry import protocols
from a2a_ray.core.termination import TextMention
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import BidRequest, ProtocolMessage
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.history_window import window
from a2a_ray.protocols.newton_helper import NewtonHelper
from a2a_ray.protocols.simultaneous import Simultaneous

NAMES = ("ann", "bob", "cy", "dee", "eve")
HELPED = {"objective": [1.0, -2.0], "geometry": {"condition": 3, "seed": 1}, "step_size": 0.7}
HELPER = {"geometry": {"condition": 5, "seed": 2}, "step_size": 0.4}


class Speaker:
    """Says who it is, its turn and a digest of all that it was shown; bids by its seed. Keeps nothing but a log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shown: dict[int, Message] = {}

    def step(self, message: Message) -> Message:
        self.shown[message.seq] = message
        seen = [m.content for m in message.history] + [message.content]
        return message.reply(f"{self.name}{message.turn} {hash_of(seen)}", self.name)

    def bid(self, message: Message) -> float:
        return message.seed % 3


class Vectors(Speaker):
    """The same with vectors: moves a little, by its seed."""

    def step(self, message: Message) -> Message:
        self.shown[message.seq] = message
        drawn = np.random.default_rng(message.seed).normal(size=2)
        return message.reply(np.asarray(message.content) / 2 + drawn, self.name)


def hash_of(value: Any) -> str:
    import hashlib

    return hashlib.sha256(repr(value).encode()).hexdigest()[:6]


def by_length(transcript: Transcript, name: str) -> float:
    return sum(len(str(m.content)) for m in transcript.messages if m.sender != name) % 5


class Scorer:
    """An observer with scores of its own after every third message."""

    def update(self, message: Message) -> ObserverVerdict:
        if message.seq % 3:
            return ObserverVerdict()
        return ObserverVerdict("scored", scores={NAMES[message.seed % 5]: 1.0})


SHOWS = st.one_of(
    st.sampled_from(["last", "all"]),
    st.integers(1, 6).map(lambda k: {"last": k}),
    st.integers(1, 40).map(lambda n: {"characters": n}),
)
TEXT_PROTOCOLS: dict[str, Callable[[Any], TurnProtocol]] = {
    "alternating": lambda show: Alternating(show),
    "simultaneous": lambda show: Simultaneous(context=show),
    "joined": lambda show: Simultaneous("join", show),
    "bids": lambda show: Adaptive("bid", context=show),
    "bids, no repeat": lambda show: Adaptive("bid", context=show, repeat=False),
    "score": lambda show: Adaptive("score", by_length, show),
    "observer": lambda show: Adaptive("observer", context=show),
}
texts = st.tuples(st.sampled_from(sorted(TEXT_PROTOCOLS)), SHOWS)
sizes, turns, seeds = st.integers(1, 5), st.integers(1, 14), st.integers(0, 2**40)


def hold(agents: list[Any], protocol: TurnProtocol, seed: int, turns: int, **more: Any) -> Transcript:
    return Conversation(agents, protocol, seed=seed, max_turns=turns, observers=[Scorer()], **more).run()


def records(transcript: Transcript) -> list[Any]:
    return [{k: v for k, v in m.to_dict().items() if k != "created_at"} for m in transcript]


def cut(transcript: Transcript, length: int) -> Transcript:
    """The beginning of a transcript, as a store would give it back."""
    out = Transcript(transcript.id, transcript.agents, transcript.opening.content, transcript.seed)
    for m in transcript.turns[:length]:
        out.append(Message.from_dict(json.loads(json.dumps(m.to_dict()))))
    return out


def plain(content: Any) -> Any:
    return content if isinstance(content, str) else content.tolist()


# What holds for all of them -----------------------------------------------------------------------------------------


@given(texts, sizes, turns, seeds)
@settings(max_examples=80, deadline=None)
def test_the_next_step_follows_from_the_transcript_alone(
    chosen: tuple[str, Any], size: int, turns: int, seed: int
) -> None:
    """Asked again, or another object of the same configuration asked, gives the same; the transcript is left alone."""
    kind, show = chosen
    protocol = TEXT_PROTOCOLS[kind](show)
    transcript = hold([Speaker(n) for n in NAMES[:size]], protocol, seed, turns, opening="Once upon a time.")
    before, state = records(transcript), copy.copy(vars(protocol))
    for other in (protocol, TEXT_PROTOCOLS[kind](show)):
        assert other.speakers(transcript) == protocol.speakers(transcript)
        for name in NAMES[:size]:
            assert other.context(transcript, name) == protocol.context(transcript, name)
    assert records(transcript) == before
    assert vars(protocol) == state


@given(texts, sizes, turns, seeds, st.data())
@settings(max_examples=120, deadline=None)
def test_a_cut_conversation_goes_on_as_if_nothing_had_happened(
    chosen: tuple[str, Any], size: int, turns: int, seed: int, data: st.DataObject
) -> None:
    """Cut anywhere: in a simultaneous round, between two bids, before a combination."""
    kind, show = chosen
    if kind in ("simultaneous", "joined"):
        turns *= size
    whole = hold([Speaker(n) for n in NAMES[:size]], TEXT_PROTOCOLS[kind](show), seed, turns, opening="Hello.")
    begun = cut(whole, data.draw(st.integers(0, len(whole))))
    resumed = hold([Speaker(n) for n in NAMES[:size]], TEXT_PROTOCOLS[kind](show), seed, turns, transcript=begun)
    assert records(resumed) == records(whole)
    assert [v[0] for v in resumed.verdicts] == [v[0] for v in whole.verdicts]


@given(st.sampled_from([None, "mean"]), sizes, turns, seeds, st.data())
@settings(max_examples=60, deadline=None)
def test_so_does_one_of_vectors(combine: Any, size: int, turns: int, seed: int, data: st.DataObject) -> None:
    protocol, turns = Simultaneous(combine), turns * size
    whole = hold([Vectors(n) for n in NAMES[:size]], protocol, seed, turns, opening=np.zeros(2))
    begun = cut(whole, data.draw(st.integers(0, len(whole))))
    resumed = hold([Vectors(n) for n in NAMES[:size]], protocol, seed, turns, transcript=begun)
    assert records(resumed) == records(whole)


@given(texts, sizes, turns, seeds)
@settings(max_examples=60, deadline=None)
def test_what_is_shown_was_said_before_and_is_bounded_by_the_window(
    chosen: tuple[str, Any], size: int, turns: int, seed: int
) -> None:
    kind, show = chosen
    agents = [Speaker(n) for n in NAMES[:size]]
    transcript = hold(agents, TEXT_PROTOCOLS[kind](show), seed, turns, opening="Hello.")
    said = {(m.sender, m.content) for m in [transcript.opening, *transcript.turns]}
    for agent in agents:
        for seq, asked in agent.shown.items():
            seen = [(m.sender, str(m.content)) for m in asked.history] + [(asked.sender, str(asked.content))]
            assert all(m.seq < seq and m.kind != BID for m in asked.history)
            assert [m.seq for m in asked.history] == sorted({m.seq for m in asked.history})
            if isinstance(show, dict) and "characters" in show:
                assert sum(len(text) for _, text in seen) <= show["characters"]
                cut_one, *rest = seen
                assert any(s == cut_one[0] and str(c).endswith(cut_one[1]) for s, c in said)
            else:
                rest = seen
                limit = {"last": 1, "all": turns + size + 1}.get(show) if isinstance(show, str) else show["last"]
                assert limit is not None
                assert len(seen) <= limit
            assert set(rest) <= said


# Alternating --------------------------------------------------------------------------------------------------------


@given(sizes, turns, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_agents_alternate_and_see_the_last_k(size: int, turns: int, k: int) -> None:
    agents = [Speaker(n) for n in NAMES[:size]]
    transcript = hold(agents, Alternating({"last": k}), 0, turns, opening="Hello.")
    assert [m.sender for m in transcript] == [NAMES[i % size] for i in range(turns)]
    everything = [transcript.opening, *transcript.turns]
    for i, m in enumerate(transcript, 1):
        asked = agents[NAMES.index(m.sender)].shown[i]
        shown = [*(h.content for h in asked.history), asked.content]
        assert shown == [e.content for e in everything[max(0, i - k) : i]]
        assert asked.sender == everything[i - 1].sender
        assert (asked.turn, asked.options) == (i, {})


def test_an_order_may_name_an_agent_twice_or_leave_one_out() -> None:
    agents = [Speaker(n) for n in NAMES[:3]]
    transcript = hold(agents, Alternating(order=["bob", "ann", "bob"]), 0, 7)
    assert [m.sender for m in transcript] == ["bob", "ann", "bob"] * 2 + ["bob"]
    with pytest.raises(AgentError, match="named 'zoe' at turn 1; the agents are ann, bob, cy"):
        hold(agents, Alternating(order=["zoe"]), 0, 7)
    with pytest.raises(ConfigurationError, match=r"order: \[\]"):
        Alternating(order=[])


# Simultaneous -------------------------------------------------------------------------------------------------------


@given(sizes, st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_without_a_combination_each_answers_its_neighbour_of_the_round_before(size: int, rounds: int) -> None:
    agents = [Speaker(n) for n in NAMES[:size]]
    transcript = hold(agents, Simultaneous(context="all"), 0, rounds * size, opening="Hello.")
    assert [m.sender for m in transcript] == list(NAMES[:size]) * rounds
    for i, m in enumerate(transcript):
        asked = agents[i % size].shown[m.seq]
        chain = [*asked.history, Message("", 0, asked.sender, asked.content)]
        round_ = i // size
        assert [c.sender for c in chain] == ["", *(NAMES[(i - round_ + r) % size] for r in range(round_))]
        assert [c.content for c in chain][1:] == [
            transcript.turns[r * size + (i - round_ + r) % size].content for r in range(round_)
        ]


def test_two_agents_without_a_combination_run_two_interleaved_chains() -> None:
    w, u = (LSAAgent(n, o, step_size=0.5) for n, o in (("w", [1.0, 0.0]), ("u", [0.0, 1.0])))
    together = Conversation([w, u], Simultaneous(), opening=np.zeros(2), max_rounds=6).run()
    for first, second, parity in ((w, u, 0), (u, w, 1)):
        chain = Conversation([first, second], opening=np.zeros(2), max_turns=6).run()
        mine = [together.turns[2 * r + (r + parity) % 2].content for r in range(6)]
        assert [plain(m.content) for m in chain] == [plain(c) for c in mine]


@given(sizes, st.integers(1, 5), seeds)
@settings(max_examples=30, deadline=None)
def test_the_mean_is_recorded_and_is_what_all_are_shown_next(size: int, rounds: int, seed: int) -> None:
    agents = [Vectors(n) for n in NAMES[:size]]
    transcript = hold(agents, Simultaneous("mean"), seed, rounds * size, opening=np.ones(2))
    state: Any = np.ones(2)
    records = iter(transcript)
    for r in range(rounds):
        said = [next(records) for _ in range(size)]
        assert [m.sender for m in said] == list(NAMES[:size])
        for agent, m in zip(agents, said, strict=True):
            np.testing.assert_array_equal(agent.shown[m.seq].content, state)
        if r < rounds - 1:
            combined = next(records)
            assert (combined.kind, combined.sender) == (COMBINE, "all")
            state = np.mean([np.asarray(m.content) for m in said], axis=0)
            np.testing.assert_allclose(np.asarray(combined.content), state, rtol=1e-15)
            state = combined.content
    assert len(transcript.messages) == rounds * size  # combinations do not count as turns


def test_averaged_turns_settle_at_the_weighted_mean_of_the_objectives() -> None:
    pair = [
        LSAAgent("w", [1.0, 0.0], geometry={"condition": 4, "seed": 1}, step_size=0.5),
        LSAAgent("u", [0.0, 2.0], geometry={"condition": 3, "seed": 2}, step_size=1.2),
    ]
    transcript = Conversation(pair, Simultaneous("mean"), opening=np.zeros(2), max_rounds=400).run()
    pulls = [a.step_size * a.covariance for a in pair]
    settled = np.linalg.solve(sum(pulls), sum(p @ a.objective for p, a in zip(pulls, pair, strict=True)))
    combined = [m for m in transcript.turns if m.kind == COMBINE][-1].content
    np.testing.assert_allclose(np.asarray(combined), settled, atol=1e-14)


def test_a_turn_limit_holds_within_a_round() -> None:
    transcript = hold([Speaker(n) for n in NAMES[:3]], Simultaneous(), 0, 4)
    assert [m.sender for m in transcript] == ["ann", "bob", "cy", "ann"]


def test_a_stop_within_a_round_is_the_same_where_the_round_was_cut() -> None:
    def run(transcript: Transcript | None) -> Transcript:
        agents = [Speaker(n) for n in NAMES[:3]]
        return Conversation(
            agents, Simultaneous(), max_rounds=2, termination=TextMention("bob2"), transcript=transcript
        ).run()

    whole = run(None)
    assert records(run(cut(whole, 2))) == records(whole)


def test_float32_stays_float32_in_the_mean() -> None:
    pair = [LSAAgent(n, [1.0, 0.0], dtype="float32") for n in ("w", "u")]
    transcript = Conversation(pair, Simultaneous("mean"), opening=np.zeros(2), max_rounds=2).run()
    assert [m.content.dtype.name for m in transcript] == ["float32"] * 5  # type: ignore[union-attr]


def test_join_shows_all_texts_with_their_speakers() -> None:
    agents = [Speaker("ann"), Speaker("bob")]
    transcript = hold(agents, Simultaneous("join"), 0, 4, opening="Hello.")
    first, second, joined = transcript.turns[:3]
    assert joined.content == f"ann: {first.content}\nbob: {second.content}"
    assert agents[1].shown[5].content == joined.content


def test_a_combination_that_cannot_be_made_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"combine: mean; the answers are .*ann: text, bob: text; .* Use join"):
        hold([Speaker("ann"), Speaker("bob")], Simultaneous("mean"), 0, 4)
    with pytest.raises(ConfigurationError, match="combine: join; an agent answered a vector"):
        hold([Vectors("ann"), Vectors("bob")], Simultaneous("join"), 0, 4, opening=np.zeros(2))
    with pytest.raises(ConfigurationError, match="combine: 'median'; expected mean, join or None"):
        Simultaneous("median")  # type: ignore[arg-type]


def test_both_sorts_of_step_of_a_combined_round() -> None:
    transcript = Transcript("c", ("ann", "bob"), "Hello.")
    protocol = Simultaneous("join")
    assert protocol.speakers(transcript) == ("ann", "bob")
    transcript.append(Message("c", 1, "ann", "a"))
    assert protocol.speakers(transcript) == ("bob",)
    transcript.append(Message("c", 2, "bob", "b"))
    assert protocol.speakers(transcript) == ProtocolMessage("all", "ann: a\nbob: b")
    transcript.append(Message("c", 3, "all", "ann: a\nbob: b", kind=COMBINE))
    assert protocol.speakers(transcript) == ("ann", "bob")


# Adaptive -----------------------------------------------------------------------------------------------------------


@given(sizes, turns, seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_highest_bid_gets_the_turn(size: int, turns: int, seed: int, repeat: bool) -> None:
    transcript = hold([Speaker(n) for n in NAMES[:size]], Adaptive(repeat=repeat), seed, turns)
    last, waited, bids = "", dict.fromkeys(NAMES[:size], 0), {}
    for m in transcript:
        if m.kind == BID:
            bids[m.sender] = float(str(m.content))
            continue
        expected = [n for n in NAMES[:size] if repeat or n != last or size == 1]
        assert list(bids) == expected  # everyone who may speak was asked, once
        best = [n for n in expected if bids[n] == max(bids.values())]
        assert m.sender == min(best, key=lambda n: (waited[n], NAMES.index(n)))
        last, waited[m.sender], bids = m.sender, m.turn, {}
    assert len(transcript.messages) == turns  # bids do not count


@given(st.integers(0, 10**4))
@settings(max_examples=15, deadline=None)
def test_among_lsa_agents_the_largest_residual_speaks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    agents = [
        LSAAgent(n, rng.normal(size=3).tolist(), geometry={"condition": 5, "seed": i}, step_size=0.8)
        for i, n in enumerate(NAMES[:3])
    ]
    transcript = Conversation(agents, Adaptive(), opening=rng.normal(size=3), max_turns=12).run()
    state: Any = transcript.opening.content
    for m in transcript.messages:
        residuals = [np.sqrt((state - a.objective) @ a.covariance @ (state - a.objective)) for a in agents]
        assert m.sender == NAMES[int(np.argmax(residuals))]
        recorded = [float(str(b.content)) for b in transcript.turns[m.seq - 4 : m.seq - 1]]
        assert recorded == pytest.approx(residuals)
        state = m.content


def test_a_score_function_by_name_or_as_it_is() -> None:
    by_name = Adaptive("score", "tests.test_protocols:by_length")
    as_it_is = Adaptive("score", by_length)
    agents = [Speaker(n) for n in NAMES[:3]]
    assert records(hold(agents, by_name, 3, 9)) == records(hold(agents, as_it_is, 3, 9))
    transcript = hold(agents, Adaptive("score", lambda t, name: name == "cy"), 0, 3)
    assert [m.sender for m in transcript] == ["cy"] * 3
    transcript = hold(agents, Adaptive("score", lambda t, name: name == "cy", repeat=False), 0, 4)
    assert [m.sender for m in transcript] == ["cy", "ann", "cy", "bob"]
    with pytest.raises(ConfigurationError, match="score: nan for agent 'ann'; expected finite"):
        hold(agents, Adaptive("score", lambda t, name: float("nan")), 0, 3)


def test_an_observers_newest_scores_decide_and_without_any_the_longest_waiting() -> None:
    agents = [Speaker(n) for n in NAMES[:3]]

    given_at = {2: {"ann": 2.0, "cy": 1.0}, 5: {"bob": 2.0, "cy": 1.0}}

    class Twice:
        def update(self, message: Message) -> ObserverVerdict:
            return ObserverVerdict("noted", scores=given_at.get(message.turn, {}))

    transcript = Conversation(agents, Adaptive("observer", repeat=False), max_turns=9, observers=[Twice()]).run()
    assert [m.sender for m in transcript] == ["ann", "bob", "ann", "cy", "ann", "bob", "cy", "bob", "cy"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": "score"},
        {"by": "bid", "score": by_length},
        {"by": "score", "score": 3},
        {"by": "luck"},
        {"by": "score", "score": "no.such.module:f"},
        {"context": "everything"},
        {"context": {"last": 0}},
        {"context": {"last": True}},
    ],
    ids=lambda wrong: ",".join(f"{k}={getattr(v, '__name__', v)}" for k, v in wrong.items()),
)
def test_wrong_settings_of_adaptive_turns_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(reversed(wrong))):
        Adaptive(**wrong)


def test_an_agent_without_bids_is_named() -> None:
    class Silent:
        name = "mute"

        def step(self, message: Message) -> Message:
            return message.reply("", self.name)

    with pytest.raises(AgentError, match=r"agent 'mute': Silent has no bid"):
        Conversation([Silent()], Adaptive(), max_turns=1).run()


def test_only_missing_bids_are_asked_for() -> None:
    transcript = Transcript("c", NAMES[:3], "Hello.")
    transcript.append(Message("c", 1, "ann", "1.0", kind=BID))
    assert Adaptive().speakers(transcript) == BidRequest(["bob", "cy"])


# The helper ---------------------------------------------------------------------------------------------------------


def helped_pair() -> list[LSAAgent]:
    return [LSAAgent("w", **HELPED), LSAAgent("u", [9.0, 9.0], **HELPER)]  # type: ignore[arg-type]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=2), st.floats(0.01, 1.99))
@settings(max_examples=30, deadline=None)
def test_the_helper_alone_gets_an_objective_and_its_turn_is_newtons(x: list[float], damping: float) -> None:
    protocol = NewtonHelper(HELPED, HELPER, damping)
    w, u = helped_pair()
    transcript = Transcript("c", ("w", "u"), np.array(x))
    assert protocol.speakers(transcript) == "w"
    view = protocol.context(transcript, "w")
    assert (plain(view.content), view.sender, dict(view.options), view.history) == (x, "", {}, ())
    transcript.append(w.step(Message("c", 1, "", view.content)))
    assert protocol.speakers(transcript) == "u"
    view = protocol.context(transcript, "u")
    assert view.sender == "w"
    assert list(view.options) == ["objective"]
    after = u.step(Message("c", 2, "w", view.content, options=view.options)).content
    off = np.asarray(view.content) - w.objective
    np.testing.assert_allclose(np.asarray(after) - w.objective, (1 - damping) * off, atol=1e-9)
    again = NewtonHelper(HELPED, HELPER, damping).context(transcript, "u")
    assert plain(again.options["objective"]) == plain(view.options["objective"])


@given(st.integers(0, 6))
@settings(max_examples=7, deadline=None)
def test_a_helped_conversation_resumes_to_the_same_bits(length: int) -> None:
    protocol = NewtonHelper(HELPED, HELPER, 0.5)
    whole = Conversation(helped_pair(), protocol, opening=np.ones(2), max_rounds=3).run()
    resumed = Conversation(
        helped_pair(), NewtonHelper(HELPED, HELPER, 0.5), max_rounds=3, transcript=cut(whole, length)
    ).run()
    assert records(resumed) == records(whole)


def test_a_specification_gives_the_helper_the_agents_own_settings() -> None:
    spec = yaml.safe_load("""
    agents:
      - &w {name: w, kind: lsa, dtype: float64, dim: 3, objective: {angle: 0}, geometry: {seed: 1}, step_size: 0.5}
      - &u {name: u, kind: lsa, dim: 3, objective: {angle: 90}, geometry: {condition: 4, seed: 2}, step_size: 0.3}
    protocol: {kind: newton_helper, helped: *w, helper: *u}
    """)
    pair = [agent_kinds.build(a, "agents") for a in spec["agents"]]
    protocol = protocols.build(spec["protocol"], "protocol")
    transcript = Conversation(pair, protocol, opening=np.zeros(3), max_rounds=1).run()
    np.testing.assert_allclose(np.asarray(transcript.last.content), pair[0].objective, atol=1e-13)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"damping": 0.0}, "protocol: damping: 0.0"),
        ({"damping": 2.0}, "protocol: damping: 2.0"),
        ({"helped": {"geometry": {}}}, "protocol: helped: key 'objective' is missing"),
        ({"helped": {"objective": [1.0], "steps": 1}}, "helped.steps: unknown key"),
        ({"helper": {"step_size": "big"}}, "helper.step_size: 'big'"),
        ({"helper": {"step_size": 5}}, "helper: step_size: 5"),
        ({"helper": {"examples": [[1.0, 0.0, 0.0]]}}, "helper: numbers of dimensions differ: dim: 2, examples: 3"),
        ({"helper": {"geometry": {"condtion": 1}}}, "Did you mean 'condition'"),
    ],
    ids=str,
)
def test_wrong_settings_of_the_helper_are_told(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        protocols.build({"kind": "newton_helper", "helped": HELPED, "helper": HELPER, **change}, "protocol")
    assert sentence in str(caught.value)


def test_the_helper_needs_two_agents_and_vectors() -> None:
    protocol = NewtonHelper(HELPED, HELPER)
    with pytest.raises(ConfigurationError, match="3 agents; expected 2"):
        Conversation([*helped_pair(), Speaker("eve")], protocol, opening=np.zeros(2)).run()
    with pytest.raises(A2AError, match=r"shown the text 'ann1 .*; expected shape \(2,\)"):
        Conversation([Speaker("ann"), helped_pair()[1]], protocol, opening=np.zeros(2)).run()


# Windows ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=8), max_size=6), st.text(max_size=8), st.integers(1, 30))
@settings(deadline=None)
def test_windows_are_the_end_of_the_talk(said: list[str], opening: str, size: int) -> None:
    first = Message("c", 0, "", opening)
    messages = [Message("c", i, "ann", text) for i, text in enumerate(said, 1)]
    everything = [opening, *said]

    def shown(show: Any) -> list[Any]:
        view = window(show)(first, messages)
        assert view.sender == (messages[-1] if messages else first).sender
        return [*(m.content for m in view.history), view.content]

    assert shown("all") == everything
    assert shown("last") == shown({"last": 1}) == everything[-1:]
    assert shown({"last": size}) == everything[-size:]
    assert "".join(shown({"characters": size})) == "".join(everything)[-size:]


@pytest.mark.parametrize(
    "show", ["some", {}, {"last": 0}, {"last": 1.5}, {"characters": -1}, {"last": 1, "characters": 2}, {"first": 1}, 3]
)
def test_a_window_that_does_not_exist_is_told(show: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"expected last, all, \{last: k\} or \{characters: n\}"):
        window(show)


def test_vectors_have_no_characters() -> None:
    with pytest.raises(ConfigurationError, match="the message is a vector"):
        hold([Vectors("ann")], Alternating({"characters": 5}), 0, 2, opening=np.zeros(2))
