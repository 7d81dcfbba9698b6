"""Where two agents that take turns settle: closed forms for gradient steps on two quadratic objectives.

W takes x to x - A (x - w*), U takes x to x - B (x - u*), where A = eta_W S_W, B = eta_U S_U, M_W = I - A and
M_U = I - B. With k inner steps A is I - (I - eta_W S_W)^k. The setting is that of arXiv 2511.08710, the closed forms
are our own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.core.prompts import helper_objective, pull

__all__ = ["Equilibrium", "asymmetric_examples", "asymmetric_geometry", "helper_objective", "two_agent_equilibrium"]

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Equilibrium:
    """The settled state of W and U, which alternate in this order; all arrays have shape (d,), float64.

    after_w, after_u: the state read after W's and after U's turn.
    residual_w, residual_u: each as seen from the agent's own objective, e_W = after_w - w* and e_U = after_u - u*.
    gap: u* - w*.
    spectral_radius: of M_U M_W: the factor by which a round shrinks the distance to the settled state in the long run.
        At 1 or above nothing settles, unless it begins there.
    """

    after_w: Array
    after_u: Array
    residual_w: Array
    residual_u: Array
    gap: Array
    spectral_radius: float

    @property
    def residual_norm_w(self) -> float:
        """|e_W|, the 2-norm."""
        return float(np.linalg.norm(self.residual_w))

    @property
    def residual_norm_u(self) -> float:
        """|e_U|, the 2-norm."""
        return float(np.linalg.norm(self.residual_u))

    @property
    def gap_norm(self) -> float:
        """|u* - w*|, the 2-norm."""
        return float(np.linalg.norm(self.gap))

    @property
    def half_life(self) -> float:
        """Rounds in which the distance to the settled state halves, ln 2 / -ln(spectral_radius); infinite from 1 on."""
        if self.spectral_radius >= 1:
            return math.inf
        return math.log(2) / -math.log(self.spectral_radius) if self.spectral_radius > 0 else 0.0


def two_agent_equilibrium(
    covariance_w: Array,
    covariance_u: Array,
    objective_w: Array,
    objective_u: Array,
    step_w: float,
    step_u: float,
    inner_steps_w: int = 1,
    inner_steps_u: int = 1,
) -> Equilibrium:
    """Where W and U settle: the fixed points of their turns made one after the other.

        e_W = (I - M_W M_U)^-1 M_W (I - M_U) D        e_U = -(I - M_U M_W)^-1 M_U (I - M_W) D        D = u* - w*

    covariance_*: S, shape (d, d), symmetric, positive semi-definite; objective_*: shape (d,); step_*: eta.
    Raises ValueError where shapes differ, and where there is no single fixed point: I - M_W M_U is singular, because
    the covariances have a common null space (the limit then depends on the start) or steps are beyond 2 / lambda_max.
    """
    w, u = np.asarray(objective_w, np.float64), np.asarray(objective_u, np.float64)
    s_w, s_u = np.asarray(covariance_w, np.float64), np.asarray(covariance_u, np.float64)
    if w.ndim != 1 or w.shape != u.shape or s_w.shape != s_u.shape or s_w.shape != (len(w), len(w)):
        raise ValueError(
            f"shapes {s_w.shape} and {s_u.shape} of the covariances, {w.shape} and {u.shape} of the objectives;"
            " expected (d, d) twice and (d,) twice"
        )
    a, b = pull(s_w, step_w, inner_steps_w), pull(s_u, step_u, inner_steps_u)
    identity, gap = np.eye(len(w)), u - w
    m_w, m_u = identity - a, identity - b
    round_w, round_u = a + b - a @ b, a + b - b @ a  # I - M_W M_U and I - M_U M_W, without cancellation
    _check_single(round_w, a, b)
    e_w = np.linalg.solve(round_w, m_w @ (b @ gap))
    e_u = -np.linalg.solve(round_u, m_u @ (a @ gap))
    radius = float(np.abs(np.linalg.eigvals(m_u @ m_w)).max())
    return Equilibrium(w + e_w, u + e_u, e_w, e_u, gap, radius)


def asymmetric_geometry(covariance_w: Array, gap: Array, step_u: float) -> Array:
    """A covariance of U, shape (d, d), with which U reaches its objective and W does not: e_U = 0, e_W = M_W D.

    Rank one: S_U = v v^T / eta_U, v = S_W D / |S_W D|: one turn of U undoes the whole pull of W. Enough where
    `covariance_w`, shape (d, d), is positive definite; gap: D = u* - w*, shape (d,). Raises ValueError where S_W D = 0.
    """
    x = asymmetric_examples(covariance_w, gap, step_u)
    return np.asarray(x.T @ x)


def asymmetric_examples(covariance_w: Array, gap: Array, step_u: float) -> Array:
    """The one example, shape (1, d), whose covariance is `asymmetric_geometry`: v / sqrt(eta_U)."""
    if not step_u > 0:
        raise ValueError(f"step_u: {step_u}; expected a number above 0")
    direction = np.asarray(covariance_w, np.float64) @ np.asarray(gap, np.float64)
    size = np.linalg.norm(direction)
    if size == 0:
        raise ValueError("S_W D = 0: W does not pull along the gap, so there is nothing for U to undo")
    return np.asarray((direction / size / math.sqrt(step_u))[None, :])


def _check_single(round_w: Array, a: Array, b: Array) -> None:
    """Raises ValueError where I - M_W M_U is singular to rounding, and says why."""
    d = len(a)
    shared = d - int(np.linalg.matrix_rank(a + b, hermitian=True))
    if shared:
        raise ValueError(
            f"the covariances of both agents have a common null space of {shared} of {d} dimensions: no turn moves the"
            " iterate along it, so the limit depends on the start"
        )
    if np.linalg.matrix_rank(round_w) < d:
        raise ValueError(
            "I - M_W M_U is singular though the covariances have no common null space: the steps are beyond"
            " 2 / lambda_max, and a round carries some direction over unchanged"
        )
