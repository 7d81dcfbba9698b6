"""The phrases that make a sentence an empty speech act: it closes, thanks, offers, promises, agrees or admires.

What a lexicon does not know, it does not find; docs/method/loop_detector.md has its errors.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class ActLexicon(NamedTuple):
    """Regular expressions of one language, each for one kind of phrase."""

    closing: re.Pattern[str]
    thanks: re.Pattern[str]
    offer: re.Pattern[str]
    promise: re.Pattern[str]
    agreement: re.Pattern[str]
    short_agreement: re.Pattern[str]
    awe: re.Pattern[str]
    one_another: re.Pattern[str]
    opens_with_agreement: re.Pattern[str]


_WHOLE_WORDS = {"awe", "short_agreement", "opens_with_agreement"}


@cache
def act_lexicon(language: str = "en") -> ActLexicon:
    """Return the lexicon of a language."""
    text = (files("a2a_ray") / "data" / "loops" / f"acts_{language}.txt").read_text(encoding="utf-8")
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            sections[line[1:-1].replace(" ", "_")] = phrases = []
        elif line and not line.startswith("#"):
            phrases.append(line)
    adverbs = "".join(["(?:", "|".join(f"{word} " for word in sections.pop("adverbs")), ")*"])

    def any_of(name: str) -> re.Pattern[str]:
        phrases = "|".join(sections[name]).replace("ADVERBS", adverbs)
        end = r"\b" if name in _WHOLE_WORDS else ""
        return re.compile(rf"\b(?:{phrases}){end}", re.IGNORECASE)

    return ActLexicon(*map(any_of, ActLexicon._fields))
