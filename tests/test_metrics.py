"""Metrics of a run, as Prometheus reads them from a node of Ray."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from a2a_ray.runtime.limits.spent import Spent
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.runtime.telemetry.metrics import COUNTERS, Meter, exported
from tests.test_calls import PRICE, spec

LINE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")


@pytest.fixture
def collected(ray_cluster: None) -> None:
    if not exported():
        pytest.skip("this Ray collects no metrics: pip install 'ray[default]'")


def read(run: str) -> dict[tuple[str, str], float]:
    """(metric, agent) -> value, summed over the workers, of the samples that carry the run's tag."""
    import ray

    found: dict[tuple[str, str], float] = {}
    for node in ray.nodes():
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for line in urllib.request.urlopen(address, timeout=10).read().decode().splitlines():
            match = LINE.match(line)
            if match and f'run="{run}"' in match[2]:
                agent = re.search(r'agent="(\w+)"', match[2])
                key = (match[1].removeprefix("ray_a2a_ray_"), agent[1] if agent else "")
                if not key[0].endswith("_bucket"):
                    found[key] = found.get(key, 0.0) + float(match[3])
    return found


def read_until(run: str, complete: Callable[[dict[tuple[str, str], float]], bool]) -> dict[tuple[str, str], float]:
    """What `read` returns once it is complete: Ray exports metrics every few seconds, one process after the other."""
    while not complete(found := read(run)):
        time.sleep(0.5)
    return found


def test_prometheus_reads_the_metrics_of_a_run(collected: None, tmp_path: Path) -> None:
    value = spec(tmp_path / "calls", "worker", 5, 4, price=PRICE, wait=0.01)
    value["agents"][0] |= {"placement": "actor"}
    run = run_experiment(value, storage=tmp_path, progress=False)
    name = Path(run.path).name
    found = read_until(name, lambda found: all(found.get(("call_seconds_count", a)) == 10 for a in ("ann", "bob")))
    assert {key[0] for key in found} >= {f"{k}_total" for k in COUNTERS if k not in ("failed_calls", "retries")}
    for agent in ("ann", "bob"):
        assert found["turns_total", agent] == found["calls_total", agent] == 10
        assert (found["input_tokens_total", agent], found["output_tokens_total", agent]) == (40, 60)
        assert found["cost_total", agent] == pytest.approx(0.1)
        assert found["call_seconds_count", agent] == 10
        assert found["call_seconds_sum", agent] >= 0.1
    assert found["queue_length", "ann"] == 0


class MeasuredPool:
    """What `export` reads of a remote agent."""

    name = "zoe"
    queue = 3

    def __init__(self) -> None:
        self.batches = [1, 5, 6]


def test_batches_and_queues_of_pools(collected: None) -> None:
    pool, meter = MeasuredPool(), Meter("batches", export=True)
    meter.call("zoe", 0.5, {"requests": 3}, failed=True)
    meter.export([pool])
    assert pool.batches == []
    found = read_until("batches", lambda found: ("batch_size_count", "zoe") in found)
    assert found["batch_size_count", "zoe"] == 3
    assert found["queue_length", "zoe"] == 3
    assert (found["retries_total", "zoe"], found["failed_calls_total", "zoe"]) == (2, 1)


def test_without_collection_only_sums_are_kept() -> None:
    meter = Meter("run", export=False)
    for _ in range(3):
        meter.call("ann", 0.1, {"input_tokens": 3, "cost": "much"})
        meter.add(Spent(0.5, 3, 1))
    meter.export([])
    assert meter.spent == Spent(1.5, 9, 3)
    assert not meter._seconds, "no list grows that is never exported"
