"""How much of a turn is copied from the conversation before it.

A turn is encoded with two operations: write a word, or copy a passage from an earlier place in the conversation,
regardless of turn boundaries. Writing costs one word. A pointer to a place costs a few words, and half a word at a
distance that was used before. Continuing the passage after a swapped word costs nothing. The cost of the cheapest
encoding, divided by the number of words, is the novelty of the turn: 1 for new text, near 0 for repeated text. So
scattered words and stock phrases do not count, passages count regardless of turn boundaries, and a frame with swapped
words costs the swapped words.

This is the idea of compression distances (Li et al. 2004, "The similarity metric") with a greedy LZ77 parse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from a2a_ray.analysis.loops.tokenize import NUMBER

WINDOW = 8192
"""Minimum number of words of the conversation that can be copied from: twelve turns of 600 words."""

PLACE, NEAR, TURN, WHOLE, USED = 3.0, 1.5, 1.0, 0.5, 0.5
"""Cost of a pointer, in words: to any place in the window (log2 of 8192 is 13 bits, about five bits per word of running
English, Shannon 1951); within `NEARBY` words of a used distance; to the same place in one of the last `TURNS` turns; to
an identical whole turn; at a used distance."""

NEARBY = 8
TURNS = 12

DISTANCES = 4
"""Number of used distances that are remembered."""

CHANGED_NUMBER = 0.5
"""Cost, in words, of a number that replaces another one in a copied passage."""

FRESH = 8
"""At least this many new words in a row are fresh: a new statement rather than a slip or a swap."""

ANCHOR = 3
"""A copy is tried where this many words in a row have occurred before."""

IDLE = 4
"""After more turns than this without a copy, the used distances are forgotten."""


class CopiedWords(NamedTuple):
    """The copies found in one turn.

    words: length of the turn. novelty: 0 to 1. new: words that are not copied. fresh: those in runs of `FRESH` or more.
    swapped: new words within a copied passage that replace as many others. changed: numbers that replace others.
    left_out: words of a recent turn that a copy of it skips, if the copy reaches the end of that turn.
    framed: whether the turn repeats one recent turn word for word, except for swapped words.
    again: share of the copied words whose passage had been copied before.
    start, length, source: the longest copied passage: its place in the turn, its length, and the place in the
        conversation that it was copied from, counted in words from the beginning. length is 0 without a copy.
    """

    words: int
    novelty: float
    new: int
    fresh: int
    swapped: int
    changed: int
    left_out: int
    framed: bool
    again: float
    start: int
    length: int
    source: int


NO_WORDS = CopiedWords(0, 1.0, 0, 0, 0, 0, 0, False, 0.0, 0, 0, 0)


@dataclass(slots=True)
class _Parse:
    """The copies of one turn, added up by the greedy parse."""

    distance: int  # of the newest copy
    pointers: float = 0.0  # cost of the pointers and of changed numbers, in words
    copied: int = 0
    copied_before: int = 0
    changed: int = 0
    swapped: int = 0
    fresh: int = 0
    sources: list[tuple[int, int]] = field(default_factory=list)  # start and end of each passage in the conversation
    distances: set[int] = field(default_factory=set)
    longest: tuple[int, int, int] = (0, 0, 0)

    def add(self, at: int, length: int, source: int, distance: int, new: int) -> None:
        """Add a copy at place `at` of the turn, which follows `new` new words."""
        self.copied += length
        if length > self.longest[1]:
            self.longest = (at, length, source)
        if new >= FRESH:
            self.fresh += new
        elif distance == self.distance:
            self.swapped += new
        self.sources.append((source, source + length))
        self.distances.add(distance)
        self.distance = distance


class WordHistory:
    """The words of a conversation as far back as `WINDOW`, and the latest place of each passage.

    Work per word and memory are bounded. Only the words are pickled; the index is rebuilt.
    """

    def __init__(self) -> None:
        self._words: list[str] = []
        self._copied = bytearray()  # 1 for a word that was copied, or copied from
        self.first = 0  # place in the conversation of the first word in the window
        self._numbers: dict[int, str] = {}  # place -> the number as it was written
        self._last: dict[tuple[str, str, str], int] = {}  # three words -> latest place where they begin
        self._turns: dict[tuple[str, ...], int] = {}  # a whole turn -> latest place where it begins
        self._begins: list[int] = []  # where the last turns begin
        self._distances: list[int] = []  # used before, the newest first
        self._open_distance = 0  # distance of the copy that ended the newest turn, else 0
        self._idle = 0
        self._guess = 0  # unused distance that is first among the used ones

    @property
    def length(self) -> int:
        """Number of words so far, in the whole conversation."""
        return self.first + len(self._words)

    def add(self, words: list[str], numbers: list[str]) -> CopiedWords:
        """Append a turn (see `tokenize.words`) and return its copies of what precedes it."""
        size = len(words)
        if not size:
            return NO_WORDS
        begin = self.length
        self._words += words
        self._copied += bytes(size)
        if numbers:
            written = iter(numbers)
            self._numbers.update((begin + i, next(written)) for i, w in enumerate(words) if w == NUMBER)
        anchors = list(map(self._last.get, zip(words, words[1:], words[2:], strict=False)))
        whole = tuple(words)
        copied = self._encode(size, begin, anchors, self._turns.get(whole))
        self._turns[whole] = begin
        self._begins = [*self._begins[1 - TURNS :], begin]
        self._index(begin)
        return copied

    def _encode(self, size: int, begin: int, anchors: list[int | None], whole: int | None) -> CopiedWords:
        """Encode the `size` words that begin at place `begin`.

        anchors: latest place of the three words at each place. whole: latest place of the identical turn.
        """
        if whole is None and not self._distances and anchors.count(None) == len(anchors):
            self._open_distance = 0
            return NO_WORDS._replace(words=size, new=size, fresh=size if size >= FRESH else 0)
        anchors += [None] * (size - len(anchors))
        if whole is not None:
            anchors[0] = whole
        self._distances = [d for d in self._distances if d <= begin - self.first]
        self._guess = 0 if whole is not None else self._aligned_distance(anchors, begin)
        if self._guess and self._guess not in self._distances:
            self._distances[:] = [self._guess, *self._distances[: DISTANCES - 1]]
        parse, trailing = self._parse(size, begin, anchors, whole is not None)
        self._open_distance = 0 if trailing else parse.distance
        self._idle = 0 if parse.copied else self._idle + 1
        if self._idle > IDLE:
            self._distances.clear()
        new = size - parse.copied
        framed = not parse.fresh and self._framed(parse.distances, begin, size, parse.copied)
        return CopiedWords(
            words=size,
            novelty=min(1.0, (new + parse.pointers) / size),
            new=new,
            fresh=parse.fresh,
            swapped=new if framed else parse.swapped,
            changed=parse.changed,
            left_out=0 if trailing else self._left_out(parse.sources, begin),
            framed=framed,
            again=parse.copied_before / parse.copied if parse.copied else 0.0,
            start=parse.longest[0],
            length=parse.longest[1],
            source=parse.longest[2],
        )

    def _parse(self, size: int, begin: int, anchors: list[int | None], whole: bool) -> tuple[_Parse, int]:
        """Find the copies greedily, from the first word on. Return them and the number of new words at the end."""
        parse = _Parse(self._open_distance)
        window, distances, offset = self._words, self._distances, begin - self.first
        at = new = 0
        while at < size:
            here, anchor = offset + at, anchors[at]
            if anchor is None:
                word = window[here]
                for distance in distances:
                    if window[here - distance] == word:
                        break
                else:  # nothing to copy from, the usual case
                    new += 1
                    at += 1
                    continue
            saved, length, distance, changed = self._best(here, at, anchor, parse.distance, whole and not at)
            if not length:
                new += 1
                at += 1
                continue
            there = here - distance
            parse.pointers += length - saved
            parse.changed += changed
            parse.copied_before += sum(self._copied[there : there + length])
            self._copied[there : there + length] = self._copied[here : here + length] = b"\1" * length
            parse.add(at, length, begin + at - distance, distance, new)
            new = 0
            at += length
        parse.fresh += new if new >= FRESH else 0
        return parse, new

    def _aligned_distance(self, anchors: list[int | None], begin: int) -> int:
        """Return the distance of the recent turn that most passages are aligned with, place by place; 0 if none is."""
        turns = [place - at for at, place in enumerate(anchors) if place is not None and place - at in self._begins]
        return begin - max(turns, key=turns.count) if turns else 0

    def _framed(self, backs: set[int], begin: int, size: int, copied: int) -> bool:
        """Return whether all passages are aligned with one recent turn of the same length."""
        if len(backs) != 1 or 2 * copied <= size:
            return False
        start = begin - next(iter(backs))
        ends = [*self._begins[1:], begin]
        return start in self._begins and ends[self._begins.index(start)] - start == size

    def _left_out(self, sources: list[tuple[int, int]], begin: int) -> int:
        """Return how many words the passages skip, if they come in order from one recent turn and reach its end."""
        ends = [*self._begins[1:], begin]
        if len(sources) < 2 or sources[-1][1] not in ends:
            return 0
        start = self._begins[ends.index(sources[-1][1])]
        gaps = [after - until for (_, until), (after, _) in pairwise(sources)]
        return sum(gaps) if sources[0][0] >= start and min(gaps) >= 0 else 0

    def _best(self, here: int, at: int, anchor: int | None, before: int, whole: bool) -> tuple[float, int, int, int]:
        """Return the copy that saves most: words saved, length, distance, changed numbers.

        here, at: place in the window, and in the turn. anchor: latest place of the words there, or of the identical
        turn (`whole`). before: the distance of the copy before. The length is 0 if no copy saves anything.
        """
        window, distances = self._words, self._distances
        word = window[here]
        best: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        cost_of = {before: 0.0, self._guess: TURN}
        tries = [(d, cost_of.get(d, USED)) for d in distances if window[here - d] == word]
        if anchor is not None and anchor >= self.first:
            distance = here + self.first - anchor
            if whole:
                tries.append((distance, WHOLE))
            elif anchor - at in self._begins:
                tries.append((distance, TURN))
            elif any(abs(distance - d) <= NEARBY for d in distances):
                tries.append((distance, NEAR))
            else:
                tries.append((distance, PLACE))
        for distance, price in tries:
            length = _equal(window, here - distance, here)
            changed = self._changed(here, distance, length) if self._numbers else 0
            saved = length - price - CHANGED_NUMBER * changed
            if saved > best[0]:
                best = (saved, length, distance, changed)
        if best[1]:
            if best[2] == self._guess:
                self._guess = 0
            if best[2] in distances:
                distances.remove(best[2])
            distances.insert(0, best[2])
            del distances[DISTANCES:]
        return best

    def _changed(self, here: int, distance: int, length: int) -> int:
        """Return how many numbers of a copied passage replace other ones."""
        number, first, window = self._numbers.get, self.first, self._words
        places = (i for i in range(here, here + length) if window[i] == NUMBER)
        return sum(number(first + i) != number(first + i - distance) for i in places)

    def _index(self, begin: int) -> None:
        """Index the passages of the newest turn, including those that begin in the turn before."""
        start = max(begin - ANCHOR + 1, self.first)
        window = self._words[start - self.first :]
        passages = zip(window, window[1:], window[2:], strict=False)
        self._last.update(zip(passages, range(start, start + len(window)), strict=False))
        if len(self._words) >= 2 * WINDOW:
            self._forget(len(self._words) - WINDOW)

    def _forget(self, count: int) -> None:
        """Drop the oldest words and the entries that point at them."""
        self.first += count
        del self._words[:count]
        del self._copied[:count]
        first = self.first
        self._last = {passage: place for passage, place in self._last.items() if place >= first}
        self._turns = {turn: place for turn, place in self._turns.items() if place >= first}
        self._numbers = {place: number for place, number in self._numbers.items() if place >= first}

    def passage(self, place: int, length: int) -> str:
        """Return `length` words of the window from a place in the conversation on."""
        start = max(place - self.first, 0)
        return " ".join(self._words[start : start + length])

    def __getstate__(self) -> dict[str, Any]:
        return {
            "words": " ".join(self._words),
            "copied": bytes(self._copied),
            "first": self.first,
            "numbers": self._numbers,
            "turns": [(place, len(turn)) for turn, place in self._turns.items()],
            "begins": self._begins,
            "distances": self._distances,
            "open_distance": self._open_distance,
            "idle": self._idle,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._words = state["words"].split(" ") if state["words"] else []
        self._copied = bytearray(state["copied"])
        self._guess = 0
        self.first, self._distances = state["first"], state["distances"]
        self._open_distance, self._idle = state["open_distance"], state["idle"]
        self._numbers, self._begins = state["numbers"], state["begins"]
        self._turns = {tuple(self._words[p - self.first :][:n]): p for p, n in state["turns"]}
        self._last = {}
        self._index(self.first)


def _equal(window: list[str], there: int, here: int) -> int:
    """Return how many words are equal from two places of the window on. As in LZ77, a copy may overlap itself."""
    length, end = 0, len(window)
    while here + length < end and window[there + length] == window[here + length]:
        length += 1
    return length
