"""The contracts that agents, protocols and observers fulfil. Small on purpose: one or two methods each."""

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
    """Anything with a name (a Python identifier) and a `step`.

    Stateless between turns: the answer depends on the message, the agent's own configuration and `message.seed`, so any
    replica can take any turn. Optional, looked up by name:

    * `step_batch(messages) -> list of answers` (may be async): the same answers as one `step` each, in order;
    * `bid(message) -> float`: how much the agent wants the turn (adaptive protocols ask for it);
    * `check()`: raises ConfigurationError, before anything starts, for what this machine can know to be wrong (cheap);
    * `setup()`: loads what is heavy, once, in the process where the agent works;
    * `placement`: "worker" (light: lives inside the conversation worker) or "actor" (heavy: its own Ray actor);
    * `turn_options`: the settings that `message.options` can override for one turn;
    * `own_limits`: names out of `timeout` and `max_concurrency`: what a specification says of them under `limits:` goes
      to parameters of the same names of the agent's constructor, and the agent keeps to them by itself;
    * `max_output_tokens() -> int | None`: the most tokens that one answer can have, by the agent's settings; None if
      they set no limit, 0 for an agent that is no language model. `--dry-run` and budgets reckon with it; without it
      an agent that has a price, or is `paid`, is taken at 500 tokens, and any other at none in `--dry-run`;
    * `max_input_tokens() -> int` and `max_requests`: of an agent that does not pass on what it is shown: what one of
      its requests reads, and how many requests a step makes at most (1 by default);
    * `paid`: True where a call costs money: in an actor it is then asked by `step` alone, and never asked twice unknown
      to the ledger (`price:` in a specification says the same).

    A foreign agent that keeps memory between turns says so with `stateful = True` and gives

    * `get_state(conversation) -> state`: what it remembers of a conversation, a JSON value. It is kept with each of the
      agent's answers, as `metadata["state"]`;
    * `set_state(conversation, state)`: it goes on from this state; from None as if it had never heard of the
      conversation, which also frees what it holds of one that is over.

    In an actor, all turns of a conversation then go to one replica, and a replica that is new to it is told the newest
    state first. A stateful agent is asked by `step`, never by `step_batch`.
    """

    name: str

    def step(self, message: Message) -> Message | Awaitable[Message]:
        """The agent's answer to one message; make it with `message.reply(content, sender=self.name)`."""
        ...


class TurnProtocol(ABC):
    """Who speaks next and what each is shown: a pure function of the transcript (and its seed).

    A new protocol is `speakers`; and `context` where what is shown is no plain window of the talk. The same object
    serves many conversations at once, so it must keep nothing between calls.
    """

    @abstractmethod
    def speakers(self, transcript: Transcript) -> Next:
        """The next speaker's name, several names (they answer at once), `BidRequest`, `ProtocolMessage` or `Stop`."""

    def check(self, agents: Sequence[str]) -> None:  # noqa: B027  (most protocols lead any agents)
        """Raises ConfigurationError, before anything starts, where the protocol cannot lead agents of these names."""

    nudge_text: NudgeText | None = None
    """What `nudge` says by default; the built-in protocols take it as `nudge: {text: ..., sender: ...}`."""

    def nudge(self, transcript: Transcript, verdict: ObserverVerdict) -> ProtocolMessage | None:
        """What to record when an observer asks for a nudge (`verdict.action == "nudge"`), before the next turn.

        Its kind becomes "nudge": it counts for no limit and in no order of turns. `context` decides how agents see it
        (it is in `transcript.turns`; `protocols.windows.with_nudges` adds it to a window). By default the record says
        `nudge_text`. Return None to let this one pass. An observer with `action: nudge` is refused if a protocol
        neither overrides this method nor has a `nudge_text`.
        """
        return None if self.nudge_text is None else self.nudge_text.say(verdict)

    @abstractmethod
    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """What `speaker` is shown for the turn that `speakers` gave it."""


@runtime_checkable
class Observer(Protocol):
    """Sees every message of ONE conversation in order; its state follows from them alone.

    Optional: `findings(conversation_id) -> list[Finding]`: what it has found in all that it saw, at least one finding
    (status "none" for nothing). They are stored with the run, beside those of `a2a-ray analyze`.
    """

    def update(self, message: Message) -> ObserverVerdict:
        """The verdict after this message."""
        ...
