"""The task of a linear self-attention agent: examples of a linear task, its objective and its step size.

Shared by the agent, which takes the steps, and by protocols that must know of it. Notation of the theory: a turn is one
gradient step T(w) = w - eta S (w - w*), S = X^T X / n, w* the objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from a2a_ray.core.errors import ConfigurationError, unknown

if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = "np.ndarray[Any, np.dtype[np.floating[Any]]]"

NULL = 1e-12
"""Eigenvalues below this fraction of the largest count as zero when a covariance is inverted."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearTask:
    """Examples X (n, d), their covariance S = X^T X / n (d, d), objective w* (d,), step size eta; all float64."""

    examples: Array
    covariance: Array
    objective: Array
    step_size: float
    inner_steps: int

    @property
    def pull(self) -> Array:
        """Return the fraction of the way to the objective that one turn covers: I - (I - eta S)^k, shape (d, d)."""
        return pull(self.covariance, self.step_size, self.inner_steps)


def make_task(
    objective: list[float] | dict[str, Any] | None = None,
    dim: int | None = None,
    examples: list[list[float]] | None = None,
    geometry: dict[str, Any] | None = None,
    step_size: float = 0.1,
    inner_steps: int = 1,
) -> LinearTask:
    """Return the task of an LSA agent's settings, which `LSAAgent` documents. Raises ConfigurationError.

    The default objective is the origin, for callers that need only the geometry.
    """
    import numpy as np

    if examples is not None and geometry is not None:
        raise ConfigurationError("examples and geometry are both given; give one of them")
    if inner_steps < 1:
        raise ConfigurationError(f"inner_steps: {inner_steps}; expected at least 1")
    geometry = geometry or {}
    _known(geometry, "geometry", ("examples", "condition", "seed", "eigenvalues"))
    given = None if examples is None else _array(examples, "examples", ("n", "d"))
    eigenvalues = None
    if "eigenvalues" in geometry:
        eigenvalues = _array(geometry["eigenvalues"], "geometry.eigenvalues", ("d",))
    sizes: dict[str, int] = {} if dim is None else {"dim": dim}
    if objective is not None and not isinstance(objective, Mapping):
        sizes["objective"] = len(_array(objective, "objective", ("d",)))
    if given is not None:
        sizes["examples"] = given.shape[1]
    if eigenvalues is not None:
        sizes["geometry.eigenvalues"] = len(eigenvalues)
    d = _agreed(sizes)
    wanted = np.zeros(d) if objective is None else read_objective(objective, d)
    x = _examples(d, geometry, eigenvalues) if given is None else given
    covariance = x.T @ x / len(x)
    _check_step(step_size, float(np.linalg.eigvalsh(covariance)[-1]))
    for array in (wanted, x, covariance):
        array.flags.writeable = False
    return LinearTask(x, covariance, wanted, float(step_size), inner_steps)


def read_objective(value: Any, dim: int) -> Array:
    """Return an objective, shape (dim,) float64, of a list or an angle.

    Raises ConfigurationError. {angle: degrees, norm: 1.0, seed: 0} means norm (cos(angle) e1 + sin(angle) e2).
    e1 and e2 are orthonormal and drawn from the seed: equal seeds give one plane, so that two objectives
    of norm r at an angle theta are 2 r sin(theta / 2) apart.
    """
    import numpy as np

    if not isinstance(value, Mapping):
        objective = _array(value, "objective", ("d",))
        if len(objective) != dim:
            raise ConfigurationError(f"objective: {len(objective)} numbers; expected {dim}")
        return objective
    _known(value, "objective", ("angle", "norm", "seed"))
    if "angle" not in value:
        raise ConfigurationError(f"objective: {dict(value)}; key 'angle' (degrees) is missing")
    if dim < 2:
        raise ConfigurationError(f"objective: an angle needs a plane, at least 2 dimensions; dim is {dim}; give a list")
    angle = math.radians(_number(value["angle"], "objective.angle"))
    norm = _number(value.get("norm", 1.0), "objective.norm", least=0)
    first, second = _plane(dim, _seed(value.get("seed", 0), "objective.seed"))
    return np.asarray(norm * (math.cos(angle) * first + math.sin(angle) * second))


def pull(covariance: Array, step_size: float, inner_steps: int = 1) -> Array:
    """Return I - (I - eta S)^k, shape (d, d), without cancellation for small eta S."""
    import numpy as np

    one = step_size * covariance
    contraction = np.eye(len(one)) - one
    powers = [np.linalg.matrix_power(contraction, i) for i in range(inner_steps)]
    return np.asarray(one @ sum(powers))


def helper_gain(covariance_w: Array, pull_u: Array) -> Array:
    """Return G = pull_U^+ S_W^+ S_W, shape (d, d): the helper's objective is x - damping G (x - w*)."""
    return _pseudo_inverse(pull_u) @ _pseudo_inverse(covariance_w) @ covariance_w


def helper_objective(
    x: Array, covariance_w: Array, objective_w: Array, covariance_u: Array, step_u: float, damping: float = 1.0
) -> Array:
    """Return the objective with which a helper U moves the iterate x towards W's objective; both have shape (d,).

    u = x + (eta_U S_U)^+ S_W^+ (-damping grad L_W(x)), grad L_W(x) = S_W (x - w*): Newton's step of W, made by U. With
    invertible covariances U's turn then gives x - damping (x - w*). Pseudo-inverses cut at `NULL`.
    """
    gain = helper_gain(covariance_w, pull(covariance_u, step_u))
    return x - damping * (gain @ (x - objective_w))


def _pseudo_inverse(symmetric: Array) -> Array:
    import numpy as np

    return np.linalg.pinv(symmetric, rcond=NULL, hermitian=True)


def _agreed(sizes: Mapping[str, int]) -> int:
    """Return the dimension on which all settings agree. Raises ConfigurationError."""
    if not sizes:
        raise ConfigurationError(
            "dim is missing; expected a whole number (an objective by angle does not determine it)"
        )
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ConfigurationError(f"numbers of dimensions differ: {found}; they must agree")
    d = next(iter(sizes.values()))
    if isinstance(d, bool) or d < 1:
        raise ConfigurationError(f"dim: {d}; expected at least 1")
    return d


def _examples(d: int, geometry: Mapping[str, Any], eigenvalues: Array | None) -> Array:
    """Return X, shape (n, d), with X^T X / n = Q diag(eigenvalues) Q^T to rounding, Q a random rotation of the seed."""
    import numpy as np

    if eigenvalues is None:
        condition = _number(geometry.get("condition", 1), "geometry.condition", least=1)
        eigenvalues = np.geomspace(1 / condition, 1, d) if d > 1 else np.ones(1)
    elif "condition" in geometry:
        raise ConfigurationError("geometry: eigenvalues and condition are both given; give one of them")
    if eigenvalues.min() < 0 or eigenvalues.max() == 0:
        raise ConfigurationError(
            f"geometry.eigenvalues: {eigenvalues.tolist()}; expected none below 0 and at least one above"
        )
    kept = eigenvalues > 0
    rank = int(kept.sum())
    n = geometry.get("examples", 4 * d)
    if not isinstance(n, int) or isinstance(n, bool) or n < rank:
        raise ConfigurationError(f"geometry.examples: {n!r}; expected a whole number of at least {rank}, the rank")
    rng = np.random.default_rng((_seed(geometry.get("seed", 0), "geometry.seed"), 1))
    rotation = _orthonormal(rng.normal(size=(d, d)))[:, kept]
    left = _orthonormal(rng.normal(size=(n, rank)))
    return np.asarray((left * np.sqrt(n * eigenvalues[kept])) @ rotation.T)


def _orthonormal(gaussian: Array) -> Array:
    """Return uniformly drawn orthonormal columns: QR with positive diagonal (Mezzadri 2007, arXiv math-ph/0609050)."""
    import numpy as np

    q, r = np.linalg.qr(gaussian)
    return np.asarray(q * np.sign(np.diag(r)))


@lru_cache(maxsize=256)
def _plane(dim: int, seed: int) -> Array:
    """Return two orthonormal rows, shape (2, dim)."""
    import numpy as np

    plane = np.ascontiguousarray(_orthonormal(np.random.default_rng((seed, 0)).normal(size=(dim, 2))).T)
    plane.flags.writeable = False
    return plane


def _check_step(step_size: float, largest: float) -> None:
    _number(step_size, "step_size")
    if step_size <= 0:
        raise ConfigurationError(f"step_size: {step_size}; expected a number above 0")
    if step_size * largest >= 2 * (1 - NULL):
        raise ConfigurationError(
            f"step_size: {step_size:g}; expected less than {2 / largest:.6g}, which is 2 / lambda_max of the examples'"
            f" covariance ({largest:.6g}): below it every step contracts"
        )


def _array(value: Any, where: str, axes: tuple[str, ...]) -> Array:
    """Return a float64 copy with these axes, none of them empty. Raises ConfigurationError."""
    import numpy as np

    shape = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigurationError(f"{where}: {str(value)[:60]}; expected numbers in the shape {shape}") from None
    if array.ndim != len(axes) or array.size == 0:
        raise ConfigurationError(f"{where}: shape {array.shape}; expected {shape}, at least 1 of each")
    if not np.isfinite(array).all():
        raise ConfigurationError(f"{where}: NaN or infinite values; expected finite numbers")
    return array


def _number(value: Any, where: str, least: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
        bound = "" if least == -math.inf else f" of at least {least:g}"
        raise ConfigurationError(f"{where}: {value!r}; expected a finite number{bound}")
    return float(value)


def _seed(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{where}: {value!r}; expected a whole number of at least 0")
    return value


def _known(value: Mapping[str, Any], where: str, keys: tuple[str, ...]) -> None:
    for key in value:
        if key not in keys:
            raise ConfigurationError(f"{where}.{key}: {unknown('key', key, keys)}")
