"""The chat in the terminal, and that nothing an agent said gets through to the terminal as anything but text."""

from __future__ import annotations

import io
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import DONE, FAILED, Transcript
from a2a_ray.report.chat import render_chat, segments, vector_text
from a2a_ray.report.sanitize import clean, clean_line

HOSTILE = (
    "\x1b[2J\x1b]8;;http://evil\x07click\x1b]8;;\x07 \x9b31m \u202egnp.exe \ud800 [bold]loud[/bold] :smile: \r\x08\x00"
)
SGR = re.compile(r"\x1b\[[0-9;]*m")
any_text = st.text(st.characters(codec=None, exclude_categories=()))


def talk(*texts: Content, opening: str = "Once upon a time.", id: str = "c1") -> Transcript:
    transcript = Transcript(id, ("ann", "bob"), opening)
    for i, text in enumerate(texts):
        transcript.append(Message(id, i + 1, ("ann", "bob")[i % 2], text))
    transcript.status, transcript.reason = DONE, "25 rounds"
    return transcript


def printed(transcript: Transcript, width: int = 80, terminal: bool = True, **how: object) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, color_system="truecolor" if terminal else None)
    render_chat(transcript, console, **how)  # type: ignore[arg-type]
    return file.getvalue()


@given(any_text)
def test_cleaned_text_can_steer_nothing(text: str) -> None:
    for character in clean(text):
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in (
            "LRE",
            "RLE",
            "PDF",
            "LRO",
            "RLO",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        )
    assert clean(clean(text)) == clean(text)
    clean(text).encode()  # no lone surrogate is left


@given(st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_joined_emoji_and_line_ends_survive() -> None:
    assert clean("👩\u200d🔬\r\nनमस्\u200dते\tsalām سلام") == "👩\u200d🔬\nनमस्\u200dते\tsalām سلام"


def test_escape_sequences_are_shown_not_sent() -> None:
    assert clean("\x1b[31mred\x07\x9b") == "␛[31mred␇⟨U+009B⟩"
    assert clean("a\u202eb\U000e0041") == "a⟨U+202E⟩b⟨U+E0041⟩"


def test_a_line_is_one_line_and_cut() -> None:
    assert clean_line("a\n b\u2028c") == "a b c"
    assert clean_line("x" * 300, 10) == "x" * 9 + "…"


@given(any_text.filter(lambda t: "\r" not in t), st.data())
def test_segments_are_the_whole_text_with_the_spans_marked(text: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    spans = list(zip(ends[::2], ends[1::2], strict=False))
    pieces = list(segments(text, spans))
    assert "".join(piece for piece, _ in pieces) == clean(text)
    assert "".join(p for p, repeated in pieces if repeated) == clean("".join(text[a:b] for a, b in spans))


@pytest.mark.parametrize("spans", [[(2, 99)], [(-5, 2)], [(4, 1)], [(0, 3), (1, 2)], [(90, 95)]])
def test_spans_that_do_not_fit_lose_no_text(spans: list[tuple[int, int]]) -> None:
    assert "".join(piece for piece, _ in segments("abcdef", spans)) == "abcdef"
    assert "".join(piece for piece, _ in segments("abcdef", spans, limit=3)) == "abc"


def test_a_chat_names_speakers_turns_onset_and_end() -> None:
    out = printed(talk("Hello.", "Hi there.", "Hello."), terminal=False, onset=3)
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert "c1" in lines[0]
    assert lines[1:7] == ["opening", "Once upon a time.", "ann  turn 1", "Hello.", "bob  turn 2", "Hi there."]
    assert "a loop begins at turn 3" in lines[7]
    assert lines[8:] == ["ann  turn 3", "Hello.", "done: 25 rounds (3 turns)"]


def test_speakers_have_their_own_colour_and_side() -> None:
    plain = printed(talk("Hello.", "Hi there."), terminal=False)
    assert "\nann" in plain
    assert "\n      bob" in plain
    assert "\nbob" in printed(talk("Hello.", "Hi there."), width=40, terminal=False)
    coloured = printed(talk("Hello.", "Hi there."))
    ann, bob = (re.search(rf"(\x1b\[[0-9;]*m){name}", coloured) for name in ("ann", "bob"))
    assert ann is not None
    assert bob is not None
    assert ann[1] != bob[1]


def test_repeated_passages_are_highlighted() -> None:
    out = printed(talk("one two", "three one two"), spans=[[], [(6, 13)]])
    highlighted = re.findall(r"\x1b\[30;4[38][0-9;]*m([^\x1b]*)", out)
    assert highlighted == ["one two"]


def test_nothing_that_was_said_reaches_the_terminal_as_a_command() -> None:
    transcript = talk(HOSTILE, "Hi.", opening=HOSTILE, id=HOSTILE)
    transcript.status, transcript.reason, transcript.error = FAILED, "", HOSTILE
    transcript.append(Message(transcript.id, 3, HOSTILE, HOSTILE, kind=HOSTILE))
    out = SGR.sub("", printed(transcript, width=400, spans=[[(0, 9)], [], []]))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", out)
    assert "[bold]loud[/bold] :smile:" in out
    assert "␛]8;;http://evil" in out


def test_an_error_ends_the_chat() -> None:
    transcript = talk("Hello.")
    transcript.status, transcript.reason, transcript.error = FAILED, "", "agent 'bob' raised ValueError: no"
    assert printed(transcript, terminal=False).rstrip().endswith("failed: agent 'bob' raised ValueError: no (1 turn)")


def test_vectors_and_empty_messages_are_readable() -> None:
    assert vector_text(np.array([3.0, 4.0])) == "[3, 4]  d = 2, norm 5"
    assert vector_text(np.ones(100, dtype=np.float32)) == "[1, 1, 1, 1, 1, 1, …]  d = 100, norm 10"
    out = printed(talk(np.array([3.0, 4.0]), opening=""), terminal=False)
    assert "[3, 4]  d = 2, norm 5" in out
    assert "opening" not in out
    assert "(empty)" in printed(talk("", "\n "), terminal=False)
