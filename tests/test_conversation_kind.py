"""The kind of a conversation, and which families of loops count in it."""

from __future__ import annotations

import pytest

from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.analysis.loops.conversation_kind import FAMILIES
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.message import Message
from tests.talks import message

MUSING = [
    "I keep wondering what it is like for you to think in words only.",
    "For me it feels like walking through fog that turns into a street as I walk.",
    "That is a lovely picture. For me the street is there, and the fog comes later.",
    "Then we walk in opposite directions and meet somewhere in the middle.",
    "Perhaps the middle is all there is, a place that needs two walkers.",
    "A place that needs two walkers, yes, and that is gone when they leave.",
]
BOOKING = [
    "Hello! Welcome to the Harbour Hotel. How can I help you?",
    "I need a room for 2 nights from 14 May.",
    "Would you like a single or a double room?",
    "A double room, below 120 euros please.",
    "Room 31 costs 110 euros a night. Shall I book it?",
    "Yes, and breakfast for 2 at 7.30, please.",
]


def exchange(texts: list[str], *speakers: str) -> list[Message]:
    names = speakers or ("ada", "bob")
    return [message(i + 1, text, names[i % len(names)]) for i, text in enumerate(texts)]


def watched(messages: list[Message], detector: LoopDetector) -> LoopDetector:
    for each in messages:
        detector.update(each)
    return detector


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (exchange(MUSING), "self_talk"),
        (exchange(BOOKING), "chat"),
        (exchange(MUSING[:5]), "chat"),
        (exchange(MUSING, "ada", "bob", "eve"), "chat"),
        (exchange(MUSING, "Human", "assistant"), "human"),
        (exchange(MUSING, "human", *"abcde"), "chat"),
        ([*exchange(MUSING), message(7, "ls", "ada", kind="action")], "tools"),
        ([message(1, "ls", "ada", kind="action"), *exchange(MUSING)], "tools"),
        ([], "chat"),
    ],
)
def test_the_kind_is_detected(messages: list[Message], kind: str) -> None:
    assert watched(messages, LoopDetector()).conversation_kind == kind


def test_only_the_families_of_the_kind_count() -> None:
    thanks = exchange(["Thank you so much!", "You are welcome, have a great day!"] * 8)
    calls = [message(i + 1, "cat log.txt", "ab"[i % 2], kind=("action", "result")[i % 2]) for i in range(12)]

    def score(messages: list[Message], kind: str, family: str) -> float:
        detector = watched(messages, LoopDetector(conversation_kind=kind))
        assert set(detector.family_scores) <= set(FAMILIES[kind])
        return detector.family_scores.get(family, 0.0)

    assert score(thanks, "chat", "empty acts") > 1
    assert score(thanks, "human", "empty acts") == 0
    assert score(calls, "tools", "rounds") > 1
    assert score(calls, "chat", "rounds") == 0


def test_no_model_is_loaded_where_meaning_does_not_count(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(type(embedder), "vector", lambda self, text: read.append(text))
    assert "meaning" not in FAMILIES["chat"]
    watched(exchange([*BOOKING, *MUSING]), LoopDetector(embedder))
    assert read == []


def test_messages_before_the_kind_is_known_count_too(embedder: Embedder) -> None:
    turns = exchange(MUSING * 2)
    detected, given = LoopDetector(embedder), LoopDetector(embedder, conversation_kind="self_talk")
    assert watched(turns, detected).family_scores == watched(turns, given).family_scores


def test_a_finding_names_the_kind() -> None:
    turns = exchange([*BOOKING, *["Of course. Is there anything else that I can help you with today?"] * 6])
    found = watched(turns, LoopDetector()).findings("c")[0]
    assert found.looped
    assert found.evidence["conversation_kind"] == "chat"
    assert "conversation_kind" not in found.settings, "what is detected is no setting"
    assert LoopDetector(conversation_kind="chat").settings["conversation_kind"] == "chat"
