from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from a2a_ray.analysis.text.exact_repetition import ExactRepetitionRule
from a2a_ray.core.transcript import Transcript

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TASKS = ("explanations", "bookings", "reviews", "operations", "meetings")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of scripts/, which is no part of the package."""
    if not SCRIPTS.is_dir():
        pytest.skip("scripts/ is not here: no checkout of the repository")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return __import__(name)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The synthetic sources, over a few sentences and functions in place of the standard library's."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(2, 9))) for _ in range(900)]
    told = [". ".join(" ".join(draw.choices(words, k=9)) for _ in range(3)) for _ in range(60)]
    documents = [SimpleNamespace(paragraphs=told[i : i + 2]) for i in range(0, 60, 2)]
    code = ["\n".join([f"def {name}(x):", *(f"    {draw.choice(words)} = x.{draw.choice(words)}()" for _ in range(7))])
            for name in words[:80]]  # fmt: skip
    made: dict[str, Any] = script("normal_tasks", monkeypatch).tasks(documents, code, [f"{w}.py" for w in words[:40]])
    return made


def transcript(turns: list[dict[str, Any]]) -> Transcript:
    return Transcript.from_exchange({"id": "t", "turns": turns})


@pytest.mark.parametrize("cluster", TASKS)
def test_synthetic_talks_go_on_and_follow_from_their_seed(cluster: str, tasks: dict[str, Any]) -> None:
    first = tasks[cluster](random.Random(1), 50)
    assert first == tasks[cluster](random.Random(1), 50) != tasks[cluster](random.Random(2), 50)
    assert 48 <= len(first) <= 50
    said = transcript(first)
    assert all(str(message.content).strip() for message in said.messages)
    assert len(said.agents) in (2, 3, 4)
    # they do say "Okay." and the like again, but never three turns in a row that were all said before
    rule = ExactRepetitionRule()
    assert all(rule.update(message).status == "none" for message in said.messages)
    assert len({turn["text"] for turn in first}) > 30


def test_what_a_tool_is_asked_and_finds_is_marked(tasks: dict[str, Any]) -> None:
    kinds = [turn["kind"] for turn in tasks["operations"](random.Random(3), 20)]
    assert kinds == ["action", "result"] * 10


def test_a_deck_deals_every_card_before_any_again(monkeypatch: pytest.MonkeyPatch) -> None:
    deck = script("normal_tasks", monkeypatch).Deck(random.Random(4), "abcdefg")
    dealt = [deck.deal() for _ in range(14)]
    assert set(dealt[:7]) == set(dealt[7:]) == set("abcdefg")


@pytest.mark.slow
def test_the_command_writes_the_exchange_format(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Real sources: the standard library and the two embedded models."""
    normal_talks = script("normal_talks", monkeypatch)
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    only = ["documentation", "paragraphs", "code", "embedded", *TASKS]
    for file in files:
        asked = ["normal_talks.py", "-o", str(file), "--runs", "2", "--turns", "8", "--only", *only]
        monkeypatch.setattr(sys, "argv", asked)
        normal_talks.main()
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [json.loads(line) for line in files[0].read_text("utf-8").splitlines()]
    assert {row["cluster"] for row in rows} == set(only)
    assert len({row["id"] for row in rows}) == len(rows) == 2 * len(only) - 1  # half as many where models speak
    assert all(4 <= len(transcript(row["turns"]).messages) <= 8 for row in rows)  # short documents are short talks
