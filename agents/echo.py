"""The smallest agent."""

from __future__ import annotations

from collections.abc import Sequence

from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.message import Message


class EchoAgent(BaseAgent):
    """Says what it was shown, with an optional prefix: for tests, benchmarks and as an example."""

    def __init__(self, name: str, prefix: str = "") -> None:
        self.name = name
        self.prefix = prefix

    def step(self, message: Message) -> Message:
        content = f"{self.prefix}{message.content}" if self.prefix else message.content
        return message.reply(content, self.name)

    def step_batch(self, messages: Sequence[Message]) -> list[Message]:
        return [self.step(m) for m in messages]
