"""A real cluster of two nodes in its own processes: connecting, missing resources, and where a run is stored."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from a2a_ray.core.errors import A2AError, ConfigurationError, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.runtime.cluster import CONNECT_SECONDS
from a2a_ray.runtime.run_experiment import resume_run, run_experiment
from a2a_ray.store.run_folder import run_names
from tests.command_line import ROOT, finish, start, write_spec

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-alone-" * 3}

CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
cluster.add_node(num_cpus=2, resources={"special": 1})
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

BEGIN = """
import json, sys, time
import ray
from a2a_ray.core.errors import A2AError
from a2a_ray.runtime import cluster
from a2a_ray.runtime.cluster import await_placed, connect, storage_place

class Host:
    def ready(self):
        return ray.get_runtime_context().get_node_id()

def report(function, *arguments, **more):
    started = time.monotonic()
    try:
        sentence = str(function(*arguments, **more))
    except A2AError as error:
        sentence = f"{type(error).__name__}: {error}"
    return sentence, time.monotonic() - started

def hosts(count, **options):
    return [ray.remote(Host).options(**options).remote() for _ in range(count)]

def placing(count, demand, strategy=None, **options):
    started = time.monotonic()
    started_hosts = hosts(count, **options)
    calls = [host.ready.remote() for host in started_hosts]
    sentence, _ = report(await_placed, calls, [demand] * count, "pool", strategy)
    for host in started_hosts:
        ray.kill(host)
    return sentence, time.monotonic() - started
"""


def script(text: str, *arguments: str, **environment: str) -> Any:
    """Run a program in its own process and return the JSON that it prints last."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + text, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith(("[", "{"))))


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Return the address of a cluster that requires a token. It has two nodes with 2 CPUs each."""
    own = {**TOKEN, "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray")}  # so that nobody else finds it by "auto"
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = next(line.strip() for line in process.stdout if re.fullmatch(r"[\d.]+:\d+\s*", line))
    yield address
    process.stdin.close()
    process.wait(300)
    shutil.rmtree(own["RAY_TMPDIR"], ignore_errors=True)


# --- addresses ------------------------------------------------------------------------------------------------------


class Listener(threading.Thread):
    """Listens, and sends `answer` to each client; None sends nothing."""

    def __init__(self, answer: bytes | None) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.answer = answer
        self.connections: list[socket.socket] = []
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            self.connections.append(connection)
            if self.answer is not None:
                connection.sendall(self.answer)


def test_an_address_without_a_cluster_is_reported_without_rays_own_attempts(two_nodes: str) -> None:
    silent = Listener(None).address
    web = Listener(b"HTTP/1.1 400 Bad Request\r\n\r\n").address
    closed = "127.0.0.1:9"
    sentences = {
        closed: "nothing answers there (Connection refused)",
        silent: "is not Ray: it did not respond",
        web: "is not Ray: it uses another protocol",
        "no-such-host.invalid:6379": "nothing answers there (",
        "10.255.255.1:6379": "answers there",  # dropped, refused or answered by a proxy: as the network likes
        f"ray://{closed}": "nothing answers there (Connection refused)",
        f"ray://{silent}": "is not Ray: it did not respond",
        "auto": "nothing answers there (Connection refused)",  # of a cluster that was there
        "6379": "expected host:port",
        "http://127.0.0.1:6379": "expected ray://",
    }
    code = """
def init(**options):
    raise AssertionError("Ray itself would try for minutes")
ray.init = init
print(json.dumps({address: report(connect, address) for address in sys.argv[1:]}))
"""
    reports = script(code, *sentences, RAY_ADDRESS=closed, RAY_AUTH_MODE="disabled")
    for address, sentence in sentences.items():
        found, seconds = reports[address]
        assert found.startswith(f"PlacementError: address {address!r}: ")
        assert sentence in found
        assert "minutes" not in found
        assert seconds < 60, address
    no_token = script("print(json.dumps(report(connect, sys.argv[1])))", two_nodes, RAY_AUTH_MODE="disabled")
    assert "the cluster requires its token: set RAY_AUTH_MODE=token" in no_token[0]
    assert 3 * CONNECT_SECONDS <= 15, "name and port, then twice for the response: the promise of the documentation"


def test_a_name_that_never_resolves_and_no_cluster_on_this_machine() -> None:
    code = """
import socket
from ray._private import services
services.find_gcs_addresses = lambda: set()
services.find_bootstrap_address = lambda temp_dir: None
out = [report(connect, "auto")]
socket.getaddrinfo = lambda *arguments, **more: time.sleep(600)
print(json.dumps(out + [report(connect, "head:6379")]))
"""
    nothing, slow = script(code, RAY_ADDRESS="")
    assert "no Ray runs on this machine and RAY_ADDRESS is not set; start one (ray start --head)" in nothing[0]
    assert "nothing answers there (timed out)" in slow[0]
    assert slow[1] < 300, "it must not wait for the resolver"


def test_other_versions_are_reported_with_the_remedy(two_nodes: str) -> None:
    """Run the driver's real check against the versions that the head publishes, which the test changes."""
    code = """
from ray._raylet import GcsClient
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as key
gcs = GcsClient(address=sys.argv[1])
true = gcs.internal_kv_get(key, namespace=b"cluster")
out = []
for change in ({"ray_version": "2.41.0"}, {"ray_version": "2.41.0", "python_version": "3.12.4"}):
    gcs.internal_kv_put(key, json.dumps(json.loads(true) | change).encode(), True, namespace=b"cluster")
    out.append(report(connect, sys.argv[1])[0])
    assert not ray.is_initialized()
gcs.internal_kv_put(key, true, True, namespace=b"cluster")
print(json.dumps([*out, report(connect, sys.argv[1])[0], ray.__version__]))
"""
    ray_only, both, good, version = script(code, two_nodes, **TOKEN)
    python = ".".join(map(str, sys.version_info[:3]))
    here = f"this process Ray {version} on Python {python}; they must be equal"
    assert f'the cluster runs Ray 2.41.0 on Python {python}, {here}: here pip install "ray==2.41.0", or' in ray_only
    assert "the cluster runs Ray 2.41.0 on Python 3.12.4" in both
    assert 'here Python 3.12.4 and pip install "ray==2.41.0", or the same change on every node' in both
    assert "\n" not in both
    assert good == "False", "the process is unchanged: it can connect"


# --- placement, storage ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(two_nodes: str) -> dict[str, Any]:
    """Return what one driver on the cluster finds: on addresses, on requests, and on the place of storage."""
    code = """
cluster.PLACEMENT_SECONDS = 3600  # what waits for others' resources would take so long
port = sys.argv[1].rpartition(":")[2]
addresses = [report(connect, a)[0] for a in (sys.argv[1], f"127.0.0.1:{port}", None, "auto", "127.0.0.1:9")]
requests = [
    placing(1, {"CPU": 3}, num_cpus=3)[0],
    placing(5, {"CPU": 1}, num_cpus=1)[0],
    placing(1, {"GPU": 2}, num_gpus=2)[0],
    placing(4, {"CPU": 1}, num_cpus=1)[0],
]
here = ray.get_runtime_context().get_node_id()
place = storage_place("runs/x")
nodes = ray.get([h.ready.remote() for h in hosts(3, num_cpus=0, scheduling_strategy=place)])
anywhere = [storage_place("s3://bucket/x"), storage_place("runs/x", shared=True)]
storage = [here, nodes, anywhere, storage_place("file:" + "///runs/x").node_id]
print(json.dumps({"addresses": addresses, "requests": requests, "storage": storage}))
"""
    found: dict[str, Any] = script(code, two_nodes, **TOKEN)
    return found


def test_only_the_cluster_in_use_can_be_named(two_nodes: str, answers: dict[str, Any]) -> None:
    *same, other = answers["addresses"]
    assert same == ["False"] * 4
    assert f"this process is connected to {two_nodes!r} already; call ray.shutdown() first" in other


def test_impossible_requests_fail_at_once_and_name_the_largest_node(answers: dict[str, Any]) -> None:
    large, many, none, fitting = answers["requests"]
    assert "pool: 1 of its processes cannot be placed: they need 3 more CPU" in large
    assert "(4 in the cluster, 2 in its largest node, " in large
    assert "5 of its processes cannot be placed: they need 5 more CPU (4 in the cluster" in many
    assert "2 more GPU (0 in the cluster, 0 in its largest node, 0 free)" in none
    assert fitting == "None"


def test_a_local_folder_is_written_on_the_node_of_the_driver(answers: dict[str, Any]) -> None:
    here, nodes, anywhere, by_uri = answers["storage"]
    assert nodes == [here] * 3
    assert anywhere == [None, None]
    assert by_uri == here


@pytest.mark.slow
def test_occupied_resources_are_told_apart_from_a_slow_start(two_nodes: str, tmp_path: Path) -> None:
    """A process that is placed and starts slowly has its resources: nothing is missing."""
    slow_python = tmp_path / "python"
    slow_python.write_text(f'#!/bin/sh\nsleep 6\nexec {sys.executable} "$@"\n')
    slow_python.chmod(0o755)
    code = (
        f"""
slow = {{"py_executable": "{slow_python}"}}
"""
        + """
cluster.PLACEMENT_SECONDS = 3
connect(sys.argv[1])
out = [placing(4, {"CPU": 1}, num_cpus=1, runtime_env=slow)]
time.sleep(1)
other = hosts(3, num_cpus=1)
ray.get([h.ready.remote() for h in other])
out.append(placing(2, {"CPU": 1}, num_cpus=1))
print(json.dumps(out))
"""
    )
    slow, used = script(code, two_nodes, **TOKEN)
    assert slow[0] == "None"
    assert slow[1] > 5, "the processes took longer to start than a place may take to be found"
    assert "1 of its processes cannot be placed: they need 1 more CPU" in used[0]
    assert used[1] > 3, "it waits for PLACEMENT_SECONDS"


@pytest.mark.slow
def test_a_node_that_is_requested_by_name(two_nodes: str) -> None:
    code = """
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
cluster.PLACEMENT_SECONDS, cluster.START_SECONDS = 1, 4
connect(sys.argv[1])
nowhere = On("ab" * 28, soft=False)
node = next(n for n in ray.nodes() if "special" in n["Resources"])["NodeID"]
here = On(node, soft=False)
both = hosts(2, num_cpus=1, scheduling_strategy=here)
assert set(ray.get([h.ready.remote() for h in both], timeout=300)) == {node}
out = [
    placing(1, {"CPU": 1}, here, num_cpus=1, scheduling_strategy=here),
    placing(1, {}, nowhere, num_cpus=0, scheduling_strategy=nowhere),
    placing(1, {}, None, num_cpus=0, scheduling_strategy=nowhere),
    placing(3, {"CPU": 1}, here, num_cpus=1, scheduling_strategy=here),
]
print(json.dumps(out))
"""
    full, nowhere, unnamed, many = script(code, two_nodes, **TOKEN)
    assert "pool: scheduling_strategy: no node abab" in nowhere[0]
    assert "pool: it cannot be placed: " in unnamed[0]
    assert "doesn't exist any more" in unnamed[0]
    assert "3 of its processes cannot be placed" in many[0]
    assert "1 of 1 processes did not start within 130 s: the requested node is full" in full[0]


@pytest.mark.slow
def test_a_node_that_is_lost_during_the_wait_is_reported() -> None:
    code = """
from threading import Timer
from ray.cluster_utils import Cluster
both = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
lost = both.add_node(num_cpus=1, resources={"special": 1})
both.wait_for_nodes()
connect(both.address)
first = hosts(1, num_cpus=0, resources={"special": 1})
ray.get(first[0].ready.remote())
cluster.PLACEMENT_SECONDS = cluster.START_SECONDS = 3600  # a loaded machine sees late that a node is gone
Timer(1, both.remove_node, (lost,), {"allow_graceful": False}).start()
print(json.dumps(placing(1, {"special": 1}, num_cpus=0, resources={"special": 1})))
"""
    sentence, _ = script(code, RAY_AUTH_MODE="disabled", RAY_TMPDIR=tempfile.mkdtemp(prefix="ray"))
    # Or the resource became free for a moment, since the node's processes end one after the other.
    assert "they need 1 more special (0 in the cluster" in sentence or "a process ended at its start" in sentence


def test_a_driver_outside_needs_storage_that_the_cluster_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    from a2a_ray.runtime import cluster

    monkeypatch.setattr(cluster, "by_client", lambda: True)
    with pytest.raises(
        ConfigurationError, match=r"storage: 'runs/x' is a folder of this machine.*`shared_storage: true`"
    ):
        cluster.storage_place("runs/x")
    assert cluster.storage_place("runs/x", shared=True) is None
    assert cluster.storage_place("gs://bucket/x") is None


def test_a_run_on_a_cluster(two_nodes: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    done = finish(start("run", spec, "--address", two_nodes, "--json", cwd=tmp_path, **TOKEN))
    assert done.status == 0, done.err
    assert done.json | {"run": ""} == {"run": "", "conversations": 2, "done": 2, "failed": 0, "turns": 12}


def test_the_example_for_the_autoscaler_is_valid() -> None:
    """Check the example with Ray's own schema, which refuses a misspelt key."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    path = ROOT / "examples" / "cluster.yaml"
    text = path.read_text()
    assert text.startswith("# A template that is checked against the schema of Ray")
    validate_config(prepare_config(yaml.safe_load(text)))
    with pytest.raises(Exception, match="min_worker"):
        validate_config(prepare_config(yaml.safe_load(text.replace("min_workers:", "min_worker:"))))


# --- agents in other processes --------------------------------------------------------------------------------------


class Steady:
    """Answers, or fails in the method that `fault` names."""

    placement = "worker"

    def __init__(self, name: str, fault: str = "") -> None:
        self.name, self.fault = name, fault
        self.lock = threading.Lock()  # the agent itself is never sent: each process makes its own

    def setup(self) -> None:
        if self.fault == "setup":
            raise Unsendable(1, 2)

    def step(self, message: Message) -> Message:
        if self.fault == "step":
            raise Unsendable(1, 2)
        return message.reply("yes", self.name)


class Unsendable(Exception):
    """Cannot be pickled; even if it could, its constructor would refuse the arguments of pickle."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def unpicklable_function() -> Any:
    """Return a function that cannot be sent to another process."""
    lock = threading.Lock()
    return lambda text: f"{text}{lock}"


@pytest.mark.parametrize("placement", ["worker", "actor"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"kind": "function", "function": unpicklable_function()},
            "agents.0.function: cannot be sent to another process: cannot",
        ),
        (
            {"resources": {"runtime_env": {"pipp": ["x"]}}},
            "agents.0.resources.runtime_env: unknown key 'pipp'. Did you mean 'pip'?",
        ),
        (
            {"resources": {"runtime_env": {"working_dir": "/no/such"}}},
            "agents.0.resources.runtime_env: /no/such is not a valid path",
        ),
        (
            {"resources": {"runtime_env": {"pip": 5}}},
            "runtime_env: runtime_env['pip'] must be of type",
        ),
        (
            {"resources": {"num_gpus": 1.5}},
            "agents.0.resources.num_gpus: 1.5; expected a whole number, or a share",
        ),
        ({"resources": {"scheduling_strategy": "SPRED"}}, "scheduling_strategy: 'SPRED'; expected DEFAULT, SPREAD"),
    ],
)
def test_options_that_ray_would_refuse_are_bad_input_and_leave_no_run(
    tmp_path: Path, placement: str, change: dict[str, Any], sentence: str
) -> None:
    if placement == "worker" and "kind" not in change:
        pytest.skip("these keys are for agents in actors")
    agent = {"name": "ann", "kind": "echo", "placement": placement} | change
    with pytest.raises(ConfigurationError) as error:
        run_experiment({"agents": [agent], "openings": ["x"], "max_rounds": 1}, storage=tmp_path, progress=False)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert run_names(tmp_path) == []


def test_an_error_that_cannot_be_pickled_is_reported_by_name(ray_cluster: None, tmp_path: Path) -> None:
    agent = {"name": "ann", "kind": Steady, "fault": "step"}
    value = {
        "agents": [agent],
        "openings": ["x"],
        "max_rounds": 1,
        "sweep": {"agents.ann.placement": ["worker", "actor"]},
    }
    run = run_experiment(value, storage=tmp_path / "steps", workers=1, progress=False)
    assert [t.error for t in run.transcripts()] == ["agent 'ann' failed at turn 1: Unsendable: 1 and 2"] * 2
    setup = {"agents": [{**agent, "fault": "setup", "placement": "actor"}], "openings": ["x"], "max_rounds": 1}
    with pytest.raises(A2AError, match="an agent could not be set up: Unsendable: 1 and 2"):
        run_experiment(setup, storage=tmp_path / "setup", workers=1, progress=False)
    assert run_names(tmp_path / "setup") == []


def test_code_that_the_workers_lack_is_reported(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from a2a_ray import EchoAgent\n\nclass Agent(EchoAgent):\n    pass\n"
    (tmp_path / "only_here_of_test_cluster.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    kind = "only_here_of_test_cluster:Agent"
    value = {"agents": [{"name": "ann", "kind": kind, "placement": "actor"}], "openings": ["x"], "max_rounds": 1}
    with pytest.raises(PlacementError, match=r"cannot import .only_here_of_test_cluster.*installed on every node"):
        run_experiment(value, storage=tmp_path / "actor", progress=False)
    assert run_names(tmp_path / "actor") == []


def test_a_run_can_be_resumed_after_a_package_was_installed_on_the_workers(ray_cluster: None, tmp_path: Path) -> None:
    agent = {"name": "ann", "kind": Needing, "folder": str(tmp_path)}
    value = {"agents": [agent], "openings": ["x"], "max_rounds": 1}
    run = run_experiment(value, storage=tmp_path / "runs", workers=1, progress=False)
    assert "No module named 'needed_by_test_cluster'" in next(run.transcripts()).error
    (tmp_path / "needed_by_test_cluster.py").touch()
    assert resume_run(run, retry_failed=True, workers=1, progress=False).summary()["done"] == 1


class Needing(Steady):
    """Needs a module in `folder`."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(name)
        self.folder = folder

    def setup(self) -> None:
        sys.path.append(self.folder)
        importlib.import_module("needed_by_test_cluster")


def test_a_runtime_env_that_cannot_be_built_is_reported(ray_cluster: None, tmp_path: Path) -> None:
    agent = {
        "name": "ann",
        "kind": "echo",
        "placement": "actor",
        "resources": {"runtime_env": {"pip": ["a2a-no-such-package==9"]}},
    }
    with pytest.raises(PlacementError, match="agent 'ann': its runtime_env cannot be built: ") as error:
        run_experiment({"agents": [agent], "openings": ["x"], "max_rounds": 1}, storage=tmp_path, progress=False)
    assert "\n" not in str(error.value)
    assert run_names(tmp_path) == []
