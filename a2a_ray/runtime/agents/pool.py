"""Heavy agents: replicas over the cluster, each in a Ray actor of its own."""

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

STARTS = 5
"""How often a replica may die before it is set up."""
PAUSE_SECONDS = 1.0
"""Before a replica that died is asked again: until Ray has noticed, calls to it fail."""


class Pool:
    """The replicas of one agent: started at once, `facts` waits for them.

    factory: makes the agent, in each replica. num_cpus, num_gpus: that each replica asks for.
    scheduling_strategy, runtime_env: as Ray takes them. timeout, max_hung_steps, paid: see `Asking`. recover: whether a
    replica that dies is started again.
    Raises ConfigurationError where the factory cannot be sent to another process; for all else see `facts`.
    """

    def __init__(
        self,
        what: str,
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
        self._what, self._strategy, self._recover = what, scheduling_strategy, recover
        try:
            # Pickled here, so that a node on which it cannot be loaded can say so; and with the actor's other arguments
            # it stays available for a restart.
            pickled = cloudpickle.dumps(factory)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigurationError(
                f"{what}: what makes it cannot be sent to another process: {reason}; give a function or class of a"
                " module, and open clients, locks and models in the agent's setup()"
            ) from None
        # Ray's own retry can make a paid call twice; a process that died comes back, and sets its agent up again.
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

    def placed(self) -> None:
        """Returns when every replica has its place. Raises PlacementError."""
        for left in reversed(range(STARTS if self._recover else 1)):
            try:
                await_placed(self._placed, [self._demand] * len(self.hosts), self._what, self._strategy)
                return
            except EndedAtStart:
                if not left:
                    raise
                time.sleep(PAUSE_SECONDS)  # Ray starts it again
                self._placed = [h.ready.remote() for h in self.hosts]

    def facts(self) -> dict[str, Any]:
        """Waits for placement and set-up; what callers must know of the agent: name, overlaps, bids, stateful, paid.

        Raises PlacementError or AgentError.
        """
        for left in reversed(range(STARTS if self._recover else 1)):
            try:
                self.placed()
                facts: dict[str, Any] = ray.get(self._setups)[0]
                break
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, A2AError) else AgentError(f"{self._what}: {cause}") from None
            except RayActorError as error:
                reason = str(error).splitlines()[0]
                if not left:
                    raise PlacementError(f"{self._what}: its process died at the start: {reason}") from None
                time.sleep(PAUSE_SECONDS)
                self._setups = [h.setup.remote() for h in self.hosts]
        return facts

    def parts(self, max_batch_size: int) -> tuple[Any, ...]:
        """What makes a `RemoteAgent` in any process. Waits, and raises, as `facts` does."""
        facts = self.facts()
        return facts["name"], self.hosts, facts, max_batch_size

    def end(self) -> None:
        """Ends the replicas."""
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
    """An agent that works in Ray actors: `agent_factory()` is called once in each of the `replicas`.

    num_cpus, num_gpus: per replica. scheduling_strategy, runtime_env: as Ray takes them. max_batch_size: most messages
    in a call. timeout: seconds that a step may take; a process in which `max_hung_steps` steps hang is replaced.
    Connects to `address`, or starts a local Ray, unless Ray runs already. Raises ConfigurationError where the factory
    cannot be sent to another process, PlacementError within 10 s where the replicas cannot be placed, and AgentError
    where the agent cannot be set up.
    """
    if replicas < 1 or max_batch_size < 1 or max_hung_steps < 1:
        raise ConfigurationError(
            f"replicas: {replicas}, max_batch_size: {max_batch_size}, max_hung_steps: {max_hung_steps};"
            " expected at least 1 of each"
        )
    if timeout is not None and not 0 < timeout < float("inf"):
        raise ConfigurationError(f"timeout: {timeout}; expected seconds above 0, or None")
    connect(address)
    where = (replicas, num_cpus, num_gpus, scheduling_strategy, runtime_env)
    pool = Pool("the remote agent", agent_factory, *where, timeout=timeout, max_hung_steps=max_hung_steps)
    try:
        return RemoteAgent(*pool.parts(max_batch_size))
    except BaseException:
        pool.end()
        raise


class Factory:
    """Makes an agent from its settings, in the process where it is to work."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self) -> Any:
        from a2a_ray.core.registry import agents

        try:
            return agents.build(self._settings, "agent")
        except ConfigurationError as error:
            raise PlacementError(f"on a node: {error}; is the same code installed on every node?") from None
