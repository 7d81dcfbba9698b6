"""A layer of linear self-attention over the tokens of a prompt, whose output is a gradient step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from a2a_ray.agents.lsa.trained_weights import trained_weights

CHUNK = 2**16
"""Numbers of example tokens processed at once, so that intermediate results stay in a core's cache."""


class LSAModule(nn.Module):
    """Linear self-attention, read at the query token.

    Tokens have d + 1 components: an example is (x_i, y_i), the query is (w, -1). The query token q becomes

        q + 1/n sum_i (value z_i) (z_i . query_key q)

    summed over the n examples z_i alone: the query's own key is masked. The analytic weights, `query_key = I` and
    `value = -eta diag(1, ..., 1, 0)`, make z_i . q the residual x_i . w - y_i, and the layer one gradient step of size
    eta on 1/2n |X w - y|^2 (von Oswald et al. 2023, arXiv 2212.07677). Both are parameters of shape (d + 1, d + 1).

    All sums run over the last axis of an elementwise product, so that a row's result has the same bits in any batch;
    those of matrix products depend on the batch.

    A new layer has the analytic weights, for any `dim` and `step_size`; `trained` loads the trained ones.
    """

    def __init__(self, dim: int, step_size: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        value = -step_size * torch.eye(dim + 1, dtype=dtype)
        value[dim, dim] = 0.0
        self.query_key = nn.Parameter(torch.eye(dim + 1, dtype=dtype))
        self.value = nn.Parameter(value)

    @classmethod
    def trained(cls, dim: int, step_size: float, dtype: torch.dtype = torch.float64) -> LSAModule:
        """Return the layer with trained weights (scripts/train_lsa.py, docs/method/trained_lsa.md).

        They were trained for one step size eta. The value map is linear, so the weights for another are the value
        matrix times step_size / eta, with the same relative error. Raises ConfigurationError if `dim` has no trained
        weights.
        """
        stored = trained_weights(dim)
        module = cls(dim, step_size, dtype)
        with torch.no_grad():
            module.query_key.copy_(torch.from_numpy(stored["query_key"]))
            module.value.copy_(torch.from_numpy(stored["value"] * (step_size / stored["step_size"])))
        return module

    def forward(self, examples: Tensor, query: Tensor) -> Tensor:
        """Return the new query tokens of `query` after attention to the examples; both have shape (b, d + 1).

        examples: shape (n, d + 1), the same for all, or (b, n, d + 1).
        """
        scores = _apply(examples, _apply(self.query_key, query))
        mixed = _apply(examples.mT.contiguous(), scores)  # sum_i z_i score_i; the value map is linear, so it can wait
        return query + _apply(self.value, mixed) / examples.shape[-2]


def _apply(matrix: Tensor, rows: Tensor) -> Tensor:
    """matrix @ row for each row: (m, k) or (b, m, k) by (b, k) gives (b, m)."""
    return (matrix * rows.unsqueeze(-2)).sum(-1)


@torch.inference_mode()
def descend(
    module: LSAModule, examples: np.ndarray[Any, Any], iterates: np.ndarray[Any, Any], layers: int
) -> np.ndarray[Any, Any]:
    """Return the iterates, shape (b, d), after `layers` passes; examples as in `forward`; all in the module's dtype.

    The time grows with the number n of examples. The layer depends only on their sum of z_i z_i^T / n, so d
    examples with the same covariance give the same turn to rounding.
    """
    b, d = iterates.shape
    tokens = torch.from_numpy(examples)
    query = torch.full((b, d + 1), -1.0, dtype=module.value.dtype)
    query[:, :d] = torch.from_numpy(iterates)
    rows = max(1, CHUNK // (examples.shape[-2] * (d + 1)))
    for start in range(0, b, rows):
        some = slice(start, start + rows)
        own = tokens if tokens.ndim == 2 else tokens[some]
        for _ in range(layers):
            query[some] = module(own, query[some])
    out: np.ndarray[Any, Any] = query[:, :d].numpy()
    return out
