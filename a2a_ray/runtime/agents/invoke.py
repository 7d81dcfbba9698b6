"""Invokes an agent inside its own process: one call after the other, overlapping, or in batches."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.errors import A2AError, AgentError, InvalidResponseError, traceback_of
from a2a_ray.core.message import Message, checked_answer
from a2a_ray.runtime.agents.step_thread import NOT_STARTED, TIMED_OUT, StepThread

log = logging.getLogger(__name__)

KEEP_STATE = "keep"
"""In place of a state: the agent has the conversation's state already."""


class AgentCall(NamedTuple):
    """A message to the agent, with its caller's number. state: (state,) to set before the call, or KEEP_STATE."""

    number: int
    message: Message
    state: Any = KEEP_STATE


ResultCallback = Callable[[AgentCall, Any], None]
"""Gets the result of a call: a Message or a bid that can be sent, an A2AError, or NOT_STARTED."""


class Invoker:
    """Invokes an agent that is set up.

    An agent whose `step` or `step_batch` is asynchronous runs in the event loop, where calls overlap. Any other agent
    runs in a thread, one call or batch at a time. `step_batch` is used for agents that are neither paid nor stateful;
    if it fails as a whole, its messages are sent to `step` one by one.

    timeout: seconds for one step, or one batch. An asynchronous step is cancelled. For a synchronous one, and for
    `max_hung_steps`, see `StepThread`. executor: the thread in which a synchronous agent was made.
    """

    def __init__(
        self,
        agent: Any,
        timeout: float | None = None,
        max_hung_steps: int = 3,
        paid: bool = False,
        executor: ThreadPoolExecutor | None = None,
    ) -> None:
        self.agent = agent
        traits = agent_traits(agent)
        self.paid = paid or traits.paid
        self.stateful = traits.stateful
        self.overlaps = any(map(inspect.iscoroutinefunction, (agent.step, traits.step_batch)))
        self._step_batch: Any = None if self.paid or self.stateful else traits.step_batch
        self._timeout = timeout
        self._thread = StepThread(timeout, max_hung_steps, executor)

    @property
    def exhausted(self) -> bool:
        """Return whether enough steps hang for the process to be replaced."""
        return self._thread.exhausted

    async def invoke(self, method: str, calls: Sequence[AgentCall], on_result: ResultCallback) -> None:
        """Call `step` or `bid` for each message, and report each result as soon as it is known."""
        if method == "step" and self._step_batch is not None and await self._in_batch(calls, on_result):
            return
        if self.overlaps:
            await asyncio.gather(*(self._overlapping(method, call, on_result) for call in calls))
            return
        awaited = []
        async for call, result in self._thread.run(lambda call: self._one(method, call), calls):
            if inspect.isawaitable(result):  # of a plain function that returns a coroutine
                awaited.append(self._overlapping(method, call, on_result, result))
            else:
                on_result(call, self._timeout_error(call.message) if result is TIMED_OUT else result)
        await asyncio.gather(*awaited)

    async def forget(self, conversations: Sequence[str]) -> None:
        """Let a stateful agent drop the state of conversations that ended or moved to another replica."""

        def drop(conversation: str) -> None:
            try:
                self.agent.set_state(conversation, None)
            except (Exception, SystemExit) as error:
                log.warning("agent %r cannot forget %r: %r", self.agent.name, conversation, error)

        if self.overlaps:
            for conversation in conversations:
                drop(conversation)
        else:
            async for _ in self._thread.run(drop, conversations):
                pass

    def failure(self, message: Message, error: BaseException) -> A2AError:
        """Return an error of the agent as one that any process can unpickle."""
        if isinstance(error, A2AError):
            return error
        name = type(error).__name__
        failed = AgentError(f"agent {self.agent.name!r} failed at turn {message.turn}: {name}: {error}")
        failed.traceback = traceback_of(error)
        return failed

    async def _in_batch(self, calls: Sequence[AgentCall], on_result: ResultCallback) -> bool:
        """Call `step_batch`; return False if it failed as a whole."""
        messages = [call.message for call in calls]
        responses: Any = None
        try:
            if self.overlaps:
                async with asyncio.timeout(self._timeout):
                    responses = self._step_batch(messages)
                    responses = await responses if inspect.isawaitable(responses) else responses
            else:
                async for _, result in self._thread.run(_catching(self._step_batch), [messages]):
                    responses = result
            if responses is NOT_STARTED:
                responses = [NOT_STARTED] * len(calls)
            elif responses is TIMED_OUT:
                raise TimeoutError(f"no response within {self._timeout:g} s")
            elif isinstance(responses, BaseException):
                raise responses
            responses = list(responses)
            if len(responses) != len(calls):
                raise InvalidResponseError(f"{len(responses)} responses to {len(calls)} messages")
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            log.warning("agent %r: step_batch failed, its messages go to step one by one: %r", self.agent.name, error)
            return False
        for call, response in zip(calls, responses, strict=True):
            on_result(call, response if response is NOT_STARTED else self._checked("step", call, response))
        return True

    async def _overlapping(self, method: str, call: AgentCall, on_result: ResultCallback, started: Any = None) -> None:
        """Call the agent in the event loop. started: the awaitable, if the method was called already."""
        limit = None
        try:
            response = self._call(method, call) if started is None else started
            if inspect.isawaitable(response):
                if self._timeout is None:
                    response = await response
                else:
                    async with asyncio.timeout(self._timeout) as limit:
                        response = await response
            result = self._checked(method, call, response)
        except BaseException as error:  # also those that would end the event loop or cancel its task
            timed_out = limit is not None and limit.expired()
            result = self._timeout_error(call.message) if timed_out else self.failure(call.message, error)
        on_result(call, result)

    def _one(self, method: str, call: AgentCall) -> Any:
        """Return the result of a call that is made in a thread. An awaitable response is returned as it is."""
        try:
            response = self._call(method, call)
            if type(response) is not Message and inspect.isawaitable(response):
                return response
            return self._checked(method, call, response)
        except (Exception, SystemExit) as error:
            return self.failure(call.message, error)

    def _call(self, method: str, call: AgentCall) -> Any:
        if call.state is not KEEP_STATE:
            self.agent.set_state(call.message.conversation, call.state[0])
        return getattr(self.agent, method)(call.message)

    def _checked(self, method: str, call: AgentCall, response: Any) -> Any:
        """Return a response that can be sent, with the new state, or the error that stands for it."""
        message = call.message
        try:
            if isinstance(response, BaseException):  # for one message of a batch
                return self.failure(message, response)
            if method == "bid":
                return float(response)
            if self.stateful and type(response) is Message:
                state = self.agent.get_state(message.conversation)
                response = replace(response, metadata={**response.metadata, "state": state})
            if type(response) is not Message or response.usage or response.metadata:
                return checked_answer(response, message, self.agent.name)
            return response  # the conversation checks it
        except A2AError as error:
            return error
        except Exception as error:
            if method == "bid":
                name = self.agent.name
                return InvalidResponseError(
                    f"agent {name!r} bid {response!r} at turn {message.turn}; expected a finite number"
                )
            return self.failure(message, error)

    def _timeout_error(self, message: Message) -> AgentError:
        return AgentError(
            f"agent {self.agent.name!r} at turn {message.turn}: no response within {self._timeout:g} s;"
            " raise timeout, or find out why its step hangs"
        )


def _catching(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that returns the errors of `call`."""

    def catching(item: Any) -> Any:
        try:
            return call(item)
        except (Exception, SystemExit) as error:
            return error

    return catching
