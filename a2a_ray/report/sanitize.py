"""Make untrusted message texts harmless before a terminal or a browser prints them.

HTML is escaped elsewhere: the templates escape every value.
"""

from __future__ import annotations

import re

_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_INVISIBLE = r"\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_HOSTILE = re.compile(rf"\r\n|[{_CONTROL}{_BIDI}{_INVISIBLE}\u2028\u2029\ud800-\udfff]")


def clean(text: str) -> str:
    """Return the text with every character made visible that could control a terminal or deceive a reader.

    Control characters become their pictures (ESC is ␛, so no terminal sequence survives). C1 controls, bidirectional
    controls and invisible characters become their code in angle brackets, lone surrogates U+FFFD. Tabs and line ends
    stay.
    """
    return _HOSTILE.sub(_visible, text)


def clean_line(text: str, limit: int = 200) -> str:
    """Return the cleaned text on one line, cut to `limit` characters."""
    line = clean(" ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _visible(found: re.Match[str]) -> str:
    character = found[0]
    code = ord(character[0])
    if character == "\r\n" or code in (0x2028, 0x2029):
        return "\n"
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"
