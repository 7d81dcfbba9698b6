"""Heavy agents: each replica in a Ray actor of its own, reached by batches of whatever messages wait for it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from a2a_ray.core import errors
from a2a_ray.core.errors import A2AError, AgentError, BadInput, PlacementError
from a2a_ray.core.message import Message
from a2a_ray.runtime.cluster import await_placed, connect
from a2a_ray.runtime.columns import pack, unpack

log = logging.getLogger(__name__)


class AgentHost:
    """Actor that holds one replica. Its constructor is cheap, so that `ready` tells that it is placed."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = factory
        self._agent: Any = None

    async def ready(self) -> bool:
        """That the process lives."""
        return True

    async def setup(self) -> dict[str, Any]:
        """Makes the agent and loads what is heavy. What callers need to know of it comes back."""
        try:
            self._agent = await asyncio.to_thread(self._make)
        except A2AError:
            raise
        except (Exception, SystemExit) as error:  # a foreign error may not survive the way between processes
            raise AgentError(f"an agent could not be set up: {type(error).__name__}: {error}") from None
        agent = self._agent
        return {
            "name": agent.name,
            "overlaps": inspect.iscoroutinefunction(getattr(agent, "step_batch", agent.step)),
            "bids": hasattr(agent, "bid"),
        }

    async def call(self, method: str, columns: tuple[list[Any], ...]) -> tuple[Any, dict[int, tuple[str, str]]]:
        """The answers to packed messages by `step` or `bid`, and per failed index the error's class and sentence."""
        messages = unpack(columns)
        answers = await self._batch(messages) if method == "step" else None
        if answers is None and inspect.iscoroutinefunction(getattr(self._agent, method)):
            answers = list(await asyncio.gather(*(self._one(method, m) for m in messages)))
        elif answers is None:
            answers = [await self._one(method, m) for m in messages]
        failed = {
            i: (type(a).__name__ if isinstance(a, A2AError) else "", _sentence(self._agent.name, messages[i].turn, a))
            for i, a in enumerate(answers)
            if isinstance(a, Exception)
        }
        good = [a for i, a in enumerate(answers) if i not in failed]
        if method == "step" and all(type(a) is Message for a in good):
            return pack(good), failed
        return good, failed  # bids, or what the conversation will refuse by name

    def _make(self) -> Any:
        agent = self._factory()
        if hasattr(agent, "setup"):
            agent.setup()
        return agent

    async def _batch(self, messages: tuple[Message, ...]) -> list[Any] | None:
        """Answers by `step_batch`; None where the agent has none, or it failed as a whole: then one by one, so that
        one message's fault stays its own."""
        batch = getattr(self._agent, "step_batch", None)
        if batch is None:
            return None
        try:
            answers = batch(messages)
            answers = list(await answers if inspect.isawaitable(answers) else answers)
        except (Exception, SystemExit) as error:
            log.warning("agent %r: its step_batch failed, so it is asked one by one: %r", self._agent.name, error)
            return None
        return answers if len(answers) == len(messages) else None

    async def _one(self, method: str, message: Message) -> Any:
        try:
            answer = getattr(self._agent, method)(message)
            return await answer if inspect.isawaitable(answer) else answer
        except A2AError as error:
            return error
        except (Exception, SystemExit) as error:
            return AgentError(_sentence(self._agent.name, message.turn, error))


class RemoteAgent:
    """An agent whose replicas are Ray actors; itself an `Agent`. Made by `remote`, or by a run for its heavy agents.

    One call is in flight per replica, and everything that waits meanwhile goes with the next one; an agent whose own
    step is asynchronous gets calls that overlap.
    """

    placement = "worker"

    def __init__(self, name: str, replicas: list[Any], overlaps: bool, bids: bool, max_batch: int = 64) -> None:
        self.name = name
        self._replicas, self._max_batch, self._overlaps = replicas, max_batch, overlaps
        self._free = deque(replicas)
        self._waiting: dict[str, deque[tuple[Message, asyncio.Future[Any]]]] = {"step": deque(), "bid": deque()}
        self._scheduled: asyncio.AbstractEventLoop | None = None
        self._calls: set[asyncio.Task[None]] = set()
        if bids:
            self.bid = self._bid

    async def step(self, message: Message) -> Message:
        """The answer of one of the replicas. Raises AgentError."""
        answer: Message = await self._ask("step", message)
        return answer

    async def _bid(self, message: Message) -> float:
        bid: float = await self._ask("bid", message)
        return bid

    def _ask(self, method: str, message: Message) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting[method].append((message, future))
        if self._scheduled is not loop:
            # At the end of this turn of the event loop: conversations that are ready now go together.
            self._scheduled = loop
            loop.call_soon(self._send)
        return future

    def _send(self) -> None:
        self._scheduled = None
        for method, waiting in self._waiting.items():
            while waiting and not self._replicas:
                _settle([waiting.popleft()], [AgentError(f"agent {self.name!r}: all of its processes have died")])
            while waiting and self._free:
                batch = [waiting.popleft() for _ in range(min(len(waiting), self._max_batch))]
                batch = [(m, f) for m, f in batch if not f.done()]  # of a conversation that was cut off
                if not batch:
                    continue
                replica = self._free.popleft()
                call = asyncio.ensure_future(self._call(replica, method, batch))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
                if self._overlaps:
                    self._free.append(replica)

    async def _call(self, replica: Any, method: str, batch: list[tuple[Message, asyncio.Future[Any]]]) -> None:
        results: list[Any] = []
        try:
            answers, failed = await replica.call.remote(method, pack([m for m, _ in batch]))
            good = iter(unpack(answers) if isinstance(answers, tuple) else answers)
            results = [_error(*failed[i]) if i in failed else next(good) for i in range(len(batch))]
        except RayActorError as error:
            # It is not asked again; what waits goes to the others.
            self._replicas = [r for r in self._replicas if r is not replica]
            self._free = deque(r for r in self._free if r is not replica)
            reason = str(error).strip().splitlines()[0]
            results = [AgentError(f"agent {self.name!r}: its process died: {reason}")] * len(batch)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            results = [AgentError(f"agent {self.name!r}: its process failed: {reason}")] * len(batch)
        finally:  # also where the conversation was cut off while it waited
            if not self._overlaps and replica in self._replicas:
                self._free.append(replica)
        _settle(batch, results)
        if self._scheduled is None:
            self._send()


class Pool:
    """The replicas of one agent: started at once, `facts` waits for them.

    num_cpus, num_gpus: that each replica asks for. Raises nothing by itself; see `facts`.
    """

    def __init__(
        self,
        what: str,
        factory: Callable[[], Any],
        replicas: int,
        num_cpus: float,
        num_gpus: float,
        scheduling_strategy: Any = None,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> None:
        self._what = what
        # Ray's own retry can make a paid call twice, and a restarted actor forgets: neither is wanted.
        options: dict[str, Any] = {"max_task_retries": 0, "max_restarts": 0}
        options |= {"num_cpus": num_cpus, "num_gpus": num_gpus}
        if scheduling_strategy is not None:
            options["scheduling_strategy"] = scheduling_strategy
        if runtime_env is not None:
            options["runtime_env"] = dict(runtime_env)
        self._demand = {k: float(v) for k, v in (("CPU", num_cpus), ("GPU", num_gpus)) if v}
        host = ray.remote(AgentHost).options(**options)
        self.hosts: list[Any] = [host.remote(factory) for _ in range(replicas)]
        self._placed = [h.ready.remote() for h in self.hosts]
        self._setups = [h.setup.remote() for h in self.hosts]

    def facts(self) -> dict[str, Any]:
        """Waits for placement and set-up; what callers must know of the agent. Raises PlacementError or AgentError."""
        try:
            await_placed(self._placed, [self._demand] * len(self.hosts), self._what)
            facts: dict[str, Any] = ray.get(self._setups)[0]
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, A2AError) else AgentError(f"{self._what}: {cause}") from None
        except RayActorError as error:
            reason = str(error).splitlines()[0]
            raise PlacementError(f"{self._what}: its process died at the start: {reason}") from None
        return facts


def remote(
    agent_factory: Callable[[], Any],
    *,
    replicas: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    scheduling_strategy: Any = None,
    runtime_env: Mapping[str, Any] | None = None,
    max_batch: int = 64,
    address: str | None = None,
) -> RemoteAgent:
    """An agent that works in Ray actors: `agent_factory()` is called once in each of the `replicas`.

    num_cpus, num_gpus: per replica. scheduling_strategy, runtime_env: as Ray takes them. max_batch: most messages in a
    call. Connects to `address`, or starts a local Ray, unless Ray runs already. Raises PlacementError within 10 s where
    the replicas cannot be placed, and AgentError where the agent cannot be set up.
    """
    if replicas < 1 or max_batch < 1:
        raise BadInput(f"replicas: {replicas}, max_batch: {max_batch}; expected at least 1 of each")
    connect(address)
    pool = Pool("the remote agent", agent_factory, replicas, num_cpus, num_gpus, scheduling_strategy, runtime_env)
    facts = pool.facts()
    return RemoteAgent(facts["name"], pool.hosts, facts["overlaps"], facts["bids"], max_batch)


def _settle(batch: list[tuple[Message, asyncio.Future[Any]]], results: list[Any]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _sentence(name: str, turn: int, error: object) -> str:
    if isinstance(error, A2AError):
        return str(error)
    return f"agent {name!r} failed at turn {turn}: {type(error).__name__}: {error}"


def _error(kind: str, sentence: str) -> AgentError:
    """The plain error of this package for what an agent raised in its process."""
    cls = getattr(errors, kind, AgentError) if kind else AgentError
    return cls(sentence) if isinstance(cls, type) and issubclass(cls, AgentError) else AgentError(sentence)
