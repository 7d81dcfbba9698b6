"""Budgets and rate limits: the rules with simulated workers, and the gate of a worker. Real runs: test_calls.py."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.runtime.limits.budget import UNLIMITED, Budget, BudgetLimits, BudgetReply
from a2a_ray.runtime.limits.call_queue import CallQueue, WaitingCall
from a2a_ray.runtime.limits.gate import BudgetGate, RunHalted
from a2a_ray.runtime.limits.rate_limit import CallEstimate, EndpointReport, RateLimits, SlidingWindow
from a2a_ray.runtime.limits.spent import NOTHING, Spent
from tests.strategies import PlannedCall, planned_calls

STEP = 0.5
"""Seconds between two exchanges of a simulated worker."""


@dataclass
class Simulated:
    """A worker: the calls it still has to make, those in flight, and those it has made."""

    plan: list[PlannedCall]
    queue: CallQueue = field(default_factory=CallQueue)
    ends: list[tuple[float, PlannedCall]] = field(default_factory=list)
    begun: list[tuple[float, float, PlannedCall]] = field(default_factory=list)
    spent: Spent = NOTHING
    calls: dict[int, PlannedCall] = field(default_factory=dict)

    def begin(self, now: float, call: PlannedCall) -> None:
        self.begun.append((now, now + call.seconds, call))
        self.ends.append((now + call.seconds, call))
        self.spent = self.spent.plus(Spent(requests=1))

    def advance(self, now: float) -> None:
        """End the calls that are over, and enter those that are due."""
        for end in sorted(e for e in self.ends if e[0] <= now):
            self.ends.remove(end)
            call = end[1]
            self.queue.end(_estimate(call), Spent(call.tokens / 1000, call.tokens, 1))
            self.spent = self.spent.plus(Spent(call.tokens / 1000, call.tokens))
        while self.plan and self.plan[0].at <= now:
            call = self.plan.pop(0)
            waiting = WaitingCall(_estimate(call), Future(), "c")
            self.calls[id(waiting.permitted)] = call
            if self.queue.enter(waiting):
                self.begin(now, call)

    def exchange(self, name: str, budget: Budget, clock: list[float], delay: float) -> BudgetReply:
        report = self.queue.report(clock[0])
        clock[0] += delay
        reply = budget.exchange(name, self.spent, {"e": report})
        clock[0] += delay
        for waiting in self.queue.take(reply.granted.get("e", 0), report, clock[0]):
            self.begin(clock[0], self.calls[id(waiting.permitted)])
        return reply


def _estimate(call: PlannedCall) -> CallEstimate:
    return CallEstimate(call.need, call.need / 1000)


def simulate(
    plans: list[list[PlannedCall]],
    limits: RateLimits,
    totals: BudgetLimits = UNLIMITED,
    seconds: float = 3000.0,
    die: float = np.inf,
    seed: int = 0,
) -> tuple[list[Simulated], Budget]:
    """Run workers against a budget until all calls are made, the budget is spent, or the time is over.

    die: when the first worker dies, with all its calls.
    """
    clock = [0.0]
    budget = Budget({"e": limits}, totals, clock=lambda: clock[0])
    workers = [Simulated(list(plan)) for plan in plans]
    alive = list(enumerate(workers))
    rng = np.random.default_rng(seed)
    while clock[0] < seconds:
        rng.shuffle(alive)  # type: ignore[arg-type]
        for index, worker in list(alive):
            if index == 0 and clock[0] >= die:
                alive.remove((index, worker))
                continue
            worker.advance(clock[0])
            reply = worker.exchange(str(index), budget, clock, float(rng.uniform(0, STEP / 20)))
            if reply.over:
                return workers, budget
        if not any(w.plan or w.queue.waiting or w.ends for _, w in alive):
            break
        clock[0] += STEP
    return workers, budget


def begun(workers: list[Simulated]) -> list[tuple[float, float, PlannedCall]]:
    return sorted(entry for worker in workers for entry in worker.begun)


@given(planned_calls(), st.integers(1, 90), st.integers(0, 100))
def test_requests_per_minute_hold_in_any_minute_and_no_call_waits_forever(
    plans: list[list[PlannedCall]], limit: int, seed: int
) -> None:
    workers, _ = simulate(
        plans, RateLimits(requests_per_minute=limit), seed=seed, seconds=60.0 * sum(map(len, plans)) + 900
    )
    starts = np.array([start for start, _, _ in begun(workers)])
    assert len(starts) == sum(map(len, plans)), "every call is made in the end"
    for window, most in ((60.0, limit), (5.0, -(-limit // 12))):
        assert max(((starts >= s) & (starts < s + window)).sum() for s in starts) <= most


@given(planned_calls(), st.integers(100, 3000), st.integers(0, 100))
def test_tokens_per_minute_hold_in_any_minute(plans: list[list[PlannedCall]], limit: int, seed: int) -> None:
    workers, _ = simulate(
        plans, RateLimits(tokens_per_minute=limit), seed=seed, seconds=80.0 * sum(map(len, plans)) + 900
    )
    calls = begun(workers)
    assert len(calls) == sum(map(len, plans))
    # A server may count a call at its start or at its end.
    for time_of in (lambda c: c[0], lambda c: c[1]):
        times, tokens = np.array([time_of(c) for c in calls]), np.array([c[2].tokens for c in calls])
        for start in times:
            inside = (times >= start) & (times < start + 60)
            assert (
                tokens[inside].sum() <= limit or (tokens[inside] > 0).sum() == 1
            )  # a call larger than the limit runs alone


@given(planned_calls(), st.integers(1, 12), st.integers(0, 100), st.sampled_from([np.inf, 1.0, 30.0]))
def test_max_concurrency_holds(plans: list[list[PlannedCall]], limit: int, seed: int, die: float) -> None:
    workers, _ = simulate(plans, RateLimits(max_concurrency=limit), seed=seed, die=die)
    changes = sorted([(s, 1) for s, _, _ in begun(workers)] + [(e, -1) for _, e, _ in begun(workers)])
    assert max(np.cumsum([c for _, c in changes]), default=0) <= limit
    left = workers[1:] if np.isfinite(die) else workers
    assert all(not w.plan and not w.queue.waiting for w in left), "a dead worker's slots are freed"


@given(planned_calls(), st.floats(0.1, 5.0), st.integers(0, 100))
def test_a_total_ends_the_run_and_is_not_exceeded(plans: list[list[PlannedCall]], limit: float, seed: int) -> None:
    workers, budget = simulate(plans, RateLimits(), BudgetLimits(cost=limit), seed=seed)
    took = sum(c.tokens for _, _, c in begun(workers)) / 1000
    assert took <= limit + 1e-9
    done = len(begun(workers)) == sum(map(len, plans))
    assert done or budget.over == "cost"
    if not done:  # less was left than the next call may take
        assert limit - took < 0.4
        report = re.match(r"budget of ([\d.]+) spent \(([\d.]+)", budget.stop_reason())
        assert report is not None
        # Two decimals; the budget adds the calls up in another order, so a half can be rounded up or down.
        assert float(report[1]) == pytest.approx(limit, abs=0.005 + 1e-9)
        assert float(report[2]) == pytest.approx(took, abs=0.005 + 1e-9)


def test_two_workers_take_turns_in_a_single_slot() -> None:
    plans = [[PlannedCall(0.0, 1.0, 1, 1)] * 20] * 2
    workers, _ = simulate([list(p) for p in plans], RateLimits(max_concurrency=1))
    order = [next(i for i, w in enumerate(workers) if entry in w.begun) for entry in begun(workers)[:20]]
    assert 8 <= sum(order) <= 12


def test_unused_permits_are_given_back() -> None:
    clock = [0.0]
    budget = Budget({"e": RateLimits(max_concurrency=4)}, clock=lambda: clock[0])
    one, two = Simulated([PlannedCall(0.0, 0.1, 1, 1)] * 2), Simulated([PlannedCall(2.0, 9.0, 1, 1)] * 4)
    one.advance(0.0)
    one.exchange("one", budget, clock, 0.0)
    assert len(one.begun) == 2
    report = one.queue.report(0.0)
    assert report.permits == 2, "a block for the next turns"
    clock[0] = 2.0
    one.advance(2.0)
    two.advance(2.0)
    two.exchange("two", budget, clock, 0.0)
    assert len(two.begun) == 0
    one.exchange("one", budget, clock, 0.0)
    two.exchange("two", budget, clock, 0.0)
    assert len(two.begun) == 4


def test_a_restarted_budget_grants_nothing_for_a_minute() -> None:
    clock = [0.0]
    budget = Budget({"e": RateLimits(requests_per_minute=5)}, clock=lambda: clock[0], fresh=False)
    report = EndpointReport(waiting=(CallEstimate(),))
    assert budget.exchange("w", Spent(requests=7), {"e": report}).granted == {}
    assert budget.spent.requests == 7
    clock[0] = 60.0
    assert budget.exchange("w", Spent(requests=7), {"e": report}).granted == {"e": 1}


def test_stop_reasons() -> None:
    spent = Spent(5.02, 900, 3)
    assert _after(BudgetLimits(cost=5.0), spent) == "budget of 5.00 spent (5.02)"
    assert _after(BudgetLimits(tokens=900), spent) == "budget of 900 tokens spent (900)"
    assert _after(BudgetLimits(requests=3), spent) == "budget of 3 requests spent (3)"
    assert (
        _after(BudgetLimits(cost=5.1), spent, CallEstimate(10, 0.2))
        == "budget of 5.10 spent (5.02; the next call may cost 0.2)"
    )


def _after(totals: BudgetLimits, spent: Spent, need: CallEstimate = CallEstimate()) -> str:  # noqa: B008
    budget = Budget({"e": RateLimits()}, totals, spent)
    assert budget.exchange("w", Spent(), {"e": EndpointReport(waiting=(need,))}).granted == {}
    return budget.stop_reason()


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), max_size=60))
def test_a_window_forgets_after_its_time_and_not_earlier(uses: list[tuple[float, float]]) -> None:
    window, now, done = SlidingWindow(10, 20.0), 0.0, []
    for pause, amount in uses:
        now += pause
        window.use(amount, now)
        done.append((now, amount))
        exact = sum(a for t, a in done if t > now - 20.0)
        late = sum(a for t, a in done if t > now - 20.05)
        assert exact - 1e-9 <= window.used(now) <= late + 1e-9
    assert window.used(now + 20.0) == 0.0


def test_a_report_that_did_not_arrive_is_repeated() -> None:
    queue = CallQueue()
    assert not queue.enter(WaitingCall(CallEstimate(5), Future(), "c"))
    queue.take(1, queue.report(0.0), 0.0)
    queue.end(CallEstimate(5), Spent(0.1, 7, 2))
    report = queue.report(0.0)
    assert (report.started, report.tokens) == (2, 7)
    assert queue.report(0.0)[:2] == (0, 0)
    queue.undo_report(report)
    assert queue.report(0.0)[:2] == (2, 7)


# --- the gate -----------------------------------------------------------------------------------------------------


async def test_queued_calls_share_an_exchange() -> None:
    """Each exchange is answered once all conversations wait, however long that takes."""
    budget, exchanges, waiting, running = Budget({"e": RateLimits(requests_per_minute=1e9)}), 0, 0, 100

    async def exchange(worker: str, spent: Spent, reports: Any) -> BudgetReply:
        nonlocal exchanges
        exchanges += 1
        while waiting < running:
            await asyncio.sleep(0)
        return budget.exchange(worker, spent, reports)

    gate = BudgetGate("w", exchange)

    async def converse(number: int) -> None:
        nonlocal waiting, running
        for _ in range(50):
            waiting += 1
            await gate.enter("e", CallEstimate(10), str(number))
            waiting -= 1
            gate.leave("e", CallEstimate(10), str(number), Spent(0.1, 7, 1))
        running -= 1

    await asyncio.gather(*(converse(i) for i in range(100)))
    await gate.report()
    assert exchanges <= 5000 / 50
    assert budget.spent.requests == 5000
    assert budget.spent.tokens == 35_000


async def test_halting_lets_a_group_that_has_started_end() -> None:
    budget = Budget({"e": RateLimits(max_concurrency=1)})

    async def exchange(worker: str, spent: Spent, reports: Any) -> BudgetReply:
        return budget.exchange(worker, spent, reports)

    gate = BudgetGate("w", exchange)
    await gate.enter("e", CallEstimate(), "a")
    second = asyncio.create_task(gate.enter("e", CallEstimate(), "a"))  # the other agent of a simultaneous round
    other = asyncio.create_task(gate.enter("e", CallEstimate(), "b"))
    await asyncio.sleep(0)  # both tasks run until they wait
    gate.halt()
    with pytest.raises(RunHalted):
        await other
    assert not second.done()
    gate.leave("e", CallEstimate(), "a", Spent(requests=1))
    await second
    gate.leave("e", CallEstimate(), "a", Spent(requests=1))
    with pytest.raises(RunHalted):
        await gate.enter("e", CallEstimate(), "a")


async def test_an_exchange_that_fails_is_repeated() -> None:
    budget, failing = Budget({"e": RateLimits(max_concurrency=1)}), [True]

    async def exchange(worker: str, spent: Spent, reports: Any) -> BudgetReply:
        if failing.pop() if failing else False:
            raise ConnectionError("away")
        return budget.exchange(worker, spent, reports)

    gate = BudgetGate("w", exchange)
    await gate.enter("e", CallEstimate(), "a")
    gate.leave("e", CallEstimate(), "a", Spent(tokens=3, requests=1))
    await gate.report()
    assert budget.spent == Spent(0.0, 3, 1)
