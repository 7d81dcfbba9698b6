"""The cluster: start or reach it, start actors on it, and say what is missing instead of waiting in silence."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from a2a_ray.core.errors import PlacementError

PLACEMENT_SECONDS = 10.0
CONNECT_SECONDS = 5.0


def connect(address: str | None = None) -> bool:
    """Uses the Ray that this process is connected to, else the one at `address`, else starts a local one.

    Gives whether a local one was started by this call (whoever asked should end it). Raises PlacementError where the
    address cannot be reached.
    """
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", "local", here):
            raise PlacementError(
                f"address {address!r}: this process is connected to {here!r} already; ray.shutdown() first"
            )
        return False
    if address is not None:
        _answers(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of a change to come without it
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return False
        # A local Ray even where RAY_ADDRESS is set: a cluster is used only when it is asked for.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PlacementError(f"address {address!r}: no Ray cluster answers there: {reason}") from None
    return True


def _answers(address: str) -> None:
    """Raises PlacementError where nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise PlacementError(f"address {address!r}: nothing answers there ({reason}); is the cluster up?") from None


def started_locally() -> bool:
    """Whether the Ray in use has one node only, so that spreading by CPU has no meaning."""
    return len([n for n in ray.nodes() if n["Alive"]]) <= 1


def await_placed(calls: Sequence[Any], wanted: Sequence[Mapping[str, float]], what: str) -> None:
    """Returns when all `calls`, the first one of each actor, are answered. `wanted`: resources that each asked for.

    Raises PlacementError after 10 s (at once, if no node could ever hold one) with what is missing.
    """
    for demand in wanted:
        if not any(_fits(demand, node["Resources"]) for node in ray.nodes() if node["Alive"]):
            raise PlacementError(_missing(what, [demand]))
    _, waiting = ray.wait(list(calls), num_returns=len(calls), timeout=PLACEMENT_SECONDS)
    if waiting:
        lacking = [demand for call, demand in zip(calls, wanted, strict=True) if call in waiting]
        free = ray.available_resources()
        if any(free.get(k, 0) < v for demand in lacking for k, v in demand.items()):
            raise PlacementError(_missing(what, lacking))
        # There is room, so the processes are only slow to start (a busy machine, a runtime environment to build).
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=12 * PLACEMENT_SECONDS)
        if waiting:
            raise PlacementError(f"{what}: {len(waiting)} of {len(calls)} processes did not start within 130 s")
    ray.get(list(calls))  # raises what went wrong in a constructor


def _fits(demand: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(resources.get(key, 0) >= amount for key, amount in demand.items())


def _missing(what: str, lacking: Sequence[Mapping[str, float]]) -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    sums: dict[str, float] = {}
    for demand in lacking:
        for key, amount in demand.items():
            sums[key] = sums.get(key, 0) + amount
    parts = [
        f"{amount:g} more {key} ({total.get(key, 0):g} in the cluster, {free.get(key, 0):g} free)"
        for key, amount in sums.items()
        if amount > 0
    ]
    return (
        f"{what}: {len(lacking)} of its processes cannot be placed: they need {' and '.join(parts) or 'a node'};"
        " ask for less (replicas, num_cpus, num_gpus, --workers) or for a larger cluster (--address)"
    )
