"""Any process or node of a run dies, on a real cluster of three nodes; `make chaos` runs the long forms."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHORT = ["--conversations", "10", "--turns", "6", "--limit", "600"]


def chaos(*arguments: str) -> dict[str, Any]:
    """Run with kills and return the counts; fail if the stored turns or the ledger are not those of a calm run."""
    command = [sys.executable, "-m", "tests.chaos", *SHORT, *arguments]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=700, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.chaos
def test_the_stored_turns_are_those_of_an_undisturbed_run() -> None:
    assert sum(chaos("--kills", "2")["killed"].values()) >= 1


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Worker", "Recorder", "AgentHost", "node"])
def test_one_kind_of_process_dies(kind: str) -> None:
    found = chaos("--kills", "2", "--kinds", kind, "--conversations", "24", "--turns", "8")
    assert found["killed"][kind] >= 1


@pytest.mark.chaos
@pytest.mark.slow
def test_the_driver_dies_and_the_run_is_resumed() -> None:
    assert chaos("--driver", "2", "--conversations", "24", "--turns", "8")["killed"]["driver"] == 2


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server, where Ray's head keeps its state")
def test_the_head_dies_where_its_state_is_kept() -> None:
    assert chaos("--redis", "--kills", "1", "--kinds", "gcs")["killed"]["gcs"] == 1
