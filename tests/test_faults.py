"""Odd agents: what one of them does stays with its own conversation, and is told."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import a2a_ray
from a2a_ray import BadInput, Conversation, EchoAgent, Message, PlacementError
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.run import resume, run_many
from a2a_ray.runtime.store import Run


class Odd:
    """Answers well, but for openings that say what to do instead."""

    placement = "worker"

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = False

    def setup(self) -> None:
        self.ready = True

    def step(self, message: Message) -> Message:
        text = str(message.content)
        if text == "exit":
            sys.exit("enough")
        if text == "die":
            os._exit(1)
        if text == "numpy":
            return message.reply("ok", self.name, usage={"output_tokens": np.int64(3)}, metadata={"p": np.ones(2)})
        if text == "tuple":
            return message.reply("ok", self.name, metadata={(1, 2): 3})  # type: ignore[dict-item]
        if text == "end":
            return message.reply("ok", self.name, kind="end")
        if text == "seed":
            return Message(message.conversation, message.turn, self.name, "ok", seed=2**64)
        return message.reply(str(self.ready), self.name)


class Waiting:
    """Takes its time, asynchronously, and has no step_batch."""

    def __init__(self, name: str, seconds: float = 0.2) -> None:
        self.name, self.seconds = name, seconds

    async def step(self, message: Message) -> Message:
        await asyncio.sleep(self.seconds)
        return message.reply("done", self.name)


def held(openings: list[str], storage: Path, placement: str = "worker", **more: Any) -> Run:
    agents = [{"name": "odd", "kind": Odd, "placement": placement, **more}, {"name": "bob", "kind": "echo"}]
    return run_many({"agents": agents, "openings": openings, "rounds": 2}, storage=storage, progress=False)


@pytest.mark.parametrize("placement", ["worker", "actor"])
def test_an_odd_answer_fails_its_own_talk_only(ray_cluster: None, tmp_path: Path, placement: str) -> None:
    run = held(["fine", "exit", "numpy", "tuple", "end", "seed"], tmp_path, placement)
    fine, left, numpy, tuple_, end, seed = run.transcripts()
    assert fine.status == numpy.status == seed.status == "done"
    assert fine.messages[0].content == "True", "setup is called wherever an agent works"
    assert numpy.messages[0].usage == {"output_tokens": 3}
    assert numpy.messages[0].metadata == {"p": [1.0, 1.0]}
    assert seed.messages[0].seed < 2**63
    assert seed.messages[0].created_at > 0
    assert left.error == "agent 'odd' failed at turn 1: SystemExit: enough"
    assert "metadata is no JSON" in tuple_.error
    assert "kind 'end', which is reserved" in end.error


@pytest.mark.chaos
def test_a_replica_that_dies_takes_only_its_batch_with_it(ray_cluster: None, tmp_path: Path) -> None:
    run = held(
        ["fine"] * 10 + ["die"] + ["fine"] * 9, tmp_path, "actor", resources={"replicas": 2, "max_batch_size": 1}
    )
    status = [t.status for t in run.transcripts()]
    assert status.count("failed") == 1
    assert "its process died" in run.transcript("0-10-0").error


@pytest.mark.chaos
def test_talks_of_a_pool_without_replicas_fail_and_the_run_ends(ray_cluster: None, tmp_path: Path) -> None:
    run = held(["die"] + ["fine"] * 5, tmp_path, "actor", resources={"max_batch_size": 1})
    assert run.summary()["failed"] >= 1
    assert run.summary()["done"] + run.summary()["failed"] == 6


def test_functions_of_one_name_are_two_agents(ray_cluster: None, tmp_path: Path) -> None:
    functions = [lambda text: "one", lambda text: "two"]
    for placement in ("worker", "actor"):
        agent = {"name": "ann", "kind": "function", "function": functions[0], "placement": placement}
        value = {"agents": [agent], "openings": ["x"], "rounds": 1, "sweep": {"agents.ann.function": functions}}
        run = run_many(value, storage=tmp_path / placement, progress=False)
        assert [t.messages[0].content for t in run.transcripts()] == ["one", "two"]
        with pytest.raises(BadInput, match="experiment="):
            resume(run, progress=False)
        assert resume(run, experiment=value, progress=False).summary()["done"] == 2


def test_a_remote_agent_survives_a_talk_that_is_cut_off(ray_cluster: None) -> None:
    agent = a2a_ray.remote(lambda: Waiting("slow", 1.0), num_cpus=0)

    async def cut() -> None:
        await asyncio.wait_for(Conversation([agent], opening="x", rounds=3).run_async(), 0.2)

    with pytest.raises(TimeoutError):
        asyncio.run(cut())
    assert Conversation([agent], opening="x", rounds=1).run().last.content == "done"


def test_asynchronous_steps_overlap_in_an_actor(ray_cluster: None, tmp_path: Path) -> None:
    agents = [{"name": "slow", "kind": Waiting, "placement": "actor"}]
    value = {"agents": agents, "openings": ["x"], "rounds": 2, "repeats": 40}
    seen: list[float] = []
    run_many(value, storage=tmp_path, progress=lambda p: seen.append(p.seconds))
    assert seen[-1] < 8, "one after another these 80 steps of 0.2 s take 16 s"


def test_a_cluster_that_does_not_answer_is_told_soon(tmp_path: Path) -> None:
    import ray

    if ray.is_initialized():
        with pytest.raises(PlacementError, match="already"):
            connect("127.0.0.1:1")
        return
    started = time.monotonic()
    with pytest.raises(PlacementError, match="nothing answers there"):
        connect("127.0.0.1:1")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"protocol": {"kind": "alternating", "order": ["ann", "carl"]}}, "protocol.order: unknown agent 'carl'"),
        ({"protocol": {"kind": "helper", "helped": {"objective": [1.0]}, "helper": {}}}, "1 agents; expected 2"),
        ({"openings": [[0.0, float("nan")]]}, "openings.0: content has NaN"),
        ({"openings": [[]]}, "openings.0: content has shape (0,)"),
        (
            {"agents": [{"name": "ann", "kind": "tests.test_faults:Broken"}]},
            "cannot be made: RuntimeError: no such luck",
        ),
    ],
)
def test_what_can_be_known_before_the_start_is(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    value = {"agents": [{"name": "ann", "kind": "echo"}], "rounds": 1, **change}
    with pytest.raises(BadInput) as error:
        run_many(value, storage=tmp_path / "runs", progress=False)
    assert sentence in str(error.value)
    assert not (tmp_path / "runs").exists()


class Broken(EchoAgent):
    def __init__(self, name: str) -> None:
        raise RuntimeError("no such luck")
