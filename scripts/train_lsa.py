"""Train the linear self-attention layers that the package carries, and measure them on held-out prompts.

    python scripts/train_lsa.py                        # trains d = 2, 5, 10, 20, writes the weights and their card
    python scripts/train_lsa.py --dims 3               # trains d = 3, which the card then describes too
    python scripts/train_lsa.py --check                # measures the weights in the folder, writes nothing
    python scripts/train_lsa.py --seeds 10 --dims 2    # trains from 10 seeds, prints the errors, writes nothing

A layer starts from random weights and sees 64 new random prompts at every step of Adam; it learns to answer with the
iterate after a gradient step. Exit status 1 where an error on held-out prompts of the training range is above 1 %
(median) or 5 % (95th percentile). Same packages and processor, same seed: same weights. One core, about a minute.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import a2a_ray
from a2a_ray.agents.lsa.lsa_module import LSAModule
from a2a_ray.agents.lsa.trained_weights import trained_weights
from a2a_ray.core.errors import ConfigurationError

DIMS = [2, 5, 10, 20]
STEP_SIZE = 0.1
STEPS, BATCH, RATE, DECAY, SPREAD = 4000, 64, 0.01, 14.0, 0.05
HELD_OUT = 4000
MEDIAN, TAIL = 0.01, 0.05
FOLDER = Path(a2a_ray.__file__).parent / "data" / "lsa"

Range = tuple[float, float]


@dataclass(frozen=True)
class Prompts:
    """How prompts are drawn; as it stands, the training range. Each number is log-uniform in its range.

    condition: lambda_max / lambda_min of S = X^T X / n; eigenvalues between these are log-uniform. largest: lambda_max.
    distance: |w - w*|; norm: |w*|; both in a random direction. examples: n / d. gaussian: the covariance of the
    distribution that examples come from has these eigenvalues, in place of S.
    """

    condition: Range = (1, 20)
    distance: Range = (0.1, 10)
    norm: Range = (0.1, 10)
    largest: float = 1.0
    examples: int = 2
    gaussian: bool = False

    def draw(self, rng: np.random.Generator, count: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """Example tokens (count, n, d + 1), query tokens (count, d + 1), gradients S (w - w*) (count, d); float64."""
        n = self.examples * d
        share = rng.uniform(size=(count, d))
        share[:, 0], share[:, -1] = 0, 1
        eigenvalues = self.largest * between(self.condition, rng, count) ** -share
        left = rng.normal(size=(count, n, d))
        if not self.gaussian:
            left = np.linalg.qr(left).Q * math.sqrt(n)
        rotation = np.linalg.qr(rng.normal(size=(count, d, d))).Q
        x = (left * np.sqrt(eigenvalues)[:, None]) @ rotation.mT
        objective = between(self.norm, rng, count) * direction(rng, count, d)
        offset = between(self.distance, rng, count) * direction(rng, count, d)
        targets = np.einsum("bnd,bd->bn", x, objective)
        gradient = np.einsum("bnd,bn->bd", x, np.einsum("bnd,bd->bn", x, offset)) / n
        examples = np.concatenate([x, targets[..., None]], axis=2)
        query = np.concatenate([objective + offset, np.full((count, 1), -1.0)], axis=1)
        return torch.from_numpy(examples), torch.from_numpy(query), torch.from_numpy(gradient)


def between(ends: Range, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Log-uniform numbers, shape (count, 1)."""
    return np.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]), size=(count, 1)))


def direction(rng: np.random.Generator, count: int, d: int) -> NDArray[np.float64]:
    """Unit vectors, shape (count, d)."""
    gaussian = rng.normal(size=(count, d))
    return gaussian / np.linalg.norm(gaussian, axis=1, keepdims=True)


def relative_errors(answers: Tensor, query: Tensor, step: Tensor) -> Tensor:
    """|answer - exact| / |exact step|, shape (b,); over the whole tokens where the answers have their last number."""
    exact = query.clone()
    exact[:, : step.shape[1]] -= step
    width = answers.shape[1]
    return torch.linalg.vector_norm(answers - exact[:, :width], dim=1) / torch.linalg.vector_norm(step, dim=1)


def train(d: int, seed: int) -> LSAModule:
    """A layer trained from random weights with Adam; the loss is the mean of `relative_errors` over the batch."""
    rng = np.random.default_rng((seed, d, 0))
    module = LSAModule(d, STEP_SIZE)
    with torch.no_grad():
        for weights in module.parameters():  # nothing of the analytic weights stays
            weights.copy_(torch.from_numpy(rng.normal(scale=SPREAD, size=weights.shape)))
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE, betas=(0.9, 0.99))
    # Constant in the first half: from some seeds the way out of the random start is long.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: math.exp(-DECAY * max(0, 2 * k / STEPS - 1)))
    for examples, query, gradient in batches(rng, d):
        loss = relative_errors(module(examples, query), query, STEP_SIZE * gradient).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return module


def batches(rng: np.random.Generator, d: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """New prompts for every training step, drawn for some steps at once."""
    for _ in range(STEPS // 20):
        yield from zip(*(drawn.split(BATCH) for drawn in Prompts().draw(rng, 20 * BATCH, d)), strict=True)


@torch.no_grad()
def held_out(module: LSAModule, prompts: Prompts, d: int, seed: int) -> tuple[float, float, float]:
    """Median, 95th percentile and largest of the relative errors on prompts of a stream of their own.

    Stream 0 of the seed is the training's, stream 1 is free to choose the settings by, stream 2 only judges.
    """
    examples, query, gradient = prompts.draw(np.random.default_rng((seed, d, 2)), HELD_OUT, d)
    errors = relative_errors(module(examples, query)[:, :d], query, STEP_SIZE * gradient).numpy()
    median, tail = np.quantile(errors, [0.5, 0.95])
    return float(median), float(tail), float(errors.max())


def variations() -> list[tuple[str, Prompts, bool]]:
    """Rows of the table: what differs from the training range, how it is drawn, whether it can be isotropic."""
    inside = Prompts()
    rows = [("nothing: the training range", inside, True)]
    rows += [("n = d examples", replace(inside, examples=1), True)]
    rows += [("n = 16 d examples", replace(inside, examples=16), True)]
    rows += [("n = 2 d Gaussian examples", replace(inside, gaussian=True), True)]
    rows += [(f"eigenvalues times {k:g}", replace(inside, largest=k), True) for k in (0.1, 10)]
    rows += [(f"condition number {k}", replace(inside, condition=(k, k)), False) for k in (50, 200)]
    rows += [(f"distance {k:g}", replace(inside, distance=(k, k)), True) for k in (0.01, 30, 100)]
    return rows + [(f"norm of the objective {k}", replace(inside, norm=(k, k)), True) for k in (30, 100)]


def table(module: LSAModule, d: int, seed: int) -> tuple[str, bool]:
    """The errors of one layer as Markdown, and whether those of the training range are within the bounds."""
    heads = ["differs from the training range", "isotropic: median", "95 %", "largest"]
    heads += ["anisotropic: median", "95 %", "largest"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    good = True
    for name, prompts, both in variations():
        cells = ["", "", ""]
        if both:
            isotropic = held_out(module, replace(prompts, condition=(1, 1)), d, seed)
            cells = [f"{error:.1e}" for error in isotropic]
        anisotropic = held_out(module, prompts, d, seed)
        cells += [f"{error:.1e}" for error in anisotropic]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        if prompts == Prompts():
            good = all(median <= MEDIAN and tail <= TAIL for median, tail, _ in (isotropic, anisotropic))
    return "\n".join(lines), good


def distances(module: LSAModule, d: int) -> tuple[float, float]:
    """Frobenius distance of query_key and of value to the analytic one, over the norm of that one, scaled first."""
    exact = LSAModule(d, STEP_SIZE)
    scale = module.query_key.trace().item() / (d + 1)
    pairs = ((module.query_key / scale, exact.query_key), (module.value * scale, exact.value))
    query_key, value = (float(((a - b).norm() / b.norm()).detach()) for a, b in pairs)
    return query_key, value


CARD = """---
license: apache-2.0
---

# Trained linear self-attention layers

`d2.npz`, `d5.npz`, ...: `query_key` and `value`, float64 of shape (d + 1, d + 1), the `step_size` that they were
trained for and the `seed`. `LSAModule.trained(d, step_size)` and `LSAAgent(..., weights="trained")` load them.
docs/method/trained_lsa.md in the repository has the figures.

| | |
|---|---|
| Task | from examples (x_i, y_i = x_i . w*) and the query (w, -1): (w - eta S (w - w*), -1), S = X^T X / n |
| Free | both matrices, all entries; start: normal, standard deviation {spread:g} |
| eta | {eta:g}; another step size is the value matrix times step_size / eta |
| n | 2 d examples; the layer sees only their mean, so another n with the same S gives the same turn |
| Eigenvalues of S | log-uniform in 1/c to 1, ends included; condition number c log-uniform in 1 to 20; random rotation |
| Distance of w to w* | log-uniform in 0.1 to 10, random direction |
| Norm of w* | log-uniform in 0.1 to 10, random direction |
| Loss | mean relative error of the answer: distance to the exact answer over the length of the exact step |
| Training | Adam, {steps} steps of {batch} new prompts, learning rate {rate:g}, falling by e^-{decay:g} in the second half |
| Software | numpy {numpy}, torch {torch}, float64, one thread |

The tables hold |answer - exact| / |exact step| on {held_out:,} held-out prompts each (another stream of random numbers).
In the training range, the median must be at most 0.01 and the 95th percentile at most 0.05. They come from

    python scripts/train_lsa.py --check

`python scripts/train_lsa.py` writes this page and the weights.
"""  # noqa: E501 - rows of a table

SECTION = """
## d = {d}

Trained from seed {seed}. Distance to the analytic weights (Frobenius norm, relative; `value` times c and `query_key`
over c are the same layer, so c is chosen first): `query_key` {query_key:.1e}, `value` {value:.1e}.
Largest error of the analytic weights themselves in the training range: {analytic:.1e}.

{table}
"""


def section(d: int, seed: int) -> tuple[str, bool]:
    """What is measured of the weights in the folder for one d, and whether they are good enough."""
    module = LSAModule.trained(d, STEP_SIZE)
    text, good = table(module, d, seed)
    query_key, value = distances(module, d)
    analytic = held_out(LSAModule(d, STEP_SIZE), Prompts(), d, seed)[2]
    facts = {"d": d, "seed": int(trained_weights(d)["seed"]), "query_key": query_key, "value": value}
    return SECTION.format(**facts, analytic=analytic, table=text), good


def write(d: int, seed: int) -> None:
    """Trains one layer and writes its weights into the folder."""
    started = time.perf_counter()
    module = train(d, seed)
    FOLDER.mkdir(exist_ok=True)
    weights = {name: weight.detach().numpy() for name, weight in module.named_parameters()}
    np.savez(FOLDER / f"d{d}.npz", step_size=np.array(STEP_SIZE), seed=np.array(seed), **weights)
    print(f"d = {d}: trained in {time.perf_counter() - started:.0f} s", flush=True)


def card(dims: list[int], seed: int) -> tuple[str, bool]:
    """The page on the weights in the folder, and whether all of them are good enough."""
    facts = {"eta": STEP_SIZE, "spread": SPREAD, "steps": STEPS, "batch": BATCH, "rate": RATE, "decay": DECAY}
    text = CARD.format(**facts, held_out=HELD_OUT, numpy=np.__version__, torch=torch.__version__)
    sections = [section(d, seed) for d in dims]
    return text + "".join(one for one, _ in sections), all(good for _, good in sections)


def try_seeds(dims: list[int], count: int) -> None:
    """Trains from seeds 0 to count - 1 and prints the errors on held-out prompts of the training range."""
    for d in dims:
        for seed in range(count):
            median, tail, largest = held_out(train(d, seed), Prompts(), d, seed)
            print(f"d = {d}, seed {seed}: median {median:.1e}, 95 % {tail:.1e}, largest {largest:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, metavar="D", help="default: 2 5 10 20")
    parser.add_argument("--seed", type=int, default=0, help="of the training and the held-out prompts; default: 0")
    parser.add_argument("--check", action="store_true", help="only measure the weights in the folder")
    parser.add_argument("--seeds", type=int, default=0, metavar="K", help="only try the seeds 0 to K - 1")
    args = parser.parse_args()
    if min(args.dims) < 2 or args.seed < 0 or args.seeds < 0:
        parser.error(f"dims {args.dims}, seed {args.seed}, seeds {args.seeds}; expected dims from 2, seeds from 0 on")
    torch.set_num_threads(1)
    if args.seeds:
        try_seeds(args.dims, args.seeds)
    elif args.check:
        try:
            text, good = card(args.dims, args.seed)
        except ConfigurationError as error:
            parser.error(str(error))
        print(text[text.index("## ") :], end="")
        sys.exit(not good)
    else:
        for d in args.dims:
            write(d, args.seed)
        text, good = card(sorted(int(path.stem[1:]) for path in FOLDER.glob("d*.npz")), args.seed)
        (FOLDER / "README.md").write_text(text, encoding="utf-8")
        sys.exit(not good)


if __name__ == "__main__":
    main()
