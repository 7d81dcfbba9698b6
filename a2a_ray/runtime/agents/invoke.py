"""How an agent is asked inside its own process: overlapping or in a thread, in batches, within its time."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from a2a_ray.core.errors import A2AError, AgentError, InvalidResponseError, traceback_of
from a2a_ray.core.message import Message, checked_answer

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
"""Between two looks at a thread: an answer waits at most so long for those that are asked after it."""
KEPT = "kept"
"""In place of a state: the agent has the conversation's state already."""
AGAIN, OVERRUN = object(), object()
"""In place of an answer: the question was not asked, since the process is about to end; or it took too long."""


class Question(NamedTuple):
    """A message to the agent, with its caller's number. state: (state,) to set before, or KEPT."""

    number: int
    message: Message
    state: Any = KEPT


Put = Callable[[Question, Any], None]
"""Takes what became of a question: a Message or a bid that can be sent, an A2AError, or AGAIN."""


class Asking:
    """An agent that is set up, and the way to ask it.

    An agent whose `step` or `step_batch` is asynchronous works in the event loop, where questions overlap. Any other
    one works in a thread, on one question or batch at a time, so that the loop goes on. `step_batch` is used for agents
    that are neither paid nor stateful; where it fails as a whole, its messages are asked one by one.

    timeout: seconds for one step, or one batch. An asynchronous step ends with it. A thread cannot be stopped: the
    agent goes on in another one, and if `max_hung_steps` of them hang at once, it is `exhausted` and not asked any
    more.
    """

    def __init__(
        self,
        agent: Any,
        timeout: float | None = None,
        max_hung_steps: int = 3,
        paid: bool = False,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.agent = agent
        self.paid = paid or bool(getattr(agent, "paid", False))
        self.stateful = bool(getattr(agent, "stateful", False))
        self.overlaps = any(inspect.iscoroutinefunction(getattr(agent, m, None)) for m in ("step", "step_batch"))
        self._batch: Any = None if self.paid or self.stateful else getattr(agent, "step_batch", None)
        self._timeout, self._max_hung_steps = timeout, max_hung_steps
        self._one_at_a_time = asyncio.Lock()
        self._thread = thread or ThreadPoolExecutor(1)
        self._hanging: set[asyncio.Future[None]] = set()

    @property
    def exhausted(self) -> bool:
        """Whether so many threads hang that the process should be replaced."""
        return len(self._hanging) >= self._max_hung_steps

    async def ask(self, method: str, questions: Sequence[Question], put: Put) -> None:
        """Asks by `step` or `bid`, and puts what becomes of each question as soon as it is known."""
        if method == "step" and self._batch is not None and await self._together(questions, put):
            return
        if self.overlaps:
            await asyncio.gather(*(self._overlapping(method, q, put) for q in questions))
            return
        awaited = []
        async for question, outcome in self._in_thread(lambda q: self._one(method, q), questions):
            if inspect.isawaitable(outcome):  # of a plain function that makes one
                awaited.append(self._overlapping(method, question, put, outcome))
            else:
                put(question, self._late(question.message) if outcome is OVERRUN else outcome)
        await asyncio.gather(*awaited)

    async def forget(self, conversations: Sequence[str]) -> None:
        """Lets a stateful agent drop what it holds of conversations that are over, or went elsewhere."""

        def drop(conversation: str) -> None:
            try:
                self.agent.set_state(conversation, None)
            except (Exception, SystemExit) as error:
                log.warning("agent %r cannot forget %r: %r", self.agent.name, conversation, error)

        if self.overlaps:
            for conversation in conversations:
                drop(conversation)
        else:
            async for _ in self._in_thread(drop, conversations):
                pass

    def failure(self, message: Message, error: BaseException) -> A2AError:
        """An error of the agent as one that any process can read."""
        if isinstance(error, A2AError):
            return error
        name = type(error).__name__
        failed = AgentError(f"agent {self.agent.name!r} failed at turn {message.turn}: {name}: {error}")
        failed.traceback = traceback_of(error)
        return failed

    async def _together(self, questions: Sequence[Question], put: Put) -> bool:
        """By `step_batch`; False where it failed as a whole."""
        messages = [q.message for q in questions]
        answers: Any = None
        try:
            if self.overlaps:
                async with asyncio.timeout(self._timeout):
                    answers = self._batch(messages)
                    answers = await answers if inspect.isawaitable(answers) else answers
            else:
                async for _, outcome in self._in_thread(_caught(self._batch), [messages]):
                    answers = outcome
            if answers is AGAIN:
                answers = [AGAIN] * len(questions)
            elif answers is OVERRUN:
                raise TimeoutError(f"no end within {self._timeout:g} s")
            elif isinstance(answers, BaseException):
                raise answers
            answers = list(answers)
            if len(answers) != len(questions):
                raise InvalidResponseError(f"{len(answers)} answers to {len(questions)} messages")
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            log.warning("agent %r: its step_batch failed, so it is asked one by one: %r", self.agent.name, error)
            return False
        for question, answer in zip(questions, answers, strict=True):
            put(question, answer if answer is AGAIN else self._checked("step", question, answer))
        return True

    async def _overlapping(self, method: str, question: Question, put: Put, begun: Any = None) -> None:
        limit = None
        try:
            answer = self._called(method, question) if begun is None else begun
            if inspect.isawaitable(answer):
                if self._timeout is None:
                    answer = await answer
                else:
                    async with asyncio.timeout(self._timeout) as limit:
                        answer = await answer
            outcome = self._checked(method, question, answer)
        except BaseException as error:  # also one that would end the event loop, or cancel what it runs in
            late = limit is not None and limit.expired()
            outcome = self._late(question.message) if late else self.failure(question.message, error)
        put(question, outcome)

    def _one(self, method: str, question: Question) -> Any:
        """What becomes of a question that is asked in a thread; something awaitable is given back as it is."""
        try:
            answer = self._called(method, question)
            if type(answer) is not Message and inspect.isawaitable(answer):
                return answer
            return self._checked(method, question, answer)
        except (Exception, SystemExit) as error:
            return self.failure(question.message, error)

    def _called(self, method: str, question: Question) -> Any:
        if question.state is not KEPT:
            self.agent.set_state(question.message.conversation, question.state[0])
        return getattr(self.agent, method)(question.message)

    def _checked(self, method: str, question: Question, answer: Any) -> Any:
        """An answer that can be sent, the new state with it, or the error that stands for it."""
        message = question.message
        try:
            if isinstance(answer, BaseException):  # of one message in a batch
                return self.failure(message, answer)
            if method == "bid":
                return float(answer)
            if self.stateful and type(answer) is Message:
                state = self.agent.get_state(message.conversation)
                answer = replace(answer, metadata={**answer.metadata, "state": state})
            if type(answer) is not Message or answer.usage or answer.metadata:
                return checked_answer(answer, message, self.agent.name)
            return answer  # the conversation checks it
        except A2AError as error:
            return error
        except Exception as error:
            if method == "bid":
                name = self.agent.name
                return InvalidResponseError(
                    f"agent {name!r} bid {answer!r} at turn {message.turn}; expected a finite number"
                )
            return self.failure(message, error)

    def _late(self, message: Message) -> AgentError:
        return AgentError(
            f"agent {self.agent.name!r} at turn {message.turn}: no answer within {self._timeout:g} s;"
            " raise timeout, or look why its step hangs"
        )

    async def _in_thread(self, call: Callable[[Any], Any], items: Sequence[Any]) -> AsyncIterator[tuple[Any, Any]]:
        """Each item and what `call` makes of it, which must not raise; OVERRUN for one that took too long."""
        loop = asyncio.get_running_loop()
        done = 0
        while done < len(items):
            async with self._one_at_a_time:
                if self.exhausted:
                    for item in items[done:]:
                        yield item, AGAIN
                    return
                job = _Job(call, items[done:])
                running = loop.run_in_executor(self._thread, job.run)
                first, over = done, False
                while not over and not (running.done() and done - first == len(job.outcomes)):
                    await asyncio.wait([running], timeout=self._look())
                    for outcome in job.outcomes[done - first :]:
                        yield items[done], outcome
                        done += 1
                    index, started = job.now
                    over = index == done - first and time.monotonic() - started > (self._timeout or float("inf"))
                if running.done():
                    running.result()  # raises what is no fault of the agent
                else:
                    job.stopped = True
                    self._hanging.add(running)
                    running.add_done_callback(self._hanging.discard)
                    self._thread = ThreadPoolExecutor(1)
                    yield items[done], OVERRUN
                    done += 1

    def _look(self) -> float:
        return LOOK_SECONDS if self._timeout is None else min(LOOK_SECONDS, self._timeout / 4)


class _Job:
    """Items for a thread to go through; `now` is the index of the one it is at, and since when."""

    def __init__(self, call: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self._call, self._items = call, items
        self.outcomes: list[Any] = []
        self.now = (-1, 0.0)
        self.stopped = False

    def run(self) -> None:
        for index, item in enumerate(self._items):
            self.now = (index, time.monotonic())
            outcome = self._call(item)
            if self.stopped:
                return
            self.outcomes.append(outcome)


def _caught(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def caught(item: Any) -> Any:
        try:
            return call(item)
        except (Exception, SystemExit) as error:
            return error

    return caught
