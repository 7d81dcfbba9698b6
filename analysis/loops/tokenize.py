"""Split text into comparable words: case folded, ids masked, numbers kept, any script."""

from __future__ import annotations

import re
import unicodedata

LONGEST_TEXT = 60_000
"""Only this many characters of a longer text are read, half at its beginning and half at its end, so that the time per
turn is bounded."""

LONGEST_WORD = 12
"""A longer run of letters is cut into pieces, so that an encoded file weighs more than one word."""

ID = "#"
"""Replaces every hash and id: a new one says nothing new. Numbers are kept: some games differ only in them."""

# Combining marks belong to their letter; Python counts only some of them to a word.
_MARKS = "".join(chr(c) for c in range(0x300, 0x1200) if unicodedata.category(chr(c))[0] == "M")
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ID = re.compile(r"\b(?=[0-9a-f-]*\d)(?=[0-9a-f-]*[a-f])[0-9a-f][0-9a-f-]{6,}[0-9a-f]\b")
_ASCII = re.compile(rf"#|[a-z0-9]{{1,{LONGEST_WORD}}}(?:'[a-z]+)?")
_LETTER = rf"(?:[^\W_{_SPACELESS}]|[{_MARKS}])"
_WORD = re.compile(rf"#|{_LETTER}{{1,{LONGEST_WORD}}}(?:'{_LETTER}+)?|[{_SPACELESS}]")


def words(text: str, *, mask_ids: bool = True) -> list[str]:
    """Return the words of a text in order.

    In a script without spaces each character is a word. A text without letters and numbers (punctuation, emoji) is
    split into its characters. Blank texts have no words.
    """
    if len(text) > LONGEST_TEXT:
        text = text[: LONGEST_TEXT // 2] + text[-LONGEST_TEXT // 2 :]
    ascii = text.isascii()
    folded = text.lower() if ascii else unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    found = (_ASCII if ascii else _WORD).findall(_ID.sub(ID, folded) if mask_ids else folded)
    return found or [c for c in text if not c.isspace()]
