"""The append-only record of one conversation, from which everything else follows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from a2a_ray.core.contracts import Verdict
from a2a_ray.core.errors import BadInput
from a2a_ray.core.message import ASIDE, MESSAGE, Content, Message, checked_content

RUNNING, DONE, FAILED = "running", "done", "failed"


class Transcript:
    """The opening (turn 0) and all records after it, in order.

    id, agents: of the conversation; `agents` in the order of speaking where the protocol has one.
    seed: the conversation's seed.
    turns: every record, bids, combinations and nudges included; `turns[i].turn == i + 1`.
    messages: what agents said: `turns` without bids, combinations and nudges.
    status: "running", "done" or "failed"; `reason` says why it ended, `error` what failed.
    verdicts: (turn, observer, verdict) of every verdict that said something.
    metadata: of the conversation (cell of a sweep, labels, unknown keys of a foreign file).
    """

    __slots__ = (
        "agents",
        "error",
        "id",
        "messages",
        "metadata",
        "opening",
        "reason",
        "seed",
        "status",
        "turns",
        "verdicts",
    )

    def __init__(
        self,
        id: str,
        agents: tuple[str, ...],
        opening: Content = "",
        seed: int = 0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.agents = agents
        self.seed = seed
        self.opening = Message(id, 0, "", opening, seed=seed)
        self.turns: list[Message] = []
        self.messages: list[Message] = []
        self.status, self.reason, self.error = RUNNING, "", ""
        self.verdicts: list[tuple[int, str, Verdict]] = []
        self.metadata: dict[str, Any] = dict(metadata or {})

    def append(self, message: Message) -> None:
        """Puts one record at the end. Raises ValueError where its number is not the next."""
        if message.turn != len(self.turns) + 1:
            raise ValueError(f"turn {message.turn} cannot follow turn {len(self.turns)} of conversation {self.id!r}")
        self.turns.append(message)
        if message.kind == MESSAGE or message.kind not in ASIDE:
            self.messages.append(message)

    @property
    def last(self) -> Message:
        """The newest message, or the opening."""
        return self.messages[-1] if self.messages else self.opening

    def __len__(self) -> int:
        return len(self.turns)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.turns)

    def rounds(self) -> list[list[Message]]:
        """The messages cut into rounds: each agent once. An unfinished last round is kept."""
        size = max(len(self.agents), 1)
        return [self.messages[i : i + size] for i in range(0, len(self.messages), size)]

    def until(self, turn: int) -> Transcript:
        """The talk up to this turn, for a conversation to go on from, e.g. from the last turn before a loop.

        Raises BadInput where there is no such turn.
        """
        if not 0 <= turn <= len(self.turns):
            raise BadInput(f"turn: {turn}; expected 0 to {len(self.turns)}, the turns of conversation {self.id!r}")
        start = Transcript(self.id, self.agents, self.opening.content, self.seed, self.metadata)
        for message in self.turns[:turn]:
            start.append(message)
        return start

    def to_exchange(self) -> dict[str, Any]:
        """One line of the exchange format: id, turns (speaker, text, and kind, time, tokens where known), and metadata.

        The opening, bids, combinations and nudges are left out. A vector is written as `vector`
        beside a readable `text`.
        """
        out: dict[str, Any] = {"id": self.id}
        out.update((k, v) for k, v in self.metadata.items() if k not in ("id", "turns"))
        out["status"] = self.status
        out.update((k, v) for k, v in (("reason", self.reason), ("error", self.error)) if v)
        out["turns"] = [_turn_to_exchange(m) for m in self.messages]
        return out

    @classmethod
    def from_exchange(cls, value: object, id: str = "") -> Transcript:
        """The transcript of one value in the exchange format. Unknown keys are kept in the metadata.

        Raises BadInput, naming the key, for what is not in the format.
        """
        if not isinstance(value, dict):
            raise BadInput(f"expected an object with 'id' and 'turns', got {type(value).__name__}")
        turns = value.get("turns")
        if not isinstance(turns, list):
            raise BadInput(
                f"key 'turns' is {'missing' if turns is None else type(turns).__name__}; expected a list of turns"
            )
        speakers: list[str] = []
        for number, turn in enumerate(turns, 1):
            _check_turn(turn, number)
            if turn["speaker"] not in speakers:
                speakers.append(turn["speaker"])
        extra = {k: v for k, v in value.items() if k not in ("id", "turns", "status", "reason", "error")}
        given = {k: str(value[k]) for k in ("id", "status", "reason", "error") if value.get(k) is not None}
        transcript = cls(given.get("id", id), tuple(speakers), metadata=extra)
        for number, turn in enumerate(turns, 1):
            transcript.append(_turn_from_exchange(transcript.id, number, turn))
        transcript.status = given.get("status", DONE)
        transcript.reason, transcript.error = given.get("reason", ""), given.get("error", "")
        return transcript


def _turn_to_exchange(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"speaker": message.sender}
    if isinstance(message.content, str):
        out["text"] = message.content
    else:
        out["vector"] = message.content.tolist()
        out["text"] = " ".join(f"{x:.6g}" for x in out["vector"])
    if message.kind != MESSAGE:
        out["kind"] = message.kind
    if message.created_at:
        out["time"] = message.created_at
    if "output_tokens" in message.usage:
        out["tokens"] = message.usage["output_tokens"]
    out.update((k, v) for k, v in message.metadata.items() if k not in out)
    return out


def _check_turn(turn: object, number: int) -> None:
    if not isinstance(turn, dict):
        raise BadInput(f"turn {number} is {type(turn).__name__}; expected an object with 'speaker' and 'text'")
    for key in ("speaker", "text"):
        if not isinstance(turn.get(key), str):
            got = "missing" if key not in turn else f"{type(turn[key]).__name__} {json.dumps(turn[key])[:40]}"
            raise BadInput(f"turn {number}: key {key!r} is {got}; expected a string")


def _turn_from_exchange(conversation: str, number: int, turn: dict[str, Any]) -> Message:
    content: Content = checked_content(turn["text"], None, f"turn {number}")
    if "vector" in turn:
        import numpy as np

        try:
            content = np.asarray(turn["vector"], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadInput(f"turn {number}: key 'vector' is not a list of numbers") from error
    rest = {k: v for k, v in turn.items() if k not in ("speaker", "text", "vector", "kind", "tokens")}
    created = rest.pop("time", 0.0)
    if not isinstance(created, (int, float)) or isinstance(created, bool):
        rest["time"], created = created, 0.0  # a foreign time stamp that is no number is kept as it is
    usage = {"output_tokens": turn["tokens"]} if "tokens" in turn else {}
    kind = str(turn.get("kind") or MESSAGE)
    return Message(
        conversation, number, turn["speaker"], content, usage=usage, metadata=rest, created_at=float(created), kind=kind
    )
