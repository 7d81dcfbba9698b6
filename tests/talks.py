"""Talks from literal texts."""

from __future__ import annotations

from typing import Any

from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript


def message(turn: int, content: Any, sender: str = "ann", **parts: Any) -> Message:
    return Message("t", turn, sender, content, **parts)


def transcript(*said: str, speakers: str = "ann bob") -> Transcript:
    names = tuple(speakers.split())
    talk = Transcript("t", names)
    for i, text in enumerate(said):
        talk.append(message(i + 1, text, names[i % len(names)]))
    return talk
