"""The phrases that make a sentence an empty speech act: it closes, thanks, offers, promises, agrees or admires.

What a lexicon does not know, it does not find; docs/method/loop_detector.md has its errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

LANGUAGES = ("en", "de", "es", "fr")


class ActLexicon(NamedTuple):
    """Regular expressions of one language for lower-case text. `empty` is any of the first four kinds of phrases."""

    empty: re.Pattern[str]
    thanks: re.Pattern[str]
    offer: re.Pattern[str]
    agreement: re.Pattern[str]
    short_agreement: re.Pattern[str]
    awe: re.Pattern[str]
    one_another: re.Pattern[str]
    opens_with_agreement: re.Pattern[str]


_EMPTY = ("closing", "thanks", "offer", "promise")
_WHOLE_WORDS = {"awe", "short_agreement", "opens_with_agreement"}


@cache
def act_lexicon(language: str) -> ActLexicon:
    """Return the lexicon of one of LANGUAGES."""
    sections = _sections(language)
    adverbs = "".join(["(?:", "|".join(f"{word} " for word in sections["adverbs"]), ")*"])

    def any_of(name: str) -> re.Pattern[str]:
        names = _EMPTY if name == "empty" else (name,)
        phrases = "|".join(phrase for each in names for phrase in sections[each]).replace("ADVERBS", adverbs)
        return re.compile(rf"\b(?:{phrases})" + (r"\b" if name in _WHOLE_WORDS else ""))

    return ActLexicon(*map(any_of, ActLexicon._fields))


@cache
def function_words() -> dict[str, tuple[str, ...]]:
    """Return the languages of each function word."""
    found: dict[str, tuple[str, ...]] = {}
    for language in LANGUAGES:
        for word in _sections(language)["function_words"]:
            found[word] = (*found.get(word, ()), language)
    return found


@cache
def _sections(language: str) -> dict[str, Sequence[str]]:
    """Return the lines of each section of a file of phrases."""
    text = (files("a2a_ray") / "data" / "loops" / f"acts_{language}.txt").read_text(encoding="utf-8")
    sections: dict[str, Sequence[str]] = {}
    for line in text.splitlines():
        if re.fullmatch(r"\[[a-z ]+\]", line):
            sections[line[1:-1].replace(" ", "_")] = phrases = list[str]()
        elif line and not line.startswith("#"):
            phrases.append(line)
    return sections
