"""Conversations that only close, thank, offer, promise, agree and admire: the share of empty speech acts in a turn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import chain

from a2a_ray.analysis.loops.act_lexicon import LANGUAGES, ActLexicon, act_lexicon, function_words
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

_SENTENCE_END = re.compile(r'[.!?…]["”’»)*]*\s+(?=\S)')
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]*)*|\d+")
_ASCII_WORD = re.compile(r"[a-z]+(?:'[a-z]*)*|\d+")
_FACTS = re.compile(r"[\d\[{}|=<>_`]|https?:")


class EmptyActs:
    """The sums of empty speech acts: of turns, and of words."""

    def __init__(self) -> None:
        self.turns, self.words = RepetitionSum(TURNS), RepetitionSum(WORDS)
        self._votes = dict.fromkeys(LANGUAGES, 0.0)  # function words of each language, halved with every turn

    @property
    def sum(self) -> RepetitionSum:
        """The sum with the higher score."""
        return max(self.turns, self.words, key=lambda each: each.score)

    def add(self, turn: int, speaker: str, text: str, spent: int) -> None:
        """Add a turn. spent: tokens of the conversation before it."""
        sentences = [
            (sentence, lowered, (_ASCII_WORD if lowered.isascii() else _WORD).findall(lowered))
            for sentence in _SENTENCE_END.sub("\\g<0>\n", text[:READ]).split("\n")
            if (lowered := sentence.lower().replace("’", "'"))
        ]
        known = act_lexicon(self._language(chain.from_iterable(words for _, _, words in sentences)))
        total, empty, quote = 0, 0, ""
        for sentence, lowered, words in sentences:
            count = len(words)
            total += count
            if count and is_empty(lowered, count, known):
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

    def _language(self, words: Iterable[str]) -> str:
        """Return the language of the newest turns by their function words; English without any."""
        for language in LANGUAGES:
            self._votes[language] /= 2
        for languages, count in Counter(map(function_words().get, words)).items():
            for language in languages or ():
                self._votes[language] += count
        return max(LANGUAGES, key=self._votes.__getitem__)


def is_empty(sentence: str, count: int, known: ActLexicon) -> bool:
    """Return whether a sentence of `count` words, in lower case, is an empty speech act."""
    if not _is_act(sentence, count, known):
        return False
    return count <= 6 or not _FACTS.search(sentence.replace("###stop###", "").replace("[end]", ""))


def _is_act(sentence: str, count: int, known: ActLexicon) -> bool:
    if count <= SENTENCE:
        if found := known.empty.search(sentence):
            return not known.but.search(sentence, found.end())
        if count <= AGREES and known.agreement.search(sentence):
            return True
        if count <= 4 and known.short_agreement.match(sentence.strip('*_ ."¡')):
            return True
    elif count <= THANKS_LONG and (known.thanks.search(sentence) or known.offer.search(sentence)):
        return True
    if sentence.rstrip('"* ').endswith("?"):
        return False
    awe = len(known.awe.findall(sentence))
    if count <= SENTENCE and awe and known.opens_with_agreement.match(sentence):
        return True
    to_one_another = len(known.one_another.findall(sentence)) if awe else 0
    return awe > 0 and awe + to_one_another >= max(2, count / 14)
