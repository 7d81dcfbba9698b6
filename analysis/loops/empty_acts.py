"""Conversations that only close, thank, offer, promise, agree and admire: the share of empty speech acts in a turn."""

from __future__ import annotations

import re

from a2a_ray.analysis.loops.act_lexicon import act_lexicon
from a2a_ray.analysis.loops.repetition_sum import RepeatedTurn, RepetitionSum

SENTENCE, AGREES, THANKS_LONG = 24, 14, 36
"""Most words of a sentence that is empty as a whole: by its phrase; by an agreement; by thanks or an offer in it."""

MOSTLY = 0.5
"""Share of empty words from which a turn adds to the sum of turns; it takes away below."""

USUAL = 0.2
"""Share of empty words in an ordinary turn: only those beyond it add to the sum of words."""

TURNS, WORDS = 6.99, 124.9
"""More empty turns, or more empty words beyond the usual share, than this are a loop."""

READ = 6000
"""This many characters of a turn are read."""

_SENTENCES = re.compile(r'(?<=[.!?…])["”’)\*]*\s+(?=\S)|\n+')
_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*|\d+")
_FACTS = re.compile(r"\d|[\[{}|=<>_`]|https?:")


class EmptyActs:
    """The sums of empty speech acts: of turns, and of words."""

    def __init__(self) -> None:
        self.turns, self.words = RepetitionSum(TURNS), RepetitionSum(WORDS)

    @property
    def sum(self) -> RepetitionSum:
        """The sum with the higher score."""
        return max(self.turns, self.words, key=lambda each: each.score)

    def add(self, turn: int, speaker: str, text: str, spent: int) -> None:
        """Add a turn. spent: tokens of the conversation before it."""
        total, empty, quote = 0, 0, ""
        for sentence in _SENTENCES.split(text[:READ]):
            count = len(_WORD.findall(sentence))
            total += count
            if count and is_empty(sentence, count):
                empty += count
                quote = quote or sentence.strip()
        if not total:
            return
        share = empty / total
        repeat = RepeatedTurn(turn, speaker, "courtesy", 0, quote, "", share)
        if share >= MOSTLY:
            self.turns.add(share, repeat, spent)
        else:
            self.turns.lower(1 - share / MOSTLY, turn)
        beyond = empty - USUAL * total
        if beyond > 0:
            self.words.add(beyond, repeat, spent)
        else:
            self.words.lower(-beyond, turn)


def is_empty(sentence: str, count: int) -> bool:
    """Return whether a sentence of `count` words is an empty speech act (English)."""
    known, sentence = act_lexicon(), sentence.replace("’", "'")
    facts = _FACTS.search(sentence.replace("###STOP###", "").replace("[End]", ""))
    if facts and count > 6:
        return False
    if count <= SENTENCE:
        if any(act.search(sentence) for act in (known.closing, known.thanks, known.offer, known.promise)):
            return True
        if count <= AGREES and known.agreement.search(sentence):
            return True
        if count <= 4 and known.short_agreement.match(sentence.strip('*_ ."')):
            return True
    elif count <= THANKS_LONG and (known.thanks.search(sentence) or known.offer.search(sentence)):
        return True
    if sentence.rstrip('"* ').endswith("?"):
        return False
    awe = len(known.awe.findall(sentence))
    if count <= SENTENCE and awe and known.opens_with_agreement.match(sentence):
        return True
    to_one_another = len(known.one_another.findall(sentence)) if awe else 0
    dense = awe + to_one_another >= count / 14
    return dense and ((awe >= 1 and to_one_another >= 1) or awe >= 2)
