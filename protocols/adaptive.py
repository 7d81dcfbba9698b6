"""Give the next turn to the agent with the highest score."""

from __future__ import annotations

import math
from typing import Any, Literal

from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import BID
from a2a_ray.core.nudge import NudgeText
from a2a_ray.core.registry import load
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import BidRequest, Next, TurnContext
from a2a_ray.protocols.history_window import Context, window, with_nudges


class Adaptive(TurnProtocol):
    """Give the next turn to the highest score. Ties go to the agent that has waited longest, then to the first agent.

    by: the source of the scores:
        "bid": each agent's `bid(message)`; bids are stored (an LSA agent bids its own residual);
        "score": `score(transcript, agent_name) -> float`, a function or "module:attr";
        "observer": the `scores` of the newest verdict that has scores; 0 for agents that it omits.
    context: the context of a turn and of a bid.
    repeat: whether the same agent may speak twice in a row.
    nudge: {text, sender}: the message to all agents if an observer requests a nudge.
    """

    def __init__(
        self,
        by: Literal["bid", "score", "observer"] = "bid",
        score: Any = None,
        context: Context = "last",
        repeat: bool = True,
        nudge: dict[str, str] | None = None,
    ) -> None:
        if by not in ("bid", "score", "observer"):
            raise ConfigurationError(f"by: {by!r}; expected bid, score or observer")
        if (by == "score") != (score is not None):
            raise ConfigurationError(f"by: {by!r} and score: {score!r}; expected 'score' with by: score, and only then")
        self._by = by
        self._score = load(score, "score") if isinstance(score, str) else score
        if score is not None and not callable(self._score):
            raise ConfigurationError(f"score: {score!r}; expected a function score(transcript, agent_name) -> float")
        self._window = window(context)
        self.nudge_text = NudgeText.parse(nudge)
        self._repeat = repeat

    def speakers(self, transcript: Transcript) -> Next:
        """Return the agent with the highest score, or a request for the bids that are missing.

        Raises ConfigurationError for a NaN or infinite score.
        """
        messages = transcript.messages
        candidates = transcript.agents
        if not self._repeat and messages and len(candidates) > 1:
            candidates = tuple(a for a in candidates if a != messages[-1].sender)
        if self._by == "bid":
            bids = _bids_since_message(transcript)
            missing = [a for a in candidates if a not in bids]
            if missing:
                return BidRequest(missing)
            scores = bids
        elif self._by == "score":
            scores = {a: float(self._score(transcript, a)) for a in candidates}
            if wrong := [a for a, s in scores.items() if not math.isfinite(s)]:
                raise ConfigurationError(f"score: {scores[wrong[0]]} for agent {wrong[0]!r}; expected finite numbers")
        else:
            scores = next((dict(v.scores) for _, _, v in reversed(transcript.verdicts) if v.scores), {})
        last_turn = {m.sender: m.turn for m in messages}
        return max(candidates, key=lambda a: (scores.get(a, 0.0), -last_turn.get(a, 0)))

    def context(self, transcript: Transcript, speaker: str) -> TurnContext:
        """Return the messages in the history window, with the nudges that belong to them."""
        messages = transcript.messages
        context = self._window(transcript.opening, messages)
        if len(messages) == len(transcript.turns):  # no nudges: skip the search, which keeps turns cheap
            return context
        return with_nudges(context, messages, transcript, speaker)


def _bids_since_message(transcript: Transcript) -> dict[str, float]:
    bids: dict[str, float] = {}
    for record in reversed(transcript.turns):
        if record.kind != BID:
            break
        bids[record.sender] = float(str(record.content))
    return bids
