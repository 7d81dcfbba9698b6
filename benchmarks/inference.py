"""How often intervals from one trajectory hold where the agent settles, how often a bias is found, and when not.

Pairs of agents take turns in d = 1 to 5 dimensions: gradient steps on quadratic objectives (random covariances with
condition numbers of 1 to 10, random objectives, unequal steps and noise), a noise in every turn, the start 1 to 30
standard deviations from where they settle. Their common step is set so that the spectral radius of a round is the rate
that was drawn. `fit` sees one agent's own turns. A bias of four long-run standard errors (of the true map and noise)
lies on the judged axis, the first coordinate.

Cells are dimension x band of rates x rounds, with the same number of trajectories in each; "pooled" weighs the bands
by their share of rates from .1 to .95. Two agents of a pair are two trajectories. In the design of the method only
seeds below 1000 were used; the table in docs/method/equilibrium_inference.md is of a seed that was run once.

    .venv/bin/python benchmarks/inference.py                     # 1 000 trajectories a cell
    .venv/bin/python benchmarks/inference.py --quick             # 20 a cell
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread a process; small matrices gain nothing from more

import numpy as np

from a2a_ray.analysis.equilibria.assessment import BIASED, ONE_SIDED, AgentEquilibrium, assess_equilibrium
from a2a_ray.analysis.equilibria.trajectory_fit import fit

DIMENSIONS = (1, 2, 3, 4, 5)
BANDS = ((0.1, 0.5), (0.5, 0.8), (0.8, 0.95))
SHARES = np.array([high - low for low, high in BANDS]) / (BANDS[-1][1] - BANDS[0][0])
ROUNDS = (15, 100, 200)
BIAS = 4.0
"""In long-run standard errors."""
KINDS = ("gauss", "t3", "2 decimals", "1 decimal")
"""Noise of a turn: Gaussian; Student t of 3 degrees of freedom, scaled to equal variance; Gaussian, of standard
deviation 0.05 to 0.2, with each answer rounded."""


class Pair(NamedTuple):
    """Turns x -> x - P (x - w) + sd * noise of two agents: pulls P (2, d, d), objectives w (2, d), sd (2,)."""

    pulls: np.ndarray
    objectives: np.ndarray
    noise: np.ndarray


class Reading(NamedTuple):
    """One agent's own turns, and the truth: where it settles (d,), and its long-run standard errors (d,)."""

    positions: np.ndarray
    fixed_point: np.ndarray
    standard_error: np.ndarray


def rotation(d: int, random: np.random.Generator) -> np.ndarray:
    """A random orthogonal matrix (Haar)."""
    q, r = np.linalg.qr(random.standard_normal((d, d)))
    return q * np.sign(np.diag(r))


def radius(matrix: np.ndarray) -> float:
    """Spectral radius."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def draw_pair(d: int, rate: float, random: np.random.Generator) -> Pair:
    """A pair whose round has that spectral radius: geometries are drawn until some common step gives it."""
    while True:
        eigenvalues = np.exp(-random.uniform(0, np.log(10), (2, 1)) * random.uniform(0, 1, (2, d)))
        covariances = np.array([(q * e) @ q.T for e in eigenvalues for q in (rotation(d, random),)])
        covariances[1] *= math.exp(random.uniform(-0.7, 0.7))

        def of(step: float, covariances: np.ndarray = covariances) -> float:
            return radius((np.eye(d) - step * covariances[0]) @ (np.eye(d) - step * covariances[1]))

        steps = np.linspace(0, 2 / max(float(np.linalg.eigvalsh(c)[-1]) for c in covariances), 60)
        below = np.flatnonzero([of(step) <= rate for step in steps])
        if not len(below):
            continue
        low, high = steps[below[0] - 1], steps[below[0]]
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if of(middle) > rate else (low, middle)
        noise = 0.1 * np.exp(random.uniform(-0.7, 0.7, 2))
        return Pair(high * covariances, random.standard_normal((2, d)), noise)


def talk(pair: Pair, rounds: int, kind: str, random: np.random.Generator) -> list[Reading]:
    """The readings of both agents of one talk."""
    d = pair.objectives.shape[1]
    maps = np.eye(d) - pair.pulls
    truth = [_truth(pair, maps, agent, rounds) for agent in (0, 1)]
    fixed_point, _, covariance = truth[1]
    away = random.standard_normal(d)
    away *= math.exp(random.uniform(0, math.log(30))) * math.sqrt(d) / np.linalg.norm(away)
    x = fixed_point + np.linalg.cholesky(covariance) @ away
    positions = np.empty((2, rounds, d))
    for t in range(rounds):
        for agent in (0, 1):
            error = random.standard_t(3, d) / math.sqrt(3) if kind == "t3" else random.standard_normal(d)
            x = x - pair.pulls[agent] @ (x - pair.objectives[agent]) + pair.noise[agent] * error
            if "decimal" in kind:
                x = np.round(x, int(kind[0]))
            positions[agent, t] = x
    return [Reading(positions[agent], *truth[agent][:2]) for agent in (0, 1)]


def _truth(pair: Pair, maps: np.ndarray, agent: int, rounds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `agent` settles, its long-run standard errors over so many rounds, and its stationary covariance."""
    own, other = maps[agent], maps[1 - agent]
    d = len(own)
    matrix = own @ other
    constant = own @ pair.pulls[1 - agent] @ pair.objectives[1 - agent] + pair.pulls[agent] @ pair.objectives[agent]
    noise = pair.noise[1 - agent] ** 2 * own @ own.T + pair.noise[agent] ** 2 * np.eye(d)
    settle = np.linalg.inv(np.eye(d) - matrix)
    covariance, power = noise.copy(), matrix.copy()
    for _ in range(40):  # doubling: the sum of A^k Q A^kT over k < 2^40
        covariance, power = covariance + power @ covariance @ power.T, power @ power
    return settle @ constant, np.sqrt(np.diag(settle @ noise @ settle.T) / rounds), covariance


@dataclass(frozen=True)
class Cell:
    """What is simulated together."""

    kind: str
    dim: int
    band: int
    rounds: int
    pairs: int
    seed: int

    def readings(self) -> Iterator[list[Reading]]:
        """Talk by talk."""
        names = (KINDS.index(self.kind), self.dim, self.band, self.rounds)
        for number in range(self.pairs):
            random = np.random.default_rng([self.seed, *names, number])
            rate = random.uniform(*BANDS[self.band])
            yield talk(draw_pair(self.dim, rate, random), self.rounds, self.kind, random)


def intervals(cell: Cell) -> dict[str, Any]:
    """Counts of one cell, of its 2 x pairs trajectories, from one interval for each on the first axis."""
    counts = dict.fromkeys(("covered", "joint", "unbounded", "found"), 0)
    widths, seconds = [], 0.0
    for readings in cell.readings():
        for side, reading in zip((-1, 1), readings, strict=True):
            started = time.perf_counter()
            found = fit(reading.positions, axes=np.eye(cell.dim)[:1])
            seconds += time.perf_counter() - started
            (low, high), truth, error = found.intervals[0], reading.fixed_point[0], reading.standard_error[0]
            objective = truth + side * BIAS * error
            counts["covered"] += bool(low <= truth <= high)
            counts["joint"] += found.covers(reading.fixed_point)
            counts["unbounded"] += not found.bounded
            counts["found"] += bool(not low <= objective <= high)
            widths.append((high - low) / 2 / error)
    return {"cell": cell, "n": 2 * cell.pairs, "seconds": seconds, "width": float(np.median(widths)), **counts}


def verdicts(cell: Cell) -> dict[str, Any]:
    """Counts of one cell's verdicts: on agents at their objectives, and on pairs in which both are biased.

    At their objectives: all coordinates are judged, with a margin of a tenth of a long-run standard error, so that each
    interval that excludes an objective counts; reached: with one of five of the worst coordinate's.
    Biased: both by 1 to 6 long-run standard errors on the first axis, which is judged, with a margin of less than one.
    Naive: the 95 % interval of exactly one agent excludes its objective.
    """
    counts = dict.fromkeys(("false_bias", "reached", "naive_one_sided", "one_sided"), 0)
    axis = np.eye(cell.dim)[:1]
    for number, readings in enumerate(cell.readings()):
        pair = dict(zip("wu", readings, strict=True))
        positions = {name: reading.positions for name, reading in pair.items()}
        truths = {name: reading.fixed_point for name, reading in pair.items()}
        outcome = assess_equilibrium(
            positions, truths, 0.1 * min(float(reading.standard_error.min()) for reading in readings)
        )
        counts["false_bias"] += sum(agent.status == BIASED for agent in outcome.agents.values())
        for name, reading in pair.items():
            found = outcome.agents[name].fit
            margin = 5 * float(reading.standard_error.max())
            counts["reached"] += bool(found and np.abs(found.intervals.T - reading.fixed_point).max() <= margin)
        sizes = np.random.default_rng([cell.seed, number]).uniform(1, 6, 2)
        for size, (name, reading) in zip(sizes, pair.items(), strict=True):
            truths[name] = reading.fixed_point + size * reading.standard_error[0] * axis[0]
        margin = 0.99 * min(float(reading.standard_error[0]) for reading in readings)
        outcome = assess_equilibrium(positions, truths, margin, axes=axis)
        counts["naive_one_sided"] += sum(_excludes(agent, truths[name]) for name, agent in outcome.agents.items()) == 1
        counts["one_sided"] += outcome.status == ONE_SIDED
    return {"cell": cell, "n": 2 * cell.pairs, "pairs": cell.pairs, **counts}


def _excludes(agent: AgentEquilibrium, objective: np.ndarray) -> bool:
    """Whether the interval on the first axis excludes the objective."""
    if agent.fit is None:
        return False
    low, high = agent.fit.intervals[0]
    return not low <= objective[0] <= high


def share(results: Iterable[dict[str, Any]], count: str, of: str = "n") -> float:
    """Pooled over dimensions and bands of rates, the bands by their share of rates from .1 to .95."""
    results = list(results)
    bands = [[r for r in results if r["cell"].band == band] for band in range(len(BANDS))]
    weights = [weight if cells else 0.0 for weight, cells in zip(SHARES, bands, strict=True)]
    parts = [sum(r[count] for r in cells) / sum(r[of] for r in cells) if cells else 0.0 for cells in bands]
    return float(np.dot(weights, parts) / sum(weights))


def plan(options: argparse.Namespace) -> list[tuple[Callable[[Cell], dict[str, Any]], Cell]]:
    """All cells, the longest first, so that two processes end together."""
    few = max(options.trajectories // 10, 10) // 2
    cells = [
        (intervals, Cell("gauss", d, band, rounds, options.trajectories // 2, options.seed))
        for d in DIMENSIONS
        for band in range(len(BANDS))
        for rounds in ROUNDS
    ]
    for d in DIMENSIONS:
        for band in range(len(BANDS)):
            cells += [
                (intervals, Cell(kind, d, band, n, 2 * few, options.seed)) for kind in KINDS[1:] for n in ROUNDS[:2]
            ]
            cells += [(verdicts, Cell("gauss", d, band, n, few, options.seed + 1)) for n in ROUNDS[:2]]
    return sorted(cells, key=lambda task: -task[1].dim * task[1].rounds * task[1].pairs)


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of `intervals` and of `verdicts`, in the order of their cells."""
    tasks = plan(options)
    started = time.perf_counter()
    results: dict[Callable[[Cell], dict[str, Any]], list[dict[str, Any]]] = {intervals: [], verdicts: []}
    with ProcessPoolExecutor(options.processes) as pool:
        waiting = {pool.submit(study, cell): study for study, cell in tasks}
        for done, future in enumerate(as_completed(waiting), 1):
            results[waiting[future]].append(future.result())
            if done % 10 == 0:
                print(f"{done} of {len(tasks)} cells, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    for found in results.values():
        found.sort(key=lambda result: (KINDS.index(result["cell"].kind), result["cell"].rounds, result["cell"].dim))
    return results[intervals], results[verdicts]


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(f'{x:.3f}' if isinstance(x, float) else str(x) for x in row)} |")


def report(found: list[dict[str, Any]], judged: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Prints the tables; gives the figures that are asked for."""

    def cells(kind: str, rounds: int, bands: Sequence[int] = range(len(BANDS))) -> list[dict[str, Any]]:
        return [r for r in found if r["cell"].kind == kind and r["cell"].rounds == rounds and r["cell"].band in bands]

    rows = []
    for kind in KINDS:
        for rounds in ROUNDS:
            if some := cells(kind, rounds):
                pooled = [share(some, count) for count in ("covered", "joint", "unbounded", "found")]
                worst = min(some, key=lambda r: r["covered"] / r["n"])
                where = (
                    f"d = {worst['cell'].dim}, rate {BANDS[worst['cell'].band][0]} to {BANDS[worst['cell'].band][1]}"
                )
                rows.append([kind, rounds, sum(r["n"] for r in some), *pooled, worst["covered"] / worst["n"], where])
    header = (
        "noise",
        "rounds",
        "trajectories",
        "covers",
        "covers jointly",
        "unbounded",
        "bias found",
        "worst cell",
        "which",
    )
    table("Pooled", header, rows)
    for count, title in (
        ("covered", "Coverage"),
        ("unbounded", "Unbounded"),
        ("found", "Bias of 4 standard errors found"),
    ):
        header = ("rounds", "rate", *(f"d = {d}" for d in DIMENSIONS))
        rows = [
            [n, f"{low} to {high}", *(r[count] / r["n"] for r in cells("gauss", n, [band]))]
            for n in ROUNDS
            for band, (low, high) in enumerate(BANDS)
        ]
        table(title, header, rows)
    rows = []
    for rounds in ROUNDS[:2]:
        some = [r for r in judged if r["cell"].rounds == rounds]
        rows.append([rounds, sum(r["n"] for r in some), share(some, "false_bias"), share(some, "reached")])
        rows[-1] += [share(some, "naive_one_sided", "pairs"), share(some, "one_sided", "pairs")]
    header = ("rounds", "agents", "false bias", "reached", "naive one-sided", "one-sided")
    table("Verdicts", header, rows)
    gauss = [r for r in found if r["cell"].kind == "gauss" and r["cell"].rounds in ROUNDS[:2]]
    return {
        "seed": seed,
        "coverage_100": round(share(cells("gauss", 100), "covered"), 4),
        "coverage_15": round(share(cells("gauss", 15), "covered"), 4),
        "worst_cell": round(min(r["covered"] / r["n"] for r in gauss), 4),
        "unbounded_100": round(share(cells("gauss", 100), "unbounded"), 4),
        "unbounded_15": round(share(cells("gauss", 15), "unbounded"), 4),
        "false_bias": round(max(row[2] for row in rows), 4),
        "power_100": round(min(r["found"] / r["n"] for r in cells("gauss", 100, [0])), 4),
        "power_200": round(min(r["found"] / r["n"] for r in cells("gauss", 200, [0, 1])), 4),
        "false_one_sided": round(max(row[5] for row in rows), 4),
        "naive_one_sided": round(max(row[4] for row in rows), 4),
        "ms_per_interval": round(1e3 * sum(r["seconds"] for r in gauss) / sum(r["n"] for r in gauss), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 trajectories a cell")
    parser.add_argument(
        "--trajectories", type=int, default=1000, help="in a cell of Gaussian noise; a fifth of it in others"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.quick:
        options.trajectories = 20
    print(json.dumps(report(*run(options), options.seed)))


if __name__ == "__main__":
    main()
