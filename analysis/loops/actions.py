"""Detect the same action with the same result again and again, and tell it from waiting."""

from __future__ import annotations

import json
import re
from collections import deque
from hashlib import blake2b
from typing import Any, NamedTuple

ACTION, RESULT = "action", "result"
KINDS = frozenset({ACTION, RESULT})

ROUNDS = 4
"""The same action with the same result this many times is a loop (OpenHands: four)."""

POLL_SECONDS = 60.0
"""Equal calls at least this far apart wait for something."""

REACH = 48
"""This many calls are kept: twelve different ones, four times each."""

_LONGEST = 100_000
_VOLATILE = re.compile(
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
_VOLATILE_KEYS = re.compile(r"(?:time_?stamp|created_?at|(?:request|req|trace|span|call)_?id|nonce)$")


class CallRepetition(NamedTuple):
    """The repetition of a call.

    times: how often the same call had the same result in this run. new: whether the call, or its result, is new.
    waiting: whether the result is unchanged and the calls are far apart.
    first, second: turns of the first two calls of the run. period: turns between two of them.
    text: the call as given.
    """

    times: int = 0
    new: bool = True
    waiting: bool = False
    first: int = 0
    second: int = 0
    period: int = 0
    text: str = ""


class CallHistory:
    """The calls of a conversation as far back as `REACH`."""

    def __init__(self) -> None:
        self._open: tuple[bytes, int, float, str] | None = None  # the newest action: digest, turn, time, text
        self._has_results = False  # whether any action had a result so far
        self._past: deque[tuple[bytes, bytes, int, float]] = deque(maxlen=REACH)  # action, result, turn, time
        self._closed = 0  # number of calls so far
        self._origin = 0  # number of the first call that the current run repeats
        self._run = False

    def add_action(self, text: str, speaker: int, turn: int, time: float) -> CallRepetition | None:
        """Add an action. Return its repetition, or None if a result will follow."""
        unanswered = self._open
        digest = _digest(f"{speaker} {canonical(text)}")
        self._open = (digest, turn, time, text[:200])
        if self._has_results:
            if unanswered is not None:
                self._close(*unanswered, result=b"")
            return None
        found, self._open = self._close(*self._open, result=b""), None
        return found

    def add_result(self, text: str, turn: int, time: float) -> CallRepetition | None:
        """Add the result of the newest action and return its repetition; None for a result without an action."""
        if self._open is None and not self._has_results and self._past:  # the first result of the conversation
            action, _, when, at = self._past.pop()
            self._closed -= 1
            self._open = (action, when, at, "")
        self._has_results = True
        if self._open is None:
            return None
        action, _, at, call = self._open
        self._open = None
        return self._close(action, turn, time or at, call, result=_digest(canonical(text)))

    def _close(self, action: bytes, turn: int, time: float, text: str, *, result: bytes) -> CallRepetition:
        back, before = next(((i, p) for i, p in enumerate(reversed(self._past), 1) if p[0] == action), (0, None))
        self._past.append((action, result, turn, time))
        self._closed += 1
        if before is None or before[1] != result:
            self._run = False
            return CallRepetition(text=text)
        period = turn - before[2]
        if before[3] and time - before[3] >= POLL_SECONDS:
            self._run = False
            return CallRepetition(2, False, True, before[2], turn, period, text)
        self._origin = min(self._closed - back, self._origin if self._run else self._closed)
        self._run = True
        since = list(self._past)[-(self._closed - self._origin + 1) :]
        equal = [p[2] for p in since if p[:2] == (action, result)]
        return CallRepetition(len(equal), False, False, equal[0], equal[1], period, text)


def canonical(text: str) -> str:
    """Return the text without irrelevant parts: order of JSON keys, white space, case, timestamps, request ids."""
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + text[-_LONGEST // 2 :]
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        try:
            value = json.loads(text[start : end + 1])
        except (ValueError, RecursionError):
            pass
        else:
            text = f"{text[:start]} {json.dumps(_stable_parts(value), sort_keys=True)} {text[end + 1 :]}"
    return " ".join(_VOLATILE.sub("", text.casefold()).split())


def _stable_parts(value: Any) -> Any:
    """Return a JSON value without parts that change from call to call."""
    if isinstance(value, dict):
        folded = ((key.strip().casefold(), item) for key, item in value.items())
        return {key: _stable_parts(item) for key, item in folded if not _VOLATILE_KEYS.search(key)}
    if isinstance(value, list):
        return [_stable_parts(v) for v in value]
    return value.strip() if isinstance(value, str) else value


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
