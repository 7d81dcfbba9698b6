"""Where two agents that take turns settle: closed forms for gradient steps on two quadratic objectives.

W takes x to x - A (x - w*), U takes x to x - B (x - u*), where A = eta_W S_W, B = eta_U S_U, M_W = I - A and
M_U = I - B. With k inner steps A is I - (I - eta_W S_W)^k. The setting is that of arXiv 2511.08710, the closed forms
are our own. More agents and other orders: `a2a_ray.analysis.dynamics.rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_covariance, check_positive
from a2a_ray.analysis.dynamics.affine import linear_agents
from a2a_ray.analysis.dynamics.asymmetry import projecting_examples
from a2a_ray.analysis.dynamics.rounds import alternating, half_life
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import helper_objective

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
        return half_life(self.spectral_radius)


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
    Raises ConfigurationError for shapes that differ, covariances that are none, steps not above 0, and where there is
    no single fixed point: I - M_W M_U is singular, because the covariances have a common null space (the limit then
    depends on the start) or steps are beyond 2 / lambda_max.
    """
    shapes = [np.shape(a) for a in (covariance_w, covariance_u, objective_w, objective_u)]
    d = shapes[2]
    if len(d) != 1 or shapes != [d + d, d + d, d, d]:
        raise ConfigurationError(
            f"shapes {shapes[0]} and {shapes[1]} of the covariances, {shapes[2]} and {shapes[3]} of the objectives;"
            " expected (d, d) twice and (d,) twice"
        )
    agents = linear_agents(
        np.stack([covariance_w, covariance_u]),
        np.stack([objective_w, objective_u]),
        [step_w, step_u],
        [inner_steps_w, inner_steps_u],
    )
    found = alternating(agents, allow_divergence=True)
    gap = agents.objectives[1] - agents.objectives[0]
    (after_w, after_u), (e_w, e_u) = found.states, found.residuals
    return Equilibrium(after_w, after_u, e_w, e_u, gap, found.spectral_radius)


def asymmetric_geometry(covariance_w: Array, gap: Array, step_u: float) -> Array:
    """A covariance of U, shape (d, d), with which U reaches its objective and W does not: e_U = 0, e_W = M_W D.

    Rank one: S_U = v v^T / eta_U, v = S_W D / |S_W D|: one turn of U undoes the whole pull of W. Enough where
    `covariance_w`, shape (d, d), is positive definite; gap: D = u* - w*, shape (d,). Raises ConfigurationError where
    S_W D = 0. Other limits and more inner steps of W: `a2a_ray.analysis.dynamics.asymmetry.adversary`.
    """
    x = asymmetric_examples(covariance_w, gap, step_u)
    return np.asarray(x.T @ x)


def asymmetric_examples(covariance_w: Array, gap: Array, step_u: float) -> Array:
    """The one example, shape (1, d), whose covariance is `asymmetric_geometry`: v / sqrt(eta_U)."""
    s_w = check_covariance(covariance_w, "covariance_w")
    direction = s_w @ check_array(gap, "gap", (len(s_w),))
    if not direction.any():
        raise ConfigurationError("gap: S_W D = 0, W does not pull along the gap, so there is nothing for U to undo")
    return projecting_examples(direction[None, :], float(check_positive(step_u, "step_u")))
