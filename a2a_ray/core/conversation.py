"""The conversation loop: asks the protocol who speaks and the speaker for an answer, and keeps it. No Ray here."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from a2a_ray.core.contract_checks import (
    check_agents,
    check_context,
    check_next,
    check_part,
    check_reason,
    check_verdict,
)
from a2a_ray.core.contracts import Agent, Observer, TurnProtocol
from a2a_ray.core.errors import A2AError, AgentError, ConfigurationError, InvalidResponseError, traceback_of
from a2a_ray.core.message import ASIDE, BID, EMPTY, NUDGE, Content, Message, checked_answer, checked_content
from a2a_ray.core.nudge_checks import can_nudge, check_nudges, refusal
from a2a_ray.core.registry import protocols
from a2a_ray.core.seeds import turn_seed
from a2a_ray.core.termination import MaxTurns, TerminationCondition
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript
from a2a_ray.core.turns import BidRequest, ProtocolMessage, Stop, TurnContext
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

DEFAULT_ROUNDS = 25
MOST_SILENT = 100
"""Most records per agent, bids and combinations, without a message: limits count messages only."""


class Conversation:
    """Agents that answer each other until a limit, a stop condition, an observer or the protocol ends it.

        async for turn in Conversation([ann, bob], opening="Hello.", max_rounds=3):
            print(turn.sender, turn.content)

    agents: at least one; their names must differ and be Python identifiers.
    protocol: a TurnProtocol, or the name of one ("alternating" by default).
    opening: what the first speaker is shown as turn 0: text, or a 1-D array of floats.
    max_rounds or max_turns: the limit, in rounds (each agent once) or in single messages; 25 rounds by default.
    termination: a further TerminationCondition. observers: each sees every message.
    options: per agent, settings that go with each of its turns.
    transcript: goes on from an earlier transcript of the same conversation instead of starting anew. It works on a
    copy; the verdicts are those of the observers given here, which see first what was said before.

    Raises ConfigurationError for what cannot be started. While it runs, a failing agent, observer or protocol raises
    AgentError, after the transcript was marked as failed; what was said before is kept in `transcript`.
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
        if max_rounds is not None and max_turns is not None:
            raise ConfigurationError(f"max_rounds: {max_rounds} and max_turns: {max_turns}; give one of them")
        rounds = DEFAULT_ROUNDS if max_rounds is None else max_rounds
        limit = max_turns if max_turns is not None else rounds * len(agents)
        if limit < 1:
            name, value = ("max_rounds", max_rounds) if max_turns is None else ("max_turns", max_turns)
            raise ConfigurationError(f"{name}: {value}; expected at least 1")
        self.limit = MaxTurns(limit)
        self.termination = termination
        if termination is not None:
            check_part("termination condition", termination, "termination")
        self.protocol = protocols.build({"kind": protocol}, "protocol") if isinstance(protocol, str) else protocol
        check_part("protocol", self.protocol, "protocol")
        # Pairs, not a mapping: two observers of one class are two.
        if not isinstance(observers, (Mapping, Sequence)):
            raise ConfigurationError(f"observers: {type(observers).__name__}; expected a list of observers")
        named = observers.items() if isinstance(observers, Mapping) else ((type(o).__name__, o) for o in observers)
        self.observers = tuple(named)
        for name, observer in self.observers:
            check_part("observer", observer, f"observers.{name}")
        self.options = options
        self._newest: list[tuple[str, ObserverVerdict]] = []  # of the newest record, by observer
        self._nudging: tuple[str, ObserverVerdict] | None = None  # the newest call for a nudge that nobody has answered
        if transcript is None:
            self.transcript = Transcript(id, tuple(self.agents), opening, seed, metadata)
            before: Sequence[Message] = ()
        else:
            self.transcript = transcript.copy()
            self.transcript.verdicts = []
            before = transcript.turns
        asking = [(f"observer {name}", observer) for name, observer in self.observers]
        check_nudges(self.protocol, asking, tuple(self.agents), self.transcript.opening.content)
        for message in before:  # observers of a resumed conversation see what went before
            self._nudging = None  # of all that was said only the last record can still be nudged
            self._observe(message)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Every record as it is made, bids and combinations included."""
        transcript = self.transcript
        try:
            if transcript.status == RUNNING and self._over():
                return
            while transcript.status == RUNNING:
                answers = () if self._nudging is None else self._nudge(*self._nudging)
                for answer in answers or await self._next():
                    transcript.append(answer)
                    over, failed = False, None
                    try:
                        if self.observers:
                            self._observe(answer)
                        # After every record, also within simultaneous turns: a talk cut there ends the same way.
                        over = self._over()
                    except Exception as error:
                        failed = error
                    yield answer  # before the failure of an observer: it was said, and has to be stored
                    if failed is not None:
                        raise failed
                    if over:
                        return
        except Exception as error:
            sentence = str(error) if isinstance(error, A2AError) else f"{type(error).__name__}: {error}"
            transcript.status, transcript.error, transcript.traceback = FAILED, sentence, traceback_of(error)
            if isinstance(error, A2AError):
                raise
            raise AgentError(sentence) from error

    async def run_async(self) -> Transcript:
        """Runs to the end and gives the transcript; a failing agent raises AgentError."""
        async for _ in self:
            pass
        return self.transcript

    def run(self) -> Transcript:
        """`run_async` for code without an event loop; works in a notebook too (there in a thread of its own)."""
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
        """Whether a limit, a stop condition or an observer ends it now; says why in the transcript."""
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

    def _nudge(self, name: str, verdict: ObserverVerdict) -> Sequence[Message]:
        """What the protocol says to an observer's call for a nudge; mostly nothing."""
        self._nudging = None
        if not can_nudge(self.protocol):  # an observer that does not tell its action beforehand
            raise ConfigurationError(f"observer {name}: {refusal(self.protocol)}")
        said = self.protocol.nudge(self.transcript, verdict)
        return () if said is None else (self._say(said, NUDGE),)

    def _say(self, said: ProtocolMessage, kind: str) -> Message:
        """What the protocol itself puts on record."""
        transcript = self.transcript
        seq = len(transcript) + 1
        asides = seq - 1 - len(transcript.messages)
        content = checked_content(said.content, None, f"the protocol at turn {seq - asides}")
        asked = Message(transcript.id, seq, "", "", seed=turn_seed(transcript.seed, seq), asides=asides)
        return asked.reply(content, said.sender, kind=kind)

    async def _next(self) -> Sequence[Message]:
        """The next record, or records where several speak at once; none where the protocol stops."""
        transcript = self.transcript
        seq, asides = len(transcript.turns) + 1, len(transcript.turns) - len(transcript.messages)
        chosen = self.protocol.speakers(transcript)
        if type(chosen) is not str:  # of a name there is nothing to check
            chosen = check_next(chosen, self.protocol, seq - asides)
        silent = seq - 1 - (transcript.messages[-1].seq if transcript.messages else 0)
        if silent > MOST_SILENT * len(self.agents):
            raise AgentError(f"the protocol made {silent} records without a message; it seems to ask for bids for ever")
        if isinstance(chosen, str):
            return (await self._call(chosen, self._ask(chosen, seq, asides)),)
        if isinstance(chosen, Stop):
            transcript.status, transcript.reason = DONE, chosen.reason
            return ()
        if isinstance(chosen, ProtocolMessage):
            return (self._say(chosen, chosen.kind),)
        if isinstance(chosen, BidRequest):
            bidders = enumerate(chosen.speakers)  # each bid for the same turn
            calls = [self._call(name, self._ask(name, seq + i, asides + i), BID) for i, name in bidders]
        else:
            calls = [self._call(name, self._ask(name, seq + i, asides)) for i, name in enumerate(chosen)]
        if not calls:
            raise ConfigurationError(
                f"the protocol {type(self.protocol).__name__} named no speaker at turn {seq - asides};"
                " give a name or Stop"
            )
        return await asyncio.gather(*calls)

    def _ask(self, speaker: str, seq: int, asides: int) -> Message:
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
        method = getattr(agent, "bid" if kind == BID else "step", None)
        if method is None:
            raise AgentError(
                f"agent {speaker!r} ({type(agent).__name__}) has no bid(message); choose turns by score or observer"
            )
        try:
            answer = method(message)
            if type(answer) is not Message and inspect.isawaitable(answer):
                answer = await answer
        except A2AError:
            raise
        except (Exception, SystemExit) as error:  # sys.exit() in an agent ends its talk, not the program
            raise _failure(speaker, message.turn, error) from error
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
    """Raises ConfigurationError unless there is at least one agent and all names are different Python identifiers."""
    if not names:
        raise ConfigurationError("agents: none given; expected at least one")
    for name in names:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigurationError(f"agent name {name!r}; expected a Python identifier such as 'ann' or 'agent_1'")
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise ConfigurationError(f"agent name {twice!r} is given twice; names must differ within a conversation")


def _failure(speaker: str, turn: int, error: BaseException) -> AgentError:
    return AgentError(f"agent {speaker!r} failed at turn {turn}: {type(error).__name__}: {error}")
