"""A worker's place in a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from a2a_ray.runtime.plan import Chunk, Said
from a2a_ray.store.schema import pack


class Post:
    """A worker's place: the actor that fills it now, and what that one holds."""

    def __init__(self, start: Callable[[str], Any]) -> None:
        self._start = start
        self.bad_starts = 0
        self.said_before = self.said = Said()
        self.fill()

    def fill(self) -> None:
        """Starts an actor, of a name of its own: the recorder must be able to tell it from the one before."""
        self.name = f"worker-{uuid4().hex[:12]}"
        self.actor = self._start(self.name)
        self.starting: Any = self.actor.ready.remote()
        self.given: dict[Any, Chunk] = {}
        self.asked: Any = None
        self.said_before, self.said = self.said_before.plus(self.said._replace(in_flight=0)), Said()

    def give(self, chunk: Chunk) -> None:
        """Hands over a chunk, with what was said in it before as columns."""
        before = {id: pack(t.turns) for id, t in chunk.earlier.items()}
        self.given[self.actor.hold.remote(chunk.tasks, before, careful=chunk.apart)] = chunk

    def calls(self) -> list[Any]:
        """What is asked of the actor and not answered."""
        return [call for call in (self.starting, self.asked, *self.given) if call is not None]
