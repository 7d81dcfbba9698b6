"""Rounds of a call and its result: the same again adds up, a new result takes away."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from hashlib import blake2b
from typing import Any, NamedTuple

from a2a_ray.analysis.loops.repetition_sum import RepeatedTurn, RepetitionSum
from a2a_ray.analysis.loops.tokenize import words

ACTION, RESULT = "action", "result"
KINDS = frozenset({ACTION, RESULT})

WINDOW = 10
"""Rounds looked back."""

ALARM = 1.99
"""More rounds' worth of repetition than this are a loop."""

FAILED_CALL, OTHER_CALL = 0.55, 0.85
"""Similarity of two calls from which a varied call with the same short result counts: if both failed, and otherwise."""

SAME_RESULT = 0.9
"""Similarity from which two short results of failed calls count as the same."""

SHORT = 80
"""Words of a short result. A different long result is progress."""

NEW_NUMBER = 0.5
"""A varied call with a number that no call had before counts this much; one with a new word and an empty result does
not count: such calls work off a list."""

PENDING = 0.34
"""The same call with the same "not ready yet", or with the same empty result, counts this much."""

NEW = 1.0
"""A round unlike all others takes this much away."""

UNANSWERED = 0.5
"""A call without a result counts this much if it is the same again, and takes nothing away if it is not."""

POLL_SECONDS = 60.0
"""Equal calls at least this far apart wait for something."""

WORDS_KEPT = 2000
"""Words of earlier calls that are remembered."""

_LONGEST = 100_000
_QUOTED = 200
_TIMES = r"""\b\d{4}-\d\d-\d\d[t\ ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:z|[+-]\d\d:?\d\d)?    # 2026-11-21t14:05:09.120z
    | \b\d{1,2}:\d\d:\d\d(?:[.,]\d+)?\b                                                   # 14:05:09
    | \b\d+(?:\.\d+)?\ ?(?:ms|s|sec|seconds?)\b                                           # 0.12 s
    | \b1\d{9}(?:\d{3})?(?:\.\d+)?\b                                                      # seconds since the epoch
    | \b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b                    # uuid
    | \b0x[0-9a-f]+\b                                                                     # an address in memory
    | \b(?:request|req|trace|span|call)[-_\ ]?id["']?[\s:=\#"']+[\w-]+                     # request id: 17a
    | \b(?:request|req|trace|span|call)_[\w-]*\d[\w-]*                                    # req_17a"""
_IN_RESULT = re.compile(_TIMES, re.VERBOSE)
_IN_CALL = re.compile(_TIMES + r" | \b(?=[0-9a-f]*[a-f])(?=[a-f]*\d)[0-9a-f]{8,64}\b", re.VERBOSE)  # and hashes
_VOLATILE_KEYS = re.compile(r"(?:time_?stamp|created_?at|(?:request|req|trace|span|call)_?id|nonce)$")
_FAILURE = re.compile(
    r"error|exception|traceback|fail|invalid|unknown|not found|no such|cannot|can't|could not|couldn't|unable|denied"
    r"|forbidden|refused|timed? ?out|did not|didn't|does not|doesn't|not exist|wrong|incorrect|missing|unexpected"
    r"|illegal|no (?:results|matches|output|\w+ results|\w+ \w+ found)|nothing|empty|inconsistency|\b[45]\d\d\b"
    r"|try again|retry|warning"
)
_PENDING = re.compile(
    r"pending|queued|in progress|still running|not ready|not (?:yet )?(?:finished|complete)|processing|waiting"
)


class Call(NamedTuple):
    """A call that may still get its result. time: seconds since the epoch; 0 if unknown. id: the call id, or ""."""

    turn: int
    speaker: str
    text: str
    time: float
    id: str


class _Round(NamedTuple):
    turn: int
    time: float
    quote: str
    call: bytes
    call_words: Counter[str]
    result: bytes | None
    result_words: Counter[str]
    short: bool
    failed: bool
    pending: bool


class RepeatedRounds:
    """The last rounds of a conversation, and the sum of their repetition."""

    def __init__(self) -> None:
        self.sum = RepetitionSum(ALARM)
        self.waiting: tuple[int, int, str] | None = None  # the newest round, the one that it repeats, and its call
        self._open: list[Call] = []  # calls without a result so far
        self._early: list[tuple[str, float]] = []  # results and times: fewer than open calls, and without an id
        self._results = False  # whether there was any result
        self._past: deque[_Round] = deque(maxlen=WINDOW)
        self._used: dict[str, None] = {}  # words of earlier calls, the oldest first

    def add_call(self, call: Call, spent: int) -> None:
        """Add a call. It closes those before it if one of them has a result without an id, or if none had any yet."""
        self.waiting = None
        alone = not self._results and not call.id  # without ids, the first calls of a conversation may have no results
        if self._early or alone or len(self._open) == WINDOW:
            self._close_all(spent)
        self._open.append(call)

    def add_result(self, text: str, turn: int, time: float, id: str, spent: int) -> None:
        """Add the result of the call with that id. Without ids, results belong to the newest calls, in their order."""
        self.waiting, self._results = None, True
        call = next((each for each in self._open if id and each.id == id), None)
        if call is not None:
            self._open.remove(call)
            self._close(call, text, time or call.time, spent)
            return
        if not self._open:
            self._open.append(Call(turn, "", "", 0.0, ""))
        self._early.append((text, time))
        if len(self._early) == len(self._open):
            self._close_all(spent)

    def _close_all(self, spent: int) -> None:
        calls, results = self._open, self._early
        self._open, self._early = [], []
        for call in calls[: len(calls) - len(results)]:
            self._close(call, None, call.time, spent)
        for call, (text, time) in zip(calls[len(calls) - len(results) :], results, strict=True):
            self._close(call, text, time or call.time, spent)

    def _close(self, call: Call, result: str | None, time: float, spent: int) -> None:
        now = _round(call, result, time)
        unused = [word for word in now.call_words if word not in self._used]
        found = ((_likeness_of(now, old, unused), old) for old in self._past)
        best, source = max(found, key=lambda each: each[0], default=(0.0, None))
        self._past.append(now)
        self._remember(now.call_words)
        if best > 0 and source is not None:
            if now.time and source.time and now.time - source.time >= POLL_SECONDS and now.call == source.call:
                self.waiting = (now.turn, source.turn, now.quote)
                return
            amount = UNANSWERED * best if result is None else best
            repeat = RepeatedTurn(now.turn, call.speaker, "action", source.turn, now.quote, source.quote, best)
            self.sum.add(amount, repeat, spent)
        elif result is not None:
            self.sum.lower(NEW, now.turn)

    def _remember(self, found: Counter[str]) -> None:
        for word in found:
            self._used.pop(word, None)
            self._used[word] = None
        while len(self._used) > WORDS_KEPT:
            del self._used[next(iter(self._used))]


def _round(call: Call, result: str | None, time: float) -> _Round:
    called, text = canonical(call.text), None if result is None else canonical(result, result=True)
    found = words(text, mask_ids=False) if text else []
    short = len(found) <= SHORT
    return _Round(
        turn=call.turn,
        time=time,
        quote=call.text[:_QUOTED],
        call=_digest(called),
        call_words=Counter(words(called)),
        result=None if text is None else _digest(text),
        result_words=Counter(found) if short else Counter(),
        short=short,
        failed=text is not None and (not found or (short and bool(_FAILURE.search(text)))),
        pending=text is not None and short and (not found or bool(_PENDING.search(text))),
    )


def _likeness_of(now: _Round, old: _Round, unused: list[str]) -> float:
    """Return how much a round repeats an earlier one, 0 to 1. unused: words of the call that no earlier call had."""
    if (now.result is None) != (old.result is None):
        return 0.0
    if now.call == old.call and now.result == old.result:
        return PENDING if now.pending else 1.0
    both_failed = now.failed and old.failed
    if now.result is None or not (now.short and old.short):
        return 0.0
    if dice(now.result_words, old.result_words) < (SAME_RESULT if both_failed else 1.0):
        return 0.0
    if unused and not now.result_words:
        return 0.0
    least = FAILED_CALL if both_failed else OTHER_CALL
    varied = NEW_NUMBER if any(word[0].isdigit() for word in unused) else 1.0
    return max(0.0, (dice(now.call_words, old.call_words) - least) / (1 - least)) * varied


def dice(one: Counter[str], other: Counter[str]) -> float:
    """Return the share of words in common, with counts (Dice 1945); 1 for two empty texts."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def canonical(text: str, *, result: bool = False) -> str:
    """Return the text without irrelevant parts: order of JSON keys, white space, case, times, request ids.

    Hashes are removed from calls, not from results: another commit is another result.
    """
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
    return " ".join((_IN_RESULT if result else _IN_CALL).sub("@", text.casefold()).split())


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
