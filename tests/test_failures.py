"""Processes of a run that die: stored turns stay, the rest continues; a conversation that kills is set aside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import StorageError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.runtime.quarantine import ALONE_DEATHS, Quarantine
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.store.run_folder import run_names


class Deadly:
    """Kills its process if the opening starts with "poison": always, or only until a file exists."""

    placement = "worker"

    def __init__(self, name: str, wait: float = 0.0, once: str = "", at: int = 1) -> None:
        self.name, self.wait, self.once, self.at = name, wait, once, at

    async def step(self, message: Message) -> Message:
        """Answer with the first word and the turn, or die."""
        import asyncio

        await asyncio.sleep(self.wait)
        word, _, _ = str(message.content).partition(" ")
        if word == "poison" and message.turn >= self.at and not (self.once and Path(self.once).exists()):
            if self.once:
                Path(self.once).touch()
            os._exit(1)
        return message.reply(f"{word} {message.turn}", self.name)


def spec(openings: list[str], **agent: Any) -> dict[str, Any]:
    """Return a specification with two agents of this kind."""
    agents = [{"name": name, "kind": "tests.test_failures:Deadly", **agent} for name in ("ann", "bob")]
    return {"agents": agents, "openings": openings, "max_turns": 6, "name": "deadly"}


def content_of(transcript: Transcript) -> list[tuple[int, str, str, int]]:
    """Return the turns of a conversation, without time stamps."""
    return [(m.turn, m.sender, str(m.content), m.seed) for m in transcript.turns]


@pytest.mark.parametrize(("at", "wait"), [(1, 0.0), (4, 0.01)])  # the first dies before its opening is stored
def test_a_poison_conversation_is_set_aside_and_no_other(
    ray_cluster: None, tmp_path: Path, at: int, wait: float
) -> None:
    openings = [f"calm{i}" for i in range(4)] + ["poison"] + [f"calm{i}" for i in range(4, 6)]
    run = run_experiment(spec(openings, at=at, wait=wait), storage=tmp_path, workers=2, progress=False)
    assert run.summary() == {"conversations": 7, "done": 6, "failed": 1, "turns": 6 * 6 + at - 1}
    (failed,) = [t for t in run.transcripts() if t.status == "failed"]
    assert failed.opening.content == "poison"
    assert f"died at turn {at}, {ALONE_DEATHS} times" in failed.error


def test_a_worker_that_dies_once_changes_no_turn(ray_cluster: None, tmp_path: Path) -> None:
    openings = [f"calm{i}" for i in range(6)] + ["poison"]
    once = str(tmp_path / "died")
    run = run_experiment(spec(openings, at=3, once=once), storage=tmp_path / "cut", workers=1, progress=False)
    assert Path(once).exists()
    for task in run.experiment.tasks():
        agents = [Deadly("ann", at=99), Deadly("bob", at=99)]
        talk = Conversation(agents, opening=openings[task.opening], max_turns=6, seed=task.seed, id=task.id)
        assert content_of(talk.run()) == content_of(run.transcript(task.id))
    assert run.summary()["done"] == 7


def test_raise_ends_the_run_and_it_can_be_resumed(ray_cluster: None, tmp_path: Path) -> None:
    once = str(tmp_path / "died")
    value = spec(["calm", "poison"], at=3, once=once)
    with pytest.raises(StorageError, match=r"a worker process died: .*; resume the run"):
        run_experiment(value, storage=tmp_path / "runs", workers=1, progress=False, on_failure="raise")
    (name,) = run_names(tmp_path / "runs")
    again = resume_run(name, workers=1, progress=False)
    assert again.summary() == {"conversations": 2, "done": 2, "failed": 0, "turns": 12}


@given(st.integers(1, 300), st.data())
def test_quarantine_finds_the_poison_and_clears_the_others(count: int, data: st.DataObject) -> None:
    """A simulated worker dies at its poison. An adversary chooses which of the others make progress."""
    poison = data.draw(st.integers(0, count - 1))
    quarantine = Quarantine()
    left = {str(i): 0 for i in range(count)}
    queue: list[tuple[list[str], bool]] = [(list(left), False)]
    deaths = 0
    while queue:
        group, quarantined = queue.pop(0)
        if str(poison) not in group:
            continue  # it ends
        deaths += 1
        lucky = data.draw(st.sampled_from([0, 0, 3]))
        progress = {id: id != str(poison) and int(id) % 4 < lucky and deaths < 5 for id in group}
        decision = quarantine.sort_after_death(progress, quarantined=quarantined)
        assert sorted([*decision.cleared, *(id for g in decision.suspects for id in g), *decision.guilty]) == sorted(
            group
        )
        if decision.guilty:
            assert decision.guilty == [str(poison)]
            break
        queue += [(decision.cleared, False)] if decision.cleared else []
        queue += [(g, True) for g in decision.suspects]
    else:
        pytest.fail("the poison was never found")
    assert deaths <= 8 + 2 * count.bit_length()


class Remembers:
    """Counts its turns in each conversation; its process dies once, at the fourth."""

    stateful = True

    def __init__(self, name: str, once: str = "") -> None:
        self.name, self._once = name, once
        self._counts: dict[str, int] = {}

    def step(self, message: Message) -> Message:
        """Answer with the count."""
        count = self._counts[message.conversation] = self._counts.get(message.conversation, 0) + 1
        if count == 4 and self._once and not Path(self._once).exists():
            Path(self._once).touch()
            os._exit(1)
        return message.reply(f"turn {count}", self.name)

    def get_state(self, conversation: str) -> int:
        """Return the count."""
        return self._counts.get(conversation, 0)

    def set_state(self, conversation: str, state: int | None) -> None:
        """Restore the count."""
        if state is None:
            self._counts.pop(conversation, None)
        else:
            self._counts[conversation] = state


def test_a_stateful_agent_continues_after_its_process_died(ray_cluster: None, tmp_path: Path) -> None:
    agents = [
        {
            "name": "ann",
            "kind": "tests.test_failures:Remembers",
            "once": str(tmp_path / "died"),
            "resources": {"replicas": 2},
        },
        {"name": "bob", "kind": "tests.test_failures:Deadly"},
    ]
    value = {"agents": agents, "openings": [f"calm{i}" for i in range(5)], "max_turns": 11, "name": "memory"}
    run = run_experiment(value, storage=tmp_path / "runs", workers=1, progress=False)
    assert (tmp_path / "died").exists()
    for transcript in run.transcripts():
        assert [m.content for m in transcript.turns if m.sender == "ann"] == [f"turn {n}" for n in range(1, 7)]
