"""Split text into comparable words: case folded, numbers and ids masked, any script."""

from __future__ import annotations

import re
import unicodedata

LONGEST_TEXT = 60_000
"""Only this many characters of a longer text are read, half at its beginning and half at its end, so that the time per
turn is bounded."""

LONGEST_WORD = 12
"""A longer run of letters is cut into pieces, so that an encoded file or a script without spaces weighs more than one
word."""

NUMBER = "#"
"""Replaces every number, version, timestamp, hash and id: a growing counter says nothing new."""

# Combining marks belong to their letter; Python counts only some of them to a word.
_MARKS = "".join(chr(c) for c in range(0x300, 0x1200) if unicodedata.category(chr(c))[0] == "M")
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NUMBER = re.compile(r"\d")
_ASCII = re.compile(rf"[a-z]{{0,{LONGEST_WORD}}}[0-9][0-9a-z]*|[a-z]{{1,{LONGEST_WORD}}}")
_LETTER = rf"(?:[^\W\d_{_SPACELESS}]|[{_MARKS}])"
_WORD = re.compile(rf"{_LETTER}{{0,{LONGEST_WORD}}}\d[^\W_{_SPACELESS}]*|{_LETTER}{{1,{LONGEST_WORD}}}|[{_SPACELESS}]")


def words(text: str) -> tuple[list[str], list[str]]:
    """Return the words of a text, and the numbers among them as written, both in order.

    Words contain letters only. In a script without spaces each character is a word. A text without letters and numbers
    (punctuation, emoji) is split into its characters. Blank texts have no words.
    """
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT // 2] + text[-LONGEST_TEXT // 2 :]
    if text.isascii():
        found = _ASCII.findall(text.lower())
    else:
        found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    if not found:
        return [c for c in text if not c.isspace()], []
    numbers = [w for w in found if not w.isalpha() and _NUMBER.search(w)]
    if numbers:
        found = [w if w.isalpha() or not _NUMBER.search(w) else NUMBER for w in found]
    return found, numbers


def quoted(text: str, start: int, length: int) -> str:
    """Return `length` words of a text as written, from word number `start` on; the whole text if places are unknown."""
    if not text.isascii() or len(text) > LONGEST_TEXT:
        return text
    places = [(w.start(), w.end()) for w in _ASCII.finditer(text.lower())]
    last = start + length - 1
    return text[places[start][0] : places[last][1]] if last < len(places) and length else text
