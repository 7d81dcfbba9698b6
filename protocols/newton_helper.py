"""Let one agent help the other reach its objective: the helper gets a new objective at every turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.linear_task import LinearTask, helper_gain, make_task
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext
from a2a_ray.core.validation import check_settings

if TYPE_CHECKING:
    import numpy as np

NO_MATTER = ("kind", "name", "placement", "dtype")


class NewtonHelper(TurnProtocol):
    """Alternate two agents with the last output as context: the helped agent W, then its helper U.

    U's turns carry options {"objective": u}, with u = x + (eta_U S_U)^+ S_W^+ (-damping grad L_W(x)) at the iterate x
    of the request: Newton's step on W's loss. With invertible covariances, each round multiplies the difference from
    W's objective by (1 - damping) (I - eta_W S_W); damping 1 reaches the objective in one round. If S_U is singular,
    with range projector P, the factor is (I - damping P) (I - eta_W S_W).

    helped, helper: the settings of the two LSA agents (objective, dim, examples or geometry, step_size, inner_steps).
        The keys kind, name, placement and dtype are ignored. The helper's objective and `dim` are optional and unused.
    damping: above 0 and below 2; 1 is Newton's step.
    """

    def __init__(self, helped: dict[str, Any], helper: dict[str, Any], damping: float = 1.0) -> None:
        if not 0 < damping < 2:
            raise ConfigurationError(f"damping: {damping}; expected a number above 0 and below 2")
        if "objective" not in helped:
            raise ConfigurationError(f"helped: key 'objective' is missing; there is: {', '.join(helped) or 'nothing'}")
        self._helped = _prompt(helped, "helped")
        self._helper = _prompt({"dim": len(self._helped.objective), **_without_objective(helper)}, "helper")
        self._damping = damping

    def check(self, agents: Sequence[str]) -> None:
        """Raise ConfigurationError unless there are two agents."""
        if len(agents) != 2:
            raise ConfigurationError(f"protocol helper: {len(agents)} agents; expected 2: the helped, then its helper")

    def speakers(self, transcript: Transcript) -> str:
        """Return the helped agent and its helper in turn. Raises ConfigurationError unless there are two agents."""
        if len(transcript.agents) != 2:
            raise ConfigurationError(
                f"protocol helper: {len(transcript.agents)} agents; expected 2: the helped, then its helper"
            )
        return transcript.agents[len(transcript.messages) % 2]

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the last output; for the helper with its objective for this turn in the options."""
        last = transcript.last
        if speaker == transcript.agents[0]:
            return TurnContext(last.sender, last.content)
        return TurnContext(last.sender, last.content, (), {"objective": self.objective_at(last.content)})

    def objective_at(self, x: Any) -> np.ndarray[Any, Any]:
        """Return the helper's objective at the iterate x, both of shape (d,). Raises ConfigurationError."""
        import numpy as np

        wanted = self._helped.objective
        if isinstance(x, str) or np.shape(x) != wanted.shape:
            got = f"the text {x[:40]!r}" if isinstance(x, str) else f"an array of shape {np.shape(x)}"
            raise ConfigurationError(f"protocol helper: the helper would be shown {got}; expected shape {wanted.shape}")
        return np.asarray(x - self._damping * (self._gain @ (x - wanted)))

    @cached_property
    def _gain(self) -> np.ndarray[Any, Any]:
        return helper_gain(self._helped.covariance, self._helper.pull)


def _without_objective(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k != "objective"}


def _prompt(settings: dict[str, Any], where: str) -> LinearTask:
    known = {k: v for k, v in settings.items() if k not in NO_MATTER}
    try:
        return make_task(**check_settings(make_task, known, where, set()))
    except ConfigurationError as error:
        sentence = str(error)
        raise ConfigurationError(sentence if sentence.startswith(where) else f"{where}: {sentence}") from None
