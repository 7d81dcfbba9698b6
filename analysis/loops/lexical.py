"""How much of a turn can be copied from the talk before it.

A turn is told again with two moves: write a word, or copy a passage from an earlier place of the talk, however turns
were cut there. Writing costs one word. Pointing at a place costs as much as writing a few words, at a distance back
that was used before half of one; going on with the passage after a swapped word costs nothing. What the cheapest
telling costs, divided by the number of words, is the turn's novelty: 1 for new text, near 0 for text that was there.
So scattered words and stock phrases count for nothing, a passage counts wherever turns begin and end, and a frame
with words swapped costs the swapped words.

This is the idea of compression distances (Li et al. 2004, "The similarity metric") with a greedy LZ77 parse.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from a2a_ray.analysis.loops.words import NUMBER

WINDOW = 8192
"""So many words of the talk, at least, can be copied from: twelve turns of 600 words."""

PLACE, NEAR, TURN, WHOLE, ON = 3.0, 1.5, 1.0, 0.5, 0.5
"""What pointing costs, in words: at any place of the window (log2 of 8192 is 13 bits, about five to a word of running
English, Shannon 1951); within `NEARBY` words of a distance used before; at the same place of one of the last `TURNS`
turns; at a whole turn that is the same; at a distance used before."""

NEARBY = 8
TURNS = 12

DISTANCES = 4
"""So many distances back are remembered as used before."""

CHANGED_NUMBER = 0.5
"""What a number costs, in words, that takes the place of another one in a copied passage."""

FRESH = 8
"""So many new words in a row, or more, are fresh: no slip or swap, but something said."""

ANCHOR = 3
"""A copy is looked for where so many words in a row were there before."""

IDLE = 4
"""After so many turns without a copy the distances used before are forgotten."""


class Copied(NamedTuple):
    """What was found in one turn.

    words: length of the turn. novelty: 0 to 1. new: words that are not copied. fresh: those in runs of `FRESH` or more.
    swapped: new words within a copied passage, in the place of as many others. changed: numbers in the place of others.
    left_out: words of a recent turn that the copy of it, up to its end, passes over.
    framed: whether one recent turn is said again, word for word but for those swapped.
    again: share of the copied words whose passage had been copied before.
    start, length, source: the longest copied passage: its place in the turn, its length, and the place in the talk that
        it was copied from, counted in words from the beginning; length 0 where there is none.
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


NO_WORDS = Copied(0, 1.0, 0, 0, 0, 0, 0, False, 0.0, 0, 0, 0)


class Recall:
    """The words of a talk as far back as `WINDOW`, and where each passage was last.

    Work per word and memory are bounded. Pickles as the words themselves; the index is made anew.
    """

    def __init__(self) -> None:
        self._words: list[str] = []
        self._copied = bytearray()  # 1 for a word that was copied, or copied from
        self.first = 0  # place in the talk of the first word in the window
        self._numbers: dict[int, str] = {}  # place -> the number as it was written
        self._last: dict[tuple[str, str, str], int] = {}  # three words -> place where they began last
        self._turns: dict[tuple[str, ...], int] = {}  # a whole turn -> place where it began last
        self._begins: list[int] = []  # where the last turns begin
        self._distances: list[int] = []  # used before, the newest first
        self._going = 0  # distance of the copy with which the newest turn ended, if it did
        self._idle = 0
        self._guess = 0  # distance put first among those used before, while it was not

    @property
    def length(self) -> int:
        """Words so far, of the whole talk."""
        return self.first + len(self._words)

    def read(self, words: list[str], numbers: list[str]) -> Copied:
        """Tells a turn (see `words.words`) and appends it to the talk."""
        size = len(words)
        if not size:
            return NO_WORDS
        begin = self.length
        self._words += words
        self._copied += bytes(size)
        if numbers:
            written = iter(numbers)
            self._numbers.update((begin + i, next(written)) for i, w in enumerate(words) if w == NUMBER)
        known = list(map(self._last.get, zip(words, words[1:], words[2:], strict=False)))
        whole = tuple(words)
        told = self._tell(size, begin, known, self._turns.get(whole))
        self._turns[whole] = begin
        self._begins = [*self._begins[1 - TURNS :], begin]
        self._index(begin)
        return told

    def _tell(self, size: int, begin: int, known: list[int | None], whole: int | None) -> Copied:
        """The cheapest telling of so many words that begin at place `begin`, found greedily.

        known: where the three words at each place were last. whole: where the whole turn was last.
        """
        if whole is None and not self._distances and known.count(None) == len(known):
            self._going = 0
            return NO_WORDS._replace(words=size, new=size, fresh=size if size >= FRESH else 0)
        cost = 0.0
        fresh = swapped = changed = copied = again = run = at = 0
        sources: list[tuple[int, int]] = []  # where each passage was, from place to place of the talk
        backs: set[int] = set()  # and at which distances
        before = self._going  # distance of the copy before
        longest = (0, 0, 0)
        known += [None] * (size - len(known))
        if whole is not None:
            known[0] = whole
        window, offset = self._words, begin - self.first
        distances = self._distances = [d for d in self._distances if d <= offset]
        self._guess = 0 if whole is not None else self._alongside(known, begin)
        if self._guess and self._guess not in distances:
            distances[:] = [self._guess, *distances[: DISTANCES - 1]]
        while at < size:
            here, found = offset + at, known[at]
            if found is None:
                word = window[here]
                for distance in distances:
                    if window[here - distance] == word:
                        break
                else:  # nowhere to copy from, the usual case
                    cost += 1
                    run += 1
                    at += 1
                    continue
            gain, length, back, others = self._best(here, at, found, before, whole is not None and not at)
            if not length:
                cost += 1
                run += 1
                at += 1
                continue
            there = here - back
            cost += length - gain
            changed += others
            copied += length
            again += sum(self._copied[there : there + length])
            self._copied[there : there + length] = self._copied[here : here + length] = b"\1" * length
            if length > longest[1]:
                longest = (at, length, begin + at - back)
            if run >= FRESH:
                fresh += run
            elif back == before:
                swapped += run
            sources.append((begin + at - back, begin + at - back + length))
            backs.add(back)
            before, run = back, 0
            at += length
        fresh += run if run >= FRESH else 0
        self._going = 0 if run else before
        self._idle = 0 if copied else self._idle + 1
        if self._idle > IDLE:
            self._distances.clear()
        share = again / copied if copied else 0.0
        framed = not fresh and self._framed(backs, begin, size, copied)
        left_out = 0 if run else self._left_out(sources, begin)
        swapped = size - copied if framed else swapped
        novelty = min(1.0, cost / size)
        return Copied(size, novelty, size - copied, fresh, swapped, changed, left_out, framed, share, *longest)

    def _alongside(self, known: list[int | None], begin: int) -> int:
        """The distance of the recent turn that most passages point at, each at its own place in it; 0 for none."""
        turns = [place - at for at, place in enumerate(known) if place is not None and place - at in self._begins]
        return begin - max(turns, key=turns.count) if turns else 0

    def _framed(self, backs: set[int], begin: int, size: int, copied: int) -> bool:
        """Whether all passages, at these distances, are at their places in one recent turn of the same length."""
        if len(backs) != 1 or 2 * copied <= size:
            return False
        start = begin - next(iter(backs))
        ends = [*self._begins[1:], begin]
        return start in self._begins and ends[self._begins.index(start)] - start == size

    def _left_out(self, sources: list[tuple[int, int]], begin: int) -> int:
        """How many words are passed over between passages that stand so in one recent turn, and reach its end."""
        ends = [*self._begins[1:], begin]
        if len(sources) < 2 or sources[-1][1] not in ends:
            return 0
        start = self._begins[ends.index(sources[-1][1])]
        gaps = [after - until for (_, until), (after, _) in pairwise(sources)]
        return sum(gaps) if sources[0][0] >= start and min(gaps) >= 0 else 0

    def _best(self, here: int, at: int, known: int | None, before: int, whole: bool) -> tuple[float, int, int, int]:
        """The copy that saves most from a place of the window on: words saved, length, distance, changed numbers.

        here, at: place in the window, and in the turn. known: where the words there were last, or the same turn
        (`whole`). before: the distance of the copy before. Length 0 where none saves anything.
        """
        window, distances = self._words, self._distances
        word = window[here]
        best: tuple[float, int, int, int] = (0.0, 0, 0, 0)
        cost_of = {before: 0.0, self._guess: TURN}
        tries = [(d, cost_of.get(d, ON)) for d in distances if window[here - d] == word]
        if known is not None and known >= self.first:
            distance = here + self.first - known
            if whole:
                tries.append((distance, WHOLE))
            elif known - at in self._begins:
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
        """How many numbers of a copied passage stand in the place of other ones."""
        number, first, window = self._numbers.get, self.first, self._words
        places = (i for i in range(here, here + length) if window[i] == NUMBER)
        return sum(number(first + i) != number(first + i - distance) for i in places)

    def _index(self, begin: int) -> None:
        """Notes where the passages of the newest turn begin, those that reach into it from the turn before included."""
        start = max(begin - ANCHOR + 1, self.first)
        window = self._words[start - self.first :]
        passages = zip(window, window[1:], window[2:], strict=False)
        self._last.update(zip(passages, range(start, start + len(window)), strict=False))
        if len(self._words) >= 2 * WINDOW:
            self._forget(len(self._words) - WINDOW)

    def _forget(self, count: int) -> None:
        """Drops the oldest words and what points at them."""
        self.first += count
        del self._words[:count]
        del self._copied[:count]
        first = self.first
        self._last = {passage: place for passage, place in self._last.items() if place >= first}
        self._turns = {turn: place for turn, place in self._turns.items() if place >= first}
        self._numbers = {place: number for place, number in self._numbers.items() if place >= first}

    def passage(self, place: int, length: int) -> str:
        """Words of the window, from a place in the talk on."""
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
            "going": self._going,
            "idle": self._idle,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._words = state["words"].split(" ") if state["words"] else []
        self._copied = bytearray(state["copied"])
        self._guess = 0
        self.first, self._distances = state["first"], state["distances"]
        self._going, self._idle = state["going"], state["idle"]
        self._numbers, self._begins = state["numbers"], state["begins"]
        self._turns = {tuple(self._words[p - self.first :][:n]): p for p, n in state["turns"]}
        self._last = {}
        self._index(self.first)


def _equal(window: list[str], there: int, here: int) -> int:
    """How many words are equal from two places of the window on; the copy may run into itself, as in LZ77."""
    length, end = 0, len(window)
    while here + length < end and window[there + length] == window[here + length]:
        length += 1
    return length
