"""The append-only record of one conversation, the input of everything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import ASIDE, MESSAGE, Content, Message, checked_content
from a2a_ray.core.verdict import ObserverVerdict

RUNNING, DONE, FAILED = "running", "done", "failed"
_KEYS = ("id", "turns", "opening", "opening_vector", "status", "reason", "error", "stopped_by")
"""Keys of the exchange format; every other key is metadata."""


class Transcript:
    """The opening (turn 0) and all records after it, in order.

    id, agents: of the conversation; `agents` in the order of speaking if the protocol has one.
    seed: the conversation's seed.
    turns: every record, including bids, combinations, nudges and reviews; `turns[i].seq == i + 1`.
    messages: `turns` without bids, combinations, nudges and reviews; `messages[i].turn == i + 1`.
    status: "running", "done" or "failed". reason: why it ended. error: what failed.
    stopped_by: the observer that ended it; empty if a limit, a condition, the protocol or a failure did.
    traceback: the last lines of the failure's traceback; empty without one.
    verdicts: (turn, observer, verdict) of every verdict with something to report. The turn is that of the message; for
        a bid, a combination or a nudge it is the turn of the message before it.
    metadata: of the conversation (cell of a sweep, labels, unknown keys of another tool's file).
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
        "stopped_by",
        "traceback",
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
        self.stopped_by = self.traceback = ""
        self.verdicts: list[tuple[int, str, ObserverVerdict]] = []
        self.metadata: dict[str, Any] = dict(metadata or {})

    def append(self, message: Message) -> None:
        """Append a record and number its turn. Raises ValueError if its seq is not the next one."""
        before = len(self.turns)
        if message.seq != before + 1:
            raise ValueError(f"record {message.seq} cannot follow record {before} of conversation {self.id!r}")
        if message.asides != before - len(self.messages):
            message = replace(message, asides=before - len(self.messages))
        self.turns.append(message)
        if message.kind == MESSAGE or message.kind not in ASIDE:
            self.messages.append(message)

    @property
    def last(self) -> Message:
        """Return the newest message, or the opening."""
        return self.messages[-1] if self.messages else self.opening

    def __len__(self) -> int:
        return len(self.turns)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.turns)

    def rounds(self) -> list[list[Message]]:
        """Return the messages in rounds of one message per agent. An unfinished last round is kept."""
        size = max(len(self.agents), 1)
        return [self.messages[i : i + size] for i in range(0, len(self.messages), size)]

    def until(self, turn: int) -> Transcript:
        """Return the conversation up to and including this turn, to continue it from there, as before a loop.

        turn: 1 for the first message; 0 keeps the opening alone. Raises ConfigurationError for an unknown turn.
        """
        if not 0 <= turn <= len(self.messages):
            raise ConfigurationError(
                f"turn: {turn}; expected 0 to {len(self.messages)}, the turns of conversation {self.id!r}"
            )
        start = Transcript(self.id, self.agents, self.opening.content, self.seed, self.metadata)
        for message in self.turns[: self.messages[turn - 1].seq if turn else 0]:
            start.append(message)
        return start

    def copy(self) -> Transcript:
        """Return a transcript that can grow without changing this one; both share the messages."""
        new = Transcript.__new__(Transcript)
        for name in self.__slots__:
            setattr(new, name, getattr(self, name))
        new.turns, new.messages, new.verdicts = [*self.turns], [*self.messages], [*self.verdicts]
        new.metadata = dict(self.metadata)
        return new

    def to_exchange(self) -> dict[str, Any]:
        """Return the conversation in the exchange format: id, opening, turns and metadata.

        Each turn has speaker and text, and kind, time and tokens if they are known. Bids, combinations, nudges
        and reviews are left out. A vector becomes `vector` beside a readable `text`; as the opening it becomes
        `opening_vector`.
        """
        out: dict[str, Any] = {"id": self.id}
        out.update((k, v) for k, v in self.metadata.items() if k not in _KEYS)
        out["status"] = self.status
        out.update((k, v) for k, v in (("reason", self.reason), ("error", self.error)) if v)
        if self.stopped_by:
            out["stopped_by"] = self.stopped_by
        opening = self.opening.content
        if not isinstance(opening, str):
            out["opening_vector"] = opening.tolist()
        elif opening:
            out["opening"] = opening
        out["turns"] = [_turn_to_exchange(m) for m in self.messages]
        return out

    @classmethod
    def from_exchange(cls, value: object, id: str = "") -> Transcript:
        """Return the transcript of a value in the exchange format. Unknown keys are kept in the metadata.

        Raises ConfigurationError, naming the key, for a value that violates the format.
        """
        if not isinstance(value, dict):
            raise ConfigurationError(f"expected an object with 'id' and 'turns', got {type(value).__name__}")
        turns = value.get("turns")
        if not isinstance(turns, list):
            raise ConfigurationError(
                f"key 'turns' is {'missing' if turns is None else type(turns).__name__}; expected a list of turns"
            )
        speakers: list[str] = []
        for number, turn in enumerate(turns, 1):
            _check_turn(turn, number)
            if turn["speaker"] not in speakers:
                speakers.append(turn["speaker"])
        given = {
            k: str(value[k]) for k in ("id", "status", "reason", "error", "stopped_by") if value.get(k) is not None
        }
        opening, extra = _opening_from_exchange(value), {k: v for k, v in value.items() if k not in _KEYS}
        transcript = cls(given.get("id", id), tuple(speakers), opening, metadata=extra)
        for number, turn in enumerate(turns, 1):
            transcript.append(_turn_from_exchange(transcript.id, number, turn))
        transcript.status = given.get("status", DONE)
        transcript.reason, transcript.error = given.get("reason", ""), given.get("error", "")
        transcript.stopped_by = given.get("stopped_by", "")
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


def _opening_from_exchange(value: dict[str, Any]) -> Content:
    if "opening_vector" in value:
        return _vector(value["opening_vector"], "key 'opening_vector'")
    opening = value.get("opening")
    if opening is None:
        return ""
    if not isinstance(opening, str):
        raise ConfigurationError(
            f"key 'opening' is {type(opening).__name__} {json.dumps(opening)[:40]}; expected a string"
        )
    return checked_content(opening, None, "the opening")  # type: ignore[no-any-return]


def _vector(value: object, where: str) -> Content:
    import numpy as np

    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{where} is not a list of numbers") from error


def _check_turn(turn: object, number: int) -> None:
    if not isinstance(turn, dict):
        raise ConfigurationError(
            f"turn {number} is {type(turn).__name__}; expected an object with 'speaker' and 'text'"
        )
    for key in ("speaker", "text"):
        if not isinstance(turn.get(key), str):
            got = "missing" if key not in turn else f"{type(turn[key]).__name__} {json.dumps(turn[key])[:40]}"
            raise ConfigurationError(f"turn {number}: key {key!r} is {got}; expected a string")


def _turn_from_exchange(conversation: str, number: int, turn: dict[str, Any]) -> Message:
    content: Content = checked_content(turn["text"], None, f"turn {number}")
    if "vector" in turn:
        content = _vector(turn["vector"], f"turn {number}: key 'vector'")
    rest = {k: v for k, v in turn.items() if k not in ("speaker", "text", "vector", "kind", "tokens")}
    created = rest.pop("time", 0.0)
    if not isinstance(created, (int, float)) or isinstance(created, bool):
        rest["time"], created = created, 0.0  # another tool's time stamp that is no number is kept as it is
    usage = {"output_tokens": turn["tokens"]} if "tokens" in turn else {}
    kind = str(turn.get("kind") or MESSAGE)
    return Message(
        conversation, number, turn["speaker"], content, usage=usage, metadata=rest, created_at=float(created), kind=kind
    )
