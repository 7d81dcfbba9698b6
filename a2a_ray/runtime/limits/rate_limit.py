"""The rate limit of an endpoint: requests and tokens per minute, and calls in flight at the same time.

Pure rules with a clock that tests can set; no Ray. The totals of a run are in budget.py.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, TypeVar

MINUTE = 60.0
BURST_SECONDS = 5.0
"""A twelfth of a minute's requests, rounded up, may start within this time: servers refuse a whole minute's at once."""


class CallEstimate(NamedTuple):
    """The most that one call may take: tokens of its context and its response, and money."""

    tokens: int = 0
    cost: float = 0.0


class RateLimits(NamedTuple):
    """The most that an endpoint gets from all workers together; None: no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None

    def lower(self, other: RateLimits) -> RateLimits:
        """Return the lower of each limit."""
        return RateLimits(
            _lower(self.requests_per_minute, other.requests_per_minute),
            _lower(self.tokens_per_minute, other.tokens_per_minute),
            _lower(self.max_concurrency, other.max_concurrency),
        )


_Number = TypeVar("_Number", int, float)


def _lower(one: _Number | None, other: _Number | None) -> _Number | None:
    return min((x for x in (one, other) if x is not None), default=None)


class EndpointReport(NamedTuple):
    """A worker's report on one endpoint.

    started: requests started since the last report.
    tokens: of the calls that ended since the last report.
    permits: calls granted and not started.
    in_flight: calls in flight.
    reserved: the most that the calls of both kinds may take.
    waiting: the next calls, in order.
    spare: further calls to grant, each of the size `like`, if no worker waits: a block for the next turns.
    finishing: only calls wait whose conversation cannot stop here. They are granted even if the budget is spent.
    """

    started: int = 0
    tokens: int = 0
    permits: int = 0
    in_flight: int = 0
    reserved: CallEstimate = CallEstimate()
    waiting: tuple[CallEstimate, ...] = ()
    spare: int = 0
    like: CallEstimate = CallEstimate()
    finishing: bool = False


class SlidingWindow:
    """At most `limit` in any `seconds`. A use counts from its report, so it counts a little too long, never too short.

    Uses are kept in at most a few hundred bins.
    """

    def __init__(self, limit: float, seconds: float) -> None:
        self.limit, self._seconds = limit, seconds
        self._bins: deque[list[float]] = deque()  # first and last time, amount
        self._used = 0.0

    def used(self, now: float) -> float:
        """Return the amount used within the window."""
        while self._bins and self._bins[0][1] + self._seconds <= now:
            self._used -= self._bins.popleft()[2]
        if not self._bins:
            self._used = 0.0  # drops rounding errors
        return self._used

    def use(self, amount: float, now: float) -> None:
        """Count an amount that was used before `now`."""
        if amount <= 0:
            return
        if self._bins and now - self._bins[-1][0] < self._seconds / 500:
            self._bins[-1][1] = now
            self._bins[-1][2] += amount
        else:
            self._bins.append([now, now, amount])
        self._used += amount


class Reservation(NamedTuple):
    """What is granted and has not ended. permits: of the calls that were not started."""

    permits: int = 0
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    @classmethod
    def for_call(cls, estimate: CallEstimate) -> Reservation:
        """Return the reservation of one call that is not started."""
        return cls(1, 1, estimate.tokens, estimate.cost)

    def plus(self, *others: Reservation) -> Reservation:
        """Return the sum."""
        return Reservation(*map(sum, zip(self, *others, strict=True)))


class RateLimiter:
    """The state of one endpoint: what was used in the last minute, and what each worker has reserved."""

    def __init__(self, limits: RateLimits) -> None:
        per_minute, tokens, self._max_concurrency = limits
        self._requests = [] if per_minute is None else [SlidingWindow(per_minute, MINUTE)]
        if per_minute is not None:
            self._requests.append(SlidingWindow(math.ceil(per_minute * BURST_SECONDS / MINUTE), BURST_SECONDS))
        self._tokens = None if tokens is None else SlidingWindow(tokens, MINUTE)
        self.reports: dict[str, EndpointReport] = {}  # newest of each worker
        self.unmet: dict[str, CallEstimate] = {}  # next call of the workers that wait, the longest wait first

    def use(self, requests: float, tokens: float, now: float) -> None:
        """Count requests and tokens that were used before `now`."""
        for window in self._requests:
            window.use(requests, now)
        if self._tokens is not None:
            self._tokens.use(tokens, now)

    def fill(self, now: float) -> None:
        """Count a whole minute's requests and tokens as used now."""
        for window in (*self._requests, *([] if self._tokens is None else [self._tokens])):
            window.use(window.limit, now)

    def reserved(self) -> Reservation:
        """Return what all workers have reserved."""
        each = (Reservation(r.permits, r.permits + r.in_flight, *r.reserved) for r in self.reports.values())
        return Reservation().plus(*each)

    def allows(self, reserved: Reservation, now: float) -> bool:
        """Whether this much may be reserved now."""
        if any(window.used(now) + reserved.permits > window.limit for window in self._requests):
            return False
        if self._max_concurrency is not None and reserved.calls > self._max_concurrency:
            return False
        if self._tokens is None:
            return True
        used = self._tokens.used(now)
        # A call that is larger than the limit runs alone; otherwise it would never run.
        return used + reserved.tokens <= self._tokens.limit or (used == 0 and reserved.calls == 1)
