"""The shared budget: its rules against simulated workers, and the gate in front of them. Real runs: test_calls.py."""

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

from a2a_ray.runtime.limits import budget as rules
from a2a_ray.runtime.limits.budget import Budget, BudgetReply, Limits, Need, Report, Spent, Totals, Window
from a2a_ray.runtime.limits.gate import Gate, Halted, Line, Waiting
from tests.strategies import PlannedCall, planned_calls

STEP = 0.5
"""Seconds between two exchanges of a simulated worker."""


@dataclass
class Simulated:
    """A worker: what it still has to call, what is under way, and what it did."""

    plan: list[PlannedCall]
    line: Line = field(default_factory=Line)
    ends: list[tuple[float, PlannedCall]] = field(default_factory=list)
    begun: list[tuple[float, float, PlannedCall]] = field(default_factory=list)
    spent: Spent = rules.NOTHING
    calls: dict[int, PlannedCall] = field(default_factory=dict)

    def begin(self, now: float, call: PlannedCall) -> None:
        self.begun.append((now, now + call.seconds, call))
        self.ends.append((now + call.seconds, call))
        self.spent = self.spent.plus(Spent(requests=1))

    def go_on(self, now: float) -> None:
        """Ends what is over by now, and takes up what has come."""
        for end in sorted(e for e in self.ends if e[0] <= now):
            self.ends.remove(end)
            call = end[1]
            self.line.end(_need(call), Spent(call.tokens / 1000, call.tokens, 1))
            self.spent = self.spent.plus(Spent(call.tokens / 1000, call.tokens))
        while self.plan and self.plan[0].at <= now:
            call = self.plan.pop(0)
            waiting = Waiting(_need(call), Future(), "c")
            self.calls[id(waiting.answer)] = call
            if self.line.enter(waiting):
                self.begin(now, call)

    def exchange(self, name: str, budget: Budget, clock: list[float], delay: float) -> BudgetReply:
        told = self.line.report(clock[0])
        clock[0] += delay
        reply = budget.exchange(name, self.spent, {"e": told})
        clock[0] += delay
        for waiting in self.line.take(reply.granted.get("e", 0), told, clock[0]):
            self.begin(clock[0], self.calls[id(waiting.answer)])
        return reply


def _need(call: PlannedCall) -> Need:
    return Need(call.need, call.need / 1000)


def simulate(
    plans: list[list[PlannedCall]],
    limits: Limits,
    totals: Totals = rules.UNLIMITED,
    seconds: float = 3000.0,
    die: float = np.inf,
    seed: int = 0,
) -> tuple[list[Simulated], Budget]:
    """Runs workers against a budget until all is done, the budget is spent, or the time is over. die: when the first
    worker does, with all that it has."""
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
            worker.go_on(clock[0])
            reply = worker.exchange(str(index), budget, clock, float(rng.uniform(0, STEP / 20)))
            if reply.over:
                return workers, budget
        if not any(w.plan or w.line.waiting or w.ends for _, w in alive):
            break
        clock[0] += STEP
    return workers, budget


def begun(workers: list[Simulated]) -> list[tuple[float, float, PlannedCall]]:
    return sorted(entry for worker in workers for entry in worker.begun)


@given(planned_calls(), st.integers(1, 90), st.integers(0, 100))
def test_never_more_requests_in_any_minute_and_none_waits_for_ever(
    plans: list[list[PlannedCall]], limit: int, seed: int
) -> None:
    workers, _ = simulate(
        plans, Limits(requests_per_minute=limit), seed=seed, seconds=60.0 * sum(map(len, plans)) + 900
    )
    starts = np.array([start for start, _, _ in begun(workers)])
    assert len(starts) == sum(map(len, plans)), "every call is made at last"
    for window, most in ((60.0, limit), (5.0, -(-limit // 12))):
        assert max(((starts >= s) & (starts < s + window)).sum() for s in starts) <= most


@given(planned_calls(), st.integers(100, 3000), st.integers(0, 100))
def test_never_more_tokens_in_any_minute(plans: list[list[PlannedCall]], limit: int, seed: int) -> None:
    workers, _ = simulate(plans, Limits(tokens_per_minute=limit), seed=seed, seconds=80.0 * sum(map(len, plans)) + 900)
    calls = begun(workers)
    assert len(calls) == sum(map(len, plans))
    # Whenever in its life a server counts a call: at its begin or at its end.
    for time_of in (lambda c: c[0], lambda c: c[1]):
        times, tokens = np.array([time_of(c) for c in calls]), np.array([c[2].tokens for c in calls])
        for start in times:
            inside = (times >= start) & (times < start + 60)
            assert tokens[inside].sum() <= limit or inside.sum() == 1  # one that is larger than the limit goes alone


@given(planned_calls(), st.integers(1, 12), st.integers(0, 100), st.sampled_from([np.inf, 1.0, 30.0]))
def test_never_more_calls_under_way(plans: list[list[PlannedCall]], limit: int, seed: int, die: float) -> None:
    workers, _ = simulate(plans, Limits(max_concurrency=limit), seed=seed, die=die)
    changes = sorted([(s, 1) for s, _, _ in begun(workers)] + [(e, -1) for _, e, _ in begun(workers)])
    assert max(np.cumsum([c for _, c in changes]), default=0) <= limit
    left = workers[1:] if np.isfinite(die) else workers
    assert all(not w.plan and not w.line.waiting for w in left), "a dead worker's slots come back"


@given(planned_calls(), st.floats(0.1, 5.0), st.integers(0, 100))
def test_a_total_ends_the_run_and_is_not_passed(plans: list[list[PlannedCall]], limit: float, seed: int) -> None:
    workers, budget = simulate(plans, Limits(), Totals(cost=limit), seed=seed)
    took = sum(c.tokens for _, _, c in begun(workers)) / 1000
    assert took <= limit + 1e-9
    done = len(begun(workers)) == sum(map(len, plans))
    assert done or budget.over == "cost"
    if not done:  # what was left was less than the next call may take
        assert limit - took < 0.4
        told = re.match(r"budget of ([\d.]+) spent \(([\d.]+)", budget.sentence())
        assert told is not None
        # Two decimals; the budget adds the calls up in another order, so a half can be rounded up or down.
        assert float(told[1]) == pytest.approx(limit, abs=0.005 + 1e-9)
        assert float(told[2]) == pytest.approx(took, abs=0.005 + 1e-9)


def test_two_workers_share_a_single_slot_by_turns() -> None:
    plans = [[PlannedCall(0.0, 1.0, 1, 1)] * 20] * 2
    workers, _ = simulate([list(p) for p in plans], Limits(max_concurrency=1))
    order = [next(i for i, w in enumerate(workers) if entry in w.begun) for entry in begun(workers)[:20]]
    assert 8 <= sum(order) <= 12


def test_unused_blocks_come_back() -> None:
    clock = [0.0]
    budget = Budget({"e": Limits(max_concurrency=4)}, clock=lambda: clock[0])
    one, two = Simulated([PlannedCall(0.0, 0.1, 1, 1)] * 2), Simulated([PlannedCall(2.0, 9.0, 1, 1)] * 4)
    one.go_on(0.0)
    one.exchange("one", budget, clock, 0.0)
    assert len(one.begun) == 2
    told = one.line.report(0.0)
    assert told.permits == 2, "a block for the turns that come next"
    clock[0] = 2.0
    one.go_on(2.0)
    two.go_on(2.0)
    two.exchange("two", budget, clock, 0.0)
    assert len(two.begun) == 0
    one.exchange("one", budget, clock, 0.0)
    two.exchange("two", budget, clock, 0.0)
    assert len(two.begun) == 4


def test_a_keeper_that_was_started_again_does_not_know_the_last_minute() -> None:
    clock = [0.0]
    budget = Budget({"e": Limits(requests_per_minute=5)}, clock=lambda: clock[0], fresh=False)
    told = Report(waiting=(Need(),))
    assert budget.exchange("w", Spent(requests=7), {"e": told}).granted == {}
    assert budget.spent.requests == 7
    clock[0] = 60.0
    assert budget.exchange("w", Spent(requests=7), {"e": told}).granted == {"e": 1}


def test_sentences() -> None:
    spent = Spent(5.02, 900, 3)
    assert _after(Totals(cost=5.0), spent) == "budget of 5.00 spent (5.02)"
    assert _after(Totals(tokens=900), spent) == "budget of 900 tokens spent (900)"
    assert _after(Totals(requests=3), spent) == "budget of 3 requests spent (3)"
    assert _after(Totals(cost=5.1), spent, Need(10, 0.2)) == "budget of 5.10 spent (5.02; the next call may cost 0.2)"


def _after(totals: Totals, spent: Spent, need: Need = Need()) -> str:  # noqa: B008
    budget = Budget({"e": Limits()}, totals, spent)
    assert budget.exchange("w", Spent(), {"e": Report(waiting=(need,))}).granted == {}
    return budget.sentence()


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), max_size=60))
def test_a_window_forgets_after_its_time_and_not_before(uses: list[tuple[float, float]]) -> None:
    window, now, done = Window(10, 20.0), 0.0, []
    for pause, amount in uses:
        now += pause
        window.use(amount, now)
        done.append((now, amount))
        exact = sum(a for t, a in done if t > now - 20.0)
        late = sum(a for t, a in done if t > now - 20.05)
        assert exact - 1e-9 <= window.used(now) <= late + 1e-9
    assert window.used(now + 20.0) == 0.0


def test_a_report_that_did_not_arrive_is_told_again() -> None:
    line = Line()
    assert not line.enter(Waiting(Need(5), Future(), "c"))
    line.take(1, line.report(0.0), 0.0)
    line.end(Need(5), Spent(0.1, 7, 2))
    told = line.report(0.0)
    assert (told.begun, told.tokens) == (2, 7)
    assert line.report(0.0)[:2] == (0, 0)
    line.untell(told)
    assert line.report(0.0)[:2] == (2, 7)


# --- the gate -----------------------------------------------------------------------------------------------------


async def test_many_calls_cost_few_exchanges() -> None:
    budget, asked = Budget({"e": Limits(requests_per_minute=1e9)}), 0

    async def ask(worker: str, spent: Spent, told: Any) -> BudgetReply:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.001)
        return budget.exchange(worker, spent, told)

    gate = Gate("w", ask)

    async def talk(number: int) -> None:
        for _ in range(50):
            await gate.enter("e", Need(10), str(number))
            await asyncio.sleep(0.001)
            gate.leave("e", Need(10), str(number), Spent(0.1, 7, 1))

    await asyncio.gather(*(talk(i) for i in range(100)))
    await gate.tell()
    assert asked < 5000 / 20
    assert budget.spent.requests == 5000
    assert budget.spent.tokens == 35_000


async def test_halting_lets_a_group_that_has_begun_end() -> None:
    budget = Budget({"e": Limits(max_concurrency=1)})

    async def ask(worker: str, spent: Spent, told: Any) -> BudgetReply:
        return budget.exchange(worker, spent, told)

    gate = Gate("w", ask)
    await gate.enter("e", Need(), "a")
    second = asyncio.create_task(gate.enter("e", Need(), "a"))  # the other agent of the same moment
    other = asyncio.create_task(gate.enter("e", Need(), "b"))
    await asyncio.sleep(0.05)
    gate.halt()
    with pytest.raises(Halted):
        await other
    assert not second.done()
    gate.leave("e", Need(), "a", Spent(requests=1))
    await asyncio.wait_for(second, 1)
    gate.leave("e", Need(), "a", Spent(requests=1))
    with pytest.raises(Halted):
        await gate.enter("e", Need(), "a")


async def test_a_keeper_that_fails_is_asked_again() -> None:
    budget, failing = Budget({"e": Limits(max_concurrency=1)}), [True]

    async def ask(worker: str, spent: Spent, told: Any) -> BudgetReply:
        if failing.pop() if failing else False:
            raise ConnectionError("away")
        return budget.exchange(worker, spent, told)

    gate = Gate("w", ask)
    await asyncio.wait_for(gate.enter("e", Need(), "a"), 5)
    gate.leave("e", Need(), "a", Spent(tokens=3, requests=1))
    await gate.tell()
    assert budget.spent == Spent(0.0, 3, 1)
