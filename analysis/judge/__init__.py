"""A language model that judges whether a suspicious conversation has stopped making progress."""

from __future__ import annotations

from a2a_ray.analysis.judge.judged_observer import JudgedObserver as JudgedObserver
