"""Measure populations: updates per second beside a NumPy loop over pairs, and the memory and time of a million pairs.

float32, d = 20, a geometry of its own for each pair, 200 rounds; one update is one turn of one pair. The sides
alternate within one run, and the median of the repetitions counts.

x_numpy, x_numpy_noisy: `run_pair_population` on two Ray workers (one thread each), without and with noise, all round
    ends passed to a consumer in the worker; divided by a plain NumPy loop over pairs on one core: x = M @ x + b, twice
    a round, in float32, the noise of a pair drawn in one block. Both sides read covariances, objectives and steps
    drawn beforehand (ours from .npy files). The loop receives M = I - eta S and b = eta S w*; ours computes them.
x_numpy_in_place, x_numpy_noisy_in_place: against a loop that writes every result in place, a third to a half faster.
peak_gb, seconds: a run of a million drawn pairs on two workers, the last states of both agents kept. Memory is the PSS
    (shared pages counted once) of all processes together, Ray's included, read every 0.2 s.
gpu_x_numpy: one GPU against the loop; null without a GPU.

    python benchmarks/population.py [--repetitions 7] [--pairs 131072] [--million 1000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from a2a_ray.analysis.dynamics.pair_population import PairPopulation, States
from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs
from a2a_ray.analysis.dynamics.pair_sources import BLOCK, DrawnPairs, GivenPairs, Pairs
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.pair_shards import run_pair_population

DIM, ROUNDS, STEP, NOISE = 20, 200, 0.5, 0.01
LOOP_PAIRS = 200
"""Pairs of one repetition of the NumPy loops."""


class Loop:
    """NumPy loops over pairs that keep all round ends; M and b are given, noise is drawn a pair at a time."""

    def __init__(self, pairs: Pairs) -> None:
        eye = np.eye(DIM)
        self._m_w, self._m_u = ((eye - STEP * s).astype(np.float32) for s in pairs[:2])
        sides = zip(pairs[:2], pairs[2:], strict=True)
        self._b_w, self._b_u = (np.einsum("bij,bj->bi", STEP * s, w).astype(np.float32) for s, w in sides)
        self._ends = np.empty((len(self._b_w), ROUNDS, DIM), np.float32)

    def in_place(self, noisy: bool) -> None:
        """Write every result in place."""
        y = np.empty(DIM, np.float32)
        for m_w, m_u, added_w, added_u, ends in self._pairs(noisy):
            x = np.zeros(DIM, np.float32)
            for a_w, a_u, end in zip(added_w, added_u, ends, strict=False):
                np.dot(m_w, x, out=y)
                y += a_w
                np.dot(m_u, y, out=end)
                end += a_u
                x = end

    def plain(self, noisy: bool) -> None:
        """Write the loop in the plainest way."""
        for m_w, m_u, added_w, added_u, ends in self._pairs(noisy):
            x = np.zeros(DIM, np.float32)
            for a_w, a_u, end in zip(added_w, added_u, ends, strict=False):
                x = m_w @ x + a_w
                x = m_u @ x + a_u
                end[:] = x

    def _pairs(self, noisy: bool) -> Iterator[tuple[Any, ...]]:
        """Yield M_W, M_U, the terms added after W's and after U's product in each round, and the array of states."""
        rng = np.random.default_rng(1)
        for m_w, m_u, b_w, b_u, ends in zip(self._m_w, self._m_u, self._b_w, self._b_u, self._ends, strict=True):
            if not noisy:
                yield m_w, m_u, repeat(b_w), repeat(b_u), ends
                continue
            noise = rng.standard_normal((2, ROUNDS, DIM), np.float32)
            noise *= np.float32(NOISE)
            noise[0] += b_w
            noise[1] += b_u
            yield m_w, m_u, *noise, ends


def last(states: States) -> dict[str, torch.Tensor]:
    """Consume all round ends and keep the last."""
    assert states.after_u is not None
    assert states.after_u.shape[1:] == (ROUNDS, DIM)
    return {"last": states.after_u[:, -1]}


def rates(sides: dict[str, tuple[Callable[[], Any], int]], repetitions: int) -> dict[str, float]:
    """Return the median updates/s of each side, from its work and its number of pairs; sides alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, (work, _) in sides.items():
            started = time.perf_counter()
            work()
            if repetition:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: 2 * ROUNDS * pairs / statistics.median(seconds[name]) for name, (_, pairs) in sides.items()}


def throughput(pairs: int, repetitions: int, folder: Path) -> dict[str, float]:
    """Return the updates/s of all sides: loops on one core, populations on two workers."""
    drawn = DrawnPairs(pairs, DIM, condition=10.0)
    shapes = [(pairs, DIM, DIM)] * 2 + [(pairs, DIM)] * 2
    paths = [folder / f"{name}.npy" for name in Pairs._fields]
    files = [np.lib.format.open_memmap(p, "w+", np.float32, s) for p, s in zip(paths, shapes, strict=True)]
    for first in range(0, pairs, BLOCK):
        rows = slice(first, min(first + BLOCK, pairs))
        for file, value in zip(files, drawn.take(rows.start, rows.stop), strict=True):
            file[rows] = value
    quiet = PairPopulation(GivenPairs(*paths), STEP, STEP)
    noisy = replace(quiet, noise_w=NOISE, noise_u=NOISE)
    loop = Loop(drawn.take(0, LOOP_PAIRS))
    options: dict[str, Any] = {
        "every": 1,
        "after": "u",
        "reduce": last,
        "workers": 2,
        "progress": False,
        "check": False,
    }
    connect()
    found = rates(
        {
            "in place": (lambda: loop.in_place(False), LOOP_PAIRS),
            "quiet": (lambda: run_pair_population(quiet, ROUNDS, **options), pairs),
            "plain": (lambda: loop.plain(False), LOOP_PAIRS),
            "in place, noisy": (lambda: loop.in_place(True), LOOP_PAIRS),
            "noisy": (lambda: run_pair_population(noisy, ROUNDS, **options), pairs),
            "plain, noisy": (lambda: loop.plain(True), LOOP_PAIRS),
        },
        repetitions,
    )
    ray.shutdown()
    return found


def gpu_rate(repetitions: int) -> float:
    """Return the updates/s of a GPU, with the transfer of the geometry to it, without drawing it."""
    pairs = 2**17
    population = PairPopulation(GivenPairs(*DrawnPairs(pairs, DIM, condition=10.0).take(0, pairs)), STEP, STEP)

    def work() -> None:
        simulate_pairs(population, ROUNDS, every=1, after="u", device="cuda", reduce=last, check=False)
        torch.cuda.synchronize()

    return rates({"gpu": (work, pairs)}, repetitions)["gpu"]


def peak_of(pairs: int) -> tuple[float, float]:
    """Return the peak PSS in GB and the seconds of a population of drawn pairs in its own process."""
    started = time.perf_counter()
    process = psutil.Popen([sys.executable, __file__, "--run", str(pairs)], stdout=subprocess.DEVNULL)
    peak = 0
    ended = threading.Event()
    while not ended.wait(0.2):
        peak = max(peak, memory(process))
        if process.poll() is not None:
            ended.set()
    if process.returncode:
        raise SystemExit(f"the run of {pairs} pairs ended with status {process.returncode}")
    return peak / 1e9, time.perf_counter() - started


def memory(root: psutil.Process) -> int:
    """Return the PSS of a process and its descendants, bytes."""
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run(pairs: int) -> None:
    """Run the population that `peak_of` measures."""
    population = PairPopulation(DrawnPairs(pairs, DIM, condition=10.0), STEP, STEP)
    states = run_pair_population(population, ROUNDS, workers=2, progress=False)
    assert states.after_w is not None
    assert states.after_w.shape == (pairs, 1, DIM)
    assert bool(torch.isfinite(states.residual_u).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=131_072)
    parser.add_argument("--million", type=int, default=1_000_000, help="pairs of the run whose memory is measured")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rate = throughput(options.pairs, options.repetitions, Path(folder))
    for name, value in rate.items():
        print(f"{name}: {value / 1e6:.2f} million updates/s", file=sys.stderr)
    peak, seconds = peak_of(options.million)
    gpu = gpu_rate(options.repetitions) / rate["in place"] if torch.cuda.is_available() else None
    result = {
        "x_numpy": rate["quiet"] / rate["plain"],
        "x_numpy_noisy": rate["noisy"] / rate["plain, noisy"],
        "x_numpy_in_place": rate["quiet"] / rate["in place"],
        "x_numpy_noisy_in_place": rate["noisy"] / rate["in place, noisy"],
        "peak_gb": peak,
        "seconds": seconds,
        "gpu_x_numpy": gpu,
    }
    print(json.dumps({name: None if value is None else round(value, 2) for name, value in result.items()}))


if __name__ == "__main__":
    main()
