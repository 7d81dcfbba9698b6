"""Exact repetition: messages that repeat an earlier one word for word, and the repeated passages.

Two messages are equal if their texts are, with case and white space folded. Blank messages are ignored: they neither
repeat anything nor end a repetition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import LOOP, RECOVERED, Finding, as_finding
from a2a_ray.core.message import ASIDE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

ANALYZER = "exact_repetition"
"""Name of the rule as an analyzer."""

PHRASE_CHARACTERS = 200
"""A phrase in a verdict is cut to this many characters."""

MAX_PHRASE_WORDS = 40
"""The longest phrase that `repeated_phrase` searches for."""

MAX_SEARCHED_WORDS = 2_000
"""`repeated_phrase` reads this many words from the onset on, which are enough to show a loop."""

_WORD = re.compile(r"\w+")
_BLANK = -1


def folded(text: str) -> str:
    """Return the text with case and white space folded; empty for a blank text."""
    return " ".join(text.casefold().split())


def clipped(text: str) -> str:
    """Return the text on one line, at most `PHRASE_CHARACTERS` long."""
    line = " ".join(text.split())
    return line if len(line) <= PHRASE_CHARACTERS else line[: PHRASE_CHARACTERS - 1] + "…"


@dataclass(frozen=True, slots=True)
class Repetition:
    """A run of messages in a row, each of which repeats an earlier one.

    onset: the first turn that repeats. earlier: the turn that it repeats.
    turns: number of messages in the run.
    period: distance to the repeated message, in messages, if it is the same for the whole run; else None.
    phrase: the text of the onset, on one line, clipped.
    """

    onset: int
    earlier: int
    turns: int
    period: int | None
    phrase: str

    def evidence(self) -> dict[str, Any]:
        """Return the evidence, with the field names of a Finding."""
        return {
            "kind": "verbatim",
            "onset_turn": self.onset,
            "period": self.period,
            "span": self.phrase,
            "earlier_span": self.phrase,
            "first_repeats_turn": self.earlier,
            "turns": self.turns,
        }


class ExactRepetitionRule:
    """Observer: "loop" on every message from the `turns`-th in a row on that repeats an earlier one, at any distance.

    turns: number of messages in a row. action: "record" the loop, or "stop" the conversation.
    The amortised work per message is constant; memory grows by one digest per message.
    """

    def __init__(self, turns: int = 3, action: Literal["record", "stop"] = "record") -> None:
        if turns < 1:
            raise ConfigurationError(f"turns: {turns}; expected at least 1")
        if action not in ("record", "stop"):
            raise ConfigurationError(f"action: {action!r}; expected 'record' or 'stop'")
        self.turns = turns
        self.action = action
        self.repetition: Repetition | None = None  # the current run, however short
        self._last: dict[bytes, int] = {}  # digest of a text -> its latest position
        self._first: list[int] = []  # position -> first position of the same text; _BLANK for a blank one
        self._turn: list[int] = []  # position -> turn
        self._run: list[int] = []  # positions of the messages of the run
        self._seq = 0
        self._found: list[dict[str, Any]] = []  # fields of the finding of each run that was long enough

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the findings; JSON."""
        return {"turns": self.turns}

    def findings(self, conversation_id: str) -> list[Finding]:
        """Return one finding per run of repeated messages, at least one finding."""
        return [
            as_finding(
                {**each, "number": number},
                conversation_id=conversation_id,
                analyzer=ANALYZER,
                settings=self.settings,
                through_seq=self._seq,
                threshold=float(self.turns),
            )
            for number, each in enumerate(self._found or [{"score": 0.0}], 1)
        ]

    def update(self, message: Message) -> ObserverVerdict:
        """Return the verdict after this message; bids, combinations and vectors are ignored."""
        self._seq = message.seq
        if message.kind in ASIDE or not isinstance(message.content, str):
            return NOTHING
        here = len(self._first)
        self._turn.append(message.turn)
        text = folded(message.content)
        if not text:
            self._first.append(_BLANK)
            return NOTHING
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        earlier = self._last.get(digest)
        self._last[digest] = here
        if earlier is None:
            self._first.append(here)
            if self._run and self._found and self._found[-1]["onset_turn"] == self._turn[self._run[0]]:
                self._found[-1] |= {"status": RECOVERED, "recovered_turn": message.turn}
            self._run, self.repetition = [], None
            return NOTHING
        self._first.append(self._first[earlier])
        self._run.append(here)
        run = self.repetition
        if run is None:
            self.repetition = Repetition(message.turn, self._turn[earlier], 1, here - earlier, clipped(message.content))
        else:
            self.repetition = Repetition(run.onset, run.earlier, run.turns + 1, self._period(run.period), run.phrase)
        return self._verdict(self.repetition, message.turn)

    def _period(self, period: int | None) -> int | None:
        """Return the smallest period of at least `period` that fits the whole run.

        It never decreases during a run, and stays None once no period fits. This bounds the work.
        """
        if period is None or self._keeps(self._run[-1:], period):
            return period
        longest = self._run[0]
        return next((p for p in range(period + 1, longest + 1) if self._keeps(self._run, p)), None)

    def _keeps(self, positions: Sequence[int], period: int) -> bool:
        first = self._first
        return all(at >= period and first[at] == first[at - period] for at in positions)

    def _verdict(self, run: Repetition, turn: int) -> ObserverVerdict:
        if run.turns < self.turns:
            return NOTHING
        every = f", every {run.period}" if run.period else ""
        reason = f"{run.turns} messages in a row repeat earlier ones{every}, from turn {run.onset} on: {run.phrase}"
        if run.turns == self.turns:
            self._found.append({"status": LOOP, "alarm_turn": turn})
        self._found[-1] |= {**run.evidence(), "reason": reason, "score": float(run.turns)}
        return ObserverVerdict("loop", self.action, reason, evidence=run.evidence())


def repeated_spans(transcript: Transcript, minimum_words: int = 8) -> list[list[tuple[int, int]]]:
    """Return the passages of each message that occur earlier in the conversation, including the opening.

    Passages are (start, end) in characters, ascending, without overlap. They have at least `minimum_words` words,
    ignoring case, white space and punctuation; repeated whole messages count at any length. One hash per word: linear
    time. Raises ConfigurationError for `minimum_words` below 1.
    """
    if minimum_words < 1:
        raise ConfigurationError(f"minimum_words: {minimum_words}; expected at least 1")
    numbers: dict[str, int] = {}
    seen: set[int] = set()
    whole: set[str] = set()
    spans: list[list[tuple[int, int]]] = []
    for message in (transcript.opening, *transcript.messages):
        text = message.content if isinstance(message.content, str) else ""
        found: list[tuple[int, int]] = []
        word = list(_WORD.finditer(text))
        # numbers instead of strings, so that the hash of a passage is the same in every process
        numbered = [numbers.setdefault(w[0].casefold(), len(numbers)) for w in word]
        for i in range(len(word) - minimum_words + 1):
            passage = hash(tuple(numbered[i : i + minimum_words]))
            if passage in seen:
                start, end = word[i].start(), word[i + minimum_words - 1].end()
                if found and start <= found[-1][1]:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
            seen.add(passage)
        plain = folded(text)
        if plain and plain in whole:
            stripped = text.strip()
            start = text.index(stripped)
            found = [(start, start + len(stripped))]
        whole.add(plain)
        spans.append(found)
    return spans[1:]


def repeated_phrase(transcript: Transcript, onset: int = 1, minimum_words: int = 5) -> str:
    """Return the most informative phrase that messages from turn `onset` on repeat; empty if there is none.

    Of all phrases of `minimum_words` to `MAX_PHRASE_WORDS` words, it is the one with the most repeated words:
    (times - 1) x words, where overlapping copies count once. Of equals it is the longest.
    """
    texts = [m.content for m in transcript.messages if m.turn >= onset and isinstance(m.content, str)]
    word: list[tuple[str, int, int, int]] = []  # folded word, number of its text, start, end
    for number, text in enumerate(texts):
        word.extend((w[0].casefold(), number, w.start(), w.end()) for w in _WORD.finditer(text))
        if len(word) >= MAX_SEARCHED_WORDS:
            break
    del word[MAX_SEARCHED_WORDS:]
    best, phrase = 0, ""
    # Places of one group begin with the same `size` words. A repeated phrase begins with a shorter repeated one, so
    # only groups of at least two places are extended.
    group = dict.fromkeys(range(len(word)), 0)
    for size in range(1, MAX_PHRASE_WORDS + 1):
        places: dict[tuple[int, str], list[int]] = {}
        for i, number in group.items():
            end = i + size - 1
            if end < len(word) and word[end][1] == word[i][1]:
                places.setdefault((number, word[end][0]), []).append(i)
        repeated = [equal for equal in places.values() if len(equal) > 1]
        group = {i: number for number, equal in enumerate(repeated) for i in equal}
        if size < minimum_words:
            continue
        for equal in repeated:
            score = size * (_apart(equal, size) - 1)
            if score and score >= best:
                first, last = word[equal[0]], word[equal[0] + size - 1]
                best, phrase = score, texts[first[1]][first[2] : last[3]]
    return clipped(phrase)


def _apart(places: Sequence[int], size: int) -> int:
    """Return how many of these ascending places can start phrases of `size` words without overlap."""
    count, free = 0, 0
    for place in places:
        if place >= free:
            count, free = count + 1, place + size
    return count
