"""Checks before a run is created: whether its agents can be sent to other processes and started there."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import cloudpickle
from ray.runtime_env import RuntimeEnv

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.experiment.spec import AgentSpec, Experiment


def check_startable(experiment: Experiment) -> None:
    """Raise ConfigurationError for agents that Ray would refuse later.

    These are settings that cannot be pickled, and invalid values of num_gpus, scheduling_strategy and runtime_env. The
    error names the agent and the key.
    """
    for cell in experiment.cells:
        for where, spec in cell.all_agents:
            for key, value in spec.settings.items():
                _check_sendable(value, f"{where}.{key}")
            if spec.heavy:
                _check_options(spec, where)


def _check_sendable(value: object, where: str) -> None:
    if value is None or isinstance(value, (str, int, float)):
        return
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            f"{where}: cannot be sent to another process: {reason}; create it inside the agent (in its __init__ or"
            " setup), or give its name as module:attr"
        ) from None


def _check_options(spec: AgentSpec, where: str) -> None:
    resources, where = spec.resources, f"{where}.resources"
    if resources.num_gpus > 1 and resources.num_gpus % 1:
        raise ConfigurationError(
            f"{where}.num_gpus: {resources.num_gpus:g}; expected a whole number, or a share below 1 of one GPU"
        )
    strategy = resources.scheduling_strategy
    if isinstance(strategy, str) and strategy not in ("DEFAULT", "SPREAD"):
        raise ConfigurationError(
            f"{where}.scheduling_strategy: " + unknown("strategy", strategy, ("DEFAULT", "SPREAD"))
        )
    if resources.runtime_env is None:
        return
    known = {key for key in RuntimeEnv.known_fields if not key.startswith("_")}
    for key in resources.runtime_env:
        if key not in known and not os.environ.get("RAY_RUNTIME_ENV_PLUGINS"):
            raise ConfigurationError(f"{where}.runtime_env: " + unknown("key", key, known))
    try:
        options: dict[str, Any] = {"runtime_env": resources.runtime_env}
        ray.remote(_Nothing).options(**options)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{where}.runtime_env: {str(error).splitlines()[0]}") from None


class _Nothing:
    pass
