"""Starts the replicas of an agent, each in a Ray actor of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RayTaskError

from a2a_ray.core.errors import A2AError, AgentError, ConfigurationError, PlacementError
from a2a_ray.runtime.agents.actor import AgentHost
from a2a_ray.runtime.agents.remote_agent import RemoteAgent as RemoteAgent
from a2a_ray.runtime.cluster import EndedAtStart, await_placed, connect

MAX_STARTS = 5
"""A replica that dies this often before it is set up is given up."""
PAUSE_SECONDS = 1.0
"""Pause before the next call of a replica that died: until Ray has noticed, calls to it fail."""


class ReplicaPool:
    """The replicas of one agent. The constructor starts them; `facts` waits until they are set up.

    agent: what error messages call the agent.
    factory: makes the agent, in each replica.
    num_cpus, num_gpus: per replica.
    scheduling_strategy, runtime_env: passed to Ray.
    timeout, max_hung_steps, paid: see `Invoker`.
    recover: whether Ray restarts a replica that dies.

    Raises ConfigurationError if the factory cannot be pickled.
    """

    def __init__(
        self,
        agent: str,
        factory: Callable[[], Any],
        replicas: int,
        num_cpus: float,
        num_gpus: float,
        scheduling_strategy: Any = None,
        runtime_env: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        max_hung_steps: int = 3,
        paid: bool = False,
        recover: bool = True,
    ) -> None:
        self._agent, self._strategy, self._recover = agent, scheduling_strategy, recover
        try:
            # Pickled here, so that a node that cannot load it can report that. As an actor argument it stays available
            # for restarts.
            pickled = cloudpickle.dumps(factory)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigurationError(
                f"{agent}: its factory cannot be sent to another process: {reason}; expected a function or class of a"
                " module. Open clients, locks and models in the agent's setup()"
            ) from None
        # max_task_retries: Ray's own retry could make a paid call twice.
        options: dict[str, Any] = {"max_task_retries": 0, "max_restarts": -1 if recover else 0}
        options |= {"num_cpus": num_cpus, "num_gpus": num_gpus}
        if scheduling_strategy is not None:
            options["scheduling_strategy"] = scheduling_strategy
        if runtime_env is not None:
            options["runtime_env"] = dict(runtime_env)
        self._demand = {k: float(v) for k, v in (("CPU", num_cpus), ("GPU", num_gpus)) if v}
        host = ray.remote(AgentHost).options(**options)
        self.hosts: list[Any] = [host.remote(pickled, timeout, max_hung_steps, paid) for _ in range(replicas)]
        self._placed = [h.ready.remote() for h in self.hosts]
        self._setups = [h.setup.remote() for h in self.hosts]

    def await_placement(self) -> None:
        """Return when every replica is placed. Raises PlacementError."""
        for left in reversed(range(MAX_STARTS if self._recover else 1)):
            try:
                await_placed(self._placed, [self._demand] * len(self.hosts), self._agent, self._strategy)
                return
            except EndedAtStart:
                if not left:
                    raise
                time.sleep(PAUSE_SECONDS)  # Ray restarts it
                self._placed = [h.ready.remote() for h in self.hosts]

    def facts(self) -> dict[str, Any]:
        """Wait for placement and set-up, and return the agent's name, overlaps, bids, stateful and paid.

        Raises PlacementError or AgentError.
        """
        for left in reversed(range(MAX_STARTS if self._recover else 1)):
            try:
                self.await_placement()
                facts: dict[str, Any] = ray.get(self._setups)[0]
                break
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, A2AError) else AgentError(f"{self._agent}: {cause}") from None
            except RayActorError as error:
                reason = str(error).splitlines()[0]
                if not left:
                    raise PlacementError(f"{self._agent}: its process died at the start: {reason}") from None
                time.sleep(PAUSE_SECONDS)
                self._setups = [h.setup.remote() for h in self.hosts]
        return facts

    def remote_agent_arguments(self, max_batch_size: int) -> tuple[Any, ...]:
        """Return the arguments of a `RemoteAgent`, which any process can make. Waits and raises as `facts` does."""
        facts = self.facts()
        return facts["name"], self.hosts, facts, max_batch_size

    def end(self) -> None:
        """Kill the replicas."""
        for host in self.hosts:
            ray.kill(host)


def remote(
    agent_factory: Callable[[], Any],
    *,
    replicas: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    scheduling_strategy: Any = None,
    runtime_env: Mapping[str, Any] | None = None,
    max_batch_size: int = 64,
    timeout: float | None = None,
    max_hung_steps: int = 3,
    address: str | None = None,
) -> RemoteAgent:
    """Return an agent that runs in Ray actors: each of the `replicas` calls `agent_factory()` once.

    Connects to the cluster at `address`, or starts a local Ray, unless Ray runs already.

    num_cpus, num_gpus: per replica.
    scheduling_strategy, runtime_env: passed to Ray.
    max_batch_size: the most messages in a batch.
    timeout: seconds that a step may take.
    max_hung_steps: a process in which this many steps hang is replaced.

    Raises ConfigurationError if the factory cannot be pickled, PlacementError within 10 s if the replicas cannot be
    placed, and AgentError if the agent cannot be set up.
    """
    if replicas < 1 or max_batch_size < 1 or max_hung_steps < 1:
        raise ConfigurationError(
            f"replicas: {replicas}, max_batch_size: {max_batch_size}, max_hung_steps: {max_hung_steps};"
            " expected at least 1 of each"
        )
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ConfigurationError(f"timeout: {timeout}; expected seconds above 0, or None")
    connect(address)
    options = (replicas, num_cpus, num_gpus, scheduling_strategy, runtime_env)
    pool = ReplicaPool("the remote agent", agent_factory, *options, timeout=timeout, max_hung_steps=max_hung_steps)
    try:
        return RemoteAgent(*pool.remote_agent_arguments(max_batch_size))
    except BaseException:
        pool.end()
        raise


class AgentFactory:
    """Makes an agent from its settings, in the process where it runs."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self) -> Any:
        from a2a_ray.core.registry import agents

        try:
            return agents.build(self._settings, "agent")
        except ConfigurationError as error:
            raise PlacementError(f"on a node: {error}; is the same code installed on every node?") from None
