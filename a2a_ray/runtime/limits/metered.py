"""How a worker calls the agents of a run that are paid, limited or watched: on the ledger, within the budget, measured.

Agents that are none of these are called as they are.
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
from typing import TYPE_CHECKING, Any, NamedTuple

from a2a_ray.core.errors import LostCall
from a2a_ray.core.message import EMPTY, Message
from a2a_ray.experiment.estimate import ASSUMED_ANSWER, CHARACTERS_PER_TOKEN, output_limit
from a2a_ray.experiment.spec import AgentSpec, Experiment
from a2a_ray.runtime.limits.budget import UNLIMITED, Limits, Need, Spent, Totals, number, spent_by
from a2a_ray.runtime.limits.gate import BudgetKeeper, Gate
from a2a_ray.runtime.telemetry.metrics import Meter
from a2a_ray.runtime.telemetry.tracing import Tracing, tracing
from a2a_ray.store.schema import call_row

if TYPE_CHECKING:
    from a2a_ray.store.run import Run

log = logging.getLogger(__name__)

MOST_ASKS = 3
"""How often a paid call is made whose process dies."""


class Calling(NamedTuple):
    """What workers are told of it.

    run: how the run is called in metrics, spans and log records. keeper: actor that keeps the budget, where there is
    one. endpoints: by key of an agent, where its calls count; agents that are not in it have no limits. export: whether
    metrics are collected. otel: OpenTelemetry's settings; empty where no spans are wanted.
    """

    run: str
    keeper: Any = None
    endpoints: Mapping[str, str] = EMPTY
    export: bool = False
    otel: Mapping[str, str] = EMPTY


class MeteredCalls:
    """The calls of one worker. recording: where the ledger goes."""

    def __init__(self, calling: Calling, recording: Any) -> None:
        self.meter = Meter(calling.run, calling.export)
        self._attempts: MutableMapping[tuple[str, int], int] = {}
        self._recording = recording
        self._watched, self._endpoints = calling.export, calling.endpoints
        self._tracing = tracing(calling.run, calling.otel)
        self._gate = None if calling.keeper is None else Gate(uuid.uuid4().hex, calling.keeper.exchange.remote)

    def wrapped(self, agent: Any, spec: AgentSpec, key: str) -> Any:
        """The agent as conversations are to call it; itself where nothing is to be done. key: the agent's, as the
        driver has it."""
        endpoint = self._endpoints.get(key)
        if not spec.paid and endpoint is None and self._tracing is None and not (self._watched and spec.heavy):
            return agent
        recording = self._recording if spec.paid else None
        called = Called(agent, spec, recording, self.meter, self._tracing, self._attempts)
        if self._gate is not None and endpoint is not None:
            called.limit(self._gate, endpoint)
        return called

    def halt(self) -> None:
        """Lets no call begin any more; those that wait for the budget raise Halted."""
        if self._gate is not None:
            self._gate.halt()

    async def flush(self) -> None:
        """Sends the spans that were made, and tells the budget's keeper of the calls that ended."""
        if self._gate is not None:
            await self._gate.tell()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.flush)


class Called:
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
        self._gate: Gate | None = None
        self._endpoint = ""
        self._spec, self._most = spec, ASSUMED_ANSWER
        if hasattr(agent, "bid"):
            self.bid = self._bid

    def limit(self, gate: Gate, endpoint: str) -> None:
        """From now on calls wait at the gate."""
        self._gate, self._endpoint = gate, endpoint
        made = self._spec.build()  # cheap; the agent that answers may be in another process
        limit = output_limit(self._spec, made) if hasattr(made, "max_output_tokens") else None
        self._most = ASSUMED_ANSWER if limit is None else limit

    async def step(self, message: Message) -> Any:
        """The agent's answer. Raises what the agent raises, and Halted where the run stops before it is called."""
        return await self._call("step", message)

    async def _bid(self, message: Message) -> Any:
        return await self._call("bid", message)

    async def _call(self, method: str, message: Message) -> Any:
        if self._gate is None:
            answer, _ = await self._answer(method, message)
            return answer
        need = self._need(message)
        await self._gate.enter(self._endpoint, need, message.conversation)
        took = Spent(requests=1)
        try:
            answer, took = await self._answer(method, message)
        finally:
            self._gate.leave(self._endpoint, need, message.conversation, took)
        return answer

    async def _answer(self, method: str, message: Message) -> tuple[Any, Spent]:
        """The answer, and what it took."""
        for asked in range(1, MOST_ASKS + 1):
            if self._recording is not None:
                await self._enter_in_ledger(method, message)
            try:
                answer = await self._measured(method, message)
                break
            except LostCall as error:
                if asked == MOST_ASKS:
                    raise
                log.warning("a paid call is made again: %s", error)
                self._meter.again(self.name)
        self._attempts.pop((message.conversation, message.seq), None)
        if type(answer) is not Message:
            return answer, self._meter.add(Spent(requests=asked))
        usage = self._usage(answer)
        if asked > 1:
            usage["requests"] = number(usage, "requests") + asked - 1
            usage["unanswered"] = number(usage, "unanswered") + asked - 1
        took = self._meter.add(spent_by(usage))
        return (answer if usage == answer.usage else replace(answer, usage=usage)), took

    async def _measured(self, method: str, message: Message) -> Any:
        started = time.perf_counter()
        usage: Mapping[str, Any] = EMPTY
        failed = True
        try:
            with self._span(method, message) as span:
                answer = getattr(self._agent, method)(message)
                if type(answer) is not Message and inspect.isawaitable(answer):
                    answer = await answer
                if type(answer) is Message:
                    usage = self._usage(answer)
                    if span is not None and self._tracing is not None:
                        self._tracing.tell(span, usage)
            failed = False
            return answer
        finally:
            self._meter.call(self.name, time.perf_counter() - started, usage, failed)

    def _span(self, method: str, message: Message) -> AbstractContextManager[Any]:
        if self._tracing is None:
            return nullcontext()
        return self._tracing.span(self.name, self._settings.get("model"), message, method)

    async def _enter_in_ledger(self, method: str, message: Message) -> None:
        """Returns when the ledger has a row of this call. Rows are committed in order, so all turns before are too."""
        key = (message.conversation, message.seq)
        attempt = self._attempts.get(key, 0)
        self._attempts[key] = attempt + 1
        await self._recording.commit(call_row(message, self.name, method, attempt, time.time()))

    def _usage(self, answer: Message) -> dict[str, Any]:
        """What an answer says it took; its requests where they count, its cost where the specification has a price."""
        usage = dict(answer.usage)
        if self._recording is not None or self._gate is not None:
            usage.setdefault("requests", 1)
        price = self._price
        if price is not None and "cost" not in usage and usage.keys() & {"input_tokens", "output_tokens"}:
            usage["cost"] = (
                number(usage, "input_tokens") * price.input + number(usage, "output_tokens") * price.output
            ) / 1e6
        return usage

    def _need(self, message: Message) -> Need:
        """What the call may take: what is shown by its length, and as many tokens as the answer may have."""
        shown = [m.content for m in (*message.history, message)]
        letters = len(self._settings.get("instructions") or "") + sum(len(c) for c in shown if isinstance(c, str))
        read = letters // CHARACTERS_PER_TOKEN + 1
        cost = 0.0 if self._price is None else (read * self._price.input + self._most * self._price.output) / 1e6
        return Need(read + self._most, cost)


def endpoints(experiment: Experiment) -> tuple[dict[str, Limits], dict[str, str]]:
    """The limits of every endpoint that calls are counted for, the lowest that an agent there gives; and the endpoint
    of each agent's key.

    Without totals these are the endpoints that have limits; with totals also those of all paid and all heavy agents.
    """
    total = experiment.budget is not None and experiment.budget.model_dump(exclude={"seconds"}, exclude_none=True)
    found: dict[str, Limits] = {}
    by_key: dict[str, str] = {}
    for spec in (spec for cell in experiment.cells for spec in cell.agents):
        endpoint = by_key[spec.key()] = spec.endpoint_key
        limits = Limits(spec.limits.requests_per_minute, spec.limits.tokens_per_minute, spec.limits.max_concurrency)
        if any(limits) or (total and (spec.paid or spec.heavy)):
            found[endpoint] = limits.lower(found.get(endpoint, Limits()))
    return found, {key: endpoint for key, endpoint in by_key.items() if endpoint in found}


def keep_budget(experiment: Experiment, spent: Spent) -> tuple[Any, dict[str, str]]:
    """The actor that keeps the budget of a start of a run, and the endpoint of each limited agent's key; None where
    nothing is limited. spent: before this start."""
    import ray

    limits, by_key = endpoints(experiment)
    if not limits:
        return None, {}
    budget = experiment.budget
    totals = UNLIMITED if budget is None else Totals(budget.cost, budget.tokens, budget.requests)
    actor: Any = ray.remote
    # Started again where it dies: what was spent the workers tell it.
    kind = actor(BudgetKeeper).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
    return kind.remote(limits, totals, spent), by_key


def spent_before(run: Run) -> Spent:
    """What a run took before this start of it, as far as its store tells."""
    total = run.cost()
    tokens = int(number(total, "input_tokens") + number(total, "output_tokens"))
    requests = max(int(number(total, "requests")), run.ledger()["calls"])
    return Spent(float(number(total, "cost")), tokens, requests)
