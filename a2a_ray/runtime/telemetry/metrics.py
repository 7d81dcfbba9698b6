"""Metrics of a run for Prometheus. Workers count, and hand the counts to Ray in batches."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from a2a_ray.runtime.limits.spent import NOTHING, Spent, usage_number

SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]
TAGS = ("run", "agent")
COUNTERS = {
    "turns": "Messages of agents.",
    "calls": "Calls of agents that ended, bids included.",
    "failed_calls": "Calls of agents that failed.",
    "retries": "Requests retried by the agent, or after its process died.",
    "input_tokens": "Tokens in the contexts of agents.",
    "output_tokens": "Tokens in the responses of agents.",
    "cost": "Money, in the currency of the specification's prices.",
}
"""Counter metrics: each is ray_a2a_ray_NAME_total in Prometheus."""


def exported() -> bool:
    """Whether this cluster's nodes collect metrics. Without ray[default] they do not, and metrics are not exported."""
    import ray

    return any(node["Alive"] and node.get("MetricsExportPort", -1) > 0 for node in ray.nodes())


class Meter:
    """Counts the calls of the agents of one worker. run: the value of the metrics' tag.

    turns: messages by agent. The worker counts them here if `exports` is True.
    """

    def __init__(self, run: str, export: bool) -> None:
        self.exports = export
        self.turns: Counter[str] = Counter()
        self.spent = NOTHING
        self._run = run
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._exported_turns: Counter[str] = Counter()
        self._metrics: dict[str, Any] = {}

    def call(self, agent: str, seconds: float, usage: Mapping[str, Any], failed: bool = False) -> None:
        """Count a call that ended. seconds: from its start to its response, without the wait for a budget."""
        if not self.exports:
            return
        counts = self._counts[agent]
        counts["calls"] += 1
        counts["failed_calls"] += failed
        counts["retries"] += max(0, usage_number(usage, "requests") - 1)
        for key in ("input_tokens", "output_tokens", "cost"):
            counts[key] += usage_number(usage, key)
        self._seconds[agent].append(seconds)

    def add(self, took: Spent) -> Spent:
        """Add to `spent`, and return `took`."""
        self.spent = self.spent.plus(took)
        return took

    def retry(self, agent: str) -> None:
        """Count a call that is retried because its process died."""
        self._counts[agent]["retries"] += 1

    def export(self, pools: Iterable[Any]) -> None:
        """Hand all counts since the last export to Ray.

        pools: remote agents. Their `queue` (queued messages) and `batches` (sizes, which are removed) are exported, if
        they have them.
        """
        if not self.exports:
            return
        if not self._metrics:
            self._metrics = _metrics()
        metrics = self._metrics
        for agent, count in self.turns.items():
            if count > self._exported_turns[agent]:
                metrics["turns"].inc(count - self._exported_turns[agent], self._tags(agent))
                self._exported_turns[agent] = count
        for agent, counts in self._counts.items():
            for key, amount in counts.items():
                if amount > 0:
                    metrics[key].inc(amount, self._tags(agent))
        for agent, seconds in self._seconds.items():
            for each in seconds:
                metrics["seconds"].observe(each, self._tags(agent))
        self._counts.clear()
        self._seconds.clear()
        for pool in pools:
            tags = self._tags(pool.name)
            metrics["queue"].set(getattr(pool, "queue", 0), tags)
            batches = getattr(pool, "batches", None)
            while batches:
                metrics["batch"].observe(batches.pop(), tags)

    def _tags(self, agent: str) -> dict[str, str]:
        return {"run": self._run, "agent": agent}


def _metrics() -> dict[str, Any]:
    from ray.util.metrics import Counter, Gauge, Histogram

    metrics: dict[str, Any] = {k: Counter(f"a2a_ray_{k}", description=v, tag_keys=TAGS) for k, v in COUNTERS.items()}
    metrics["seconds"] = Histogram("a2a_ray_call_seconds", "Seconds of a call, in the queue included.", SECONDS, TAGS)
    metrics["batch"] = Histogram("a2a_ray_batch_size", "Messages in a batch for a replica.", SIZES, TAGS)
    metrics["queue"] = Gauge("a2a_ray_queue_length", "Messages queued for an agent in a worker.", TAGS)
    return metrics
