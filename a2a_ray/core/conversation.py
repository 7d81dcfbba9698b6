"""The conversation loop: ask the protocol who speaks, call the speaker, append the answer. No Ray here."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.contract_checks import (
    check_agents,
    check_context,
    check_judges,
    check_next,
    check_part,
    check_reason,
    check_verdict,
)
from a2a_ray.core.contracts import Agent, Observer, TurnProtocol
from a2a_ray.core.errors import A2AError, AgentError, ConfigurationError, InvalidResponseError, traceback_of
from a2a_ray.core.message import ASIDE, BID, EMPTY, NUDGE, REVIEW, Content, Message, checked_answer, checked_content
from a2a_ray.core.nudge_checks import can_nudge, check_nudges, refusal
from a2a_ray.core.registry import protocols
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.termination import MaxTurns, TerminationCondition
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.core.turns import BidRequest, ProtocolMessage, Stop, TurnContext
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

DEFAULT_ROUNDS = 25
MAX_SILENT_RECORDS = 100
"""The most records per agent (bids and combinations) without a message; limits count messages only."""


class Conversation:
    """Agents that answer each other until a limit, a termination condition, an observer or the protocol ends it.

        async for turn in Conversation([ann, bob], opening="Hello.", max_rounds=3):
            print(turn.sender, turn.content)

    Args:
        agents: at least one; their names must differ and be Python identifiers.
        protocol: a TurnProtocol, or the name of one ("alternating" by default).
        opening: turn 0, the first speaker's context: text, or a 1-D array of floats.
        max_rounds, max_turns: the limit in rounds (each agent once) or in messages; 25 rounds by default.
        termination: another TerminationCondition.
        observers: each receives every record.
        options: settings per agent, sent with each of its turns.
        transcript: an earlier transcript of the same conversation to continue. The conversation works on a copy. The
            observers given here receive its records first, and its verdicts are replaced by theirs.

    Raises:
        ConfigurationError: the conversation cannot start as configured.

    A failing agent, observer or protocol raises AgentError while the conversation runs. The transcript is then marked
    as failed and keeps all earlier records.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        protocol: TurnProtocol | str = "alternating",
        opening: Content = "",
        *,
        max_rounds: int | None = None,
        max_turns: int | None = None,
        seed: int = 0,
        id: str = "conversation",
        termination: TerminationCondition | None = None,
        observers: Mapping[str, Observer] | Sequence[Observer] = (),
        options: Mapping[str, Mapping[str, Any]] = EMPTY,
        transcript: Transcript | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        check_agents(agents)
        self.agents = {agent.name: agent for agent in agents}
        check_names([agent.name for agent in agents])
        self.limit = MaxTurns(_max_turns(max_rounds, max_turns, len(agents)))
        self.termination = termination
        if termination is not None:
            check_part("termination condition", termination, "termination")
        self.protocol = protocols.build({"kind": protocol}, "protocol") if isinstance(protocol, str) else protocol
        check_part("protocol", self.protocol, "protocol")
        self.observers = _named(observers)
        self._judged: list[tuple[str, Any]] = [pair for pair in self.observers if hasattr(pair[1], "review")]
        check_judges([(name, observer.judge.name) for name, observer in self._judged], self.agents)
        self.options = options
        self._newest: list[tuple[str, ObserverVerdict]] = []  # of the newest record, by observer
        self._nudging: tuple[str, ObserverVerdict] | None = None  # the newest request for a nudge, not yet handled
        earlier: Sequence[Message] = ()
        if transcript is None:
            self.transcript = Transcript(id, tuple(self.agents), opening, seed, metadata)
        else:
            self.transcript, earlier = transcript.copy(), transcript.turns
            self.transcript.verdicts = []
        acting = [(f"observer {name}", observer) for name, observer in self.observers]
        check_nudges(self.protocol, acting, tuple(self.agents), self.transcript.opening.content)
        for message in earlier:
            self._nudging = None  # only the last record can still be nudged
            self._observe(message)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield every record as it is made, with bids, combinations, nudges and reviews."""
        transcript = self.transcript
        try:
            if transcript.status == RUNNING and self._over():
                return
            while transcript.status == RUNNING:
                answers = () if self._nudging is None else self._nudge(*self._nudging)
                if self._judged and not answers:
                    answers = await self._review()
                for answer in answers or await self._next():
                    transcript.append(answer)
                    over, failure = False, None
                    try:
                        if self.observers:
                            self._observe(answer)
                        # After every record, also within simultaneous turns: a run cut there resumes to the same end.
                        over = self._over()
                    except Exception as error:
                        failure = error
                    yield answer  # before an observer's failure is raised: the record has to be stored
                    if failure is not None:
                        raise failure
                    if over:
                        return
        except Exception as error:
            sentence = str(error) if isinstance(error, A2AError) else f"{type(error).__name__}: {error}"
            transcript.status, transcript.error, transcript.traceback = FAILED, sentence, traceback_of(error)
            if isinstance(error, A2AError):
                raise
            raise AgentError(sentence) from error

    async def run_async(self) -> Transcript:
        """Run to the end and return the transcript; a failing agent raises AgentError."""
        async for _ in self:
            pass
        return self.transcript

    def run(self) -> Transcript:
        """Do the same as `run_async` in code without an event loop; in a notebook it uses a thread of its own."""
        running = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            running = False
        if not running:  # not within `except`: that error would be the context of every other
            return asyncio.run(self.run_async())
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self.run_async()).result()

    def _over(self) -> bool:
        """Return whether a limit, a condition or an observer ends the conversation, and write why to the transcript."""
        transcript = self.transcript
        by, reason = "", self.limit.check(transcript)
        if reason is None and self.termination is not None:
            reason = check_reason(self.termination.check(transcript), self.termination)
        if reason is None and self._newest:
            for name, verdict in self._newest:
                if verdict.action == "stop":
                    by, reason = name, f"{name}: {verdict.reason}"
                    break
        if reason is not None:
            transcript.status, transcript.reason, transcript.stopped_by = DONE, reason, by
        return reason is not None

    def _nudge(self, observer: str, verdict: ObserverVerdict) -> Sequence[Message]:
        """Return the protocol's record for an observer's request for a nudge, if it gives one."""
        self._nudging = None
        if not can_nudge(self.protocol):  # an observer that does not declare its action in advance
            raise ConfigurationError(f"observer {observer}: {refusal(self.protocol)}")
        nudge = self.protocol.nudge(self.transcript, verdict)
        return () if nudge is None else (self._protocol_record(nudge, NUDGE),)

    async def _review(self) -> Sequence[Message]:
        """Return the answer of the first judge that its observer wants to ask now, if any does.

        A judge answers at most once after each message, whatever its observer wants.
        """
        transcript = self.transcript
        seq, asides = len(transcript) + 1, len(transcript) - len(transcript.messages)
        since = transcript.messages[-1].seq if transcript.messages else 0
        answered = {record.sender for record in transcript.turns[since:] if record.kind == REVIEW}
        for name, observer in self._judged:
            judge, seed = observer.judge.name, turn_seed(transcript.seed, seq)
            if judge in answered:
                continue
            options = self.options.get(judge, EMPTY)
            request = Message(transcript.id, seq, "", "", seed=seed, options=options, asides=asides)
            try:
                review = observer.review(request)
                if review is None:
                    continue
                return (replace(checked_answer(await review, request, judge), kind=REVIEW),)
            except A2AError:
                raise
            except (Exception, SystemExit) as error:
                where = f"observer {name!r} failed after turn {seq - asides - 1}"
                raise AgentError(f"{where}: {type(error).__name__}: {error}") from error
        return ()

    def _protocol_record(self, message: ProtocolMessage, kind: str) -> Message:
        """Return the next record, with content from the protocol itself."""
        transcript = self.transcript
        seq = len(transcript) + 1
        asides = seq - 1 - len(transcript.messages)
        content = checked_content(message.content, None, f"the protocol at turn {seq - asides}")
        request = Message(transcript.id, seq, "", "", seed=turn_seed(transcript.seed, seq), asides=asides)
        return request.reply(content, message.sender, kind=kind)

    async def _next(self) -> Sequence[Message]:
        """Return the next record, or several if agents speak at once; none if the protocol stops."""
        transcript = self.transcript
        seq, asides = len(transcript.turns) + 1, len(transcript.turns) - len(transcript.messages)
        chosen = self.protocol.speakers(transcript)
        if type(chosen) is not str:  # a name needs no check
            chosen = check_next(chosen, self.protocol, seq - asides)
        silent = seq - 1 - (transcript.messages[-1].seq if transcript.messages else 0)
        if silent > MAX_SILENT_RECORDS * len(self.agents):
            raise AgentError(
                f"protocol {type(self.protocol).__name__}: {silent} records without a message; expected at most"
                f" {MAX_SILENT_RECORDS} per agent. Does it request bids in an endless loop?"
            )
        if isinstance(chosen, str):
            return (await self._call(chosen, self._request(chosen, seq, asides)),)
        if isinstance(chosen, Stop):
            transcript.status, transcript.reason = DONE, chosen.reason
            return ()
        if isinstance(chosen, ProtocolMessage):
            return (self._protocol_record(chosen, chosen.kind),)
        if isinstance(chosen, BidRequest):
            bidders = enumerate(chosen.speakers)  # each bid for the same turn
            calls = [self._call(name, self._request(name, seq + i, asides + i), BID) for i, name in bidders]
        else:
            calls = [self._call(name, self._request(name, seq + i, asides)) for i, name in enumerate(chosen)]
        if not calls:
            raise ConfigurationError(
                f"the protocol {type(self.protocol).__name__} named no speaker at turn {seq - asides};"
                " expected a name or Stop"
            )
        return await asyncio.gather(*calls)

    def _request(self, speaker: str, seq: int, asides: int) -> Message:
        """Return the message that the speaker's `step` or `bid` receives: its context for this turn."""
        transcript, turn = self.transcript, seq - asides
        if speaker not in self.agents:
            raise AgentError(f"the protocol named {speaker!r} at turn {turn}; the agents are {', '.join(self.agents)}")
        context = self.protocol.context(transcript, speaker)
        if type(context) is not TurnContext:
            context = check_context(context, self.protocol, turn)
        sender, content, history, options = context
        if self.options and speaker in self.options:
            options = {**self.options[speaker], **options}
        seed = turn_seed(transcript.seed, seq)
        return Message(transcript.id, seq, sender, content, history, seed, options, asides=asides)

    async def _call(self, speaker: str, message: Message, kind: str = "message") -> Message:
        agent = self.agents[speaker]
        method: Any = agent.step if kind != BID else agent_traits(agent).bid
        if method is None:
            raise AgentError(
                f"agent {speaker!r}: {type(agent).__name__} has no bid(message); implement it, or use an adaptive"
                " protocol with by: score or by: observer"
            )
        try:
            answer = method(message)
            if type(answer) is not Message and inspect.isawaitable(answer):
                answer = await answer
        except A2AError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() in an agent ends its conversation, not the program
            raise AgentError(
                f"agent {speaker!r} failed at turn {message.turn}: {type(error).__name__}: {error}"
            ) from error
        if kind != BID:
            return checked_answer(answer, message, speaker)
        if not isinstance(answer, (int, float)) or not math.isfinite(answer):
            raise InvalidResponseError(
                f"agent {speaker!r} bid {answer!r} at turn {message.turn}; expected a finite number"
            )
        return message.reply(repr(float(answer)), speaker, kind=BID)

    def _observe(self, message: Message) -> None:
        self._newest = []
        for name, observer in self.observers:
            turn = message.seq - message.asides - (message.kind in ASIDE)
            try:
                verdict = observer.update(message)
            except A2AError:
                raise
            except (Exception, SystemExit) as error:
                where = f"observer {name!r} failed at turn {turn}"
                raise AgentError(f"{where}: {type(error).__name__}: {error}") from error
            if verdict is NOTHING:
                continue
            check_verdict(verdict, name, turn)
            if verdict == NOTHING:
                continue
            self.transcript.verdicts.append((turn, name, verdict))
            self._newest.append((name, verdict))
            if verdict.action == "nudge":
                self._nudging = name, verdict


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigurationError unless there is at least one agent and all names are different Python identifiers."""
    if not names:
        raise ConfigurationError("agents: none given; expected at least one")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"agent name {name!r}; expected a Python identifier such as 'ann' or 'agent_1'")
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigurationError(f"agent name {twice!r} is given twice; names must differ within a conversation")


def _max_turns(max_rounds: int | None, max_turns: int | None, agents: int) -> int:
    """Return the limit in messages. Raises ConfigurationError."""
    if max_rounds is not None and max_turns is not None:
        raise ConfigurationError(f"max_rounds: {max_rounds} and max_turns: {max_turns}; give one of them")
    rounds = DEFAULT_ROUNDS if max_rounds is None else max_rounds
    limit = max_turns if max_turns is not None else rounds * agents
    if limit < 1:
        name, value = ("max_rounds", max_rounds) if max_turns is None else ("max_turns", max_turns)
        raise ConfigurationError(f"{name}: {value}; expected at least 1")
    return limit


def _named(observers: Mapping[str, Observer] | Sequence[Observer]) -> tuple[tuple[str, Observer], ...]:
    """Return pairs of name and observer; pairs, because two observers of one class share a name."""
    if not isinstance(observers, (Mapping, Sequence)):
        raise ConfigurationError(f"observers: {type(observers).__name__}; expected a list of observers")
    named = observers.items() if isinstance(observers, Mapping) else ((type(o).__name__, o) for o in observers)
    pairs = tuple(named)
    for name, observer in pairs:
        check_part("observer", observer, f"observers.{name}")
    return pairs
