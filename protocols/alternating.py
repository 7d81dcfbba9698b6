"""Turns in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext
from a2a_ray.protocols.history_window import Context, window, with_nudges


class Alternating(TurnProtocol):
    """Each agent in turn: two or any number, again and again in the same order.

    context: what each speaker is shown (`last`, `all`, `{last: k}`, `{characters: n}`).
    order: names in order of speaking; the order of the agents by default. A name may stand in it more than once.
    nudge: {text, sender}: what all are shown when an observer asks for a nudge.
    """

    def __init__(
        self, context: Context = "last", order: list[str] | None = None, nudge: dict[str, str] | None = None
    ) -> None:
        if order is not None and not order:
            raise ConfigurationError(
                "order: []; expected at least one name, or leave the key out for the order of the agents"
            )
        self._window = window(context)
        self.nudge_text = NudgeText.parse(nudge)
        self._order = tuple(order) if order else None

    def check(self, agents: Sequence[str]) -> None:
        for name in self._order or ():
            if name not in agents:
                raise ConfigurationError("protocol.order: " + unknown("agent", name, agents))

    def speakers(self, transcript: Transcript) -> str:
        order = self._order or transcript.agents
        return order[len(transcript.messages) % len(order)]

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        said = transcript.messages
        view = self._window(transcript.opening, said)
        # Most records are messages: then there is nothing to look for, and turns stay cheap.
        return view if len(said) == len(transcript.turns) else with_nudges(view, said, transcript, speaker)
