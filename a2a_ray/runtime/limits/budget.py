"""Limits of endpoints and totals of a run: who may call now. Pure rules with a clock that tests can set; no Ray.

A worker asks for everything that waits in it at once (`Budget.exchange`) and is granted whole calls: the first of them,
as many as all limits allow. Nothing is held in parts, so no two workers can wait for each other.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import repeat, takewhile
from numbers import Real
from typing import Any, NamedTuple, TypeVar

MINUTE = 60.0
BURST_SECONDS = 5.0
"""A twelfth of a minute's requests, rounded up, may begin within this time: servers refuse a whole minute's at once."""
SILENT_SECONDS = 30.0
"""A worker that was not heard of for so long is dead: what it had is counted as used, its calls under way as ended."""
QUIET_SECONDS = 2.0
"""After the keeper of the budget died: time in which all living workers report."""
PAUSE_SECONDS = 0.005
"""Times the number of workers: between two exchanges of one of them; so the process takes at most 200 a second."""


class Need(NamedTuple):
    """What one call may take: tokens, shown and answered, and money."""

    tokens: int = 0
    cost: float = 0.0


class Spent(NamedTuple):
    """What calls took. requests: those that were begun, made again by the agent ones included."""

    cost: float = 0.0
    tokens: int = 0
    requests: int = 0

    def plus(self, other: Spent) -> Spent:
        """The sum."""
        return Spent(self.cost + other.cost, self.tokens + other.tokens, self.requests + other.requests)


NOTHING = Spent()


class Totals(NamedTuple):
    """The most that a run may take; None: no limit."""

    cost: float | None = None
    tokens: int | None = None
    requests: int | None = None


UNLIMITED = Totals()


class Limits(NamedTuple):
    """The most that an endpoint takes from all workers together; None: no limit."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrency: int | None = None

    def lower(self, other: Limits) -> Limits:
        """Of each limit the lower one."""
        return Limits(
            _lower(self.requests_per_minute, other.requests_per_minute),
            _lower(self.tokens_per_minute, other.tokens_per_minute),
            _lower(self.max_concurrency, other.max_concurrency),
        )


_Number = TypeVar("_Number", int, float)


def _lower(one: _Number | None, other: _Number | None) -> _Number | None:
    return min((x for x in (one, other) if x is not None), default=None)


class Report(NamedTuple):
    """What a worker tells of an endpoint.

    begun, tokens: requests begun, and tokens of calls that ended, since the last report. permits: granted, not begun.
    under_way: calls under way. reserved: what the calls of both may take in all. waiting: the next calls, in order.
    spare: calls more to grant, of the size `like`, where nobody waits: a block for the turns that come next.
    finishing: only calls wait whose conversation cannot stop here; they are granted though the budget is spent.
    """

    begun: int = 0
    tokens: int = 0
    permits: int = 0
    under_way: int = 0
    reserved: Need = Need()
    waiting: tuple[Need, ...] = ()
    spare: int = 0
    like: Need = Need()
    finishing: bool = False


class BudgetReply(NamedTuple):
    """granted: calls by endpoint, the waiting ones first. pause: seconds until the next exchange. over: see Budget."""

    granted: dict[str, int]
    pause: float
    over: str


class Window:
    """At most `limit` in any `seconds`. A use counts from its report, so rather too long than too short."""

    def __init__(self, limit: float, seconds: float) -> None:
        self.limit, self._seconds = limit, seconds
        self._bins: deque[list[float]] = deque()  # first and last time, amount: at most a few hundred of them
        self._used = 0.0

    def used(self, now: float) -> float:
        """What counts now."""
        while self._bins and self._bins[0][1] + self._seconds <= now:
            self._used -= self._bins.popleft()[2]
        if not self._bins:
            self._used = 0.0  # no rest of sums of floats
        return self._used

    def use(self, amount: float, now: float) -> None:
        """Counts an amount that was used before `now`."""
        if amount <= 0:
            return
        if self._bins and now - self._bins[-1][0] < self._seconds / 500:
            self._bins[-1][1] = now
            self._bins[-1][2] += amount
        else:
            self._bins.append([now, now, amount])
        self._used += amount


class _Held(NamedTuple):
    """What was granted and has not ended. permits: those of the calls that were not begun."""

    permits: int = 0
    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, *others: _Held) -> _Held:
        return _Held(*map(sum, zip(self, *others, strict=True)))


def _one(need: Need) -> _Held:
    return _Held(1, 1, need.tokens, need.cost)


class _Endpoint:
    """The state of one endpoint."""

    def __init__(self, limits: Limits) -> None:
        per_minute, tokens, self._concurrency = limits
        self._requests = [] if per_minute is None else [Window(per_minute, MINUTE)]
        if per_minute is not None:
            self._requests.append(Window(math.ceil(per_minute * BURST_SECONDS / MINUTE), BURST_SECONDS))
        self._tokens = None if tokens is None else Window(tokens, MINUTE)
        self.reports: dict[str, Report] = {}
        self.unmet: dict[str, Need] = {}  # the first waiting call of workers that did not get all, the longest first

    def use(self, requests: float, tokens: float, now: float) -> None:
        for window in self._requests:
            window.use(requests, now)
        if self._tokens is not None:
            self._tokens.use(tokens, now)

    def fill(self, now: float) -> None:
        """As if the minute's limits had been used now."""
        for window in (*self._requests, *([] if self._tokens is None else [self._tokens])):
            window.use(window.limit, now)

    def held(self) -> _Held:
        return _Held().plus(*(_Held(r.permits, r.permits + r.under_way, *r.reserved) for r in self.reports.values()))

    def room(self, held: _Held, now: float) -> bool:
        """Whether so much may be held now."""
        if any(window.used(now) + held.permits > window.limit for window in self._requests):
            return False
        if self._concurrency is not None and held.calls > self._concurrency:
            return False
        if self._tokens is None:
            return True
        used = self._tokens.used(now)
        # A call that is larger than the limit goes alone, else it would never go.
        return used + held.tokens <= self._tokens.limit or (used == 0 and held.calls == 1)


class Budget:
    """The shared budget of a run.

    limits: by endpoint. totals: of the whole run; spent: before this start of it. clock: monotonic seconds. fresh:
    False after the process that kept it died: what was used in the last minute is not known then, so a minute passes
    before the next call of an endpoint with limits per minute.

    `over` is "", or which total is used up: once it is, nothing more is granted.
    """

    def __init__(
        self,
        limits: Mapping[str, Limits],
        totals: Totals = UNLIMITED,
        spent: Spent = NOTHING,
        clock: Callable[[], float] = time.monotonic,
        fresh: bool = True,
    ) -> None:
        self._endpoints = {name: _Endpoint(each) for name, each in limits.items()}
        self._totals, self._before = totals, spent
        self._by_worker: dict[str, Spent] = {}
        self._seen: dict[str, float] = {}
        self._clock = clock
        self._last = Need()  # the call for which too little was left
        self.over = ""
        if not fresh:
            for endpoint in self._endpoints.values():
                endpoint.fill(clock())
        # Nor what is under way; the workers tell it at their next report.
        self._open = -math.inf if fresh else clock() + QUIET_SECONDS

    @property
    def spent(self) -> Spent:
        """What the run took so far, as far as it was reported."""
        total = self._before
        for each in self._by_worker.values():
            total = total.plus(each)
        return total

    def exchange(self, worker: str, spent: Spent, reports: Mapping[str, Report]) -> BudgetReply:
        """Takes a worker's reports and grants what it may begin. spent: by the worker, since it began."""
        now = self._clock()
        self._bury(now)
        self._seen[worker] = now
        self._by_worker[worker] = spent
        for name, report in reports.items():
            self._endpoints[name].use(report.begun, report.tokens, now)
            self._endpoints[name].reports[worker] = report
        self._look()
        granted = {}
        if now >= self._open:
            granted = {name: self._grant(worker, name, report, now) for name, report in reports.items()}
        return BudgetReply({k: v for k, v in granted.items() if v}, PAUSE_SECONDS * len(self._seen), self.over)

    def sentence(self) -> str:
        """What is spent, for people; empty while the budget is not."""
        total, spent = self._totals, self.spent
        rest = ""
        if self.over == "cost" and total.cost is not None:
            if spent.cost < total.cost:
                rest = f"; the next call may cost {self._last.cost:.2g}"
            return f"budget of {total.cost:.2f} spent ({spent.cost:.2f}{rest})"
        if self.over == "tokens" and total.tokens is not None:
            if spent.tokens < total.tokens:
                rest = f"; the next call may take {self._last.tokens:,}"
            return f"budget of {total.tokens:,} tokens spent ({spent.tokens:,}{rest})"
        return f"budget of {total.requests:,} requests spent ({spent.requests:,})" if self.over == "requests" else ""

    def _grant(self, worker: str, name: str, report: Report, now: float) -> int:
        """How many calls the worker may begin: the waiting ones in order, then spare ones where nobody waits."""
        endpoint = self._endpoints[name]
        waited = worker in endpoint.unmet
        # Of workers that have waited longer, the next call of each stays possible.
        elders = list(takewhile(lambda other: other != worker, endpoint.unmet))
        kept = _Held().plus(*(_one(endpoint.unmet[other]) for other in elders))
        here = endpoint.held()
        elsewhere = _Held().plus(*(e.held() for e in self._endpoints.values() if e is not endpoint))
        count, most = 0, len(report.waiting)
        for need in (*report.waiting, *repeat(report.like, report.spare)):
            if count == most and endpoint.unmet.keys() - {worker}:
                break
            after = here.plus(_one(need))
            if not report.finishing and not self._affordable(elsewhere.plus(after), need, spare=count >= most):
                break
            if not endpoint.room(after.plus(kept), now):
                break
            here, count = after, count + 1
        granted = report.waiting[:count] + (report.like,) * (count - most)
        reserved = Need(*map(sum, zip(report.reserved, *granted, strict=True)))
        endpoint.reports[worker] = report._replace(permits=report.permits + count, reserved=reserved)
        if count >= most or (waited and count):
            endpoint.unmet.pop(worker, None)  # to the end of the line
        if count < most:
            endpoint.unmet.setdefault(worker, report.waiting[count])
        return count

    def _affordable(self, after: _Held, need: Need, spare: bool) -> bool:
        """Whether the totals allow the last call of `after`. Where they do not and no other is held, they are spent."""
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
            self.over, self._last = short, need
        return not short

    def _look(self) -> None:
        """Sees whether a total is used up."""
        for name, used, limit in zip(("cost", "tokens"), self.spent, self._totals, strict=False):
            if limit is not None and used >= limit and not self.over:
                self.over = name

    def _bury(self, now: float) -> None:
        """Counts what silent workers had as used."""
        for worker in [w for w, seen in self._seen.items() if now - seen > SILENT_SECONDS]:
            del self._seen[worker]
            for endpoint in self._endpoints.values():
                left = endpoint.reports.pop(worker, Report())
                endpoint.unmet.pop(worker, None)
                endpoint.use(left.permits, left.reserved.tokens, now)
                lost = Spent(left.reserved.cost, left.reserved.tokens, left.permits)
                self._by_worker[worker] = self._by_worker[worker].plus(lost)


def number(usage: Mapping[str, Any], key: str) -> Any:
    """A number of what an answer says it took; 0 where it says none, or something else."""
    value = usage.get(key, 0)
    return value if isinstance(value, Real) and math.isfinite(value) else 0


def spent_by(usage: Mapping[str, Any]) -> Spent:
    """What the usage of an answer adds up to."""
    tokens = int(number(usage, "input_tokens") + number(usage, "output_tokens"))
    return Spent(float(number(usage, "cost")), tokens, max(1, int(number(usage, "requests"))))
