"""The message that agents exchange."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from a2a_ray.core.errors import InvalidResponseError

if TYPE_CHECKING:
    import numpy as np

Content: TypeAlias = "str | np.ndarray[Any, np.dtype[np.floating[Any]]]"
"""The content of a message: text, or a 1-D array of finite floats (float32 or float64)."""


class _Empty(dict[str, Any]):
    """The shared, read-only empty mapping of messages without options, usage or metadata."""

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("this mapping is shared and read-only; pass a new dict instead")

    def __hash__(self) -> int:  # type: ignore[override]
        return 0

    def __reduce__(self) -> str:
        return "EMPTY"


EMPTY: Mapping[str, Any] = _Empty()

MESSAGE, BID, COMBINE, NUDGE, REVIEW = "message", "bid", "combine", "nudge", "review"
"""Kinds of record: an agent's turn, an agent's bid for the turn, the protocol's combination of simultaneous turns, the
protocol's intervention, and the answer of an observer's judge. Transcripts of other tools may have more (`action`,
`result`)."""
ASIDE = frozenset({BID, COMBINE, NUDGE, REVIEW})
"""Kinds that are no turns: they are stored, but count towards no limit and in no order of turns."""
RESERVED = ASIDE | {"opening", "call", "done", "failed"}
"""Kinds that belong to the protocol and the store; an agent's answer must not use them."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message: the request that an agent's `step` receives, and the answer that it returns.

    conversation: id of the conversation.
    seq: position of the record in its conversation; the opening is 0. A request has the position of its answer.
    sender: the author of `content`; empty for the opening.
    content: text, or a 1-D array of finite floats.
    history: the receiver's context before `content`, oldest first; empty in answers and in the store.
    seed: of this turn, 0 <= seed < 2**63, from the run's seed, conversation and turn: draw all randomness from it.
    options: overrides for this turn only (sampling settings, an objective).
    usage: the cost of the answer, such as input_tokens, output_tokens, requests, cost.
    metadata: other facts about the answer; must be JSON.
    created_at: seconds since the epoch.
    kind: "message", "bid", "combine", "nudge" or "review"; transcripts of other tools may have "action", "result", ...
    asides: the number of records before this one that are no messages; see `turn`.
    """

    conversation: str
    seq: int
    sender: str
    content: Content
    history: tuple[Message, ...] = ()
    seed: int = 0
    options: Mapping[str, Any] = EMPTY
    usage: Mapping[str, Any] = EMPTY
    metadata: Mapping[str, Any] = EMPTY
    created_at: float = 0.0
    kind: str = MESSAGE
    asides: int = 0

    @property
    def turn(self) -> int | Any:  # Any stands for None: nearly every caller has a numbered message
        """Return the number of the message: 1 for the first, 0 for the opening, None for kinds in ASIDE.

        A request has the number of its answer; a request for a bid has the number of the turn to assign.
        """
        return None if self.kind in ASIDE else self.seq - self.asides

    def reply(
        self,
        content: Content,
        sender: str,
        usage: Mapping[str, Any] = EMPTY,
        metadata: Mapping[str, Any] = EMPTY,
        kind: str = MESSAGE,
    ) -> Message:
        """Return an answer to this message from `sender`: same conversation, position and seed, created now."""
        now = time.time()
        return Message(
            self.conversation, self.seq, sender, content, (), self.seed, EMPTY, usage, metadata, now, kind, self.asides
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the message as a JSON value without its empty parts; `from_dict` restores an equal message."""
        out: dict[str, Any] = {"conversation": self.conversation, "seq": self.seq, "turn": self.turn}
        out["sender"] = self.sender
        out["content"] = _plain(self.content)
        if self.history:
            out["history"] = [m.to_dict() for m in self.history]
        for name in ("options", "usage", "metadata"):
            if value := getattr(self, name):
                out[name] = {k: _plain(v) for k, v in value.items()}
        if self.kind != MESSAGE:
            out["kind"] = self.kind
        out["seed"] = self.seed
        out["created_at"] = self.created_at
        return out

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Message:
        """Return the message of a JSON value. Raises TypeError for unknown or missing keys."""
        parts = dict(value)
        if (turn := parts.pop("turn", None)) is not None:
            parts["asides"] = parts["seq"] - turn
        parts["content"] = _rich(parts["content"])
        parts["history"] = tuple(cls.from_dict(m) for m in parts.get("history", ()))
        for name in ("options", "usage", "metadata"):
            if name in parts:
                parts[name] = {k: _rich(v) for k, v in parts[name].items()}
        return cls(**parts)

    def __eq__(self, other: object) -> bool:
        """Return whether all parts are equal, arrays element by element and in dtype."""
        return self.to_dict() == other.to_dict() if isinstance(other, Message) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.conversation, self.seq, self.sender, self.kind))


def checked_answer(answer: object, request: Message, speaker: str) -> Message:
    """Return the answer of `speaker` to `request`, checked so that transcript and store accept it.

    Raises InvalidResponseError for None, another type, an answer to another request, a reserved kind, and usage or
    metadata that are not JSON. An array must be 1-D, finite, and as long as the array that it answers. The common case
    (a valid message with text) costs a few comparisons.
    """
    if type(answer) is not Message:
        raise InvalidResponseError(
            f"agent {speaker!r} returned {_describe(answer)} at turn {request.turn}; expected a Message"
            " (return message.reply(content, sender=self.name))"
        )
    if answer.seq != request.seq or answer.sender != speaker or answer.conversation != request.conversation:
        raise InvalidResponseError(
            f"agent {speaker!r} answered turn {request.turn} of {request.conversation!r} with a message signed"
            f" {answer.sender!r}, turn {answer.seq - request.asides} of {answer.conversation!r};"
            " use message.reply(content, sender=self.name)"
        )
    changes: dict[str, Any] = {}
    if type(answer.content) is not str or not answer.content.isascii():
        changes["content"] = checked_content(
            answer.content, request.content, f"agent {speaker!r} at turn {request.turn}"
        )
    if answer.kind in RESERVED:
        raise InvalidResponseError(
            f"agent {speaker!r} answered turn {request.turn} with kind {answer.kind!r}, which is reserved"
        )
    for name in ("usage", "metadata"):
        if value := getattr(answer, name):
            changes[name] = _json(value, f"agent {speaker!r} at turn {request.turn}: {name}")
    if answer.seed != request.seed or answer.asides != request.asides or not answer.created_at:
        changes |= {"seed": request.seed, "asides": request.asides, "created_at": answer.created_at or time.time()}
    return replace(answer, **changes) if changes else answer


def checked_content(content: object, like: Any, who: str) -> Any:
    """Return text that any store can write, or a 1-D float array. Raises InvalidResponseError; see `checked_array`."""
    if not isinstance(content, str):
        return checked_array(content, like, who)
    try:
        content.encode()
    except UnicodeEncodeError:  # a lone surrogate, which no store and no terminal accepts
        return content.encode(errors="replace").decode()
    return content


def _json(value: Any, who: str) -> Any:
    """Return the mapping with JSON values; NumPy values become Python's. Raises InvalidResponseError."""
    try:
        return json.loads(json.dumps(value, default=_from_numpy))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidResponseError(f"{who} is not JSON: {error}") from None


def _from_numpy(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {str(value)[:40]!r}")


def checked_array(content: object, like: Any, who: str) -> Any:
    """Return `content` as a 1-D float array, shape (d,), float32 or float64. Raises InvalidResponseError."""
    import numpy as np

    try:
        array = np.asarray(content)
    except (TypeError, ValueError) as error:
        raise InvalidResponseError(f"{who}: {_describe(content)}; expected text or a 1-D array of floats") from error
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "iuf":
            raise InvalidResponseError(
                f"{who}: content is {_describe(content)}; expected text or a 1-D array of floats"
            )
        array = array.astype(np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InvalidResponseError(f"{who}: content has shape {array.shape}; expected a 1-D array, shape (d,)")
    if not isinstance(like, str) and like is not None and array.shape != np.shape(like):
        raise InvalidResponseError(
            f"{who}: content has shape {array.shape}; expected {np.shape(like)}, the shape of the request"
        )
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise InvalidResponseError(f"{who}: content has NaN or infinite values ({bad} of {array.size})")
    return array


def _describe(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _plain(value: Any) -> Any:
    """Return content, or one option, as a JSON value: an array becomes {dtype: [..]}."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return {str(value.dtype): value.tolist()}
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, dict) and len(value) == 1:
        (name, items), *_ = value.items()
        if name in ("float32", "float64"):
            import numpy as np

            return np.asarray(items, dtype=name)
    return value
