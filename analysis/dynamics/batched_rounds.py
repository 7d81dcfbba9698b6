"""Rounds of many pairs at once, on a CPU or a GPU.

A turn is an affine map x -> M x + b with M = (I - eta S)^k. A round is one map, composed of its turns, so that it costs
one product of a matrix and a vector for each pair. Without noise the rounds between two kept ones are one map, too. All
arithmetic is float64: in float32 the state of pairs whose covariances have a common null space would drift along it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from a2a_ray.analysis.dynamics.pair_sources import BLOCK
from a2a_ray.core.seeds import turn_seed

STRETCH = 32
"""Rounds whose states are in memory, before the kept ones are copied."""

Noise = Callable[[], Sequence[Tensor]]
"""Draws the noise of W's and of U's turns in the next STRETCH rounds, two float64 tensors (STRETCH, b, d)."""


class Turn(NamedTuple):
    """The map x -> matrix x + offset of b pairs: matrix (b, d, d), offset (b, d), float64."""

    matrix: Tensor
    offset: Tensor


def make_turn(covariance: Tensor, objective: Tensor, step: Tensor, inner_steps: int) -> Turn:
    """Return the map of k gradient steps: covariance (b, d, d), objective (b, d), step (b,), all float64."""
    pull = step[:, None, None] * covariance
    identity = torch.eye(pull.shape[1], dtype=pull.dtype, device=pull.device)
    return repeat(Turn(identity - pull, _apply(pull, objective)), inner_steps)


def mean_turn(w: Turn, u: Turn) -> Turn:
    """Return the map to the mean of both answers."""
    return Turn((w.matrix + u.matrix) / 2, (w.offset + u.offset) / 2)


def compose(first: Turn, second: Turn) -> Turn:
    """Return the map that takes `first` and then `second`."""
    return Turn(_product(second.matrix, first.matrix), _apply(second.matrix, first.offset) + second.offset)


def repeat(turn: Turn, times: int) -> Turn:
    """Return the map that takes the turn `times` times, at least once, by repeated squaring."""
    if times == 1:
        return turn
    half = repeat(turn, times // 2)
    twice = compose(half, half)
    return compose(twice, turn) if times % 2 else twice


def run_rounds(
    turns: Sequence[Turn], start: Tensor, rounds: int, every: int, out: Sequence[Tensor | None], noise: Noise | None
) -> None:
    """Compute rounds from `start`, (b, d) float64, and write the states after rounds every, 2 every, ... to `out`.

    turns: W's and U's; or one, whose answer is the mean of both.
    out: for each turn a tensor (b, K, d), or None if its states are not kept.
    noise: is added to each answer.
    """
    whole = turns[0] if len(turns) == 1 else compose(turns[0], turns[1])
    if noise is None and every > 1:
        skipped = repeat(whole, every - 1)
        turns, whole = [compose(skipped, turns[0]), *turns[1:]], compose(skipped, whole)
        rounds, every = rounds // every, 1
    matrix = whole.matrix.mT.contiguous()  # products with states as rows are faster
    states = start.new_empty(STRETCH + 1, *start.shape)  # where the stretch begins, and the end of each round
    states[0] = start
    for before in range(0, rounds, STRETCH):
        count = min(STRETCH, rounds - before)
        begins, ends = states[:count], states[1 : count + 1]
        ends.copy_(whole.offset)
        added = [] if noise is None else noise()
        if added and len(turns) == 1:
            added = [(added[0] + added[1]) / 2]
        if added:
            ends += added[-1][:count]
        if len(added) == 2:
            ends += _apply_to_all(turns[1].matrix, added[0])[:count]
        for begin, end in zip(begins.unsqueeze(2), ends.unsqueeze(2), strict=True):
            end.baddbmm_(begin, matrix)
        kept = slice(before // every, (before + count) // every)
        chosen = slice((kept.start + 1) * every - 1 - before, count, every)
        if out[-1] is not None:
            out[-1][:, kept] = ends[chosen].transpose(0, 1)
        if len(turns) == 2 and out[0] is not None:
            answers = _apply_to_all(turns[0].matrix, begins[chosen]) + turns[0].offset
            out[0][:, kept] = (answers + added[0][:count][chosen] if added else answers).transpose(0, 1)
        states[0] = ends[-1]


def block_noise(
    seed: int, scales: tuple[float, float], first: int, last: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Noise:
    """Return Gaussian noise with the standard deviations `scales` of W and U for pairs `first` to `last` - 1.

    Each agent of each block of pairs has its own stream on the device. So a pair's noise is the same in any part of a
    population, and the noise of fewer rounds is a prefix of the noise of more. Numbers are drawn in `dtype`.
    """
    blocks = range(first // BLOCK, -(-last // BLOCK))
    # The generators of torch take 32 bits of a seed: successive ones, so that no two are the same.
    base = turn_seed(seed, 0)
    streams = [[torch.Generator(device).manual_seed((base + 2 * b + i) % 2**32) for b in blocks] for i in range(2)]
    rows = slice(first - blocks.start * BLOCK, last - blocks.start * BLOCK)
    noise = torch.empty(2, STRETCH, len(blocks) * BLOCK, dim, dtype=torch.float64, device=device)
    drawn = torch.empty(STRETCH, BLOCK, dim, dtype=dtype, device=device)

    def draw() -> Sequence[Tensor]:
        for answers, scale, streams_of_agent in zip(noise, scales, streams, strict=True):
            for part, stream in zip(answers.split(BLOCK, 1), streams_of_agent, strict=True):
                part.copy_(drawn.normal_(0, scale, generator=stream))
        return noise[:, :, rows].unbind()

    return draw


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return matrix @ vector for each pair: (b, d, d) and (b, d)."""
    return torch.bmm(matrix, vector[:, :, None])[:, :, 0]


def _apply_to_all(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return matrix @ vector for each pair and each of n vectors: (b, d, d) and (n, b, d)."""
    return _product(vectors.transpose(0, 1), matrix.mT).transpose(0, 1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right for each pair; on a CPU by NumPy, which is two to three times as fast for small matrices."""
    if left.device.type != "cpu":
        return torch.bmm(left, right)
    return torch.from_numpy(np.matmul(left.numpy(), right.numpy()))
