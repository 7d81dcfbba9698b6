"""Which message goes to which replica with which call, and what becomes of it when the replica dies."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import random
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from a2a_ray.core.errors import AgentError, LostCall, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.runtime.agents.actor import ActorReply, CallBatch
from a2a_ray.runtime.agents.replica import Asked, Lines, Replica, emptied, first_line, lines, plain_error
from a2a_ray.store.schema import pack, unpack

log = logging.getLogger(__name__)

AWAY_SECONDS = 120.0
"""How long questions wait where no replica answers."""
DEATHS = 3
"""So many deaths of a process while it worked on a question, and the question fails."""
PAUSES = (0.05, 2.0)
"""The first and the longest pause between two looks at a replica that is away, in seconds."""


class Dispatcher:
    """The questions of one event loop to one agent.

    A replica works on one call, and what waits meanwhile goes with the next one; where that is full anyway
    (`max_batch`), it is sent at once and waits there. A replica whose agent overlaps gets everything at once. What is
    there to send is divided among the replicas that are free, the one with the fewest open questions first. Several
    workers share replicas: each counts its own questions, and those of the others that the replica told of last.

    A replica that dies is started again by Ray, and the others get its work meanwhile. What was in flight with it is
    asked again, apart from other questions: first in groups of the square root of their number, then each alone; one
    that was in flight at three deaths fails. So one poisonous question takes none with it, and a crash with many in
    flight does not mean to ask all of them one by one. A paid agent's questions that were in flight raise LostCall
    instead. Where no replica answers for 120 s, all that waits fails.

    A stateful agent's conversation stays with one replica; a replica that does not hold its state is told it first.

    states: conversation -> newest state.
    """

    def __init__(
        self, name: str, handles: Sequence[Any], facts: Mapping[str, Any], max_batch: int, states: Mapping[str, Any]
    ) -> None:
        self._name, self._max_batch, self._states = name, max_batch, states
        self._paid, self._stateful = facts["paid"], facts["stateful"]
        self._overlaps = facts["overlaps"]
        self._caller = uuid.uuid4().hex
        shared = lines()
        self._replicas = [Replica(h, lines() if self._stateful else shared) for h in handles]
        random.Random().shuffle(self._replicas)  # workers do not all begin with the same one
        self._seats: dict[str, Replica] = {}
        self._suspects: deque[list[Asked]] = deque()
        self._number = 0
        self.batches: deque[int] = deque(maxlen=10_000)  # questions of each call, for metrics
        self._scheduled = False
        self._none_since: float | None = None
        self._reason = ""  # why a replica went away last
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def ask(self, method: str, message: Message) -> asyncio.Future[Any]:
        """The future answer to a message by `step` or `bid`."""
        future = self._loop.create_future()
        self._queue(Asked(method, message, future))
        self._schedule()
        return future

    @property
    def queue(self) -> int:
        """Questions that wait for a replica."""
        waiting = {id(line): len(line) for r in self._replicas for line in r.waiting.values()}
        return sum(waiting.values())

    def forget(self, conversation: str) -> None:
        """Lets the replica that holds the state of a conversation drop it, with the next call."""
        replica = self._seats.pop(conversation, None)
        if replica is not None:
            replica.seats -= 1
            if conversation in replica.holds:
                replica.holds.discard(conversation)
                replica.forget.append(conversation)

    def _queue(self, asked: Asked) -> None:
        replica = self._seat(asked.message.conversation) if self._stateful else self._replicas[0]
        replica.waiting[asked.method].append(asked)

    def _seat(self, conversation: str, at: Replica | None = None) -> Replica:
        """The replica where a stateful agent's conversation is; another one than before if that is away."""
        replica = self._seats.get(conversation)
        if replica is None or replica.away or (at is not None and at is not replica):
            self.forget(conversation)
            replica = at or min(self._replicas, key=lambda r: (r.away, r.seats))
            replica.seats += 1
            self._seats[conversation] = replica
        return replica

    def _schedule(self) -> None:
        # At the end of this turn of the event loop: conversations that are ready now go together.
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        self._hand_out()
        for replica in self._replicas:
            if replica.open and not replica.calls:
                self._start(replica, [])  # only to wait for answers
        if all(r.away for r in self._replicas):
            self._give_up()

    def _hand_out(self) -> None:
        """Gives every replica that can take a call what waits for it."""
        here = sorted((r for r in self._replicas if not r.away), key=lambda r: len(r.open) + r.load)
        while self._suspects and here:
            replica = here.pop(0)  # where it still works on something else, it gets no more until it is done
            if replica.open or replica.calls:
                break
            replica.alone = True
            self._start(replica, self._suspects.popleft())
        for full in (False, True):
            free = [r for r in here if self._has_room(r, full)]
            for place, replica in enumerate(free):
                share = 1 if self._stateful or full else len(free) - place
                while self._has_room(replica, full) and (batch := self._take(replica.waiting, share, full)):
                    self._start(replica, batch)

    def _has_room(self, replica: Replica, full: bool) -> bool:
        """Whether it can take a call; `full`: one of `max_batch` questions, that waits there for the one before it."""
        if replica.alone or replica.calls >= 2:
            return False
        return self._overlaps or not replica.open or (full and len(replica.open) <= self._max_batch)

    def _take(self, waiting: Lines, share: int, full: bool) -> list[Asked]:
        line = max(waiting.values(), key=len)
        if full and len(line) < self._max_batch:
            return []
        size = min(self._max_batch, -(-len(line) // share))
        batch: list[Asked] = []
        while line and len(batch) < size:
            asked = line.popleft()
            if not asked.future.done():  # else of a conversation that was cut off
                batch.append(asked)
        return batch

    def _start(self, replica: Replica, batch: list[Asked]) -> None:
        numbers = range(self._number, self._number + len(batch))
        self._number += len(batch)
        replica.open.update(zip(numbers, batch, strict=True))
        for asked in batch:
            asked.sent_to = replica.incarnation
        replica.calls += 1
        if batch:
            self.batches.append(len(batch))
        self._spawn(self._exchange(replica, numbers, batch))

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, replica: Replica, numbers: range, batch: list[Asked]) -> None:
        meant = replica.incarnation
        states = self._unknown(replica, numbers, batch) if self._stateful else {}
        forget, replica.forget = replica.forget, []
        try:
            columns = pack([asked.message for asked in batch])
            calls = CallBatch(batch[0].method if batch else "step", numbers, columns, states, forget)
            sent = cloudpickle.dumps(tuple(calls))
            reply = ActorReply(*pickle.loads(await replica.handle.exchange.remote(self._caller, meant, sent)))
        except RayTaskError as error:
            replica.calls -= 1
            self._fail(replica.close(numbers), f"its process failed: {first_line(error.cause)}")
        except RayError as error:
            replica.calls -= 1
            self._died(replica, numbers, error)
        except Exception as error:
            replica.calls -= 1
            self._fail(replica.close(numbers), f"what it is asked cannot be sent: {first_line(error)}")
        else:
            replica.calls -= 1
            self._receive(replica, reply, meant)
        self._schedule()

    def _unknown(self, replica: Replica, numbers: range, batch: list[Asked]) -> dict[int, Any]:
        """The states that the replica does not hold."""
        states = {}
        for number, asked in zip(numbers, batch, strict=True):
            conversation = asked.message.conversation
            self._seat(conversation, replica)
            if conversation not in replica.holds:
                replica.holds.add(conversation)
                states[number] = (self._states.get(conversation),)
        return states

    def _receive(self, replica: Replica, reply: ActorReply, meant: str) -> None:
        replica.incarnation, replica.load = reply.incarnation, reply.load
        done = [replica.open.pop(n, None) for n in reply.numbers]
        self._ask_again(replica.close(reply.again))
        if meant not in ("", reply.incarnation):  # it died while no call was in flight, and is back
            replica.holds.clear()
            self._lose(
                replica.close([n for n, a in replica.open.items() if a.sent_to == meant]), "it was started again"
            )
        elif reply.again:
            self._leave(replica, reply.problem or "too many of its steps hang")
        replica.alone = replica.alone and bool(replica.open)
        self._hand_out()  # the replica works on what waits while the answers are read
        for asked, answer in zip(done, unpack(reply.messages), strict=True):
            if asked is not None and not asked.future.done():
                asked.future.set_result(answer)
        for number, bid in reply.bids.items():
            for asked in replica.close([number]):
                asked.settle(bid)
        for number, failure in reply.failed.items():
            for asked in replica.close([number]):
                asked.settle(plain_error(*failure))

    def _died(self, replica: Replica, numbers: range, error: RayError) -> None:
        asked = replica.close(numbers)
        if "actor is restarting" in str(error):  # so Ray says of a call that it has not sent
            self._ask_again(asked)
        else:
            self._lose(asked, first_line(error))
        if not replica.calls:
            self._lose(replica.close(list(replica.open)), first_line(error))
            replica.holds.clear()
            replica.forget.clear()
            replica.alone = False
        replica.gone = replica.gone or isinstance(error, ActorDiedError)
        self._leave(replica, first_line(error))

    def _lose(self, lost: list[Asked], reason: str) -> None:
        """What becomes of questions that were in flight with a process that died."""
        suspects: dict[str, list[Asked]] = {"step": [], "bid": []}
        for asked in lost:
            asked.deaths += 1
            turn = f"turn {asked.message.turn} of {asked.message.conversation!r}"
            if self._paid:
                sentence = (
                    f"its process died while it worked on {turn}; whether the call was made is not known: {reason}"
                )
                asked.settle(LostCall(f"agent {self._name!r}: {sentence}"))
            elif asked.deaths >= DEATHS:
                sentence = f"its process died {DEATHS} times while it worked on {turn}: {reason}"
                asked.settle(AgentError(f"agent {self._name!r}: {sentence}"))
            elif asked.deaths > 1:
                self._suspects.append([asked])
            else:
                suspects[asked.method].append(asked)
        for group in suspects.values():
            size = math.isqrt(len(group))
            self._suspects.extend(group[i : i + size] for i in range(0, len(group), size or 1))

    def _ask_again(self, asked: list[Asked]) -> None:
        for one in asked:
            if one.deaths:
                self._suspects.append([one])
            else:
                self._queue(one)

    def _leave(self, replica: Replica, reason: str) -> None:
        """A replica gets no more questions until it is back; what waited for it goes to the others."""
        if replica.away:
            return
        log.warning("agent %r: one of its processes is away: %s", self._name, reason)
        replica.away = True
        if self._none_since is None and all(r.away for r in self._replicas):
            self._none_since = time.monotonic()
        self._move()
        self._reason = reason
        self._spawn(self._revive(replica))

    def _move(self) -> None:
        """Finds replicas for what waits in the lines of those that are away."""
        if self._stateful:
            for asked in [a for r in self._replicas if r.away for a in emptied(r.waiting)]:
                self._queue(asked)

    async def _revive(self, replica: Replica) -> None:
        """Looks at a replica that is away until it is back."""
        pause, longest = PAUSES
        back = False
        while not back and not replica.gone:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            if replica.calls:  # what was in flight must be known to be lost first
                continue
            try:
                async with asyncio.timeout(AWAY_SECONDS):
                    replica.loading = bool(await replica.handle.ready.remote())
                if replica.loading:
                    await replica.handle.setup.remote()
                    back = True
            except RayTaskError as error:
                self._reason = first_line(error.cause)
            except (RayError, TimeoutError) as error:
                replica.gone = isinstance(error, ActorDiedError)
                self._reason = first_line(error)
            finally:
                replica.loading = False
            self._schedule()
        if back:
            replica.away, self._none_since = False, None
            self._move()

    def _give_up(self) -> None:
        """Ends the run where no replica comes back, or none was back for long: that is no fault of a conversation."""
        since = self._none_since
        late = since is not None and time.monotonic() - since > AWAY_SECONDS
        if all(r.gone for r in self._replicas):
            sentence = f"all of its processes have died: {self._reason}"
        elif late and not any(r.loading for r in self._replicas):
            sentence = f"none of its processes has answered for {AWAY_SECONDS:g} s: {self._reason}"
        else:
            return
        waiting = [a for r in self._replicas for a in emptied(r.waiting)]
        for asked in (*waiting, *(a for group in self._suspects for a in group)):
            asked.settle(PlacementError(f"agent {self._name!r}: {sentence}"))
        self._suspects.clear()

    def _fail(self, asked: Iterable[Asked], sentence: str) -> None:
        for one in asked:
            one.settle(AgentError(f"agent {self._name!r}: {sentence}"))
