"""How a worker calls agents that are paid, limited or monitored: recorded, within the budget, and measured.

All other agents are called directly.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.errors import LostCall
from a2a_ray.core.message import EMPTY, Message
from a2a_ray.experiment.estimate import ASSUMED_ANSWER, CHARACTERS_PER_TOKEN, output_limit
from a2a_ray.experiment.spec import AgentSpec
from a2a_ray.runtime.limits.gate import BudgetGate
from a2a_ray.runtime.limits.rate_limit import CallEstimate
from a2a_ray.runtime.limits.spent import Spent, spent_by, usage_number
from a2a_ray.runtime.telemetry.metrics import Meter
from a2a_ray.runtime.telemetry.tracing import Tracing, tracing
from a2a_ray.store.schema import call_row

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""How often a paid call is made if its process dies."""


class MeteringSettings(NamedTuple):
    """What workers need in order to meter calls.

    run: the run's name in metrics, spans and log records.
    keeper: the actor that keeps the budget, or None.
    endpoints: agent key -> the endpoint whose limits count its calls. Agents that are missing have no limits.
    export: whether metrics are collected.
    otel: OpenTelemetry's settings; empty for no spans.
    """

    run: str
    keeper: Any = None
    endpoints: Mapping[str, str] = EMPTY
    export: bool = False
    otel: Mapping[str, str] = EMPTY


class CallMetering:
    """The metered calls of one worker. recording: stores the ledger's rows."""

    def __init__(self, settings: MeteringSettings, recording: Any) -> None:
        self.meter = Meter(settings.run, settings.export)
        self._attempts: MutableMapping[tuple[str, int], int] = {}
        self._recording = recording
        self._monitored, self._endpoints = settings.export, settings.endpoints
        self._tracing = tracing(settings.run, settings.otel)
        keeper = settings.keeper
        self._gate = None if keeper is None else BudgetGate(uuid.uuid4().hex, keeper.exchange.remote)

    def wrap(self, agent: Any, spec: AgentSpec, key: str) -> Any:
        """Return the agent for conversations to call: the agent itself if its calls need not be metered.

        key: the agent's, as the driver knows it.
        """
        endpoint = self._endpoints.get(key)
        if not spec.paid and endpoint is None and self._tracing is None and not (self._monitored and spec.heavy):
            return agent
        recording = self._recording if spec.paid else None
        metered = MeteredAgent(agent, spec, recording, self.meter, self._tracing, self._attempts)
        if self._gate is not None and endpoint is not None:
            metered.limit(self._gate, endpoint)
        return metered

    def halt(self) -> None:
        """Start no further call; calls that wait for the budget raise RunHalted."""
        if self._gate is not None:
            self._gate.halt()

    async def flush(self) -> None:
        """Send the finished spans, and report the calls that ended to the budget."""
        if self._gate is not None:
            await self._gate.report()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.flush)


class MeteredAgent:
    """An agent as a worker calls it; itself an `Agent`."""

    placement = "worker"

    def __init__(
        self,
        agent: Any,
        spec: AgentSpec,
        recording: Any,
        meter: Meter,
        tracer: Tracing | None,
        attempts: MutableMapping[tuple[str, int], int],
    ) -> None:
        self.name: str = agent.name
        self._agent, self._recording = agent, recording
        self._meter, self._tracing, self._attempts = meter, tracer, attempts
        self._settings = spec.inner.settings
        self._price = spec.rate or spec.inner.rate
        self._gate: BudgetGate | None = None
        self._endpoint = ""
        self._spec, self._max_output = spec, ASSUMED_ANSWER
        if agent_traits(agent).bid is not None:
            self.bid = self._bid

    def limit(self, gate: BudgetGate, endpoint: str) -> None:
        """Let calls wait at the gate from now on."""
        self._gate, self._endpoint = gate, endpoint
        agent = self._spec.build()  # cheap; the agent that answers may be in another process
        limit = None if agent_traits(agent).max_output_tokens is None else output_limit(self._spec, agent)
        self._max_output = ASSUMED_ANSWER if limit is None else limit

    async def step(self, message: Message) -> Any:
        """Return the agent's response. Raises the agent's errors, and RunHalted if the run stops before the call."""
        return await self._call("step", message)

    async def _bid(self, message: Message) -> Any:
        return await self._call("bid", message)

    async def _call(self, method: str, message: Message) -> Any:
        if self._gate is None:
            response, _ = await self._respond(method, message)
            return response
        estimate = self._estimate(message)
        await self._gate.enter(self._endpoint, estimate, message.conversation)
        took = Spent(requests=1)
        try:
            response, took = await self._respond(method, message)
        finally:
            self._gate.leave(self._endpoint, estimate, message.conversation, took)
        return response

    async def _respond(self, method: str, message: Message) -> tuple[Any, Spent]:
        """Return the response, and what it took."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if self._recording is not None:
                await self._record(method, message)
            try:
                response = await self._measured(method, message)
                break
            except LostCall as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                log.warning("retrying a paid call: %s", error)
                self._meter.retry(self.name)
        self._attempts.pop((message.conversation, message.seq), None)
        if type(response) is not Message:
            return response, self._meter.add(Spent(requests=attempt))
        usage = self._usage(response)
        if attempt > 1:
            usage["requests"] = usage_number(usage, "requests") + attempt - 1
            usage["unanswered"] = usage_number(usage, "unanswered") + attempt - 1
        took = self._meter.add(spent_by(usage))
        return (response if usage == response.usage else replace(response, usage=usage)), took

    async def _measured(self, method: str, message: Message) -> Any:
        started = time.perf_counter()
        usage: Mapping[str, Any] = EMPTY
        failed = True
        try:
            with self._span(method, message) as span:
                response = getattr(self._agent, method)(message)
                if type(response) is not Message and inspect.isawaitable(response):
                    response = await response
                if type(response) is Message:
                    usage = self._usage(response)
                    if span is not None and self._tracing is not None:
                        self._tracing.set_usage(span, usage)
            failed = False
            return response
        finally:
            self._meter.call(self.name, time.perf_counter() - started, usage, failed)

    def _span(self, method: str, message: Message) -> AbstractContextManager[Any]:
        if self._tracing is None:
            return nullcontext()
        return self._tracing.span(self.name, self._settings.get("model"), message, method)

    async def _record(self, method: str, message: Message) -> None:
        """Return when this call is in the ledger. Rows are committed in order, so all earlier turns are stored too."""
        key = (message.conversation, message.seq)
        attempt = self._attempts.get(key, 0)
        self._attempts[key] = attempt + 1
        await self._recording.commit(call_row(message, self.name, method, attempt, time.time()))

    def _usage(self, response: Message) -> dict[str, Any]:
        """Return the response's usage, with its requests if they count, and its cost if the agent has a price."""
        usage = dict(response.usage)
        if self._recording is not None or self._gate is not None:
            usage.setdefault("requests", 1)
        price = self._price
        if price is not None and "cost" not in usage and usage.keys() & {"input_tokens", "output_tokens"}:
            tokens = usage_number(usage, "input_tokens"), usage_number(usage, "output_tokens")
            usage["cost"] = (tokens[0] * price.input + tokens[1] * price.output) / 1e6
        return usage

    def _estimate(self, message: Message) -> CallEstimate:
        """Return the most that the call may take: the length of its context, and the longest response."""
        contents = [m.content for m in (*message.history, message)]
        characters = len(self._settings.get("instructions") or "")
        characters += sum(len(content) for content in contents if isinstance(content, str))
        tokens = characters // CHARACTERS_PER_TOKEN + 1
        price = self._price
        cost = 0.0 if price is None else (tokens * price.input + self._max_output * price.output) / 1e6
        return CallEstimate(tokens + self._max_output, cost)
