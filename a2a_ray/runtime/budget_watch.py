"""The driver's view of the budget: whether it is spent, without waiting for the budget keeper."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import ray
from ray.exceptions import RayActorError

from a2a_ray.runtime.limits.budget import time_spent

log = logging.getLogger(__name__)


class BudgetWatch:
    """Reports why the budget ends the run, as a sentence; an empty one as long as it does not.

    Args:
        seconds: of the budget; None without a limit on time.
        keeper: the actor that keeps the other budgets; None without any.
    """

    def __init__(self, seconds: float | None, keeper: Any) -> None:
        self._seconds, self._keeper = seconds, keeper
        self._request: Any = None

    def check(self, elapsed: float) -> str:
        """Return the newest answer of the keeper. elapsed: seconds since the start."""
        late = time_spent(self._seconds, elapsed)
        if late or self._keeper is None:
            return late
        if self._request is None:
            self._request = self._keeper.stop_reason.remote()
        if not ray.wait([self._request], timeout=0)[0]:
            return ""
        request, self._request = self._request, None
        try:
            sentence: str = ray.get(request)
        except RayActorError:
            log.warning("the budget keeper died; Ray restarts it")
            return ""
        return sentence

    def final(self) -> str:
        """Return the keeper's answer when all calls are counted; wait for it."""
        if self._keeper is not None:
            with contextlib.suppress(RayActorError):
                sentence: str = ray.get(self._keeper.stop_reason.remote())
                return sentence
        return ""
