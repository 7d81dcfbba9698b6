"""The actor that runs conversations."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.agents.remote_agent import RemoteAgent
from a2a_ray.runtime.conversation_runner import ConversationRunner
from a2a_ray.runtime.limits.metered_agent import MeteringSettings
from a2a_ray.runtime.plan import WorkerProgress
from a2a_ray.runtime.telemetry import logs

COLLECTIONS = 100_000, 10, 10
"""Thresholds of the garbage collector. Transcripts are many small objects without cycles: with Python's default, a
collection every 700 objects, it takes a quarter of the time of a light turn."""
CONTROL = "control"
"""Concurrency group of methods that must respond while a light agent computes: it has an event loop of its own."""


class Worker(ConversationRunner):
    """Actor that runs conversations, in a process of its own.

    Args:
        pools: arguments of `RemoteAgent` for each heavy agent, by agent key.

    The other arguments are those of `ConversationRunner`.
    """

    def __init__(
        self,
        name: str,
        experiment: Experiment,
        recorder: Any,
        pools: Mapping[str, tuple[Any, ...]],
        agent_keys: Sequence[Sequence[str]],
        max_in_flight: int,
        metering: MeteringSettings,
    ) -> None:
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        logs.name_records(metering.run)
        remote = {key: RemoteAgent(*arguments) for key, arguments in pools.items()}
        super().__init__(name, experiment, recorder, remote, agent_keys, max_in_flight, metering)

    async def ready(self) -> bool:
        """Return when the actor has started."""
        return True

    @ray.method(concurrency_group=CONTROL)
    async def progress(self) -> WorkerProgress:
        """Return the work done so far."""
        return self.work

    @ray.method(concurrency_group=CONTROL)
    async def stop(self) -> None:
        """Stop all conversations after their turn in flight; they can be resumed."""
        self.halt()
