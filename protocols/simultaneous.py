"""All agents answer at once, each from the same state."""

from __future__ import annotations

from typing import Any, Literal

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import COMBINE, NUDGE, Message
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import Next, ProtocolMessage, TurnContext
from a2a_ray.protocols.history_window import Context, window, with_nudges


class Simultaneous(TurnProtocol):
    """Every round all agents speak at once; what they said may be combined into one recorded message.

    combine: "mean" (vectors: the average is what all are shown next), "join" (texts: all of them, each with its
    speaker's name), or None: each agent is shown what the agent before it (in a ring) said in the round before, so two
    agents run two interleaved chains.
    context: as for `alternating`; with a combination it is taken over the combined messages, without over the chain.
    nudge: {text, sender}: what all are shown when an observer asks for a nudge.
    """

    def __init__(
        self,
        combine: Literal["mean", "join"] | None = None,
        context: Context = "last",
        nudge: dict[str, str] | None = None,
    ) -> None:
        if combine not in ("mean", "join", None):
            raise ConfigurationError(f"combine: {combine!r}; expected mean, join or None")
        self._combine = combine
        self._window = window(context)
        self.nudge_text = NudgeText.parse(nudge)

    def speakers(self, transcript: Transcript) -> Next:
        size, said = len(transcript.agents), len(transcript.messages)
        done = said % size
        newest = next((m.kind for m in reversed(transcript.turns) if m.kind != NUDGE), "")
        if done or not said or self._combine is None or newest == COMBINE:
            return transcript.agents[done:]  # the rest of a round that was cut off, or a whole one
        return ProtocolMessage("all", _combined(transcript.messages[-size:], self._combine))

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        size = len(transcript.agents)
        earlier = len(transcript.messages) // size
        if self._combine is not None:
            said = [m for m in transcript.turns if m.kind == COMBINE]
        else:
            place = transcript.agents.index(speaker)
            said = [transcript.messages[r * size + (place - (earlier - r)) % size] for r in range(earlier)]
        return with_nudges(self._window(transcript.opening, said), said, transcript, speaker)


def _combined(messages: list[Message], how: str) -> Any:
    texts = [isinstance(m.content, str) for m in messages]
    if how == "join":
        if not all(texts):
            raise ConfigurationError("combine: join is for texts, and an agent said a vector; use mean or none")
        return "\n".join(f"{m.sender}: {m.content}" for m in messages)
    import numpy as np

    shapes = [np.shape(m.content) for m in messages]
    if any(texts) or len(set(shapes)) > 1:
        said = ", ".join(f"{m.sender}: {'text' if t else s}" for m, t, s in zip(messages, texts, shapes, strict=True))
        raise ConfigurationError(f"combine: mean is for vectors of one shape; said was {said}; use join for texts")
    return np.mean(np.stack([np.asarray(m.content) for m in messages]), axis=0)
