"""Measure wall time and peak memory of `a2a-ray demo` and `a2a-ray demo --full`.

Memory is the proportional set size (PSS: shared pages count once) of all processes together, including Ray's, sampled
every half second.

    python benchmarks/demo.py [--only demo|full]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measured(full: bool) -> tuple[float, float]:
    """Return the seconds and the peak memory in GB of one demo in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(Path(sys.executable).with_name("a2a-ray")),
            "demo",
            "--out",
            folder,
            *(["--full"] if full else []),
        ]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory(psutil.Process(process.pid)))
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
        return time.perf_counter() - started, peak / 1e9


def memory(root: psutil.Process) -> int:
    """Return the PSS of a process and its descendants, in bytes."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["demo", "full"])
    only = parser.parse_args().only
    out = {}
    for name in ("demo", "full"):
        if only in (None, name):
            seconds, peak = measured(full=name == "full")
            out |= {f"{name}_s": round(seconds, 1), f"{name}_peak_pss_gb": round(peak, 2)}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
