"""Kills processes and nodes of a run on a real three-node cluster, and checks what the run has stored.

    python -m tests.chaos                       30 kills of anything, 200 conversations x 20 turns
    python -m tests.chaos --driver 5            the driver is killed five times and the run resumed
    python -m tests.chaos --kills 4 --conversations 30 --turns 8     the short form that the tests run

Prints one JSON object; the exit status is 1 if a turn is missing, duplicated or different, or the ledger is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import Message
from a2a_ray.experiment.spec import Experiment
from a2a_ray.store.run import open_run
from a2a_ray.store.run_folder import run_names

KINDS = ("Worker", "Recorder", "AgentHost", "node")
"""What can be killed: actors, by class name, and nodes; with --redis also "gcs", the process of Ray's own state."""


class Steady:
    """Answers with a number that follows from the seed and the last message; notes every call in a file."""

    placement = "actor"

    def __init__(self, name: str, calls: str, wait: float = 0.05) -> None:
        self.name, self._calls, self._wait = name, calls, wait

    def step(self, message: Message) -> Message:
        """Answer after the time that a small model would take."""
        if self._calls:
            with open(self._calls, "ab", buffering=0) as file:  # noqa: PTH123  (one write, so that lines stay whole)
                file.write(f"{message.conversation} {message.turn}\n".encode())
        time.sleep(self._wait)
        return message.reply(f"{message.seed % 1000} to {str(message.content)[:20]}", self.name)


def specification(options: argparse.Namespace, calls: Path) -> dict[str, Any]:
    """Return a specification with two heavy agents of two replicas each; the second one is paid."""
    agent = {
        "kind": "tests.chaos:Steady",
        "calls": str(calls),
        "resources": {"replicas": 2, "num_cpus": 0.5},
        "wait": options.wait,
    }
    agents = [{"name": "ann", **agent}, {"name": "bob", **agent, "price": {"input": 1.0}}]
    opening = "The old bridge was closed."
    return {"agents": agents, "max_turns": options.turns, "openings": [opening], "repeats": options.conversations}


def drive(spec: str, storage: str, address: str) -> None:
    """Start the run, or resume it, in the driver process."""
    import a2a_ray

    names = run_names(storage)
    if names:
        a2a_ray.resume_run(names[0], workers=3, address=address, progress=False)
    else:
        a2a_ray.run_experiment(json.loads(spec), storage=storage, workers=3, address=address, progress=False)


class Arena:
    """A cluster, a driver on it, and the processes that can be killed."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        from ray.cluster_utils import Cluster

        self.random = random.Random(options.seed)
        self.storage = str(folder / "runs")
        self.calls = folder / "calls"
        self.spec = json.dumps(specification(options, self.calls))
        self.redis = start_redis() if options.redis else None
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        for _ in range(2):
            self.cluster.add_node(num_cpus=3)
        self.log = (folder / "driver.log").open("ab")
        self.killed: Counter[str] = Counter()
        self.started = time.monotonic()

    def driver_log(self) -> str:
        """Return the end of the drivers' output."""
        return Path(self.log.name).read_text()[-3000:]

    def start(self) -> subprocess.Popen[bytes]:
        """Start a driver."""
        command = [sys.executable, "-m", "tests.chaos", "--drive", self.spec, self.storage, self.cluster.address]
        return subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def commits(self) -> int:
        """Return the number of commits of the run so far."""
        names = run_names(self.storage)
        log = Path(names[0]) / "turns" / "_delta_log" if names else None
        return len(list(log.glob("*.json"))) if log is not None and log.exists() else 0

    def kill(self, kinds: list[str]) -> str | None:
        """Kill a random process of the run, or a node, which is added again. Return its kind, or None."""
        kind = self.random.choice(kinds)
        if kind == "node":
            node = self.random.choice(sorted(self.cluster.worker_nodes, key=lambda n: str(n.node_id)))
            self.cluster.remove_node(node, allow_graceful=False)
            self.cluster.add_node(num_cpus=3)
        elif kind == "gcs":
            self.cluster.head_node.kill_gcs_server()
            time.sleep(2)
            self.cluster.head_node.start_gcs_server()
        else:
            found = actors(kind, self.cluster)
            if not found:
                return None
            with contextlib.suppress(psutil.NoSuchProcess):
                self.random.choice(found).kill()
        self.killed[kind] += 1
        return kind


def start_redis() -> subprocess.Popen[bytes]:
    """Start a Redis server on a free port. Ray keeps its state there, so its head can be restarted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--protected-mode", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
    time.sleep(1)
    return process


def actors(kind: str, cluster: Any) -> list[psutil.Process]:
    """Return the processes of this cluster that are actors of a class."""
    raylets = [p.process.pid for n in cluster.list_all_nodes() for p in n.all_processes.get("raylet", [])]
    found = []
    for raylet in raylets:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(raylet).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(f"ray::{kind}"):
                        found.append(process)
    return sorted(found, key=lambda p: p.pid)


def expected(spec: dict[str, Any]) -> dict[str, list[tuple[int, str, str, int]]]:
    """Return the turns of an undisturbed run, from the plain loop in this process."""
    agents = [Steady(a["name"], "", 0.0) for a in spec["agents"]]
    experiment = Experiment.parse(spec)
    out = {}
    for task in experiment.tasks():
        conversation = Conversation(
            agents, opening=spec["openings"][0], max_turns=spec["max_turns"], seed=task.seed, id=task.id
        )
        out[task.id] = [(m.turn, m.sender, str(m.content), m.seed) for m in conversation.run().turns]
    return out


def stored_keys(name: str) -> pa.Table:
    """Return the keys of every row of the table, without any cleaning."""
    table = DeltaTable(f"{name}/turns")
    files = [
        f"{name}/turns/{path}" for path in pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
    ]
    return pads.dataset(files, format="parquet").to_table(["conversation_id", "seq", "kind"])


def verify(arena: Arena) -> dict[str, Any]:
    """Compare the finished run with an undisturbed one, and the ledger with the calls that the agents received."""
    spec = json.loads(arena.spec)
    (name,) = run_names(arena.storage)
    run = open_run(name)
    wanted = expected(spec)
    stored = {t.id: [(m.turn, m.sender, str(m.content), m.seed) for m in t.turns] for t in run.transcripts()}
    keys = Counter(zip(*(column.to_pylist() for column in stored_keys(name).columns), strict=True))
    calls = Counter({(c, t): n for (c, t, kind), n in keys.items() if kind == "call"})
    received: Counter[tuple[str, int]] = Counter()
    for line in arena.calls.read_text().splitlines():
        conversation, turn = line.split()
        if int(turn) % 2 == 0:  # bob, who is paid, has every second turn
            received[conversation, int(turn)] += 1
    return {
        "conversations": len(stored),
        "different": sum(stored.get(id) != turns for id, turns in wanted.items()) + len(stored.keys() - wanted.keys()),
        "doubled": sum(n - 1 for (_, _, kind), n in keys.items() if kind != "call"),
        "failed": run.summary()["failed"],
        "ledger": calls.total(),
        "received": received.total(),
        "not_in_ledger": (received - calls).total(),
        "killed": dict(arena.killed),
        "seconds": round(time.monotonic() - arena.started, 1),
    }


def disturbed(arena: Arena, options: argparse.Namespace) -> dict[str, Any]:
    """Drive the run while its processes die, each only after a new commit."""
    driver = arena.start()
    kills = options.driver or options.kills
    deadline = time.monotonic() + options.limit
    seen = arena.commits()
    while driver.poll() is None or (options.driver and driver.returncode == -signal.SIGKILL):
        if time.monotonic() > deadline:
            raise SystemExit(f"not done after {options.limit} s; output of the driver:\n{arena.driver_log()}")
        time.sleep(arena.random.uniform(0.05, 0.5))
        now = arena.commits()
        if arena.killed.total() >= kills or now <= seen + 1:
            continue
        if options.driver:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            arena.killed["driver"] += 1
            driver = arena.start()
        elif arena.kill(options.kinds) is None:
            continue
        seen = arena.commits()
    if driver.returncode:
        raise SystemExit(f"the driver ended with {driver.returncode}; its output:\n{arena.driver_log()}")
    return verify(arena)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--driver", type=int, default=0, help="kill the driver so often instead, and resume")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--wait", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument(
        "--redis", action="store_true", help="Ray's state in a Redis server; the kind gcs can be killed"
    )
    parser.add_argument("--limit", type=float, default=900.0, help="seconds")
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(*options.drive)
        return
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), options)
        try:
            found = disturbed(arena, options)
        finally:
            arena.cluster.shutdown()
            if arena.redis is not None:
                arena.redis.terminate()
    print(json.dumps(found))
    sys.exit(bool(found["different"] or found["doubled"] or found["failed"] or found["not_in_ledger"]))


if __name__ == "__main__":
    main()
