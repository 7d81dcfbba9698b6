"""Text as words that can be compared: case folded, numbers and ids masked, any script."""

from __future__ import annotations

import re
import unicodedata

LONGEST_TEXT = 60_000
"""Of a longer text the first and the last half of so many characters are read: a turn costs a bounded time."""

LONGEST_WORD = 12
"""A longer run of letters is cut into pieces, so that a long one (an encoded file, a script without spaces) weighs more
than a word."""

NUMBER = "#"
"""What every number, version, time stamp, hash and id becomes: a counter that grows says nothing new."""

# Combining marks belong to their letter; Python counts only some of them to a word.
_MARKS = "".join(chr(c) for c in range(0x300, 0x1200) if unicodedata.category(chr(c))[0] == "M")
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_NUMBER = re.compile(r"\d")
_ASCII = re.compile(rf"[a-z]{{0,{LONGEST_WORD}}}[0-9][0-9a-z]*|[a-z]{{1,{LONGEST_WORD}}}")
_LETTER = rf"(?:[^\W\d_{_SPACELESS}]|[{_MARKS}])"
_WORD = re.compile(rf"{_LETTER}{{0,{LONGEST_WORD}}}\d[^\W_{_SPACELESS}]*|{_LETTER}{{1,{LONGEST_WORD}}}|[{_SPACELESS}]")


def words(text: str) -> tuple[list[str], list[str]]:
    """The words of a text, and the numbers among them as they were written, both in order.

    Letters only; a character of a script without spaces is a word; a text without letters and numbers (punctuation,
    emoji) is made of its characters. Blank texts have no words.
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
    """The part of a text from its word number `start` on, as it was written; all of it where that is not known."""
    if not text.isascii() or len(text) > LONGEST_TEXT:
        return text
    places = [(w.start(), w.end()) for w in _ASCII.finditer(text.lower())]
    last = start + length - 1
    return text[places[start][0] : places[last][1]] if last < len(places) and length else text
