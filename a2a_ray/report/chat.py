"""Print a conversation as a chat in the terminal; the report shares its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from a2a_ray.core.message import Content, Message
from a2a_ray.core.transcript import FAILED, Transcript
from a2a_ray.report.sanitize import clean, clean_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Spans: TypeAlias = "Sequence[tuple[int, int]]"
"""(start, end) in characters, ascending, not overlapping: the passages of one message that repeat earlier text."""

SHOWN_NUMBERS = 6
"""Numbers of a vector that are printed."""

_COLOURS = ("dodger_blue1", "dark_orange", "green3", "orchid", "gold3", "turquoise2")
_INDENT = 6
_WIDE = 60
"""A narrower terminal has no room for indents: there only colour distinguishes speakers."""


def render_chat(
    transcript: Transcript,
    console: Console,
    spans: Sequence[Spans] | None = None,
    onset: int | None = None,
    alarm: int | None = None,
    findings: Sequence[str] = (),
) -> None:
    """Print a conversation as a chat.

    Message texts are never read as markup, and their control characters do not reach the terminal.

    Args:
        spans: for each of `transcript.messages` the passages that repeat earlier text; they are highlighted.
        onset: the turn at which a loop begins; a line is drawn above it.
        alarm: the turn that raised the alarm; a line is drawn below it.
        findings: lines printed below the id.
    """
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.text import Text

    console.print(Rule(Text(clean_line(transcript.id), style="bold"), style="dim"))
    for line in findings:
        console.print(Text(clean_line(line, 300), style="italic"))
    if findings:
        console.print()
    if not is_blank(transcript.opening.content):
        console.print(Text("opening", style="dim italic"))
        console.print(Padding(_body(transcript.opening, ()), (0, 0, 1, 2)))
    places = speaker_places(transcript)
    for number, message in enumerate(transcript.messages):
        if onset is not None and message.turn == onset:
            console.print(Rule(Text(f"a loop begins at turn {onset}", style="bold red"), style="red"))
        place = places[message.sender]
        indent = _INDENT * (place % 2) if console.width >= _WIDE else 0
        head = Text(clean_line(message.sender, 40), style=f"bold {_COLOURS[place % len(_COLOURS)]}")
        head.append(f"  turn {message.turn}", style="dim not bold")
        if message.kind != "message":
            head.append(f"  {clean_line(message.kind, 40)}", style="dim italic not bold")
        console.print(Padding(head, (0, 0, 0, indent)))
        passages = spans[number] if spans is not None and number < len(spans) else ()
        console.print(Padding(_body(message, passages), (0, 0, 1, indent + 2)))
        if alarm is not None and message.turn == alarm:
            console.print(Rule(Text(f"alarm after turn {alarm}", style="red"), style="red"))
    end = Text(ending(transcript), style="bold red" if transcript.status == FAILED else "dim")
    console.print(end)
    if transcript.traceback:
        console.print(Padding(Text(clean(transcript.traceback), style="dim"), (0, 0, 0, 2)))


def ending(transcript: Transcript) -> str:
    """Return one line: how the conversation ended, why, and after how many turns."""
    parts = [clean_line(transcript.status, 40)]
    parts += [clean_line(text, 1000) for text in (transcript.reason, transcript.error) if text]
    turns = len(transcript.messages)
    return f"{': '.join(parts)} ({turns} turn{'' if turns == 1 else 's'})"


def is_blank(content: Content) -> bool:
    """Return whether a text has no visible character. A vector is never blank."""
    return isinstance(content, str) and not content.strip()


def speaker_places(transcript: Transcript) -> dict[str, int]:
    """Return speaker -> place among the agents; the place decides side and colour."""
    names = dict.fromkeys((*transcript.agents, *(m.sender for m in transcript.messages)))
    return {name: place for place, name in enumerate(names)}


def segments(text: str, spans: Spans, limit: int | None = None) -> Iterator[tuple[str, bool]]:
    """Yield the text in cleaned pieces, each with whether it repeats earlier text; cut after `limit` characters.

    Spans count characters of the original text, so the text is cut first and cleaned piece by piece.
    """
    end_of_text = len(text) if limit is None else min(limit, len(text))
    at = 0
    for start, end in (*spans, (end_of_text, end_of_text)):
        start = max(min(start, end_of_text), at)
        end = max(min(end, end_of_text), start)
        if at < start:
            yield clean(text[at:start]), False
        if start < end:
            yield clean(text[start:end]), True
        at = end


def vector_text(content: Content) -> str:
    """Return a vector in short: its first numbers, its length and its Euclidean norm."""
    values = [float(x) for x in content]
    norm = sum(x * x for x in values) ** 0.5
    more = ", …" if len(values) > SHOWN_NUMBERS else ""
    return f"[{', '.join(f'{x:.4g}' for x in values[:SHOWN_NUMBERS])}{more}]  d = {len(values)}, norm {norm:.6g}"


def _body(message: Message, spans: Spans) -> Text:
    from rich.text import Text

    if not isinstance(message.content, str):
        return Text(vector_text(message.content), style="cyan")
    if is_blank(message.content):
        return Text("(empty)", style="dim italic")
    text = Text()
    for piece, repeated in segments(message.content, spans):
        text.append(piece, style="black on yellow" if repeated else None)
    return text
