"""Updates per second of populations beside a NumPy loop over pairs, the share of what the cache can give, and memory.

float32, d = 20, own geometry for each pair, 200 rounds; one update is one turn of one pair. Sides alternate within one
run, and the median of the repetitions counts.

x_numpy, x_numpy_noisy: `run_pair_population` on two Ray workers (one thread each), without and with noise in every
turn, all
    round ends handed to a consumer in the worker, chunk by chunk; against a NumPy loop over pairs on one core as one
    writes it first: x = M @ x + b, twice a round, in float32, the noise of a pair drawn in one block. Both sides find
    covariances, objectives and steps drawn beforehand (ours in .npy files), and drawing them is timed on neither. The
    loop is given M = I - eta S and b = eta S w*, which ours computes inside the time that counts.
x_numpy_in_place, x_numpy_noisy_in_place: against a loop that writes every result in place, a third to a half quicker.
share_of_bound: bytes of matrices that the turn-by-turn engine uses up in a second on one core (4 d^2 an update),
    against those that a dot product reads there from 512 KiB, which stay in the second-level cache.
peak_gb: a run of a million drawn pairs on two workers, the last states of both agents kept: PSS (shared pages counted
    once) of all processes together, Ray's among them, looked at every 0.2 s.
gpu_share_of_bound, gpu_x_numpy: the turn-by-turn engine on a GPU against the GPU's measured memory read bandwidth; the
    quicker engine against the loop. null where there is no GPU.

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

from a2a_ray.analysis.dynamics.pair_geometry import BLOCK, DrawnPairs, GivenPairs, Pairs
from a2a_ray.analysis.dynamics.pair_population import PairPopulation, States, simulate_pairs
from a2a_ray.runtime.cluster import connect
from a2a_ray.runtime.pair_shards import run_pair_population

DIM, ROUNDS, STEP, NOISE = 20, 200, 0.5, 0.01
LOOP_PAIRS = 200
"""Pairs of one repetition of the NumPy loops."""
BUFFER = 512 * 1024
"""Bytes that are read again and again to measure the second-level cache."""


class Loop:
    """NumPy loops over pairs that keep all round ends; M and b are there already, noise is drawn a pair at a time."""

    def __init__(self, pairs: Pairs) -> None:
        eye = np.eye(DIM)
        self._m_w, self._m_u = ((eye - STEP * s).astype(np.float32) for s in pairs[:2])
        sides = zip(pairs[:2], pairs[2:], strict=True)
        self._b_w, self._b_u = (np.einsum("bij,bj->bi", STEP * s, w).astype(np.float32) for s, w in sides)
        self._ends = np.empty((len(self._b_w), ROUNDS, DIM), np.float32)

    def in_place(self, noisy: bool) -> None:
        """Without a copy that is not needed."""
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
        """As one writes it first."""
        for m_w, m_u, added_w, added_u, ends in self._pairs(noisy):
            x = np.zeros(DIM, np.float32)
            for a_w, a_u, end in zip(added_w, added_u, ends, strict=False):
                x = m_w @ x + a_w
                x = m_u @ x + a_u
                end[:] = x

    def _pairs(self, noisy: bool) -> Iterator[tuple[Any, ...]]:
        """M_W, M_U, what is added in each round after W's and after U's product, and where the states go."""
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
    """The consumer: it is handed all round ends of a chunk, and keeps the last."""
    assert states.after_u is not None
    assert states.after_u.shape[1:] == (ROUNDS, DIM)
    return {"last": states.after_u[:, -1]}


def rates(sides: dict[str, tuple[Callable[[], Any], int]], repetitions: int) -> dict[str, float]:
    """Median updates/s of each side, by its work and the pairs in it; sides alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, (work, _) in sides.items():
            started = time.perf_counter()
            work()
            if repetition:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: 2 * ROUNDS * pairs / statistics.median(seconds[name]) for name, (_, pairs) in sides.items()}


def throughput(pairs: int, repetitions: int, folder: Path) -> dict[str, float]:
    """Updates/s of all sides: loops on one core, populations on two workers, turn by turn on one core."""
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
    one_core = quiet.part(0, 4096)
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
            "powers": (lambda: run_pair_population(quiet, ROUNDS, **options), pairs),
            "plain": (lambda: loop.plain(False), LOOP_PAIRS),
            "in place, noisy": (lambda: loop.in_place(True), LOOP_PAIRS),
            "noisy": (lambda: run_pair_population(noisy, ROUNDS, **options), pairs),
            "plain, noisy": (lambda: loop.plain(True), LOOP_PAIRS),
            "turns": (lambda: simulate_pairs(one_core, ROUNDS, after="u", engine="turns", check=False), one_core.pairs),
        },
        repetitions,
    )
    ray.shutdown()
    return found


def cache_bandwidth() -> float:
    """Bytes/s that a dot product of two halves of a buffer reads on one core; the best of many."""
    a, b = torch.randn(2, BUFFER // 8).unbind()
    best, times = float("inf"), 200
    for _ in range(50):
        started = time.perf_counter()
        for _ in range(times):
            torch.dot(a, b)
        best = min(best, time.perf_counter() - started)
    return times * BUFFER / best


def gpu(loop_rate: float, repetitions: int) -> tuple[float, float]:
    """The turn-by-turn engine's share of the GPU's memory bandwidth, and how many times the loop the quicker engine is.

    Moving the geometry to the GPU is inside the time, drawing it is not.
    """
    pairs = 2**17
    population = PairPopulation(GivenPairs(*DrawnPairs(pairs, DIM, condition=10.0).take(0, pairs)), STEP, STEP)

    def work(engine: Any) -> Callable[[], None]:
        def run() -> None:
            simulate_pairs(
                population, ROUNDS, every=1, after="u", device="cuda", engine=engine, reduce=last, check=False
            )
            torch.cuda.synchronize()

        return run

    found = rates({name: (work(name), pairs) for name in ("turns", "powers")}, repetitions)
    buffer = torch.ones(2**30, device="cuda")
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        buffer.sum().item()
        seconds.append(time.perf_counter() - started)
    bandwidth = buffer.numel() * 4 / min(seconds)
    return found["turns"] * 4 * DIM**2 / bandwidth, max(found.values()) / loop_rate


def peak_of(pairs: int) -> tuple[float, float]:
    """Peak PSS in GB, and seconds, of a population of so many drawn pairs in a process of its own."""
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
    """PSS of a process and all below it, bytes."""
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
    """What `peak_of` measures."""
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
    bandwidth = cache_bandwidth()
    peak, seconds = peak_of(options.million)
    print(f"{options.million:,} pairs: {seconds:.0f} s", file=sys.stderr)
    share, gpu_x = gpu(rate["in place"], options.repetitions) if torch.cuda.is_available() else (None, None)
    result = {
        "x_numpy": rate["powers"] / rate["plain"],
        "x_numpy_noisy": rate["noisy"] / rate["plain, noisy"],
        "x_numpy_in_place": rate["powers"] / rate["in place"],
        "x_numpy_noisy_in_place": rate["noisy"] / rate["in place, noisy"],
        "share_of_bound": rate["turns"] * 4 * DIM**2 / bandwidth,
        "peak_gb": peak,
        "gpu_share_of_bound": share,
        "gpu_x_numpy": gpu_x,
    }
    rounded: dict[str, Any] = {k: None if v is None else round(v, 2) for k, v in result.items()}
    rounded["bound"] = (
        f"{bandwidth / 1e9:.0f} GB/s read from the second-level cache by torch.dot over {BUFFER // 1024} KiB"
    )
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
