"""Observers that act: a nudge is said by the protocol, a stop ends the talk and makes room for another."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.agents.function import FunctionAgent
from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import NUDGE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import Next, ProtocolMessage, TurnContext
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.experiment.spec import Experiment
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from a2a_ray.runtime import run_actors
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.schema import end_row


class Asks:
    """Calls for an action at given turns."""

    def __init__(self, *turns: int, action: str = "nudge") -> None:
        self.turns, self.action = turns, action

    def update(self, message: Message) -> ObserverVerdict:
        if message.seq in self.turns:
            return ObserverVerdict("loop", self.action, "again and again", evidence={"last_before": 1})
        return ObserverVerdict("loop") if message.seq is None or message.seq > min(self.turns) else ObserverVerdict()


class Intervenes(Alternating):
    """Shows a nudge to whoever speaks after it."""

    def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
        return ProtocolMessage("moderator", f"Something new, please: {verdict.reason}.")

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        newest = transcript.turns[-1] if transcript.turns else transcript.opening
        return TurnContext(newest.sender, newest.content)


TEXT = {"text": "Say something new."}


def talk(protocol: TurnProtocol, *turns: int, **more: Any) -> Conversation:
    agents = [EchoAgent("ann"), EchoAgent("bob")]
    return Conversation(agents, protocol, "Hello.", max_rounds=3, observers=[Asks(*turns)], **more)


def test_the_protocol_says_the_nudge_and_the_next_speaker_is_shown_it() -> None:
    transcript = talk(Intervenes(), 2).run()
    assert [m.kind for m in transcript.turns] == ["message", "message", "nudge", *["message"] * 4]
    nudge = transcript.turns[2]
    assert (nudge.sender, nudge.content) == ("moderator", "Something new, please: again and again.")
    assert transcript.turns[3].content == nudge.content
    assert transcript.turns[3].sender == "ann"


def test_a_nudge_counts_for_no_limit_and_stands_in_no_exchange() -> None:
    transcript = talk(Intervenes(), 2).run()
    assert len(transcript.messages) == 6
    assert transcript.reason == "turn limit 6"
    assert len(transcript.to_exchange()["turns"]) == 6


class Declines(Alternating):
    """Lets every nudge pass."""

    def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
        return None


def test_a_protocol_may_let_a_nudge_pass() -> None:
    assert all(m.kind == "message" for m in talk(Declines(), 1, 2, 3).run().turns)


def test_simultaneous_turns_are_nudged_after_their_round() -> None:
    class Both(Simultaneous):
        def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
            return ProtocolMessage("", "Stop it.")

    kinds = [m.kind for m in talk(Both("join"), 1).run().turns]
    assert kinds[:4] == ["message", "message", NUDGE, "combine"]
    assert kinds.count("combine") == kinds.count("message") // 2 - 1  # nothing is combined after the last round
    assert kinds.count(NUDGE) == 1


def test_a_resumed_talk_is_nudged_where_the_undisturbed_one_was() -> None:
    whole = talk(Intervenes(), 2, 4).run()
    for cut in range(1, len(whole)):
        part = Transcript(whole.id, whole.agents, "Hello.")
        for message in whole.turns[:cut]:
            part.append(message)
        resumed = talk(Intervenes(), 2, 4, transcript=part).run()
        assert [(m.kind, m.content) for m in resumed.turns] == [(m.kind, m.content) for m in whole.turns], cut


def test_a_stop_gives_its_reason_and_its_evidence_is_kept() -> None:
    agents = [EchoAgent("ann"), EchoAgent("bob")]
    transcript = Conversation(agents, max_rounds=9, observers={"loops": Asks(5, action="stop")}).run()
    assert (len(transcript), transcript.status, transcript.reason) == (5, "done", "loops: again and again")
    assert transcript.verdicts[-1][2].evidence == {"last_before": 1}
    row = end_row(transcript, 0.0)
    assert (row.kind, row.sender, row.content) == ("done", "loops", transcript.reason)


class Counts:
    """Says how many talks have begun and how many are under way; its second turn waits until `begun` of them have begun
    (for two minutes at most)."""

    placement = "worker"

    def __init__(self, name: str, begun: int) -> None:
        self.name, self.expected = name, begun
        self.begun: set[str] = set()
        self.ended: set[str] = set()

    async def step(self, message: Message) -> Message:
        self.begun.add(message.conversation)
        deadline = time.monotonic() + 120
        while message.turn == 2 and len(self.begun) < self.expected and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        said = f"{len(self.begun)} {len(self.begun - self.ended)}"
        if message.turn == 5 or message.content == "short":
            self.ended.add(message.conversation)
        return message.reply(said, self.name)


class EndsShort(TurnProtocol):
    """One agent speaks; a talk that began with "short" ends after one message."""

    def speakers(self, transcript: Transcript) -> Next:
        from a2a_ray.core.turns import Stop

        short = transcript.opening.content == "short" and transcript.messages
        return Stop("short") if short else transcript.agents[0]

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        return TurnContext(transcript.last.sender, transcript.last.content)


def counted(room: int, begun: int, openings: list[str], storage: Path) -> list[list[tuple[int, int]]]:
    """How many talks had begun and how many were under way, at each message of each talk, with room for so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_actors, "LIGHT_IN_FLIGHT", room)
        agents = [{"name": "ann", "kind": Counts, "begun": begun}]
        value = {"agents": agents, "protocol": {"kind": EndsShort}, "max_turns": 5, "openings": openings}
        run = run_experiment(value, storage=storage, workers=1, progress=False)
    numbers = [[tuple(map(int, str(m.content).split())) for m in t.messages] for t in run.transcripts()]
    return [[(begun, present) for begun, present in talk] for talk in numbers]


@pytest.mark.usefixtures("ray_cluster")
def test_a_talk_that_ends_early_makes_room_at_once(tmp_path: Path) -> None:
    talks = counted(8, 12, ["long", "short"] * 6, tmp_path)  # handed out in twos, a long and a short one in each
    assert [talk[1][0] for talk in talks[::2]] == [12] * 6  # the last began before the first long one went on


@pytest.mark.usefixtures("ray_cluster")
def test_no_more_talks_are_under_way_than_there_is_room_for(tmp_path: Path) -> None:
    talks = counted(4, 4, ["long"] * 12, tmp_path)
    assert max(present for talk in talks for _, present in talk) == 4


# --- the built-in nudge -------------------------------------------------------------------------------------------

NEW = "Say something new."


class Sees:
    """Keeps what it is shown; says the number of its turn."""

    placement = "worker"

    def __init__(self, name: str, own: list[tuple[str, list[tuple[str, str]]]] | None = None) -> None:
        self.name = name
        self.own = [] if own is None else own

    def step(self, message: Message) -> Message:
        self.own.append((self.name, [(m.sender, str(m.content)) for m in (*message.history, message)]))
        return message.reply(f"{self.name} {message.seq}", self.name)

    def bid(self, message: Message) -> float:
        return float(message.seed % 5)


def seen(protocol: TurnProtocol, *turns: int, names: str = "ann bob", rounds: int = 3) -> list[Any]:
    """(who spoke, what it was shown) of each turn."""
    own: list[Any] = []
    agents = [Sees(name, own) for name in names.split()]
    Conversation(agents, protocol, "Hello.", max_rounds=rounds, observers=[Asks(*turns)]).run()
    return own


def test_with_the_last_output_each_agent_is_shown_the_nudge_once_and_loses_nothing() -> None:
    assert seen(Alternating(nudge=TEXT), 2) == [
        ("ann", [("", "Hello.")]),
        ("bob", [("ann", "ann 1")]),
        ("ann", [("bob", f"bob 2\n\n{NEW}")]),
        ("bob", [("ann", f"ann 4\n\n{NEW}")]),
        ("ann", [("bob", "bob 5")]),
        ("bob", [("ann", "ann 6")]),
    ]


@pytest.mark.parametrize("show", ["all", {"last": 4}, {"characters": 20}])
def test_in_longer_windows_the_nudge_stays_in_its_place(show: Any) -> None:
    shown = seen(Alternating(show, nudge={**TEXT, "sender": "chair"}), 2)
    assert shown[2][1][-1] == ("bob", f"bob 2\n\n{NEW}")
    assert shown[3][1][-1] == ("ann", f"ann 4\n\n{NEW}")
    assert shown[4][1][-4:] == [("bob", "bob 2"), ("chair", NEW), ("ann", "ann 4"), ("bob", "bob 5")]
    assert all(sum(NEW in text for _, text in turn) == (i > 1) for i, (_, turn) in enumerate(shown[:5]))


def test_a_nudge_that_a_window_has_left_behind_is_gone_and_does_not_count_for_its_size() -> None:
    shown = seen(Alternating({"last": 2}, nudge=TEXT), 2, rounds=4)
    assert shown[4][1] == [("ann", "ann 4"), ("bob", "bob 5")]
    assert shown[5][1] == [("bob", "bob 5"), ("ann", "ann 6")]
    assert all(len(turn) <= 3 for _, turn in shown)


def test_several_nudges() -> None:
    shown = seen(Alternating("all", nudge=TEXT), 1, 3, 5)
    assert [sum(text.count(NEW) for _, text in turn) for _, turn in shown] == [0, 1, 2, 3, 3, 3]
    assert all(text.count(NEW) <= 1 for _, turn in shown for _, text in turn)


def test_an_agent_that_answers_itself_is_nudged_by_somebody_else() -> None:
    shown = seen(Alternating(nudge=TEXT), 1, names="ann")
    assert shown[1] == ("ann", [("ann", "ann 1"), ("moderator", NEW)])  # a chat model would own a joined text
    assert shown[2] == ("ann", [("ann", "ann 3")])


@pytest.mark.parametrize("combine", [None, "join"])
def test_simultaneous_agents_are_all_shown_it(combine: Any) -> None:
    shown = seen(Simultaneous(combine, nudge=TEXT), 2, names="ann bob cid")
    counts = [sum(NEW in text for _, text in turn) for _, turn in shown]
    assert counts == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    if combine is None:
        assert shown[3] == ("ann", [("cid", f"cid 3\n\n{NEW}")])
    kept = seen(Simultaneous(combine, "all", nudge=TEXT), 2, names="ann bob cid")
    assert [sum(NEW in text for _, text in turn) for _, turn in kept] == [0, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("by", ["bid", "score"])
def test_an_adaptive_talk_is_nudged(by: Any) -> None:
    score = None if by == "bid" else lambda transcript, name: float(name == "ann")
    protocol = Adaptive(by, score, nudge=TEXT)
    own: list[Any] = []
    agents = [Sees(name, own) for name in ("ann", "bob")]
    transcript = Conversation(agents, protocol, "Hello.", max_rounds=4, seed=3, observers=[Asks(3)]).run()
    assert [m.kind for m in transcript.turns].count(NUDGE) == 1
    after = [(name, turn) for (name, turn), m in zip(own, transcript.messages, strict=True) if m.seq > 4]
    for name in {name for name, _ in after}:
        turns = [sum(NEW in text for _, text in turn) for who, turn in after if who == name]
        assert turns == [1, *[0] * (len(turns) - 1)]


def test_a_talk_cut_anywhere_is_nudged_as_the_undisturbed_one() -> None:
    whole = talk(Alternating({"last": 3}, nudge=TEXT), 2, 4).run()
    for cut in range(1, len(whole)):
        part = Transcript(whole.id, whole.agents, "Hello.")
        for message in whole.turns[:cut]:
            part.append(message)
        resumed = talk(Alternating({"last": 3}, nudge=TEXT), 2, 4, transcript=part).run()
        assert [(m.kind, m.content) for m in resumed.turns] == [(m.kind, m.content) for m in whole.turns], cut


def test_a_subclass_that_only_says_a_nudge_has_it_shown() -> None:
    class Rude(Alternating):
        def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
            return ProtocolMessage("boss", "Get on with it!")

    assert seen(Rude(), 2)[2] == ("ann", [("bob", "bob 2\n\nGet on with it!")])


def test_placeholders_are_filled_from_the_evidence() -> None:
    text = "Since turn {onset_turn} you repeat {span!s}. {{}}".replace("!s", "")
    agents = [FunctionAgent(name, lambda content: "We could paint the fence green, then.") for name in ("ann", "bob")]
    observer = LoopDetector(action="nudge")
    transcript = Conversation(agents, Alternating(nudge={"text": text}), max_rounds=9, observers=[observer]).run()
    nudges = [m for m in transcript.turns if m.kind == NUDGE]
    assert nudges
    assert nudges[0].sender == "moderator"
    assert "Since turn 2 you repeat We could paint" in str(nudges[0].content)
    assert str(nudges[0].content).endswith(". {}")


@pytest.mark.parametrize(
    ("nudge", "sentence"),
    [
        ({"text": "Since {onst}."}, "nudge.text: unknown placeholder 'onst'. There is: onset_turn, span."),
        ({"text": "{}"}, "unknown placeholder ''"),
        ({"text": "{onset_turn:3}"}, "expected {onset_turn} alone"),
        ({"text": "a { b"}, "Write a literal brace twice"),
        ({"text": " "}, "nudge.text: ' '; expected text"),
        ({"txt": "x"}, "nudge.txt: unknown key 'txt'. Did you mean 'text'?"),
        ({"sender": "x"}, "key 'text' is missing"),
    ],
)
def test_a_nudge_that_makes_no_sense_is_refused(nudge: dict[str, str], sentence: str) -> None:
    for kind in ("alternating", "simultaneous", "adaptive"):
        value = {"agents": ECHOES, "protocol": {"kind": kind, "nudge": nudge}}
        with pytest.raises(ConfigurationError) as error:
            Experiment.parse(value).check()
        assert sentence in str(error.value)


ECHOES = [{"name": name, "kind": "echo"} for name in ("ann", "bob")]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, r"observers\.0: action: nudge; protocol Alternating has no nudge, .* nudge: \{text: "),
        ({"protocol": {"kind": EndsShort}}, r"protocol EndsShort has no nudge, .*override its method nudge"),
        ({"protocol": {"kind": "alternating", "nudge": {**TEXT, "sender": "ann"}}}, r"nudge.sender: 'ann' is an agent"),
        ({"protocol": {"kind": "alternating", "nudge": TEXT}, "openings": {"zeros": 3}}, "the opening is a vector"),
        ({"sweep": {"observers.0.action": ["record", "nudge"]}, "observers": ["loops"]}, r"action: nudge\)"),
    ],
)
def test_what_cannot_nudge_is_refused_before_anything_starts(change: dict[str, Any], sentence: str) -> None:
    value = {"agents": ECHOES, "observers": [{"kind": "loops", "action": "nudge"}], **change}
    with pytest.raises(ConfigurationError, match=sentence):
        Experiment.parse(value).check()


def test_a_conversation_refuses_as_well() -> None:
    with pytest.raises(ConfigurationError, match="observer Asks: action: nudge; protocol Alternating has no nudge"):
        talk(Alternating(), 2)
    with pytest.raises(ConfigurationError, match="the opening is a vector"):
        Conversation([EchoAgent("ann")], Alternating(nudge=TEXT), np.zeros(2), observers=[Asks(1)])

    class Silent(Asks):
        """Does not tell beforehand that it will ask."""

        def __init__(self) -> None:
            super().__init__(2)
            del self.action

        def update(self, message: Message) -> ObserverVerdict:
            return ObserverVerdict("loop", "nudge", "again") if message.seq == 2 else ObserverVerdict()

    conversation = Conversation([EchoAgent("ann")], observers=[Silent()], max_rounds=4)
    with pytest.raises(ConfigurationError, match="observer Silent: action: nudge; protocol Alternating has no nudge"):
        conversation.run()
    assert (len(conversation.transcript), conversation.transcript.status) == (2, "failed")


@pytest.mark.usefixtures("ray_cluster")
def test_recording_nudging_and_stopping_differ(tmp_path: Path) -> None:
    """Agents that repeat themselves until they are told not to."""

    def speak(message: Message) -> str:
        told = any(NEW in str(m.content) for m in (*message.history, message))
        return f"Number {message.seed} and its square." if told else "We could paint the fence green, as I said."

    agents = [{"name": n, "kind": "function", "function": speak, "takes": "message"} for n in ("ann", "bob")]
    value = {
        "agents": agents,
        "protocol": {"kind": "alternating", "context": "all", "nudge": TEXT},
        "openings": ["x"],
        "max_turns": 20,
        "observers": [{"kind": "loops"}],
        "sweep": {"observers.0.action": ["record", "nudge", "stop"]},
    }
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    record, nudge, stop = run.transcripts()
    assert (len(record.messages), len(nudge.messages)) == (20, 20)
    assert len(stop.messages) < 20
    assert len({m.content for m in record.messages}) == 1
    assert len({m.content for m in nudge.messages}) > 10
    assert next(t for t in nudge.turns if t.kind == NUDGE).sender == "moderator"
