"""A helper U that chooses its objective at each turn so that the other agent, W, reaches its own.

W and U alternate. If U knows W, its objective at the iterate x is `core.linear_task.helper_objective`: U makes Newton's
step for W. Otherwise U estimates W's turn x -> x - P_W (x - w*) first: the replies to d + 1 iterates, the probes,
determine P_W = eta_W S_W and w*. The replies do not separate S_W from eta_W, and U needs only the product. Our own
derivation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from a2a_ray.analysis.checks import check_array, check_covariance, check_positive
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import NULL, helper_gain

Array: TypeAlias = np.ndarray[Any, np.dtype[np.floating[Any]]]


def helper_error_map(pull_w: Any, pull_u: Any, damping: float = 1.0) -> Array:
    """Return the map, (d, d), of the error x - w* in one round of W and a helper U that knows W, after U's turn.

    It is (I - alpha R_U R_W) M_W, R_U and R_W the projectors on the ranges of the pulls, alpha the damping:
        exact, alpha = 1, both invertible: 0, W's objective in one round;
        damped, both invertible: (1 - alpha) M_W;
        pseudo-inverse, a singular S_U: (I - alpha R_U) M_W; a turn can then raise W's loss, but W still reaches
            w* if its own turns contract.
    A helper whose estimate of w* is off by z, and whose estimate of P_W has range projector R, has the map
    (I - alpha R_U R) M_W and adds alpha R_U R z. With a singular S_W the state keeps its part in the null space of
    S_W, where W's loss is flat.

    pull_w, pull_u: I - (I - eta S)^k, (d, d), see `core.linear_task.pull`. damping: alpha, above 0. Raises
    ConfigurationError.
    """
    p_w = check_covariance(pull_w, "pull_w")
    p_u = check_covariance(pull_u, "pull_u", p_w.shape)
    identity = np.eye(len(p_w))
    alpha = float(check_positive(damping, "damping"))
    return np.asarray((identity - alpha * p_u @ helper_gain(p_w, p_u)) @ (identity - p_w))


def objective_to_reach(x: Any, target: Any, pull_u: Any) -> Array:
    """Return the objective, (d,), with which one turn of U takes the iterate x to `target`, both (d,).

    u = x + P_U^+ (target - x). With a singular P_U the turn ends at the point of x + range(P_U) nearest to the target.
    pull_u: (d, d). Raises ConfigurationError.
    """
    p_u = check_covariance(pull_u, "pull_u")
    here = check_array(x, "x", (len(p_u),))
    there = check_array(target, "target", (len(p_u),))
    return np.asarray(here + np.linalg.pinv(p_u, rcond=NULL, hermitian=True) @ (there - here))


@dataclass(frozen=True, slots=True, eq=False)
class TurnEstimate:
    """The estimate of a turn x -> x - P (x - w); float64.

    pull: P, (d, d), symmetric. objective: w, (d,); if P is singular, the solution nearest to the mean of the probes.
    """

    pull: Array
    objective: Array

    def helper_objective(self, x: Any, pull_u: Any, damping: float = 1.0) -> Array:
        """Return the helper's objective at the iterate x, (d,): x - damping P_U^+ R (x - w).

        R is the range projector of P. Raises ConfigurationError.
        """
        p_u = check_covariance(pull_u, "pull_u", self.pull.shape)
        here = check_array(x, "x", self.objective.shape)
        return np.asarray(here - damping * (helper_gain(self.pull, p_u) @ (here - self.objective)))


def probe_points(centre: Any, scale: float | None = None) -> Array:
    """Return d + 1 probes, (d + 1, d): the centre, (d,), then a step of size `scale` from it along each axis.

    scale: by default the largest absolute entry of the centre, or 1 if that is 0. Raises ConfigurationError.
    """
    middle = check_array(centre, "centre", ("d",))
    size = float(np.abs(middle).max()) or 1.0 if scale is None else float(check_positive(scale, "scale"))
    return np.vstack([middle, middle + size * np.eye(len(middle))])


def estimate_turn(points: Any, replies: Any) -> TurnEstimate:
    """Estimate W's turn by least squares from its inputs `points` and its replies, both (m, d), m >= d + 1.

    Exact, to rounding, for an affine turn without noise. The result keeps only the symmetric part of P, since a
    gradient step has no other. Raises ConfigurationError, also if the points do not span all d dimensions (a helper
    with a singular S_U cannot produce spanning points).
    """
    shown = check_array(points, "points", ("m", "d"))
    moves = shown - check_array(replies, "replies", shown.shape)
    middle, mean_move = shown.mean(axis=0), moves.mean(axis=0)
    solved, _, rank, _ = np.linalg.lstsq(shown - middle, moves - mean_move, rcond=NULL)
    if rank < shown.shape[1]:
        raise ConfigurationError(
            f"points: {len(shown)} that span {rank} of {shown.shape[1]} dimensions; expected at least"
            f" {shown.shape[1] + 1} that span all"
        )
    pull = np.asarray((solved + solved.T) / 2)
    return TurnEstimate(pull, middle - np.linalg.pinv(pull, rcond=NULL, hermitian=True) @ mean_move)


def probing_objective(
    outputs_w: Any, outputs_u: Any, pull_u: Any, damping: float = 1.0, scale: float | None = None
) -> Array:
    """Return the helper's objective, (d,), at its next turn, from the conversation so far only.

    In its first d + 1 turns U shows W the `probe_points` around W's first output; from then on it knows W's turn and
    makes Newton's step: with damping 1, W's objective after d + 2 rounds.

    outputs_w: (t, d), what W has said; outputs_u: (t - 1, d), what U has said in between (W was shown it). pull_u:
    (d, d), invertible. damping: above 0. scale: of the probes. Raises ConfigurationError.
    """
    said = check_array(outputs_w, "outputs_w", ("t", "d"))
    t, d = said.shape
    shown = check_array(outputs_u, "outputs_u", (t - 1, d)) if t > 1 else said[:0]
    if t <= d + 1:
        return objective_to_reach(said[-1], probe_points(said[0], scale)[t - 1], pull_u)
    estimate = estimate_turn(shown[: d + 1], said[1 : d + 2])
    return estimate.helper_objective(said[-1], pull_u, float(check_positive(damping, "damping")))
