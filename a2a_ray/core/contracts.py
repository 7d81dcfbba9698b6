"""The contracts of agents, protocols and observers. Small on purpose: one or two methods each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from typing import Protocol, runtime_checkable

from a2a_ray.core.message import Message
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import Next, ProtocolMessage, TurnContext
from a2a_ray.core.verdict import ObserverVerdict


@runtime_checkable
class Agent(Protocol):
    """Any object with a name (a Python identifier) and a `step`.

    An agent is stateless between turns: the answer depends on the message, the agent's own configuration and
    `message.seed`, so any replica can take any turn. `BaseAgent` documents the optional features and their defaults,
    such as batches, bids, a check before the start, and memory between turns. They work on plain objects as well.
    """

    name: str

    def step(self, message: Message) -> Message | Awaitable[Message]:
        """Return the answer to one message, made with `message.reply(content, sender=self.name)`."""
        ...


class TurnProtocol(ABC):
    """Decides who speaks next, and in which context: a pure function of the transcript and its seed.

    A new protocol implements `speakers` and `context`. One object serves many conversations at once, so it must keep
    nothing between calls.
    """

    @abstractmethod
    def speakers(self, transcript: Transcript) -> Next:
        """Return the next speaker's name, several names (they answer at once), or one of the other decisions.

        Those are `BidRequest`, `ProtocolMessage` and `Stop`.
        """

    def check(self, agents: Sequence[str]) -> None:  # noqa: B027  (most protocols accept any agents)
        """Raise ConfigurationError, before anything starts, if the protocol cannot lead agents of these names."""

    nudge_text: NudgeText | None = None
    """The text of `nudge` by default; the built-in protocols take it as `nudge: {text: ..., sender: ...}`."""

    def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
        """Return the record to insert before the next turn when an observer requests a nudge; None to ignore it.

        By default the record contains `nudge_text`. Its kind becomes "nudge": it counts towards no limit and in no
        order of turns. `context` decides how agents see it: the record is in `transcript.turns`, and
        `history_window.with_nudges` adds it to a window. Observers with `action: nudge` are refused if the protocol
        neither overrides this method nor has a `nudge_text`.
        """
        return None if self.nudge_text is None else self.nudge_text.say(verdict)

    @abstractmethod
    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the context of `speaker` for the turn that `speakers` assigned."""


@runtime_checkable
class Observer(Protocol):
    """Receives every record of ONE conversation in order; its state depends on them alone.

    Optional: `findings(conversation_id) -> list[Finding]` returns what the observer found so far, at least one finding
    (status "none" for nothing). A run stores them beside those of `a2a-ray analyze`.

    Optional: `review(request) -> Awaitable[Message] | None`, together with `judge`, an agent. The conversation calls it
    before each turn, and takes at most one answer of a judge after each message. None requests nothing. Otherwise the
    answer, a reply to `request` signed with the judge's name, becomes a record of kind "review": it is stored, counts
    towards no limit, and every observer receives it. When a stored conversation continues, its observers receive the
    stored answers first, so none of them is requested again. `JudgedObserver` is an example.
    """

    def update(self, message: Message) -> ObserverVerdict:
        """Return the verdict after this message."""
        ...
