"""Measure the seconds of `import a2a_ray`, `a2a-ray --help` and a small run: medians over fresh processes, warm disk.

All include the start of the interpreter. import_s: `python -c "import a2a_ray"`. run_s: `a2a-ray run` of four
conversations between two echo agents, 8 turns each, without Ray.

    python benchmarks/startup.py [--repetitions 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPECIFICATION = """
agents: [{name: ann, kind: echo}, {name: bob, kind: echo}]
openings: {first: 4}
max_rounds: 4
"""
HEAVY = ("numpy", "ray", "torch", "transformers", "pydantic", "pyarrow")


def seconds(command: list[str]) -> float:
    """Return the wall time of a command. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    code = f"import sys, a2a_ray; print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    if loaded:
        raise SystemExit(f"import a2a_ray loads {', '.join(loaded)}; expected none of {', '.join(HEAVY)}")
    program, scratch = str(Path(sys.executable).with_name("a2a-ray")), tempfile.TemporaryDirectory()
    folder = scratch.name
    (Path(folder) / "spec.yaml").write_text(SPECIFICATION)
    commands = {
        "interpreter_s": [sys.executable, "-c", "pass"],
        "import_s": [sys.executable, "-c", "import a2a_ray"],
        "help_s": [program, "--help"],
        "run_s": [program, "run", f"{folder}/spec.yaml", "--executor", "local", "--storage", folder],
    }
    taken: dict[str, list[float]] = {key: [] for key in commands}
    for _ in range(options.repetitions):
        for key, command in commands.items():
            taken[key].append(seconds(command))
    print(json.dumps({key: round(statistics.median(values), 3) for key, values in taken.items()}))


if __name__ == "__main__":
    main()
