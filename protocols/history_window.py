"""What a speaker is shown of the talk: the last output only, the last k, all of it, or its last n characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import ASIDE, NUDGE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext

Context: TypeAlias = str | dict[str, Any]
"""`last`, `all`, `{last: k}` or `{characters: n}`, as a specification writes it."""

Window: TypeAlias = Callable[[Message, Sequence[Message]], TurnContext]

EXPECTED = "expected last, all, {last: k} or {characters: n} with k, n >= 1"


def window(context: Context) -> Window:
    """The window of a specification: a function of the opening and the messages so far. Raises ConfigurationError."""
    if context == "last":
        return _last
    if context == "all":
        return lambda opening, said: _cut(opening, said, len(said) + 1)
    if isinstance(context, dict) and len(context) == 1:
        ((name, size),) = context.items()
        if name in ("last", "characters") and isinstance(size, int) and not isinstance(size, bool) and size >= 1:
            if name == "last":
                return lambda opening, said: _cut(opening, said, size)
            return lambda opening, said: _characters(opening, said, size)
    raise ConfigurationError(f"context: {context!r}; {EXPECTED}")


def _last(opening: Message, said: Sequence[Message]) -> TurnContext:
    newest = said[-1] if said else opening
    return TurnContext(newest.sender, newest.content)


def _cut(opening: Message, said: Sequence[Message], size: int) -> TurnContext:
    """The newest `size` messages; the opening counts as the oldest of all."""
    shown = [opening, *said] if size > len(said) else said[-size:]
    return TurnContext(shown[-1].sender, shown[-1].content, tuple(shown[:-1]))


def _characters(opening: Message, said: Sequence[Message], size: int) -> TurnContext:
    """The newest messages up to `size` characters in all; the oldest of them loses its beginning.

    Raises ConfigurationError where a message is a vector: it has no characters.
    """
    shown: list[Message] = []
    for index in range(len(said) - 1, -2, -1):
        message = said[index] if index >= 0 else opening
        text: Any = message.content
        if not isinstance(text, str):
            raise ConfigurationError(
                "context: {characters: n} is for text; vectors have none: use last, all or {last: k}"
            )
        if len(text) > size:
            shown.append(replace(message, content=text[len(text) - size :]))
        else:
            shown.append(message)
        size -= len(text)
        if size <= 0:
            break
    shown.reverse()
    return TurnContext(shown[-1].sender, shown[-1].content, tuple(shown[:-1]))


def with_nudges(view: TurnContext, said: Sequence[Message], transcript: Transcript, speaker: str) -> TurnContext:
    """The view with the transcript's nudges in it; `said` are the messages that its window was taken over.

    A nudge that `speaker` has not been shown yet follows the newest content, so that it reaches every kind of agent:
    one that reads the newest content only, a chat model and a model that continues a text. In later turns it stands in
    its place in the history, if the window reaches back so far. It does not count for the window's size.
    """
    turns = transcript.turns
    if not any(record.kind == NUDGE for record in turns):
        return view
    shown = len(view.history) + 1
    has_opening = shown > len(said)
    window = list(said[-shown:])
    history = list(view.history)
    left, new, fresh = len(window), True, None
    for record in reversed(turns):
        if record.kind == NUDGE:
            if new and fresh is None:
                fresh = record
            elif left or has_opening:
                history.insert(min(left + has_opening, len(view.history)), record)
        elif left and record is window[left - 1]:
            left -= 1
        if record.kind not in ASIDE and record.sender == speaker:
            new = False
        if not (left or has_opening or new):
            break
    if fresh is None:
        return view._replace(history=tuple(history))
    if not isinstance(view.content, str):
        raise ConfigurationError(
            "nudge: the newest content is a vector, which no text can follow; use action: record or stop"
        )
    if view.sender == speaker:  # a chat model would take the joined text for its own words
        own = said[-1] if said else transcript.opening
        return TurnContext(fresh.sender, fresh.content, (*history, own), view.options)
    return view._replace(content=f"{view.content}\n\n{fresh.content}", history=tuple(history))
