"""Let all agents answer at once, from the same state."""

from __future__ import annotations

from typing import Any, Literal

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import COMBINE, NUDGE, REVIEW, Message
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import Next, ProtocolMessage, TurnContext
from a2a_ray.protocols.history_window import Context, window, with_nudges


class Simultaneous(TurnProtocol):
    """Let all agents speak at once in every round; optionally combine their messages into one.

    combine:
        "mean": the average of the vectors is the next content for all agents;
        "join": all texts, each with its speaker's name, are the next content for all agents;
        None: each agent receives the last message of the agent before it in a ring. Two agents run two interleaved
        chains.
    context: as for `alternating`, over the combined messages, or without `combine` over the agent's chain.
    nudge: {text, sender}: the message to all agents if an observer requests a nudge.
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
        """Return the agents of the round that have not spoken, or the combination of a complete round."""
        size, count = len(transcript.agents), len(transcript.messages)
        done = count % size
        newest = next((m.kind for m in reversed(transcript.turns) if m.kind not in (NUDGE, REVIEW)), "")
        if done or not count or self._combine is None or newest == COMBINE:
            return transcript.agents[done:]  # a whole round, or the rest of an interrupted one
        return ProtocolMessage("all", _combined(transcript.messages[-size:], self._combine))

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the combined messages, or the agent's chain, in the history window, with their nudges."""
        size = len(transcript.agents)
        earlier = len(transcript.messages) // size
        if self._combine is not None:
            messages = [m for m in transcript.turns if m.kind == COMBINE]
        else:
            place = transcript.agents.index(speaker)
            messages = [transcript.messages[r * size + (place - (earlier - r)) % size] for r in range(earlier)]
        return with_nudges(self._window(transcript.opening, messages), messages, transcript, speaker)


def _combined(messages: list[Message], how: str) -> Any:
    texts = [isinstance(m.content, str) for m in messages]
    if how == "join":
        if not all(texts):
            raise ConfigurationError("combine: join; an agent answered a vector, expected texts. Use mean or none")
        return "\n".join(f"{m.sender}: {m.content}" for m in messages)
    import numpy as np

    shapes = [np.shape(m.content) for m in messages]
    if any(texts) or len(set(shapes)) > 1:
        said = ", ".join(f"{m.sender}: {'text' if t else s}" for m, t, s in zip(messages, texts, shapes, strict=True))
        raise ConfigurationError(
            f"combine: mean; the answers are {said}; expected vectors of one shape. Use join for texts"
        )
    return np.mean(np.stack([np.asarray(m.content) for m in messages]), axis=0)
