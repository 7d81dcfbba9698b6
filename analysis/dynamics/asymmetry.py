"""Asymmetric convergence: the prompt with which only one of two agents reaches its objective.

W and U alternate, D = u* - w*, P and M = I - P the pull and the contraction of a turn. U settles at its own objective,
e_U = 0, and W does not, e_W = M_W D, if and only if M_U P_W D = 0 and M_W D is not 0: U undoes W's whole pull in one
turn. With one inner step of W, P_W D = eta_W S_W D. The phenomenon: arXiv 2511.08710; conditions and prompts: our own
derivation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_count, check_covariance, check_positive, check_steps
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL, pull

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Adversary:
    """U's prompt and the settled residuals; float64. Targets are examples @ u*.

    examples: X, (r, d), r at most the rank allowed. covariance: S_U = X^T X / r, (d, d).
    residual_u, residual_w: (d,), e_U and e_W, each read after its own turn. If the covariances of W and U have a
    common null space, the state keeps its start in it, and the residuals hold in the other directions.
    exact: whether e_U = 0, for which the bound must allow a step of 1.
    """

    examples: Array
    covariance: Array
    residual_u: Array
    residual_w: Array
    exact: bool


def adversary(
    covariance_w: Any,
    gap: Any,
    step_w: float,
    step_u: float,
    *,
    inner_steps_w: int = 1,
    inner_steps_u: int = 1,
    rank: int = 1,
    bound: float = 1.0,
) -> Adversary:
    """Return the prompt that brings U as near to its objective as a limit on its step allows, if U knows W.

    covariance_w: S_W, (d, d). gap: D = u* - w*, (d,). step_w, step_u: eta of both; W's must contract.
    rank: of S_U at most. One is enough: S_U = v v^T / eta_U, v = P_W D / |P_W D|. With a singular S_W the state keeps
        the null-space part of the start. More rank therefore covers the directions in which W pulls least, null space
        first: rank 1 + (dimension of the null space of S_W) reaches u* from any start.
    bound: on eta_U lambda_max(S_U). At 1 or more U wins, e_U = 0. Below 1 it cannot: the prompt then has the least
        |e_U| that any S_U of any rank can have under the bound. It is of rank one too.

    Our derivation for a bound below 1: a symmetric B with 0 <= B <= beta I that takes g to h exists if and only if
    |h|^2 <= beta g.h, and then B = h h^T / g.h does. With g = M_W e - P_W D and h = g - e the least |e| is a problem of
    one convex quadratic constraint: in the eigenbasis of P_W one root of a scalar equation gives the global optimum.

    Raises ConfigurationError for invalid arguments, for a step of W that does not contract, and if P_W D = 0.
    """
    s_w = check_covariance(covariance_w, "covariance_w")
    d = len(s_w)
    difference = check_array(gap, "gap", (d,))
    eta_w, eta_u = float(check_steps(step_w, s_w, "step_w")), float(check_positive(step_u, "step_u"))
    inner_w, inner_u = check_count(inner_steps_w, "inner_steps_w"), check_count(inner_steps_u, "inner_steps_u")
    check_count(rank, "rank", 1, d)
    step = min(float(check_positive(bound, "bound")), 1.0)  # eta_U lambda_max(S_U)
    if step < NULL:
        raise ConfigurationError(f"bound: {bound:.6g}; expected at least {NULL:g}")
    pull_w = pull(s_w, eta_w, inner_w)
    if np.linalg.norm(pull_w @ difference) <= NULL * np.linalg.norm(pull_w) * np.linalg.norm(difference):
        raise ConfigurationError(
            "gap: S_W D = 0; expected a gap along which W pulls: without a pull there is nothing for U to undo"
        )
    eigenvalues, vectors = np.linalg.eigh(pull_w)
    share = 1 - (1 - step) ** inner_u
    e_u = vectors @ _least_residual(eigenvalues, vectors.T @ difference, share)
    before = e_u - pull_w @ (e_u + difference)  # x_W - u*, which U's turn takes to e_u
    slowest = vectors.T[np.argsort(-np.abs(1 - eigenvalues), kind="stable")]
    chosen = _chosen(before - e_u, before, slowest, rank)
    examples = projecting_examples(chosen, eta_u, step)
    return Adversary(examples, examples.T @ examples / len(examples), e_u, before + difference, step == 1.0)


def projecting_examples(span: Any, step_size: float, step: float = 1.0) -> Array:
    """Return examples X, (r, d), with eta X^T X / r = step times the projector on the span of the rows; r is its rank.

    span: (m, d), any directions, such as observed updates. With step 1 one turn reaches the objective within the span.
    step: eta lambda_max, above 0. Raises ConfigurationError, also if all rows are 0.
    """
    rows = check_array(span, "span", ("m", "d"))
    share = float(check_positive(step, "step")) / float(check_positive(step_size, "step_size"))
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    _, values, basis = np.linalg.svd(rows / np.where(sizes > 0, sizes, 1), full_matrices=False)
    basis = basis[values > NULL]
    if not len(basis):
        raise ConfigurationError("span: all rows are 0; expected at least one direction")
    return np.asarray(basis * np.sqrt(share * len(basis)))


def _least_residual(pulls: Array, gap: Array, bound: float) -> Array:
    """Return the e of least norm with e.P(e + D) + c |P(e + D)|^2 <= 0, c = 1 / bound - 1.

    All arrays are (d,), in the eigenbasis of P. With multiplier m, e = -m (p / 2 + c p^2) D / (1 + m (p + c p^2)). The
    sum below is the constraint at that e, written without cancellation: it is positive at m = 0, negative at m = 2 c.
    """
    c = 1 / bound - 1
    if c == 0:
        return np.zeros_like(gap)
    from scipy.optimize import brentq

    def constraint(m: float) -> float:
        inside = (1 + m * pulls / 2) * (c - m * (1 + c * pulls) / 2) / (1 + m * pulls * (1 + c * pulls)) ** 2
        return float(((pulls * gap) ** 2 * inside).sum())

    m = brentq(constraint, 0, 2 * c, xtol=1e-300, rtol=1e-15)
    return np.asarray(-m * pulls * (0.5 + c * pulls) * gap / (1 + m * pulls * (1 + c * pulls)))


def _chosen(first: Array, other: Array, more: Iterable[Array], rank: int) -> Array:
    """Return at most `rank` orthonormal rows: `first`, then the parts of `more` orthogonal to it and to `other`."""
    first = first / np.linalg.norm(first)
    beside = other - first * (first @ other)
    size = np.linalg.norm(beside)
    taken = [first, beside / size] if size > NULL * np.linalg.norm(other) else [first]
    rows = [first]
    for row in more:
        if len(rows) == rank:
            break
        for _ in range(2):  # twice: once leaves rounding where little remains
            row = row - np.stack(taken).T @ (np.stack(taken) @ row)
        if np.linalg.norm(row) > 1e-6:
            taken.append(row / np.linalg.norm(row))
            rows.append(taken[-1])
    return np.stack(rows)
