"""The worker's side of the budget: calls wait here until they are granted, all that wait asked for at once."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Future
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import islice, repeat
from typing import NamedTuple

from a2a_ray.runtime.limits.budget import Budget, BudgetReply, Limits, Need, Report, Spent, Totals

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5
"""The longest time between two reports of a worker."""
RETRY_SECONDS = 0.1
"""The longest time between two exchanges while calls wait."""
SPARE_SECONDS = 1.0
"""A granted call that was not begun for so long is given back."""
MOST_ASKED = 256
"""Waiting calls that one exchange tells of."""
LOST_SECONDS = 120.0
"""So long the process that keeps the budget may be away (Ray starts it again) before the worker halts."""


class Halted(BaseException):
    """The run stops, and this call was not made. No Exception: the conversation has not failed, it can go on later."""


class BudgetKeeper:
    """Actor around a `Budget`."""

    def __init__(self, limits: Mapping[str, Limits], totals: Totals, spent: Spent) -> None:
        import ray

        again = ray.get_runtime_context().was_current_actor_reconstructed
        self._budget = Budget(limits, totals, spent, fresh=not again)

    async def exchange(self, worker: str, spent: Spent, reports: Mapping[str, Report]) -> BudgetReply:
        """See `Budget.exchange`."""
        return self._budget.exchange(worker, spent, reports)

    async def state(self) -> str:
        """What is used up, as a sentence; empty: nothing is."""
        return self._budget.sentence()


class Waiting(NamedTuple):
    """A call that waits. answer: whether it may begin; False where the run stops."""

    need: Need
    answer: Future[bool]
    conversation: str


class Line:
    """The calls of one worker to one endpoint. Pure state; times are given."""

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self._permits: deque[tuple[float, Need]] = deque()  # when granted, and for what size of call
        self._under_way: Counter[Need] = Counter()
        self._begun = self._tokens = self._entered = 0
        self._like = Need()

    def enter(self, call: Waiting) -> bool:
        """Whether the call begins at once, by a permit that is there; else it waits."""
        need = call.need
        self._entered += 1
        self._like = Need(max(need.tokens, self._like.tokens), max(need.cost, self._like.cost))
        if not self.waiting and self._permits and _fits(need, self._permits[0][1]):
            self._permits.popleft()
            self._begin(need)
            return True
        self.waiting.append(call)
        return False

    def end(self, need: Need, took: Spent) -> None:
        """A call ended. took.requests: the one that it began with included."""
        self._under_way[need] -= 1
        if not self._under_way[need]:
            del self._under_way[need]
        self._tokens += took.tokens
        self._begun += took.requests - 1

    def report(self, now: float, finishing: bool = False) -> Report:
        """What is to be told, each thing once. Old permits are given back, and all where calls wait that do not fit."""
        self.waiting = deque(call for call in self.waiting if not call.answer.done())  # of talks that were cut off
        while self._permits and (self.waiting or now - self._permits[0][0] > SPARE_SECONDS):
            self._permits.popleft()
        held = Counter(need for _, need in self._permits) + self._under_way
        reserved = Need(sum(k.tokens * n for k, n in held.items()), sum(k.cost * n for k, n in held.items()))
        waiting = tuple(call.need for call in islice(self.waiting, MOST_ASKED))
        permits, under_way = len(self._permits), sum(self._under_way.values())
        spare = 0 if finishing else max(0, min(self._entered, MOST_ASKED) - permits)
        told = Report(self._begun, self._tokens, permits, under_way, reserved, waiting, spare, self._like, finishing)
        self._begun = self._tokens = self._entered = 0
        self._like = Need()
        return told

    def untell(self, told: Report) -> None:
        """The report did not arrive; what it told is told again."""
        self._begun += told.begun
        self._tokens += told.tokens

    def take(self, granted: int, told: Report, now: float) -> list[Waiting]:
        """The waiting calls that begin by what was granted; grants that none of them fits become permits."""
        begun = []
        for size in (*told.waiting, *repeat(told.like, told.spare))[:granted]:
            while self.waiting and self.waiting[0].answer.done():
                self.waiting.popleft()
            if self.waiting and _fits(self.waiting[0].need, size):
                begun.append(self.waiting.popleft())
                self._begin(begun[-1].need)
            else:
                self._permits.append((now, size))
        return begun

    def _begin(self, need: Need) -> None:
        self._under_way[need] += 1
        self._begun += 1


class Gate:
    """Where the calls of a worker wait. worker: a name that no other has. ask: an exchange with the budget's keeper."""

    def __init__(
        self,
        worker: str,
        ask: Callable[[str, Spent, Mapping[str, Report]], Awaitable[BudgetReply]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._ask, self._clock = worker, ask, clock
        self._lines: dict[str, Line] = {}
        self._inside: Counter[str] = Counter()  # calls by conversation, waiting or under way
        self._passed: set[str] = set()  # conversations of which one of these has begun
        self._spent = Spent()
        self._wake = asyncio.Event()
        self._one = asyncio.Lock()
        self._answered = clock()
        self._loop: asyncio.Task[None] | None = None
        self.halted = False

    async def enter(self, endpoint: str, need: Need, conversation: str) -> None:
        """Returns when the call may begin; raises Halted where the run stops first.

        Where a conversation's agents speak at once and one call has begun, the others are let through, so that the
        answer to it is not lost.
        """
        if self._loop is None:
            self._loop = asyncio.create_task(self._exchange_for_ever())
        line = self._lines.setdefault(endpoint, Line())
        call = Waiting(need, asyncio.get_running_loop().create_future(), conversation)
        self._inside[conversation] += 1
        try:
            if self.halted and conversation not in self._passed:
                raise Halted
            if line.enter(call):
                self._begun(call)
            else:
                self._wake.set()
            if not await call.answer:
                raise Halted
        except BaseException:
            if call.answer.done() and not call.answer.cancelled() and call.answer.result():
                line.end(need, Spent(requests=1))  # cut off between the grant and the call
            self._out(conversation)
            raise

    def leave(self, endpoint: str, need: Need, conversation: str, took: Spent) -> None:
        """A call that had entered ended. took.requests: at least 1."""
        line = self._lines[endpoint]
        line.end(need, took)
        self._spent = self._spent.plus(took._replace(requests=took.requests - 1))
        self._out(conversation)
        if line.waiting:
            self._wake.set()

    def halt(self) -> None:
        """Nothing begins any more but what must, so that no answer is lost; see `enter`."""
        self.halted = True
        for line in self._lines.values():
            for call in line.waiting:
                if call.conversation not in self._passed and not call.answer.done():
                    call.answer.set_result(False)

    def _begun(self, call: Waiting) -> None:
        self._passed.add(call.conversation)
        self._spent = self._spent.plus(Spent(requests=1))
        call.answer.set_result(True)

    def _out(self, conversation: str) -> None:
        self._inside[conversation] -= 1
        if not self._inside[conversation]:
            del self._inside[conversation]
            self._passed.discard(conversation)

    async def tell(self) -> None:
        """Tells the keeper what has ended by now, so that the last calls of a run are counted."""
        if self._lines:
            await self._exchange()

    async def _exchange_for_ever(self) -> None:
        while True:
            limit = RETRY_SECONDS if any(line.waiting for line in self._lines.values()) else BEAT_SECONDS
            # Not wait_for: up to Python 3.11 it can swallow a cancellation that comes with the event.
            with suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(await self._exchange())

    async def _exchange(self) -> float:
        """One exchange with the keeper; gives the seconds until the next."""
        async with self._one:
            told = {name: line.report(self._clock(), self.halted) for name, line in self._lines.items()}
            try:
                reply = await self._ask(self._worker, self._spent, told)
            except Exception as error:  # Ray starts it again
                log.warning("the process that keeps the budget does not answer: %s", error)
                for name, report in told.items():
                    self._lines[name].untell(report)
                if self._clock() - self._answered > LOST_SECONDS:
                    self.halt()
                self._wake.set()
                return BEAT_SECONDS
            self._answered = self._clock()
            for name, count in reply.granted.items():
                for call in self._lines[name].take(count, told[name], self._answered):
                    self._begun(call)
            if reply.over and not self.halted:
                self.halt()
            return reply.pause


def _fits(need: Need, size: Need) -> bool:
    return need.tokens <= size.tokens and need.cost <= size.cost
