"""Connects to a Ray cluster, or starts a local one; places actors and reports missing resources."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private import services
from ray.exceptions import ActorUnschedulableError, RayActorError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from a2a_ray.core.errors import ConfigurationError, PlacementError


class EndedAtStart(PlacementError):
    """A process was placed and died before it was ready; another attempt may succeed."""


CONNECT_SECONDS = 5.0
"""Limit for resolving a name and connecting to its port; the same again for checking that Ray listens there."""
PLACEMENT_SECONDS = 10.0
"""How long a process may wait for resources that others use."""
START_SECONDS = 130.0
"""How long a placed process may take to start; its runtime environment is built in that time."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The first bytes of every gRPC client (RFC 9113, 3.4). Every server of Ray responds with a settings frame."""
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
PROBE = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print(type(error).__name__, str(error).replace("\\n", " "))
"""


def connect(address: str | None = None) -> bool:
    """Connect to the cluster at `address`, or start a local Ray. A Ray that this process already uses is kept.

    Args:
        address: "host:port"; "ray://host:port" from a machine outside the cluster; "auto" for the cluster of this
            machine; None or "local" for a Ray of this process alone.

    Returns whether this call started a local Ray, which the caller should shut down.

    Raises PlacementError within 15 s if the address cannot be reached, or if it runs other versions of Ray or Python.
    """
    if ray.is_initialized():
        if address not in (None, "auto", "local"):
            _check_same(address)
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # without it Ray warns of a future change
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address in (None, "local"):
            # A local Ray even if RAY_ADDRESS is set: a cluster is used only on request.
            ray.init(address="local", include_dashboard=False, **quiet)
            return True
        found = _found(address) if address == "auto" else address
        _check_answers(found)
        if found.startswith("ray://"):
            # By default three attempts of 5, 10 and 15 s. Ray reads it once, when it imports its client.
            os.environ.setdefault("RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S", "3")
            os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "3")
        with warnings.catch_warnings(action="ignore"):  # the client warns in addition to its error
            ray.init(address=found, **quiet)
    except PlacementError as error:
        raise PlacementError(f"address {address!r}: {error}") from None
    except Exception as error:
        ray.shutdown()  # the next call would take half a connection for a connection
        raise PlacementError(f"address {address!r}: {_plain(error)}") from None
    return False


def _check_same(address: str) -> None:
    """Raise PlacementError if this process is connected to another Ray."""
    here = ray.get_runtime_context().gcs_address
    try:
        same = services.canonicalize_bootstrap_address(address) == here
    except (ValueError, OSError):
        same = False
    if not same and not (address.startswith("ray://") and by_client()):
        raise PlacementError(
            f"address {address!r}: this process is connected to {here!r} already; call ray.shutdown() first"
        )


def _found(address: str) -> str:
    """Return the address for "auto": RAY_ADDRESS, or a Ray that runs on this machine."""
    try:
        return str(services.get_ray_address_from_environment(address, None))
    except ConnectionError:
        raise PlacementError(
            "no Ray runs on this machine and RAY_ADDRESS is not set; start one (ray start --head), or give host:port"
        ) from None


def _check_answers(address: str) -> None:
    """Raise PlacementError if no Ray responds. Ray itself would try for minutes (163 s were measured)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise PlacementError("expected host:port, ray://host:port, auto or local")
    if "://" in host:
        raise PlacementError("expected ray:// as the only scheme, or plain host:port")
    response = _first_response(host.strip("[]"), int(port))
    if isinstance(response, Exception):
        reason = getattr(response, "strerror", None) or str(response) or type(response).__name__
        raise PlacementError(f"nothing answers there ({reason}); is the cluster up, and the port open to this machine?")
    if response[3:4] != b"\x04":  # no settings frame
        how = "did not respond" if not response else "uses another protocol"
        raise PlacementError(f"the server there is not Ray: it {how}; the head's port is 6379 by default")
    if not address.startswith("ray://"):
        _check_head(address)


def _first_response(host: str, port: int) -> bytes | Exception:
    """Return the first bytes that a gRPC client receives, b"" if none arrive, or the error of the connection.

    It runs in a thread, since name resolution has no time-out.
    """
    received: list[bytes | Exception] = []

    def greet() -> None:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
                try:
                    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                        received.append(PREFACE[-9:])  # it cannot be checked without encryption; Ray will report it
                        return
                    connection.sendall(PREFACE)
                    received.append(connection.recv(9))
                except OSError:
                    received.append(b"")
        except (OSError, UnicodeError, OverflowError) as error:
            received.append(error)

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_SECONDS)
    return received[0] if received else TimeoutError("timed out")


def _check_head(address: str) -> None:
    """Raise PlacementError if the server of Ray is not a head, or requires a token that this process lacks.

    It runs in its own process: Ray's connection would retry for 20 s and print each attempt.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=CONNECT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return  # a busy machine: Ray itself will report it
    if done.stdout:
        raise PlacementError(_plain(RuntimeError(done.stdout.strip())))


def _plain(error: Exception) -> str:
    """Return one sentence, with the remedy, for an error of Ray's connection."""
    text = str(error)
    found = VERSIONS.findall(text)
    if "Version mismatch" in text and len(found) == 2:
        (ray_there, python_there), (ray_here, python_here) = found
        remedy = [f"Python {python_there}"] * (python_there != python_here)
        remedy += [f'pip install "ray=={ray_there}"'] * (ray_there != ray_here)
        return (
            f"the cluster runs Ray {ray_there} on Python {python_there}, this process Ray {ray_here} on Python"
            f" {python_here}; they must be equal: here {' and '.join(remedy)}, or the same change on every node"
        )
    if "AuthToken" in text or "Authentication" in text or "Unauthenticated" in text:
        return (
            "the cluster requires its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the output of"
            " `ray get-auth-token` on the head (or copy its ~/.ray/auth_token)"
        )
    if "Method not found" in text:
        return "the server there belongs to Ray, but it is not the head; the head's port is 6379 by default"
    if "ray[client]" in text:
        return 'ray:// needs one more package: pip install "ray[client]"'
    if "ray client connection timeout" in text:
        return (
            "no Ray client server answers there (its port is 10001 by default); if the cluster requires a token, set"
            " RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )
    reason = text.splitlines()[0] if text else type(error).__name__
    return f"no Ray cluster answers there: {reason}"


def by_client() -> bool:
    """Return whether this process uses the cluster from outside, by ray://."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def started_locally() -> bool:
    """Return whether the Ray in use has only one node, so that reserving CPUs to spread actors is pointless."""
    return len(_alive()) <= 1


def storage_place(path: str, shared: bool = False) -> NodeAffinitySchedulingStrategy | None:
    """Return where to place the actor that writes `path`: on the driver's node if it is a folder of this machine.

    None means anywhere: for the URI of an object store, or a folder that is `shared` by all nodes. Raises
    ConfigurationError for a folder of this machine if the process is outside the cluster (ray://).
    """
    if shared or path.partition("://")[0] not in (path, "file"):
        return None
    if by_client():
        raise ConfigurationError(
            f"storage: {path!r} is a folder of this machine; the cluster behind ray:// cannot write it. Give the URI of"
            " an object store, or set `shared_storage: true` in the specification if every node has this folder"
        )
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def await_placed(
    calls: Sequence[Any], demands: Sequence[Mapping[str, float]], owner: str, strategy: object = None
) -> None:
    """Return when all actors have answered their first call.

    Args:
        calls: the first call of each actor.
        demands: resources that each actor reserves.
        owner: whose processes they are, for errors.
        strategy: the scheduling strategy they were started with, if it ties them to one node.

    Raises PlacementError with the missing resources: at once if they exceed those of the cluster; after 10 s if other
    processes use them; after 130 s if a placed process has not started or one node is full (Ray does not distinguish
    these two). Also raises it if a process or its runtime environment cannot start. An error of an actor's constructor
    is raised as Ray's.
    """
    started = time.monotonic()
    waiting = list(calls)
    while True:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not waiting:
            break
        lacking = [demand for call, demand in zip(calls, demands, strict=True) if call in waiting]
        _check_capacity(demands, owner, strategy)  # each time: a node may be lost meanwhile
        seconds = time.monotonic() - started
        if seconds > START_SECONDS:
            raise PlacementError(
                f"{owner}: {len(waiting)} of {len(calls)} processes did not start within 130 s: the requested node is"
                " full, or the runtime_env takes long to build; request less, or build it beforehand"
            )
        if seconds > PLACEMENT_SECONDS and _queued(lacking):
            raise PlacementError(_missing(owner, lacking))
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1)
        if not waiting:
            break
    try:
        ray.get(list(calls))
    except RuntimeEnvSetupError as error:
        raise PlacementError(f"{owner}: its runtime_env cannot be built: {_cause(error)}") from None
    except ActorUnschedulableError as error:
        raise PlacementError(f"{owner}: it cannot be placed: {_cause(error)}") from None
    except RayActorError as error:
        raise EndedAtStart(f"{owner}: a process ended at its start: {_cause(error)}") from None


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_capacity(demands: Sequence[Mapping[str, float]], owner: str, strategy: object) -> None:
    """Raise PlacementError if the demands exceed the nodes' total resources."""
    nodes = _alive()
    if isinstance(strategy, NodeAffinitySchedulingStrategy) and not strategy.soft:
        nodes = [node for node in nodes if node["NodeID"] == strategy.node_id]
        if not nodes:
            raise PlacementError(f"{owner}: scheduling_strategy: no node {strategy.node_id} in the cluster")
    for demand in {tuple(sorted(d.items())): d for d in demands}.values():
        places = [node for node in nodes if _times(node["Resources"], demand)]
        if sum(_times(node["Resources"], demand) for node in places) < sum(d == demand for d in demands):
            raise PlacementError(_missing(owner, [d for d in demands if d == demand]))


def _times(resources: Mapping[str, float], demand: Mapping[str, float]) -> float:
    """Return how many times the demand fits into the resources; infinity for an empty demand."""
    return min((resources.get(k, 0) // v for k, v in demand.items() if v), default=float("inf"))


def _queued(lacking: Sequence[Mapping[str, float]]) -> bool:
    """Return whether a demand is waiting for resources. A placed process that starts slowly has them already."""
    if by_client():  # the head cannot be reached from outside
        free = ray.available_resources()
        return any(free.get(k, 0) < v for demand in lacking for k, v in demand.items())
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    queued = [r.bundle for d in status.resource_demands.ray_task_actor_demand for r in d.bundles_by_count]
    return any({k: v for k, v in demand.items() if v} in queued for demand in lacking)


def _missing(owner: str, lacking: Sequence[Mapping[str, float]]) -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = []
    for key in sorted({k for demand in lacking for k, v in demand.items() if v}):
        amount = sum(demand.get(key, 0) for demand in lacking)
        largest = max((node["Resources"].get(key, 0) for node in _alive()), default=0)
        each = f", {largest:g} in its largest node" if len(_alive()) > 1 else ""
        parts.append(f"{amount:g} more {key} ({total.get(key, 0):g} in the cluster{each}, {free.get(key, 0):g} free)")
    return (
        f"{owner}: {len(lacking)} of its processes cannot be placed: they need {' and '.join(parts) or 'a node'};"
        " request less (resources: replicas, num_cpus, num_gpus; --workers) or use a larger cluster (--address)"
    )


def _cause(error: Exception) -> str:
    """Return the most useful line of a long message of Ray: the last error in it, or the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(ERROR:|[\w.]*(Error|Exception): )", line)]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0]
