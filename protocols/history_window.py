"""The history window: the part of a conversation in a speaker's context (last message, last k, all, n characters)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import ASIDE, NUDGE, Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.turns import TurnContext

Context: TypeAlias = str | dict[str, Any]
"""The `context` setting of a protocol: `last`, `all`, `{last: k}` or `{characters: n}`."""

Window: TypeAlias = Callable[[Message, Sequence[Message]], TurnContext]

EXPECTED = "expected last, all, {last: k} or {characters: n} with k, n >= 1"


def window(context: Context) -> Window:
    """Return the window of a `context` setting, a function of opening and messages. Raises ConfigurationError."""
    if context == "last":
        return _last
    if context == "all":
        return lambda opening, messages: _cut(opening, messages, len(messages) + 1)
    if isinstance(context, dict) and len(context) == 1:
        ((name, size),) = context.items()
        if name in ("last", "characters") and isinstance(size, int) and not isinstance(size, bool) and size >= 1:
            if name == "last":
                return lambda opening, messages: _cut(opening, messages, size)
            return lambda opening, messages: _characters(opening, messages, size)
    raise ConfigurationError(f"context: {context!r}; {EXPECTED}")


def _last(opening: Message, messages: Sequence[Message]) -> TurnContext:
    newest = messages[-1] if messages else opening
    return TurnContext(newest.sender, newest.content)


def _cut(opening: Message, messages: Sequence[Message], size: int) -> TurnContext:
    """Return the newest `size` messages; the opening counts as the oldest message."""
    shown = [opening, *messages] if size > len(messages) else messages[-size:]
    return TurnContext(shown[-1].sender, shown[-1].content, tuple(shown[:-1]))


def _characters(opening: Message, messages: Sequence[Message], size: int) -> TurnContext:
    """Return the newest messages up to `size` characters in total; the oldest of them is truncated at its start.

    Raises ConfigurationError if a message is a vector, which has no characters.
    """
    shown: list[Message] = []
    for index in range(len(messages) - 1, -2, -1):
        message = messages[index] if index >= 0 else opening
        text: Any = message.content
        if not isinstance(text, str):
            raise ConfigurationError(
                "context: {characters: n}; the message is a vector, expected text. Use last, all or {last: k}"
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


def with_nudges(context: TurnContext, messages: Sequence[Message], transcript: Transcript, speaker: str) -> TurnContext:
    """Return the context with the transcript's nudges added; `messages` are those that the window was applied to.

    A nudge that is new to `speaker` follows the newest content. So it reaches every kind of agent: one that reads only
    the newest content, a chat model, and a model that continues a text. In later turns it is at its place in the
    history, if the window reaches back that far. Nudges do not count towards the window's size.
    """
    turns = transcript.turns
    if not any(record.kind == NUDGE for record in turns):
        return context
    shown = len(context.history) + 1
    has_opening = shown > len(messages)
    window = list(messages[-shown:])
    history = list(context.history)
    left, new, fresh = len(window), True, None
    for record in reversed(turns):
        if record.kind == NUDGE:
            if new and fresh is None:
                fresh = record
            elif left or has_opening:
                history.insert(min(left + has_opening, len(context.history)), record)
        elif left and record is window[left - 1]:
            left -= 1
        if record.kind not in ASIDE and record.sender == speaker:
            new = False
        if not (left or has_opening or new):
            break
    if fresh is None:
        return context._replace(history=tuple(history))
    if not isinstance(context.content, str):
        raise ConfigurationError(
            "nudge: the newest content is a vector; expected text, like the nudge. Use action: record or stop"
        )
    if context.sender == speaker:  # a chat model would take the joined text for its own words
        own = messages[-1] if messages else transcript.opening
        return TurnContext(fresh.sender, fresh.content, (*history, own), context.options)
    return context._replace(content=f"{context.content}\n\n{fresh.content}", history=tuple(history))
