"""The optional features of an agent, with their defaults, and the one place that looks them up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from a2a_ray.core.message import Message

BatchAnswers: TypeAlias = "Sequence[Message | Exception]"


class BaseAgent(ABC):
    """An optional base class for agents: implement `step`, and override what else the agent needs.

    A plain object with a `name` and a `step` is an agent too. Every attribute and method below is optional there as
    well; this class documents them and their defaults. Subclasses may set the attributes on the class or the instance.

    Agents are stateless between turns: the answer depends on the message, the agent's configuration and
    `message.seed`. Any replica can then take any turn. An agent that remembers earlier turns sets `stateful`.
    """

    name: str

    placement: Literal["worker", "actor"] = "worker"
    """"worker": runs in the process of the conversation (light). "actor": runs in its own Ray actor (heavy)."""

    turn_options: ClassVar[frozenset[str]] = frozenset()
    """Settings that `message.options` can override for one turn."""

    own_limits: ClassVar[frozenset[str]] = frozenset()
    """The limits, `timeout` or `max_concurrency`, that the agent enforces itself.

    A specification gives them under `limits:`; the constructor receives them as parameters of the same names.
    """

    paid: bool = False
    """Whether a call costs money. In an actor such an agent is called by `step` only, and every call is logged first,
    so that a call is never repeated without a trace. `price:` in a specification has the same effect."""

    stateful: bool = False
    """Whether the agent remembers earlier turns; it then implements `get_state` and `set_state`.

    All turns of a conversation go to one replica, by `step` and never by `step_batch`. A replica that is new to the
    conversation gets the newest state first.
    """

    max_requests: int = 1
    """The most model requests that one step makes."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def step(self, message: Message) -> Message | Awaitable[Message]:
        """Return the answer to a message, made with `message.reply(content, sender=self.name)`; may be async."""

    def step_batch(self, messages: Sequence[Message]) -> BatchAnswers | Awaitable[BatchAnswers]:
        """Return the answers to several messages, in order: the same as one `step` each; may be async.

        An exception in the list fails the conversation of its message alone.
        """
        raise NotImplementedError

    def bid(self, message: Message) -> float | Awaitable[float]:
        """Return how much the agent wants the turn, a finite number; adaptive protocols ask for it."""
        raise NotImplementedError

    def check(self) -> None:  # noqa: B027 - optional
        """Raise ConfigurationError for errors that this machine can detect before a run starts; must be cheap."""

    def setup(self) -> None:  # noqa: B027 - optional
        """Load what is heavy; called once, in the process where the agent works."""

    def max_output_tokens(self) -> int | None:
        """Return the most tokens of one answer: None without a limit, 0 for an agent that is no language model.

        Budgets and `--dry-run` use it. Agents without this method count as 500 tokens if their calls cost money, and
        as 0 tokens in `--dry-run` otherwise.
        """
        raise NotImplementedError

    def max_input_tokens(self) -> int:
        """Return the tokens that one model request reads; for agents whose prompt is not the context they get."""
        raise NotImplementedError

    def get_state(self, conversation: str) -> Any:
        """Return the agent's memory of a conversation as a JSON value; stored as `metadata["state"]` of its answers."""
        raise NotImplementedError

    def set_state(self, conversation: str, state: Any) -> None:
        """Continue a conversation from this state. None makes the agent forget the conversation and free its memory."""
        raise NotImplementedError


class AgentTraits(NamedTuple):
    """The optional features of one agent, with the defaults of `BaseAgent`.

    Without them, `check` and `setup` do nothing; every other method that the agent lacks is None.
    """

    placement: str
    turn_options: frozenset[str]
    own_limits: frozenset[str]
    paid: bool
    stateful: bool
    max_requests: int
    step_batch: Callable[[Sequence[Message]], Any] | None
    bid: Callable[[Message], Any] | None
    check: Callable[[], None]
    setup: Callable[[], None]
    max_output_tokens: Callable[[], int | None] | None
    max_input_tokens: Callable[[], int] | None
    get_state: Callable[[str], Any] | None
    set_state: Callable[[str, Any], None] | None


_ATTRIBUTES = ("placement", "turn_options", "own_limits", "paid", "stateful", "max_requests")
_DEFAULTS = {name: getattr(BaseAgent, name) for name in AgentTraits._fields}


def agent_traits(agent: object) -> AgentTraits:
    """Return the optional features of an agent, or of the class or factory that makes one."""
    found: dict[str, Any] = {"check": _nothing, "setup": _nothing}
    for name, default in _DEFAULTS.items():
        value = getattr(agent, name, default)
        if name in _ATTRIBUTES or getattr(value, "__func__", value) is not default:
            found[name] = value
        else:
            found.setdefault(name, None)
    return AgentTraits(**found)


def _nothing() -> None:
    pass
