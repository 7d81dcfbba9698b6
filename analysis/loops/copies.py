"""Turns copied from earlier ones: the share of a turn's word sequences that are new."""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from a2a_ray.analysis.loops.repetition_sum import RepeatedTurn, RepetitionSum

WINDOW = 12
"""Turns looked back. The turn just before is left out: an answer may echo its question."""

GRAM = 5
"""Words of a sequence. A shorter turn is one sequence."""

NEITHER = 0.75
"""Novelty at which a turn counts neither way."""

RISE = 0.5
"""A turn repeats at most this much more than the turn before did: every position of a cycle must repeat. A copy of the
turn just before is a cycle of one position."""

HALF_WEIGHT, OF_USUAL = 8, 0.25
"""A turn of this many words, or of this share of the mean length so far if that is less, weighs half as much as a long
one."""

COPY_WEIGHT = 0.4
"""Least weight of an exact copy, however short."""

ALARM = 1.99
"""More turns' worth of repetition than this are a loop."""

SWAPPED = 0.12
"""Novelty above which a repetition is called a template."""

EQUAL_LINES, LINE_WORDS = 6, 3
"""This many equal lines within one turn are a loop. A line of fewer words than the second does not count."""

READ = 512
"""This many words at the beginning, and at the end, of a turn are read."""

_QUOTED = 200


@dataclass(slots=True)
class _Turn:
    number: int
    quote: str
    whole: int  # hash of all words
    grams: frozenset[int]


class CopiedTurns:
    """The last turns of a conversation, and the sum of their repetition."""

    def __init__(self) -> None:
        self.sum = RepetitionSum(ALARM)
        self.novelty = 1.0  # of the newest turn
        self._past: deque[_Turn] = deque(maxlen=WINDOW)
        self._known: dict[int, int] = {}  # sequences of all past turns but the newest, and in how many of them
        self._before: float | None = None  # repetition of the turn before
        self._turns, self._mean = 0, 0.0  # number of turns, and their mean length in words
        self._first: tuple[RepeatedTurn, int] | None = None  # of the repeated turns in a row, with the tokens before it

    def add(self, turn: int, speaker: str, text: str, words: Sequence[str], spent: int) -> None:
        """Add a turn with its words. spent: tokens of the conversation before it."""
        now = _Turn(turn, text[:_QUOTED], *_hashes(words))
        past = list(self._past)
        copy = next((old for old in reversed(past) if old.whole == now.whole), None)
        self.novelty = 0.0 if copy else sum(gram not in self._known for gram in now.grams) / len(now.grams)
        self._turns += 1
        self._mean += (len(words) - self._mean) / self._turns
        weight = len(words) / (len(words) + min(HALF_WEIGHT, OF_USUAL * self._mean))
        repetition = 1.0 if copy else max(-1.0, 1 - self.novelty / NEITHER)
        if copy:
            weight = max(COPY_WEIGHT, weight)
        value = repetition
        if repetition > 0:
            source = copy or max(past[:-1], key=lambda old: (len(old.grams & now.grams), old.number))
            kind = "verbatim" if self.novelty <= SWAPPED else "template"
            repeat = RepeatedTurn(turn, speaker, kind, source.number, now.quote, source.quote, 1 - self.novelty)
            self._first = self._first or (repeat, spent)
            at_once = bool(copy) and copy is past[-1]
            value = repetition if at_once or self._before is None else min(repetition, RISE + self._before)
        else:
            self._first = None
        if value > 0:
            self.sum.add(value * weight, repeat, spent, self._first)
        else:
            self.sum.lower(-value * weight, turn)
        line, count = _most_frequent_line(text)
        if count >= EQUAL_LINES:
            within = RepeatedTurn(turn, speaker, "verbatim", 0, line, line, 1.0)
            self.sum.add(ALARM * (count + 1) / EQUAL_LINES, within, spent)
        self._before = repetition
        self._keep(now)

    def _keep(self, now: _Turn) -> None:
        if len(self._past) == WINDOW:
            _take_away(self._known, self._past[0].grams)
        if self._past:
            _count(self._known, self._past[-1].grams)
        self._past.append(now)

    def __getstate__(self) -> dict[str, Any]:
        past = [(old.number, old.quote, old.whole, array("I", old.grams).tobytes()) for old in self._past]
        kept = {name: value for name, value in self.__dict__.items() if name != "_known"}
        return kept | {"_past": past}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        turns = (_Turn(n, quote, whole, frozenset(array("I", grams))) for n, quote, whole, grams in state["_past"])
        self._past = deque(turns, maxlen=WINDOW)
        self._known = {}
        for old in list(self._past)[:-1]:
            _count(self._known, old.grams)


@lru_cache(maxsize=20_000)
def _code(word: str) -> int:
    return crc32(word.encode("utf-8", "surrogatepass"))


def _most_frequent_line(text: str) -> tuple[str, int]:
    """Return the most frequent line of at least LINE_WORDS words, and how often it occurs."""
    if text.count("\n") < EQUAL_LINES - 1:
        return "", 0
    lines = Counter(line.strip() for line in text.splitlines())
    return max(
        ((line, count) for line, count in lines.items() if len(line.split()) >= LINE_WORDS),
        key=lambda found: found[1],
        default=("", 0),
    )


def _hashes(words: Sequence[str]) -> tuple[int, frozenset[int]]:
    """Return the hash of all words, and the hashes of the sequences of GRAM words; equal in every process."""
    whole = crc32(" ".join(words).encode("utf-8", "surrogatepass"))
    if len(words) <= GRAM:
        return whole, frozenset([whole])
    read = words if len(words) <= 2 * READ else [*words[:READ], *words[-READ:]]
    codes = list(map(_code, read))
    grams = zip(*(codes[i:] for i in range(GRAM)), strict=False)
    return whole, frozenset(hash(gram) & 0xFFFFFFFF for gram in grams)


def _count(known: dict[int, int], grams: Iterable[int]) -> None:
    for gram in grams:
        known[gram] = known.get(gram, 0) + 1


def _take_away(known: dict[int, int], grams: Iterable[int]) -> None:
    for gram in grams:
        times = known.pop(gram)
        if times > 1:
            known[gram] = times - 1
