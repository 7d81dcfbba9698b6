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
    but: re.Pattern[str]


_EMPTY = ("closing", "thanks", "offer", "promise")
_WHOLE_WORDS = {"awe", "short_agreement", "opens_with_agreement", "but"}
_NESTED = r"\((?:[^()]|\([^()]*\))*\)"
_ALTERNATIVE = re.compile(rf"(?:[^()|]|{_NESTED})+")
_GROUP = re.compile(rf"\(\?:((?:[^()]|{_NESTED})*)\)(?![?*+{{])(.*)")


@cache
def act_lexicon(language: str) -> ActLexicon:
    """Return the lexicon of one of LANGUAGES."""
    sections = _sections(language)
    adverbs = "".join(["(?:", "|".join(f"{word} " for word in sections["adverbs"]), ")*"])

    def any_of(name: str) -> re.Pattern[str]:
        names = _EMPTY if name == "empty" else (name,)
        phrases = [phrase.replace("ADVERBS", adverbs) for each in names for phrase in sections[each]]
        return re.compile(rf"\b(?:{_by_first_letter(phrases)})" + (r"\b" if name in _WHOLE_WORDS else ""))

    return ActLexicon(*map(any_of, ActLexicon._fields))


def _by_first_letter(phrases: Sequence[str]) -> str:
    """Return the alternatives grouped by their first letter, which `re` searches three times as fast."""
    groups: dict[str, list[str]] = {}
    for phrase in phrases:
        for each in _alternatives(phrase):
            letter = each[0] if each[0].isalpha() and each[1:2] not in ("?", "*", "+", "{") else ""
            groups.setdefault(letter, []).append(each.removeprefix(letter))
    return "|".join(f"{letter}(?:{'|'.join(rest)})" for letter, rest in groups.items())


def _alternatives(phrase: str) -> list[str]:
    """Return "a c", "b c" for "(?:a|b) c"."""
    group = _GROUP.fullmatch(phrase)
    return [each + group[2] for each in _ALTERNATIVE.findall(group[1])] if group else [phrase]


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
