"""The cluster: start or reach it, start actors on it, and say what is missing instead of waiting in silence."""

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
    """A process had its place, and died before it was ready; another one may do better."""


CONNECT_SECONDS = 5.0
"""For a name to be resolved and its port to answer; the same again for what listens there to be Ray."""
PLACEMENT_SECONDS = 10.0
START_SECONDS = 130.0
"""Until a process that has its place must have started; within it a runtime environment is built."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What every gRPC client says first (RFC 9113, 3.4): any server of Ray answers with a settings frame."""
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
    """Uses the Ray that this process is connected to, else the one at `address`, else starts a local one.

    address: "host:port", "ray://host:port" for a machine outside the cluster, "auto" for the cluster of this machine,
    None or "local" for a Ray of this process alone.

    Gives whether a local one was started by this call (whoever asked should end it). Raises PlacementError where the
    address cannot be reached, within 15 s, or runs other versions of Ray or Python.
    """
    if ray.is_initialized():
        if address not in (None, "auto", "local"):
            _check_same(address)
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of a change to come without it
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address in (None, "local"):
            # A local Ray even where RAY_ADDRESS is set: a cluster is used only when it is asked for.
            ray.init(address="local", include_dashboard=False, **quiet)
            return True
        found = _found(address) if address == "auto" else address
        _check_answers(found)
        if found.startswith("ray://"):
            # Three tries of 5, 10 and 15 s otherwise. It is read once, when Ray imports its client.
            os.environ.setdefault("RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S", "3")
            os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "3")
        with warnings.catch_warnings(action="ignore"):  # the client's, beside its error
            ray.init(address=found, **quiet)
    except PlacementError as error:
        raise PlacementError(f"address {address!r}: {error}") from None
    except Exception as error:
        ray.shutdown()  # half a connection would be taken for one the next time
        raise PlacementError(f"address {address!r}: {_plain(error)}") from None
    return False


def _check_same(address: str) -> None:
    """Raises PlacementError where the Ray that is connected to is another one."""
    here = ray.get_runtime_context().gcs_address
    try:
        same = services.canonicalize_bootstrap_address(address) == here
    except (ValueError, OSError):
        same = False
    if not same and not (address.startswith("ray://") and by_client()):
        raise PlacementError(
            f"address {address!r}: this process is connected to {here!r} already; ray.shutdown() first"
        )


def _found(address: str) -> str:
    """The address that "auto" stands for: that of RAY_ADDRESS, else of a Ray that runs on this machine."""
    try:
        return str(services.get_ray_address_from_environment(address, None))
    except ConnectionError:
        raise PlacementError(
            "no Ray runs on this machine and RAY_ADDRESS is not set; start one (ray start --head), or give host:port"
        ) from None


def _check_answers(address: str) -> None:
    """Raises PlacementError where no Ray answers; Ray itself would try for minutes (163 s were seen)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise PlacementError("expected host:port, ray://host:port, auto or local")
    if "://" in host:
        raise PlacementError("expected ray:// as the only scheme, or plain host:port")
    said = _greeted(host.strip("[]"), int(port))
    if isinstance(said, Exception):
        reason = getattr(said, "strerror", None) or str(said) or type(said).__name__
        raise PlacementError(f"nothing answers there ({reason}); is the cluster up, and the port open to this machine?")
    if said[3:4] != b"\x04":  # no settings frame
        how = "said nothing" if not said else "answered in another language"
        raise PlacementError(f"what listens there is no Ray: it {how}; the head's port is 6379 unless it was set")
    if not address.startswith("ray://"):
        _check_head(address)


def _greeted(host: str, port: int) -> bytes | Exception:
    """The first bytes that a gRPC client is answered; b"" where none come, an error where there is no connection.

    In a thread, since the resolver of names takes no time-out.
    """
    said: list[bytes | Exception] = []

    def greet() -> None:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
                try:
                    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                        said.append(PREFACE[-9:])  # it would have to be said encrypted; Ray will tell
                        return
                    connection.sendall(PREFACE)
                    said.append(connection.recv(9))
                except OSError:
                    said.append(b"")
        except (OSError, UnicodeError, OverflowError) as error:
            said.append(error)

    thread = threading.Thread(target=greet, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_SECONDS)
    return said[0] if said else TimeoutError("timed out")


def _check_head(address: str) -> None:
    """Raises PlacementError where a server of Ray answers that is no head, or lets nobody in without its token.

    In a process of its own: Ray's connection would try on for 20 s and print each attempt.
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
        return  # a busy machine: Ray itself will tell
    if done.stdout:
        raise PlacementError(_plain(RuntimeError(done.stdout.strip())))


def _plain(error: Exception) -> str:
    """One sentence, with the remedy, for what Ray says when it does not connect."""
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
            "the cluster asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what"
            " `ray get-auth-token` prints on the head (or copy its ~/.ray/auth_token)"
        )
    if "Method not found" in text:
        return "a server of Ray answers there, but no head; the head's port is 6379 unless it was set"
    if "ray[client]" in text:
        return 'ray:// needs one more package: pip install "ray[client]"'
    if "ray client connection timeout" in text:
        return (
            "no Ray client server answers there (its port is 10001 unless it was set); where the cluster asks for a"
            " token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        )
    reason = text.splitlines()[0] if text else type(error).__name__
    return f"no Ray cluster answers there: {reason}"


def by_client() -> bool:
    """Whether this process uses the cluster from outside, by ray://."""
    from ray.util.client import ray as client

    return bool(client.is_connected())


def started_locally() -> bool:
    """Whether the Ray in use has one node only, so that spreading by CPU has no meaning."""
    return len(_alive()) <= 1


def storage_place(path: str, shared: bool = False) -> NodeAffinitySchedulingStrategy | None:
    """Where the actor that writes `path` must be placed: on the driver's node for a folder of this machine.

    None, anywhere, for the URI of an object store, or where `shared` says that every node sees the folder. Raises
    ConfigurationError for a folder of this machine that no node of the cluster has, since this process is outside (ray://).
    """
    if shared or path.partition("://")[0] not in (path, "file"):
        return None
    if by_client():
        raise ConfigurationError(
            f"storage: {path!r}; a folder of this machine, which the cluster behind ray:// cannot write; give the URI"
            " of an object store, or write `shared_storage: true` in the specification where every node has this folder"
        )
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def await_placed(
    calls: Sequence[Any], wanted: Sequence[Mapping[str, float]], what: str, strategy: object = None
) -> None:
    """Returns when all `calls`, the first one of each actor, are answered.

    wanted: resources that each asked for. what: whose processes they are, for errors. strategy: with which they were
    started, where it ties them to one node.

    Raises PlacementError with what is missing: at once where the cluster as it is could never hold them, after 10 s
    where they wait for what others use, after 130 s where a process with a place has not started, or waits for one node
    that is full (Ray does not tell these two apart); and where a process or its runtime environment cannot start. What
    an actor's constructor raises comes as Ray gives it.
    """
    started = time.monotonic()
    waiting = list(calls)
    while True:
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        if not waiting:
            break
        lacking = [demand for call, demand in zip(calls, wanted, strict=True) if call in waiting]
        _check_room(wanted, what, strategy)  # again and again: a node may be lost meanwhile
        seconds = time.monotonic() - started
        if seconds > START_SECONDS:
            raise PlacementError(
                f"{what}: {len(waiting)} of {len(calls)} processes did not start within 130 s: the node that is asked"
                " for is full, or the runtime_env takes long to build; ask for less, or build it beforehand"
            )
        if seconds > PLACEMENT_SECONDS and _queued(lacking):
            raise PlacementError(_missing(what, lacking))
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1)
        if not waiting:
            break
    try:
        ray.get(list(calls))
    except RuntimeEnvSetupError as error:
        raise PlacementError(f"{what}: its runtime_env cannot be built: {_cause(error)}") from None
    except ActorUnschedulableError as error:
        raise PlacementError(f"{what}: it cannot be placed: {_cause(error)}") from None
    except RayActorError as error:
        raise EndedAtStart(f"{what}: a process ended at its start: {_cause(error)}") from None


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_room(wanted: Sequence[Mapping[str, float]], what: str, strategy: object) -> None:
    """Raises PlacementError where the nodes, were they empty, could not hold all that is wanted."""
    nodes = _alive()
    if isinstance(strategy, NodeAffinitySchedulingStrategy) and not strategy.soft:
        nodes = [node for node in nodes if node["NodeID"] == strategy.node_id]
        if not nodes:
            raise PlacementError(f"{what}: scheduling_strategy: no node {strategy.node_id} in the cluster")
    for demand in {tuple(sorted(d.items())): d for d in wanted}.values():
        places = [node for node in nodes if _times(node["Resources"], demand)]
        if sum(_times(node["Resources"], demand) for node in places) < sum(d == demand for d in wanted):
            raise PlacementError(_missing(what, [d for d in wanted if d == demand]))


def _times(resources: Mapping[str, float], demand: Mapping[str, float]) -> float:
    """How many times the resources hold the demand; infinitely often where it asks for nothing."""
    return min((resources.get(k, 0) // v for k, v in demand.items() if v), default=float("inf"))


def _queued(lacking: Sequence[Mapping[str, float]]) -> bool:
    """Whether some of these demands wait for resources; not so for a process that has its place and starts slowly,
    though it holds its resources already."""
    if by_client():  # the head's address is not reached from outside
        free = ray.available_resources()
        return any(free.get(k, 0) < v for demand in lacking for k, v in demand.items())
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    queued = [r.bundle for d in status.resource_demands.ray_task_actor_demand for r in d.bundles_by_count]
    return any({k: v for k, v in demand.items() if v} in queued for demand in lacking)


def _missing(what: str, lacking: Sequence[Mapping[str, float]]) -> str:
    total, free = ray.cluster_resources(), ray.available_resources()
    parts = []
    for key in sorted({k for demand in lacking for k, v in demand.items() if v}):
        amount = sum(demand.get(key, 0) for demand in lacking)
        largest = max((node["Resources"].get(key, 0) for node in _alive()), default=0)
        each = f", {largest:g} in its largest node" if len(_alive()) > 1 else ""
        parts.append(f"{amount:g} more {key} ({total.get(key, 0):g} in the cluster{each}, {free.get(key, 0):g} free)")
    return (
        f"{what}: {len(lacking)} of its processes cannot be placed: they need {' and '.join(parts) or 'a node'};"
        " ask for less (resources: replicas, num_cpus, num_gpus; --workers) or for a larger cluster (--address)"
    )


def _cause(error: Exception) -> str:
    """The line of a long message of Ray that says most: the last error in it, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if re.match(r"(ERROR:|[\w.]*(Error|Exception): )", line)]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0]
