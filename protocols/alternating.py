"""Give turns in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext
from a2a_ray.protocols.history_window import Context, window, with_nudges


class Alternating(TurnProtocol):
    """Give each agent its turn, round after round in the same order; any number of agents.

    context: the context of a turn: `last`, `all`, `{last: k}` or `{characters: n}`.
    order: names in order of speaking; by default the order of the agents. A name may occur more than once.
    nudge: {text, sender}: the message to all agents if an observer requests a nudge.
    """

    def __init__(
        self, context: Context = "last", order: list[str] | None = None, nudge: dict[str, str] | None = None
    ) -> None:
        if order is not None and not order:
            raise ConfigurationError("order: []; expected at least one name. Omit the key for the order of the agents")
        self._window = window(context)
        self.nudge_text = NudgeText.parse(nudge)
        self._order = tuple(order) if order else None

    def check(self, agents: Sequence[str]) -> None:
        """Check the names in `order`. Raises ConfigurationError for an unknown one."""
        for name in self._order or ():
            if name not in agents:
                raise ConfigurationError("protocol.order: " + unknown("agent", name, agents))

    def speakers(self, transcript: Transcript) -> str:
        """Return the agent whose turn it is in the order."""
        order = self._order or transcript.agents
        return order[len(transcript.messages) % len(order)]

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the messages in the history window, with the nudges that belong to them."""
        messages = transcript.messages
        context = self._window(transcript.opening, messages)
        if len(messages) == len(transcript.turns):  # no nudges: skip the search, which keeps turns cheap
            return context
        return with_nudges(context, messages, transcript, speaker)
