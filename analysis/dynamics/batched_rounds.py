"""Rounds of many pairs at once, on a CPU or a GPU: turn by turn, or by powers of the round's map.

A turn is an affine map x -> M x + b, M = I - eta S, b = eta S w* (k inner steps: its k-th power). It is held as one
matrix [M b; 0 1], shape (d + 1, d + 1), that acts on (x, 1): rounds, their powers and states are then products of
matrices and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from a2a_ray.analysis.dynamics.pair_geometry import BLOCK
from a2a_ray.core.seeds import turn_seed

COLUMNS = 32
"""States that one product of matrices gives, where all rounds are kept: more squarings on the way there cost as much as
wider products save."""
ROUNDS = 32
"""Rounds of noise that are drawn together."""

Noise = Callable[[Tensor], None]
"""Fills (2, n, b, d) with the noise of W's and U's next n turns."""


class Scratch(NamedTuple):
    """Memory for maps: four, (4, b, d + 1, d + 1) float64, and one in the states' dtype, (b, d + 1, d + 1).

    Lent again and again: the system clears memory that is asked for anew, which would double the time.
    """

    maps: Tensor
    rounded: Tensor

    @classmethod
    def empty(cls, pairs: int, dim: int, dtype: torch.dtype, device: torch.device) -> Scratch:
        """For so many pairs at a time."""
        shape = (pairs, dim + 1, dim + 1)
        maps = torch.empty((4, *shape), dtype=torch.float64, device=device)
        return cls(maps, torch.empty(shape, dtype=dtype, device=device))

    def rows(self, pairs: int) -> Scratch:
        """The part for so many pairs, no more than there are."""
        return Scratch(self.maps[:, :pairs], self.rounded[:pairs])


def turn_maps(
    covariances: Sequence[Tensor],
    objectives: Sequence[Tensor],
    steps: Sequence[Tensor],
    inner_steps: Sequence[int],
    scratch: Scratch,
) -> list[Tensor]:
    """The maps of the agents' turns, (b, d + 1, d + 1), of covariances (b, d, d), objectives (b, d), steps (b,).

    Everything here is float64: rounded to float32 before they are multiplied, the maps of pairs whose covariances have
    a common null space would let the state drift along it, by 1e-5 in some hundred rounds.
    """
    maps = []
    for covariance, objective, step, inner, out in zip(
        covariances, objectives, steps, inner_steps, scratch.maps, strict=False
    ):
        d = objective.shape[1]
        contraction = out[:, :d, :d]
        torch.mul(covariance, -step[:, None, None], out=contraction)
        out[:, :d, d:] = -_product(contraction, objective[:, :, None])
        out[:, d] = 0
        out.diagonal(dim1=1, dim2=2).add_(1)
        maps.append(_advance(out, out, inner - 1, scratch.maps[2:].unbind()))
    return maps


def by_powers(
    turns: Sequence[Tensor], start: Tensor, every: int, out: Sequence[Tensor | None], scratch: Scratch
) -> None:
    """The states after rounds every, 2 every, ..., without noise.

    turns: one or two maps, in the order of the turns. start: (b, d), float64. out: one for each turn, (b, d + 1, K),
    filled with the state after that turn in the kept rounds, under a last row of ones; None where it is not wanted.
    """
    powers = scratch.maps[3], scratch.maps[0]  # the first turn's map is done with when the round's is there
    begin = torch.cat([start, torch.ones_like(start[:, :1])], 1)[:, :, None]
    kept: Tensor | None
    if len(turns) == 2 and out[0] is not None:  # the chain of the states after the first turn; the second comes after
        begin = _product(turns[0], begin)
        one = _product(turns[0], turns[1], scratch.maps[2])
        first, kept = _advance(one, begin, every - 1, powers), out[0]
    else:
        one = turns[0] if len(turns) == 1 else _product(turns[1], turns[0], scratch.maps[2])
        first, kept = _advance(one, begin, every, powers), out[-1]
    assert kept is not None
    if kept.shape[2] > 1:
        one = _advance(one, one, every - 1, powers)
    _iterate(one, first, kept, powers, scratch.rounded)
    if len(turns) == 2 and out[0] is not None and out[1] is not None:
        _product(scratch.rounded.copy_(turns[1]), kept, out[1])


def turn_by_turn(
    turns: Sequence[Tensor],
    start: Tensor,
    rounds: int,
    every: int,
    out: Sequence[Tensor | None],
    noise: Noise | None = None,
) -> None:
    """The same by computing every turn in the dtype of `start`; with noise, if any, added to each answer.

    out: as in `by_powers`, but each (b, K, d). With one map, of simultaneous turns, the noise is the mean of both.
    """
    b, d = start.shape
    matrices = [turn[:, :d, :d].mT.to(start.dtype).contiguous() for turn in turns]  # states as rows are quicker
    offsets = torch.stack([turn[:, :d, d] for turn in turns])[:, None].to(start.dtype)
    drawn = start.new_empty(2, ROUNDS, b, d)
    state = start[:, None]
    for before in range(0, rounds, ROUNDS):
        now = min(ROUNDS, rounds - before)
        answers = drawn[: len(turns), :now]  # the noise, then with the offsets, then with the products: the states
        if noise is None:
            answers.copy_(offsets.expand_as(answers))
        else:
            noise(drawn[:, :now])
            if len(turns) == 1:
                answers.add_(drawn[1:, :now]).div_(2)
            answers.add_(offsets)
        for turns_of_round in zip(*(answer.unsqueeze(2).unbind() for answer in answers), strict=True):
            for matrix, answer in zip(matrices, turns_of_round, strict=True):
                state = answer.baddbmm_(state, matrix)
        kept = slice(before // every, (before + now) // every)
        chosen = slice((kept.start + 1) * every - 1 - before, now, every)
        for answer_of_turn, wanted in zip(answers, out, strict=True):
            if wanted is not None:
                wanted[:, kept] = answer_of_turn[chosen].transpose(0, 1)
        state = state.clone()  # its memory is written anew


def block_noise(seed: int, scales: tuple[float, float], first: int, last: int, device: torch.device) -> Noise:
    """Gaussian noise of W's and U's standard deviations `scales` for pairs `first` to `last` - 1, by their numbers.

    Each agent of each block of pairs has a stream of its own on the device, so that a pair's noise is the same in any
    stretch, and that of fewer rounds a part of that of more.
    """
    blocks = range(first // BLOCK, -(-last // BLOCK))
    # The generators of torch take 32 bits of a seed: successive ones, so that no two are the same.
    base = turn_seed(seed, 0)
    streams = [[torch.Generator(device).manual_seed((base + 2 * b + i) % 2**32) for b in blocks] for i in range(2)]

    def fill(drawn: Tensor) -> None:
        for answers, scale, streams_of_agent in zip(drawn, scales, streams, strict=True):
            for block, stream in zip(blocks, streams_of_agent, strict=True):
                start = block * BLOCK
                part = answers[:, max(start - first, 0) : start - first + BLOCK]
                if part.shape[1] == BLOCK and part.is_contiguous():
                    part.normal_(0, scale, generator=stream)
                    continue
                whole = drawn.new_empty(len(part), BLOCK, part.shape[2]).normal_(0, scale, generator=stream)
                skipped = max(first - start, 0)
                part.copy_(whole[:, skipped : skipped + part.shape[1]])

    return fill


def _iterate(one: Tensor, first: Tensor, out: Tensor, powers: Sequence[Tensor], rounded: Tensor) -> None:
    """out[:, :, t] = one^t first: as many at once as are there already, up to COLUMNS."""
    out[:, :, :1] = first
    squares = _squares(one, powers)
    done, wide, power = 1, 1, rounded.copy_(next(squares))
    while done < out.shape[2]:
        new = min(wide, out.shape[2] - done)
        _product(power, out[:, :, done - wide : done - wide + new], out[:, :, done : done + new])
        done += new
        if wide < COLUMNS and done < out.shape[2]:
            wide, power = 2 * wide, power.copy_(next(squares))


def _advance(one: Tensor, states: Tensor, times: int, memory: Sequence[Tensor]) -> Tensor:
    """one^times states, by repeated squaring."""
    squares = _squares(one, memory)
    while times:
        power = next(squares)
        if times & 1:
            states = _product(power, states)
        times >>= 1
    return states


def _squares(one: Tensor, memory: Sequence[Tensor]) -> Iterator[Tensor]:
    """one, one^2, one^4, ...; in turn in two pieces of memory."""
    power = one
    for number in count():
        yield power
        power = _product(power, power, memory[number % 2])


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right for each pair; on a CPU by NumPy, whose BLAS is quicker than torch's with such small matrices."""
    if left.device.type != "cpu":
        return _torch_product(left, right, out)
    product = np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy())
    return torch.from_numpy(product) if out is None else out


def _torch_product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    product = torch.bmm(left, right)
    return product if out is None else out.copy_(product)
