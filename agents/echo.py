"""An agent that repeats what it sees."""

from __future__ import annotations

from collections.abc import Sequence

from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.message import Message


class EchoAgent(BaseAgent):
    """Return the content of each message, with an optional prefix: for tests, benchmarks and as an example."""

    def __init__(self, name: str, prefix: str = "") -> None:
        self.name = name
        self.prefix = prefix

    def step(self, message: Message) -> Message:
        """Return the content of the message, after the prefix."""
        content = f"{self.prefix}{message.content}" if self.prefix else message.content
        return message.reply(content, self.name)

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        """Return the answers in order."""
        return [self.step(m) for m in messages]
