"""Calling the command line from tests: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from a2a_ray.interface.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object in the last line of standard output."""
        return json.loads(self.out.splitlines()[-1])


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Done:
    """A command in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return Done(int(str(end.value.code)), *capsys.readouterr())


def start(*arguments: str | Path, cwd: Path, first: str = "", **environment: str) -> subprocess.Popen[str]:
    """A command as a process, and group of processes, of its own; it can import the modules of these tests.

    first: Python code that it runs before.
    """
    code = f"{first}\nfrom a2a_ray.interface.cli import main\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 120) -> Done:
    """Waits for the command's end."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Done(process.returncode, out, err)


def write_spec(folder: Path, **spec: Any) -> Path:
    """A specification as a file; two echo agents where nothing else is said."""
    agents = [{"name": "ann", "kind": "echo"}, {"name": "bob", "kind": "echo", "prefix": "so "}]
    path = folder / "spec.yaml"
    path.write_text(
        yaml.safe_dump({"agents": agents, "openings": ["one", "two"], "max_rounds": 3} | spec, sort_keys=False)
    )
    return path
