"""The calls of one worker to one endpoint: waiting, granted and in flight. Pure state; times are arguments."""

from __future__ import annotations

from asyncio import Future
from collections import Counter, deque
from itertools import islice, repeat
from typing import NamedTuple

from a2a_ray.runtime.limits.rate_limit import CallEstimate, EndpointReport
from a2a_ray.runtime.limits.spent import Spent

SPARE_SECONDS = 1.0
"""A granted call that is not started for this long is given back."""
MAX_REPORTED = 256
"""The most waiting calls in one report."""


class WaitingCall(NamedTuple):
    """A call that waits for a permit. permitted: True if it may start; False if the run stops."""

    estimate: CallEstimate
    permitted: Future[bool]
    conversation: str


class CallQueue:
    """Counts what a worker reports of one endpoint, and starts its calls by the permits that it gets."""

    def __init__(self) -> None:
        self.waiting: deque[WaitingCall] = deque()
        self._permits: deque[tuple[float, CallEstimate]] = deque()  # when granted, and for what size of call
        self._in_flight: Counter[CallEstimate] = Counter()
        self._started = self._tokens = self._entered = 0  # since the last report
        self._like = CallEstimate()

    def enter(self, call: WaitingCall) -> bool:
        """Start the call by a permit that is left, and return True; otherwise queue it."""
        estimate = call.estimate
        self._entered += 1
        self._like = CallEstimate(max(estimate.tokens, self._like.tokens), max(estimate.cost, self._like.cost))
        if not self.waiting and self._permits and _fits(estimate, self._permits[0][1]):
            self._permits.popleft()
            self._start(estimate)
            return True
        self.waiting.append(call)
        return False

    def end(self, estimate: CallEstimate, took: Spent) -> None:
        """Count a call that ended. took.requests: its first request included."""
        self._in_flight[estimate] -= 1
        if not self._in_flight[estimate]:
            del self._in_flight[estimate]
        self._tokens += took.tokens
        self._started += took.requests - 1

    def report(self, now: float, finishing: bool = False) -> EndpointReport:
        """Return the report for the next exchange; what it counts is not counted again.

        Old permits are given back. If calls wait, all permits are: they do not fit these calls.
        """
        self.waiting = deque(call for call in self.waiting if not call.permitted.done())  # else cancelled
        while self._permits and (self.waiting or now - self._permits[0][0] > SPARE_SECONDS):
            self._permits.popleft()
        calls = Counter(estimate for _, estimate in self._permits) + self._in_flight
        reserved = CallEstimate(sum(k.tokens * n for k, n in calls.items()), sum(k.cost * n for k, n in calls.items()))
        waiting = tuple(call.estimate for call in islice(self.waiting, MAX_REPORTED))
        permits, in_flight = len(self._permits), sum(self._in_flight.values())
        spare = 0 if finishing else max(0, min(self._entered, MAX_REPORTED) - permits)
        report = EndpointReport(
            self._started, self._tokens, permits, in_flight, reserved, waiting, spare, self._like, finishing
        )
        self._started = self._tokens = self._entered = 0
        self._like = CallEstimate()
        return report

    def undo_report(self, report: EndpointReport) -> None:
        """Count what a report that did not arrive contained again."""
        self._started += report.started
        self._tokens += report.tokens

    def take(self, granted: int, report: EndpointReport, now: float) -> list[WaitingCall]:
        """Return the waiting calls that start by the granted ones of `report`. Grants that fit none become permits."""
        started = []
        for size in (*report.waiting, *repeat(report.like, report.spare))[:granted]:
            while self.waiting and self.waiting[0].permitted.done():
                self.waiting.popleft()
            if self.waiting and _fits(self.waiting[0].estimate, size):
                started.append(self.waiting.popleft())
                self._start(started[-1].estimate)
            else:
                self._permits.append((now, size))
        return started

    def _start(self, estimate: CallEstimate) -> None:
        self._in_flight[estimate] += 1
        self._started += 1


def _fits(estimate: CallEstimate, size: CallEstimate) -> bool:
    return estimate.tokens <= size.tokens and estimate.cost <= size.cost
