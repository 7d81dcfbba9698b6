"""The actors of one start of a run: recorder, budget keeper, agent replicas and workers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import ray

from a2a_ray.experiment.spec import AgentSpec, Experiment
from a2a_ray.runtime.agents.pool import AgentFactory, ReplicaPool
from a2a_ray.runtime.cluster import EndedAtStart, await_placed, started_locally, storage_place
from a2a_ray.runtime.crash_recovery import call_recorder
from a2a_ray.runtime.limits.budget_keeper import start_budget_keeper
from a2a_ray.runtime.limits.metered_agent import MeteringSettings
from a2a_ray.runtime.limits.spent import Spent
from a2a_ray.runtime.plan import LIGHT_IN_FLIGHT
from a2a_ray.runtime.telemetry import tracing
from a2a_ray.runtime.telemetry.metrics import exported
from a2a_ray.runtime.worker import CONTROL, Worker
from a2a_ray.store.dataset import table_uri
from a2a_ray.store.recorder import Recorder

IN_FLIGHT = 512
"""Conversations that a worker runs at once if agents are heavy."""


class RunActors:
    """Starts the actors of a run, in this order: `start_recorder`, `start_agents`, `start_worker` for each worker.

    recover: whether Ray restarts a recorder or a replica that dies.
    """

    def __init__(self, path: str, experiment: Experiment, recover: bool) -> None:
        self._path, self._experiment, self._recover = path, experiment, recover
        self._local = started_locally()
        self._started: list[Any] = []
        self._pools: dict[str, tuple[Any, ...]] = {}
        self.recorder: Any = None
        self.budget_keeper: Any = None
        self.max_in_flight = 0
        """Conversations that a worker runs at once."""
        self._agent_keys = [[spec.key() for _, spec in cell.all_agents] for cell in experiment.cells]

    def start_recorder(self, epoch: int) -> None:
        """Start the recorder and return when it has opened the table, so that nobody else can write any more.

        epoch: of the driver's lease. Raises PlacementError and StorageError.
        """
        restarts = -1 if self._recover else 0
        options: dict[str, Any] = {"num_cpus": 0, "max_task_retries": 0, "max_restarts": restarts}
        place = storage_place(self._path, self._experiment.shared_storage)
        if place is not None:
            options["scheduling_strategy"] = place
        actor: Any = ray.remote  # its types know neither these options nor the methods of the actor
        self.recorder = actor(Recorder).options(**options).remote(table_uri(self._path), epoch)
        self._started.append(self.recorder)
        try:
            await_placed([self.recorder.ready.remote()], [{}], "recorder", place)
        except EndedAtStart:
            call_recorder(lambda: self.recorder.ready.remote(), self._recover)

    def start_agents(self, remaining: Mapping[int, int], spent: Spent) -> None:
        """Start the budget keeper and the replicas of heavy agents, and wait until the replicas are set up.

        Args:
            remaining: number of conversations to run, by cell. Agents of finished cells are not started.
            spent: what the run has spent of its budget before.
        """
        keys = self._agent_keys
        agents = [spec for cell in self._experiment.cells for _, spec in cell.all_agents]
        specs = dict(zip(chain(*keys), agents, strict=True))
        counts = {key: sum(n for cell, n in remaining.items() if key in keys[cell]) for key in specs}
        heavy = {key: spec for key, spec in specs.items() if spec.heavy and counts[key]}
        self.max_in_flight = IN_FLIGHT if heavy else LIGHT_IN_FLIGHT
        self.budget_keeper, endpoints = start_budget_keeper(self._experiment, spent)
        if self.budget_keeper is not None:
            self._started.append(self.budget_keeper)
        name = self._path.rstrip("/").rpartition("/")[2]
        self._metering = MeteringSettings(name, self.budget_keeper, endpoints, exported(), tracing.settings())
        pools = {key: self._start_pool(spec) for key, spec in heavy.items()}
        for pool in pools.values():  # report missing resources before any replica loads its model
            pool.await_placement()
        for key, pool in pools.items():
            # At most half of an agent's conversations in one call: while it computes, the other half can prepare.
            batch = min(heavy[key].resources.max_batch_size, -(-counts[key] // 2) or 1)
            self._pools[key] = pool.remote_agent_arguments(batch)

    def _start_pool(self, spec: AgentSpec) -> ReplicaPool:
        resources = spec.resources
        cpus = resources.num_cpus if resources.num_cpus is not None else (0 if self._local else 1)
        pool = ReplicaPool(
            f"agent {spec.name!r}",
            AgentFactory(spec.pool_settings),
            resources.replicas,
            cpus,
            resources.num_gpus,
            resources.scheduling_strategy,
            resources.runtime_env,
            timeout=spec.step_timeout,
            max_hung_steps=spec.limits.max_hung_steps,
            paid=spec.paid,
            recover=self._recover,
        )
        self._started += pool.hosts
        return pool

    @property
    def worker_cpus(self) -> int:
        """CPUs that a worker reserves: none if it only waits for heavy agents, since a light agent computes in it."""
        return 0 if self._pools or self._local else 1

    def workers_that_fit(self) -> int:
        """Return the default number of workers: one for heavy agents, else one per free CPU."""
        return 1 if self._pools else max(1, int(ray.available_resources().get("CPU", 1)))

    def start_worker(self, name: str, cpus: int | None = None) -> Any:
        """Start a worker actor and return its handle. cpus: `worker_cpus` by default."""
        actor: Any = ray.remote
        # Ray must not restart it: it would come back empty. `CrashRecovery` fills its slot.
        options = {
            "num_cpus": self.worker_cpus if cpus is None else cpus,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        kind = actor(concurrency_groups={CONTROL: 1})(Worker).options(**options)
        worker = kind.remote(
            name, self._experiment, self.recorder, self._pools, self._agent_keys, self.max_in_flight, self._metering
        )
        self._started.append(worker)
        return worker

    def kill(self) -> None:
        """Kill all actors that were started."""
        for actor in self._started:
            ray.kill(actor)
