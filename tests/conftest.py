from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch: two threads on two busy cores are several times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's log monitor reads the logs of all processes ten times a second, for a driver that prints them; ours does not.
os.environ.update({"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0", "LOG_NAME_UPDATE_INTERVAL_S": "1e9"})

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from a2a_ray.analysis.text.embedding import Embedder
    from tests.pool_agents import Pools

# The same examples in every run, few of them: what a test finds can be found again, on a slow machine too.
settings.register_profile(
    "a2a_ray", derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("a2a_ray")


# A suite that is started in the background inherits an ignored SIGINT, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def pools(ray_cluster: None, tmp_path: Path) -> Iterator[Pools]:
    """Starts agents in actors, and ends them with the test."""
    from tests.pool_agents import Pools

    pools = Pools(tmp_path)
    yield pools
    for pool in pools.started:
        pool.end()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the repository; tests that need it are skipped where it is not."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data folder {folder}")
    return folder


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The default embedder, where its weights are on this machine."""
    from a2a_ray.analysis.text.embedding import load_embedder
    from a2a_ray.core.errors import A2AError

    try:
        found = load_embedder()
    except A2AError as error:
        pytest.skip(str(error))
    assert found is not None
    return found
