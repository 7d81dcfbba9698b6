"""Actions and their results: the same call with the same result again and again, and waiting, which is not that."""

from __future__ import annotations

import json
import re
from collections import deque
from hashlib import blake2b
from typing import Any, NamedTuple

ACTION, RESULT = "action", "result"
KINDS = frozenset({ACTION, RESULT})

ROUNDS = 4
"""A loop begins to be called one when the same action has had the same result so many times (OpenHands: four)."""

POLL_SECONDS = 60.0
"""Equal calls so far apart, or further, wait for something."""

REACH = 48
"""So many calls are kept: twelve different ones, four times each."""

_LONGEST = 100_000
_PASSING = re.compile(
    r"""\b\d{4}-\d\d-\d\d[t\ ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:z|[+-]\d\d:?\d\d)?    # 2026-11-21t14:05:09.120z
    | \b\d{1,2}:\d\d:\d\d(?:[.,]\d+)?\b                                               # 14:05:09
    | \b1\d{9}(?:\d{3})?(?:\.\d+)?\b                                                  # seconds since the epoch
    | \b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b                # uuid
    | \b(?=[0-9a-f]*[a-f])(?=[a-f]*\d)[0-9a-f]{8,64}\b                                # hash
    | \b(?:request|req|trace|span|call)[-_\ ]?id["']?[\s:=\#"']+[\w-]+                # request id: 17a
    | \b(?:request|req|trace|span|call)_[\w-]*\d[\w-]*                                # req_17a
    """,
    re.VERBOSE,
)
_PASSING_KEYS = re.compile(r"(?:time_?stamp|created_?at|(?:request|req|trace|span|call)_?id|nonce)$")


class Rounds(NamedTuple):
    """What a call adds up to.

    times: how often the same call had the same result in this run. new: whether the call, or its result, is new.
    waiting: the result of a call has not changed, and calls are far apart.
    first, second: turns of the first two of the run. period: turns from one to the next.
    text: the call, as it was given.
    """

    times: int = 0
    new: bool = True
    waiting: bool = False
    first: int = 0
    second: int = 0
    period: int = 0
    text: str = ""


class RepeatedCalls:
    """The calls of a talk as far back as `REACH`."""

    def __init__(self) -> None:
        self._open: tuple[bytes, int, float, str] | None = None  # the newest action: digest, turn, time, text
        self._answered = False  # whether any action ever had a result
        self._past: deque[tuple[bytes, bytes, int, float]] = deque(maxlen=REACH)  # action, result, turn, time
        self._closed = 0  # calls so far
        self._origin = 0  # number of the call that the run of calls without news repeats first
        self._run = False

    def act(self, text: str, speaker: int, turn: int, time: float) -> Rounds | None:
        """Takes an action in. What it adds up to is known with its result, or at once in talks without results."""
        unanswered = self._open
        digest = _digest(f"{speaker} {canonical(text)}")
        self._open = (digest, turn, time, text[:200])
        if self._answered:
            if unanswered is not None:
                self._close(*unanswered, result=b"")
            return None
        found, self._open = self._close(*self._open, result=b""), None
        return found

    def result(self, text: str, turn: int, time: float) -> Rounds | None:
        """Takes the result of the newest action in; a result without an action is nobody's business."""
        if self._open is None and not self._answered and self._past:  # the first result of the talk
            action, _, when, at = self._past.pop()
            self._closed -= 1
            self._open = (action, when, at, "")
        self._answered = True
        if self._open is None:
            return None
        action, _, at, said = self._open
        self._open = None
        return self._close(action, turn, time or at, said, result=_digest(canonical(text)))

    def _close(self, action: bytes, turn: int, time: float, text: str, *, result: bytes) -> Rounds:
        back, before = next(((i, p) for i, p in enumerate(reversed(self._past), 1) if p[0] == action), (0, None))
        self._past.append((action, result, turn, time))
        self._closed += 1
        if before is None or before[1] != result:
            self._run = False
            return Rounds(text=text)
        period = turn - before[2]
        if before[3] and time - before[3] >= POLL_SECONDS:
            self._run = False
            return Rounds(2, False, True, before[2], turn, period, text)
        self._origin = min(self._closed - back, self._origin if self._run else self._closed)
        self._run = True
        since = list(self._past)[-(self._closed - self._origin + 1) :]
        equal = [p[2] for p in since if p[:2] == (action, result)]
        return Rounds(len(equal), False, False, equal[0], equal[1], period, text)


def canonical(text: str) -> str:
    """The text without what does not matter: order of JSON keys, white space, case, time stamps, request ids."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + text[-_LONGEST // 2 :]
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            value = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            pass
        else:
            text = f"{text[:start]} {json.dumps(_settled(value), sort_keys=True)} {text[end + 1 :]}"
    return " ".join(_PASSING.sub("", text.casefold()).split())


def _settled(value: Any) -> Any:
    """A JSON value without what changes from call to call."""
    if isinstance(value, dict):
        folded = ((key.strip().casefold(), item) for key, item in value.items())
        return {key: _settled(item) for key, item in folded if not _PASSING_KEYS.search(key)}
    if isinstance(value, list):
        return [_settled(v) for v in value]
    return value.strip() if isinstance(value, str) else value


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
