"""Where a run works: in this process, or in Ray's processes."""

from __future__ import annotations

import os
import sys
from typing import Literal, TypeAlias, get_args

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.experiment.spec import Experiment

Executor: TypeAlias = Literal["auto", "local", "ray"]
"""What a caller can choose."""
OnFailure: TypeAlias = Literal["recover", "raise"]
"""What a run on Ray does if a process or node dies."""

LOCAL_CONVERSATIONS = 200
"""The most conversations that "auto" runs in this process: more are worth the seconds that Ray takes to start."""


def runs_locally(
    executor: Executor, experiment: Experiment, conversations: int, workers: int | None, address: str | None
) -> bool:
    """Return whether a run works in this process.

    "auto" takes this process for at most LOCAL_CONVERSATIONS conversations without agents in actors, unless `workers`
    or `address` is given, RAY_ADDRESS is set, or this process uses Ray already.

    conversations: that have not ended. Raises ConfigurationError for "local" with settings that need Ray.
    """
    if executor not in get_args(Executor):
        raise ConfigurationError(f"executor: {unknown('executor', str(executor), get_args(Executor))}")
    given = {"workers": workers, "address": address}
    named = [f"{name}={value}" for name, value in given.items() if value is not None]
    heavy = next((spec.name for cell in experiment.cells for _, spec in cell.all_agents if spec.heavy), None)
    if executor == "auto":
        small = conversations <= LOCAL_CONVERSATIONS and heavy is None and not named
        return small and not os.environ.get("RAY_ADDRESS") and not _connected()
    if executor == "local" and named:
        raise ConfigurationError(
            f"executor: 'local' runs in this process, without the Ray workers that {' and '.join(named)} asks for;"
            " expected one or the other. Use executor ray, or leave them out"
        )
    if executor == "local" and heavy is not None:
        raise ConfigurationError(
            f"executor: 'local', but agent {heavy!r} runs in an actor of its own; expected agents that run beside the"
            " conversation. Use executor ray or auto"
        )
    return executor == "local"


def _connected() -> bool:
    """Return whether this process uses a Ray already; it is not imported for that."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
