"""Seeded sampling from causal language models: a text depends on its own request, not on who shares the batch.

B is the number of rows in a batch, T a length in tokens, V the size of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Request(NamedTuple):
    """The request of one row.

    tokens: the prompt, at least one. seed: 0 <= seed < 2**63, of this row's own random numbers.
    temperature: 0 takes the likeliest token. top_p: 0 < top_p <= 1. max_new_tokens: at least 1.
    """

    tokens: list[int]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int


class Generated(NamedTuple):
    """The result of one row: tokens without the stop token, and why it ended ("invalid": NaN or infinite logits)."""

    tokens: list[int]
    finish: Literal["stop", "length", "invalid"]


def generate(model: Any, requests: Sequence[Request], stop: Sequence[int], pad: int) -> list[Generated]:
    """Continue every request until a token of `stop` or its own limit; finished rows leave the batch.

    model: a causal language model of transformers, in eval mode. Rows are padded at the left with `pad`, positions
    count real tokens only, and a row draws its n-th token by the n-th number of its own generator. In float64 it is the
    same in every batch; in lower precision sums round differently and a near tie can fall otherwise.
    """
    import torch

    from a2a_ray.agents.hf.kv_cache import reserved_cache

    with torch.inference_mode():
        device = model.device
        tokens, mask = _padded(requests, pad)
        longest, horizon = tokens.shape[1], mask.shape[1] - tokens.shape[1]
        uniforms = torch.stack([_uniforms(r.seed, horizon) for r in requests]).to(device)
        temperature = torch.tensor([[r.temperature] for r in requests], dtype=torch.float64, device=device)
        top_p = torch.tensor([[r.top_p] for r in requests], dtype=torch.float64, device=device)
        limit = torch.tensor([r.max_new_tokens for r in requests], device=device)
        ends = torch.tensor(list(stop), dtype=torch.long, device=device)
        drawn = torch.full((len(requests), horizon), -1, device=device)
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp_(min=0)
        rows = torch.arange(len(requests), device=device)
        cache = reserved_cache(model.config, longest + horizon)
        accepted = inspect.signature(model.forward).parameters
        extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        seen = 0
        for step in range(horizon):
            length = longest + step
            if "position_ids" in accepted:
                extra["position_ids"] = positions[:, seen:length]
            logits = model(
                input_ids=tokens, attention_mask=mask[:, :length], past_key_values=cache, use_cache=True, **extra
            ).logits[:, -1]
            seen = length
            new = pick(logits, uniforms[:, step : step + 1], temperature, top_p)
            drawn[rows, step] = new
            going = (limit > step + 1) & (new >= 0) & ~torch.isin(new, ends)
            if not bool(going.all()):
                kept = going.nonzero()[:, 0]
                if len(kept) == 0:
                    break
                cache.batch_select_indices(kept)
                rows, new, mask, positions = rows[kept], new[kept], mask[kept], positions[kept]
                uniforms, temperature, top_p, limit = uniforms[kept], temperature[kept], top_p[kept], limit[kept]
            tokens = new[:, None]
    return [_ended(row[: r.max_new_tokens], stop) for row, r in zip(drawn.tolist(), requests, strict=True)]


def pick(logits: Tensor, uniforms: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Return one token for each row, int64 (B,); -1 if the row's largest logit is NaN or infinite.

    logits: (B, V). uniforms in [0, 1), temperature and top_p: float64 (B, 1). The softmax of logits / temperature is
    computed in float64 and cut to the nucleus; the token is where the row's uniform falls in the cumulative sum over
    token numbers. Temperature 0: the largest logit, the lowest number among equals.
    """
    import torch

    peak, likeliest = logits.max(-1, keepdim=True)
    chosen = likeliest
    if bool((temperature > 0).any()):
        warm = torch.where(temperature > 0, temperature, 1.0)
        # The peak is taken off first: with a tiny temperature the quotient would be infinite.
        probabilities = torch.softmax((logits.double() - peak.double()) / warm, -1)
        floor = nucleus_floor(probabilities, top_p)
        if floor is not None:
            probabilities = probabilities.masked_fill_(probabilities < floor, 0.0)
        cumulative = probabilities.cumsum(-1)
        # uniform * total < total holds in floating point too, so the position is always inside the row.
        sampled = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
        chosen = torch.where(temperature > 0, sampled, likeliest)
    return torch.where(peak.isfinite(), chosen, -1)[:, 0]


def nucleus_floor(probabilities: Tensor, top_p: Tensor) -> Tensor | None:
    """Return the smallest probability in each row's nucleus, (B, 1); 0 if top_p is 1, None if it is 1 in all rows.

    The nucleus is the smallest set of likeliest tokens whose probabilities reach top_p (Holtzman et al. 2020, The
    Curious Case of Neural Text Degeneration); tokens as likely as its last one belong to it, so that the set does not
    depend on how a sort orders equals.
    """
    import numpy as np
    import torch

    cut = top_p < 1
    if not bool(cut.any()):
        return None
    wanted = torch.where(cut, top_p, 0.0)
    if probabilities.device.type == "cpu":  # NumPy sorts 25 times faster than torch does on a CPU
        ordered = torch.from_numpy(np.sort(probabilities.numpy(), -1)).flip(-1)
    else:
        ordered = probabilities.sort(-1, descending=True).values
    last = (ordered.cumsum(-1) < wanted).sum(-1, keepdim=True).clamp_(max=ordered.shape[-1] - 1)
    return torch.where(cut, ordered.gather(-1, last), 0.0)


def _padded(requests: Sequence[Request], pad: int) -> tuple[Tensor, Tensor]:
    """Return left-padded prompts (B, T) and the attention mask (B, T + most new tokens) over prompt and answer."""
    import torch

    longest = max(len(r.tokens) for r in requests)
    horizon = max(r.max_new_tokens for r in requests)
    gaps = [longest - len(r.tokens) for r in requests]
    tokens = torch.tensor([[pad] * gap + r.tokens for gap, r in zip(gaps, requests, strict=True)])
    mask = (torch.arange(longest + horizon) >= torch.tensor(gaps)[:, None]).long()
    return tokens, mask


def _uniforms(seed: int, count: int) -> Tensor:
    """Return `count` numbers in [0, 1) of a seed, float64, drawn on the CPU: the same for every device."""
    import torch

    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _ended(row: list[int], stop: Sequence[int]) -> Generated:
    for place, token in enumerate(row):
        if token < 0:
            return Generated(row[:place], "invalid")
        if token in stop:
            return Generated(row[:place], "stop")
    return Generated(row, "length")
