"""Where a custom agent crashed: file and line are kept, stored, and shown, wherever the agent works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import MOST_TRACEBACK, AgentError, traceback_of
from a2a_ray.core.message import Message
from a2a_ray.core.verdict import ObserverVerdict
from a2a_ray.runtime.run_experiment import run_experiment
from tests.command_line import call, write_spec

SECRET = "sk-never-to-be-shown"


class Crashes:
    """Fails in its second turn, deep down."""

    def __init__(self, name: str, batch: bool = False) -> None:
        self.name = name
        if batch:
            self.step_batch = lambda messages: [self.step(m) for m in messages]

    def step(self, message: Message) -> Message:
        return message.reply(deeper(message.turn), self.name)


class CrashesLater(Crashes):
    """The same, asynchronously."""

    async def step(self, message: Message) -> Message:  # type: ignore[override]
        return message.reply(deeper(message.turn), self.name)


class CrashesWithin:
    """An observer that fails."""

    def update(self, message: Message) -> ObserverVerdict:
        raise KeyError("nothing here")


class Hides:
    """Raises an error of the package in whose context a secret stands."""

    def __init__(self, name: str) -> None:
        self.name = name

    def step(self, message: Message) -> Message:
        try:
            raise ValueError(SECRET)
        except ValueError:
            raise AgentError("the key was refused")  # noqa: B904


def deeper(turn: int) -> str:
    if turn > 1:
        raise ZeroDivisionError("no turn left")  # this is the line
    return "Hi."


def check_place(traceback: str) -> None:
    assert traceback.startswith("Traceback (most recent call last):")
    assert 'test_tracebacks.py", line' in traceback
    assert "in deeper" in traceback
    assert "# this is the line" in traceback
    assert traceback.endswith("ZeroDivisionError: no turn left")
    assert "a2a_ray/core" not in traceback
    assert "a2a_ray/runtime" not in traceback


def test_a_crash_in_this_process_keeps_its_place_and_its_cause() -> None:
    conversation = Conversation([Crashes("ann")], max_turns=3)
    with pytest.raises(AgentError, match="failed at turn 2: ZeroDivisionError: no turn left") as raised:
        conversation.run()
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    check_place(conversation.transcript.traceback)


def test_it_is_stored_wherever_the_agent_works(ray_cluster: None, tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"label": f"{kind.__name__} {placement}", "agents": [{"name": "ann", "kind": kind, "placement": placement}]}
        for kind in (Crashes, CrashesLater)
        for placement in ("worker", "actor")
    ]
    cells.append({"label": "observer", "observers": [{"kind": CrashesWithin}]})
    value = {"agents": [{"name": "ann", "kind": "echo"}], "openings": ["x"], "max_turns": 3, "sweep": cells}
    run = run_experiment(value, storage=tmp_path, workers=1, progress=False)
    *crashed, observed = run.transcripts()
    assert len(crashed) == 4
    for transcript in crashed:
        assert (transcript.status, len(transcript)) == ("failed", 1)
        assert transcript.error == "agent 'ann' failed at turn 2: ZeroDivisionError: no turn left"
        check_place(transcript.traceback)
    assert len(observed) == 1, "what was said is kept"
    assert observed.traceback.endswith("KeyError: 'nothing here'")
    assert "in update" in observed.traceback


def test_it_is_bounded_and_its_end_is_kept() -> None:
    def fail(depth: int) -> None:
        if depth:
            return fail_again(depth - 1)
        raise ValueError("at the bottom")

    def fail_again(depth: int) -> None:  # two functions, so that Python does not join equal lines
        fail(depth)

    with pytest.raises(ValueError, match="bottom") as raised:
        fail(200)
    kept = traceback_of(raised.value)
    assert MOST_TRACEBACK / 2 < len(kept) <= MOST_TRACEBACK + 4
    assert kept.startswith("...\n  ")
    assert kept.endswith("ValueError: at the bottom")


def test_what_an_error_of_ours_hides_is_not_kept() -> None:
    conversation = Conversation([Hides("ann")], max_turns=1)
    with pytest.raises(AgentError, match="the key was refused"):
        conversation.run()
    assert "in step" in conversation.transcript.traceback
    assert SECRET not in conversation.transcript.traceback


def test_an_error_that_only_our_code_raised_has_none() -> None:
    class Silent(Crashes):
        def step(self, message: Message) -> Any:
            return None

    conversation = Conversation([Silent("ann")], max_turns=1)
    with pytest.raises(AgentError, match="returned None"):
        conversation.run()
    assert conversation.transcript.traceback == ""


def test_people_see_it_below_the_error(ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agents = [{"name": "ann", "kind": "tests.test_tracebacks:Crashes"}]
    spec = write_spec(tmp_path, agents=agents, openings=["x", "y"])
    done = call(capsys, "run", spec, "--storage", tmp_path / "runs", "--workers", "1")
    assert done.status == 1
    assert done.err.count("in deeper") == 1, "of the first failed conversation only"
    (path,) = (tmp_path / "runs").iterdir()
    shown = call(capsys, "show", str(path), "0-1-0").out
    assert shown.index("failed: agent 'ann'") < shown.index("in deeper")
