"""Observers that act: a nudge is said by the protocol, a stop ends the talk and makes room for another."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.core.contracts import Next, Say, TurnProtocol, Verdict, View
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import NUDGE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from a2a_ray.runtime import session
from a2a_ray.runtime.columns import end_row
from a2a_ray.runtime.run import run_many


class Asks:
    """Calls for an action at given turns."""

    def __init__(self, *turns: int, action: str = "nudge") -> None:
        self.turns, self.action = turns, action

    def update(self, message: Message) -> Verdict:
        if message.turn in self.turns:
            return Verdict("loop", self.action, "again and again", evidence={"last_before": 1})
        return Verdict("loop") if message.turn is None or message.turn > min(self.turns) else Verdict()


class Intervenes(Alternating):
    """Shows a nudge to whoever speaks after it."""

    def nudge(self, transcript: Transcript, verdict: Verdict) -> Say | None:
        return Say("moderator", f"Something new, please: {verdict.reason}.")

    def view(self, transcript: Transcript, speaker: str) -> View:
        newest = transcript.turns[-1] if transcript.turns else transcript.opening
        return View(newest.sender, newest.content)


def talk(protocol: TurnProtocol, *turns: int, **more: Any) -> Conversation:
    agents = [EchoAgent("ann"), EchoAgent("bob")]
    return Conversation(agents, protocol, "Hello.", rounds=3, observers=[Asks(*turns)], **more)


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


def test_a_protocol_that_does_not_intervene_goes_on() -> None:
    assert all(m.kind == "message" for m in talk(Alternating(), 1, 2, 3).run().turns)


def test_simultaneous_turns_are_nudged_after_their_round() -> None:
    class Both(Simultaneous):
        def nudge(self, transcript: Transcript, verdict: Verdict) -> Say | None:
            return Say("", "Stop it.")

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
    transcript = Conversation(agents, rounds=9, observers={"loops": Asks(5, action="stop")}).run()
    assert (len(transcript), transcript.status, transcript.reason) == (5, "done", "loops: again and again")
    assert end_row(transcript, 0.0).metadata["verdicts"][-1][2]["evidence"] == {"last_before": 1}


def test_of_equal_verdicts_in_a_row_the_first_and_the_last_are_kept() -> None:
    transcript = talk(Alternating(), 2).run()
    kept = [(turn, v["action"]) for turn, _, v in end_row(transcript, 0.0).metadata["verdicts"]]
    assert kept == [(2, "nudge"), (3, "record"), (6, "record")]


class Slow:
    """Waits without computing."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name

    async def step(self, message: Message) -> Message:
        await asyncio.sleep(0.02)
        return message.reply(message.content, self.name)


class EndsShort(TurnProtocol):
    """Two agents alternate; a talk that began with "short" ends after one message."""

    def speakers(self, transcript: Transcript) -> Next:
        from a2a_ray.core.contracts import Stop

        short = transcript.opening.content == "short" and transcript.messages
        return Stop("short") if short else transcript.agents[len(transcript.messages) % 2]

    def view(self, transcript: Transcript, speaker: str) -> View:
        return View(transcript.last.sender, transcript.last.content)


def spans(room: int, openings: list[str], storage: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """When each talk had its first and its last message, with room for so many at once."""
    monkeypatch.setattr(session, "LIGHT_IN_FLIGHT", room)
    agents = [{"name": name, "kind": Slow} for name in ("ann", "bob")]
    value = {"agents": agents, "protocol": {"kind": EndsShort}, "turns": 20, "openings": openings}
    run = run_many(value, storage=storage, workers=1, progress=False)
    return [(t.messages[0].created_at, t.messages[-1].created_at) for t in run.transcripts()]


@pytest.mark.usefixtures("ray_cluster")
def test_a_talk_that_ends_early_makes_room_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = spans(8, ["long", "short"] * 6, tmp_path, monkeypatch)  # handed out in twos, a long and a short one in each
    assert max(begin for begin, _ in talks) < talks[0][1]  # the last began before the first long one ended


@pytest.mark.usefixtures("ray_cluster")
def test_no_more_talks_are_under_way_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talks = spans(4, ["long"] * 12, tmp_path, monkeypatch)
    assert max(sum(b <= begin <= e for b, e in talks) for begin, _ in talks) == 4
