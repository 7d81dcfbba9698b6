"""The rule by which a conversation counts as looped: in `ls`, `analyze`, tables and reports."""

from __future__ import annotations

LOOP, RECOVERED = "loop", "recovered"
"""`status` of a finding that reports a loop. A loop that the conversation left again is "recovered"."""


def reports_loop(status: str) -> bool:
    """Whether a finding with this status reports a loop, recovered or not."""
    return status in (LOOP, RECOVERED)


def conversation_looped(number: int, status: str) -> bool:
    """Whether a finding makes its conversation count as looped, by the analyzer that found it.

    An analyzer has exactly one finding of number 1 in each conversation it has read. That one decides, so that counting
    it counts conversations, not loops.
    """
    return number == 1 and reports_loop(status)
