"""Print the processor time of each part of a run as one JSON object; docs/method/scaling.md uses it.

worker_us, recorder_us: per turn of light echo agents in two workers. driver_us: per conversation of 25 turns.
asking_us, host_us: per turn of a heavy echo agent (one replica, at most 250 in a call), in the worker (its own turn
included) and in the replica. paid_recorder_us, paid_worker_us: per turn of paid agents beside the conversation that
take 50 ms, whose every call and answer is committed on its own. stored_bytes: per turn of 75 characters, compacted.

    python benchmarks/costs.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.driver import Driver
from a2a_ray.runtime.plan import Plan
from a2a_ray.store.run import create_run
from benchmarks.cluster import OPENING


def seconds(kind: str) -> float:
    """Processor time of all actors of a class so far."""
    total = 0.0
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        if " ".join(process.info["cmdline"] or ()).startswith(f"ray::{kind}"):
            total += process.info["cpu_times"].user + process.info["cpu_times"].system
    return total


def spent(agent: dict[str, Any], conversations: int, turns: int, workers: int) -> dict[str, float]:
    """Processor seconds of a run by part, from the first conversation to the last commit; bytes on disk."""
    agents = [{"name": name, **agent} for name in ("ann", "bob")]
    value = {"agents": agents, "max_turns": turns, "openings": [OPENING], "repeats": conversations}
    experiment = Experiment.parse(value)
    parts = ("Worker", "Recorder", "AgentHost")
    with tempfile.TemporaryDirectory() as storage:
        run = create_run(experiment, storage)
        driver = Driver(run.path, experiment, lambda: Plan(experiment), workers)
        try:
            me = psutil.Process()
            before = {part: seconds(part) for part in parts} | {"driver": sum(me.cpu_times()[:2])}
            driver.run(lambda _: None)
            after = {part: seconds(part) for part in parts} | {"driver": sum(me.cpu_times()[:2])}
        finally:
            driver.shutdown()
        from deltalake import DeltaTable

        actions = DeltaTable(f"{run.path}/turns").get_add_actions(flatten=True)
        sizes = [size.as_py() for size in actions.column("size_bytes")]
    return {part: after[part] - before[part] for part in before} | {"bytes": float(sum(sizes))}


def main() -> None:
    connect()
    turns = 20_000 * 25
    light = spent({"kind": "echo"}, 20_000, 25, 2)
    heavy = spent({"kind": "echo", "placement": "actor", "resources": {"max_batch_size": 250}}, 2000, 25, 1)
    paid = spent({"kind": "benchmarks.cluster:Slow", "price": {"output": 1.0}}, 512, 25, 1)
    ray.shutdown()
    result = {
        "worker_us": light["Worker"] / turns * 1e6,
        "recorder_us": light["Recorder"] / turns * 1e6,
        "driver_us": light["driver"] / 20_000 * 1e6,
        "asking_us": heavy["Worker"] / 50_000 * 1e6,
        "host_us": heavy["AgentHost"] / 50_000 * 1e6,
        "paid_worker_us": paid["Worker"] / (512 * 25) * 1e6,
        "paid_recorder_us": paid["Recorder"] / (512 * 25) * 1e6,
        "stored_bytes": light["bytes"] / turns,
    }
    print(json.dumps({key: round(value, 1) for key, value in result.items()}))


if __name__ == "__main__":
    main()
