"""Measure the seconds of `import a2a_ray` and of `a2a-ray --help`: medians over fresh processes, with a warm disk.

Both import_s (of `python -c "import a2a_ray"`) and help_s include the start of the interpreter.

    python benchmarks/startup.py [--repetitions 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

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
    commands = {
        "interpreter_s": [sys.executable, "-c", "pass"],
        "import_s": [sys.executable, "-c", "import a2a_ray"],
        "help_s": [str(Path(sys.executable).with_name("a2a-ray")), "--help"],
    }
    taken: dict[str, list[float]] = {key: [] for key in commands}
    for _ in range(options.repetitions):
        for key, command in commands.items():
            taken[key].append(seconds(command))
    print(json.dumps({key: round(statistics.median(values), 3) for key, values in taken.items()}))


if __name__ == "__main__":
    main()
