"""The judge of an observer: an agent, and when and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from a2a_ray.analysis.judge.judge_prompt import LEAST_CHARACTERS, prompt_characters
from a2a_ray.analysis.judge.judged_observer import CHARACTERS, EVERY, TIMEOUT, JudgedObserver
from a2a_ray.core.contract_checks import shown
from a2a_ray.core.contracts import Agent, Observer
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.validation import explain
from a2a_ray.experiment.agent_spec import AgentSpec, plain

HIDDEN = ("base_url", "api_key_env", "name")
"""Settings of a judge that do not describe it in findings."""


class JudgeSpec(AgentSpec):
    """The `judge:` of an observer: the keys of an agent, and `every`, `timeout` and `characters` of JudgedObserver.

    Its `timeout` limits a whole answer. `limits: {timeout: ...}` remains that of the agent, such as of one request.
    """

    name: str = "judge"
    every: int = Field(EVERY, ge=1)
    timeout: float = Field(TIMEOUT, gt=0)
    characters: int = Field(CHARACTERS, ge=LEAST_CHARACTERS)

    @classmethod
    def parse(cls, value: Any, where: str) -> JudgeSpec:
        """Return the judge of a plain mapping. Raises ConfigurationError with `where`."""
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{where}: {shown(value)}; expected a mapping with the kind of an agent")
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            raise ConfigurationError(f"{where}.{explain(error)}") from None

    def watch(self, observer: Observer, agent: Agent, timed: bool = False) -> JudgedObserver:
        """Return the observer with its judge.

        timed: whether calls of `agent` end after `timeout` already; see TimedAgent.
        """
        about: dict[str, Any] = json.loads(json.dumps(self.settings, default=plain))
        about = {key: value for key, value in about.items() if key not in HIDDEN}
        return JudgedObserver(
            observer,
            agent,
            every=self.every,
            timeout=None if timed else self.timeout,
            characters=self.characters,
            about=about,
        )

    def check_watch(self, observer: Observer, where: str) -> None:
        """Raise ConfigurationError, with `where`, unless the observer can have this judge."""
        agent = self.build(f"{where}.judge")
        try:
            self.watch(observer, agent)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}.judge: {error}") from None

    @property
    def prompt_characters(self) -> int:
        """Return the most characters of a question."""
        return prompt_characters(self.characters)

    def calls(self, turns: int) -> int:
        """Return the most calls in a conversation of at most this many messages; none follows the last one."""
        return -(-(turns - 1) // self.every)
