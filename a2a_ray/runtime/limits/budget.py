"""The budget of a run: which calls may start, within the run's totals and the endpoints' rate limits.

Pure rules with a clock that tests can set; no Ray. A worker requests permits for all queued calls in one message
(`Budget.exchange`) and is granted whole calls: the first ones, as many as all limits allow. A call never holds a part
of what it needs, so no two workers can wait for each other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from itertools import repeat, takewhile
from typing import NamedTuple

from a2a_ray.runtime.limits.rate_limit import CallEstimate, EndpointReport, RateLimiter, RateLimits, Reservation
from a2a_ray.runtime.limits.spent import NOTHING, Spent

SILENT_SECONDS = 30.0
"""A worker that sends nothing for this long is dead: what it had reserved counts as used, its calls as ended."""
QUIET_SECONDS = 2.0
"""After the budget's process restarted: time in which all living workers report."""
PAUSE_SECONDS = 0.005
"""Times the number of workers: between two exchanges of one worker. So the process gets at most 200 a second."""


class BudgetLimits(NamedTuple):
    """The most that a run may take; None: no limit."""

    cost: float | None = None
    tokens: int | None = None
    requests: int | None = None


UNLIMITED = BudgetLimits()


def time_spent(seconds: float | None, elapsed: float) -> str:
    """Return that the budget's time is spent, for people; empty while it is not. seconds: None for no limit."""
    return "" if seconds is None or elapsed < seconds else f"budget of {seconds:g} seconds spent"


class BudgetReply(NamedTuple):
    """granted: calls by endpoint, the waiting ones first. pause: seconds to the next exchange. over: see `Budget`."""

    granted: dict[str, int]
    pause: float
    over: str


class Budget:
    """The shared budget of a run.

    limits: rate limits by endpoint.
    totals: of the whole run.
    spent: before this start of the run.
    clock: monotonic seconds.
    fresh: False if the process that kept the budget died. The use of the last minute is then unknown, so endpoints with
        limits per minute grant nothing for a minute.

    `over` is "", or the name of the total that is spent: from then on nothing more is granted.
    """

    def __init__(
        self,
        limits: Mapping[str, RateLimits],
        totals: BudgetLimits = UNLIMITED,
        spent: Spent = NOTHING,
        clock: Callable[[], float] = time.monotonic,
        fresh: bool = True,
    ) -> None:
        self._endpoints = {name: RateLimiter(each) for name, each in limits.items()}
        self._totals, self._spent_before = totals, spent
        self._by_worker: dict[str, Spent] = {}
        self._last_seen: dict[str, float] = {}
        self._clock = clock
        self._refused = CallEstimate()  # the call for which too little was left
        self.over = ""
        if not fresh:
            for endpoint in self._endpoints.values():
                endpoint.fill(clock())
        # A restarted process does not know the calls in flight either, until the workers have reported.
        self._opens_at = -math.inf if fresh else clock() + QUIET_SECONDS

    @property
    def spent(self) -> Spent:
        """What the run took, as far as workers have reported it."""
        total = self._spent_before
        for each in self._by_worker.values():
            total = total.plus(each)
        return total

    def exchange(self, worker: str, spent: Spent, reports: Mapping[str, EndpointReport]) -> BudgetReply:
        """Take a worker's reports, by endpoint, and grant calls. spent: by the worker, since it started."""
        now = self._clock()
        self._remove_silent_workers(now)
        self._last_seen[worker] = now
        self._by_worker[worker] = spent
        for name, report in reports.items():
            self._endpoints[name].use(report.started, report.tokens, now)
            self._endpoints[name].reports[worker] = report
        self._check_totals()
        granted = {}
        if now >= self._opens_at:
            granted = {name: self._grant(worker, name, report, now) for name, report in reports.items()}
        pause = PAUSE_SECONDS * len(self._last_seen)
        return BudgetReply({k: v for k, v in granted.items() if v}, pause, self.over)

    def stop_reason(self) -> str:
        """Return which total is spent, for people; empty while none is."""
        total, spent = self._totals, self.spent
        rest = ""
        if self.over == "cost" and total.cost is not None:
            if spent.cost < total.cost:
                rest = f"; the next call may cost {self._refused.cost:.2g}"
            return f"budget of {total.cost:.2f} spent ({spent.cost:.2f}{rest})"
        if self.over == "tokens" and total.tokens is not None:
            if spent.tokens < total.tokens:
                rest = f"; the next call may take {self._refused.tokens:,}"
            return f"budget of {total.tokens:,} tokens spent ({spent.tokens:,}{rest})"
        return f"budget of {total.requests:,} requests spent ({spent.requests:,})" if self.over == "requests" else ""

    def _grant(self, worker: str, name: str, report: EndpointReport, now: float) -> int:
        """Return how many calls the worker may start: the waiting ones in order, then spare ones if no worker waits."""
        endpoint = self._endpoints[name]
        waited = worker in endpoint.unmet
        # The next call of each worker that has waited longer must stay possible.
        earlier = list(takewhile(lambda other: other != worker, endpoint.unmet))
        kept = Reservation().plus(*(Reservation.for_call(endpoint.unmet[other]) for other in earlier))
        here = endpoint.reserved()
        elsewhere = Reservation().plus(*(e.reserved() for e in self._endpoints.values() if e is not endpoint))
        count, waiting = 0, len(report.waiting)
        for estimate in (*report.waiting, *repeat(report.like, report.spare)):
            if count == waiting and endpoint.unmet.keys() - {worker}:
                break
            after = here.plus(Reservation.for_call(estimate))
            if not report.finishing and not self._affordable(elsewhere.plus(after), estimate, spare=count >= waiting):
                break
            if not endpoint.allows(after.plus(kept), now):
                break
            here, count = after, count + 1
        granted = report.waiting[:count] + (report.like,) * (count - waiting)
        reserved = CallEstimate(*map(sum, zip(report.reserved, *granted, strict=True)))
        endpoint.reports[worker] = report._replace(permits=report.permits + count, reserved=reserved)
        if count >= waiting or (waited and count):
            endpoint.unmet.pop(worker, None)  # to the end of the line
        if count < waiting:
            endpoint.unmet.setdefault(worker, report.waiting[count])
        return count

    def _affordable(self, after: Reservation, estimate: CallEstimate, spare: bool) -> bool:
        """Whether the totals allow the last call of `after`. If not, and nothing else is reserved, they are spent."""
        if self.over:
            return False
        total, spent = self._totals, self.spent
        short = ""
        if total.cost is not None and spent.cost + after.cost > total.cost:
            short = "cost"
        elif total.tokens is not None and spent.tokens + after.tokens > total.tokens:
            short = "tokens"
        elif total.requests is not None and spent.requests + after.permits > total.requests:
            short = "requests"
        if short and not spare and after.calls == 1:
            self.over, self._refused = short, estimate
        return not short

    def _check_totals(self) -> None:
        for name, used, limit in zip(("cost", "tokens"), self.spent, self._totals, strict=False):
            if limit is not None and used >= limit and not self.over:
                self.over = name

    def _remove_silent_workers(self, now: float) -> None:
        """Count what silent workers had reserved as used."""
        for worker in [w for w, seen in self._last_seen.items() if now - seen > SILENT_SECONDS]:
            del self._last_seen[worker]
            for endpoint in self._endpoints.values():
                last = endpoint.reports.pop(worker, EndpointReport())
                endpoint.unmet.pop(worker, None)
                endpoint.use(last.permits, last.reserved.tokens, now)
                lost = Spent(last.reserved.cost, last.reserved.tokens, last.permits)
                self._by_worker[worker] = self._by_worker[worker].plus(lost)
