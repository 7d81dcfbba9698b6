"""What a caller and an agent's actor send each other: a batch of calls, and the outcomes that are ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray import cloudpickle

from a2a_ray.core import errors
from a2a_ray.core.errors import AgentError
from a2a_ray.store.schema import pack, unpack


class CallBatch(NamedTuple):
    """The calls of one exchange: packed messages for `step` or `bid`, and the caller's numbers for them.

    states: number -> (state,) to set before the call. forget: conversations whose state the agent can drop.
    """

    method: str
    numbers: Sequence[int] = ()
    columns: Any = ()
    states: Mapping[int, Any] = {}
    forget: Sequence[str] = ()


class ActorReply(NamedTuple):
    """The reply to one exchange. Numbers are those that the caller gave its calls.

    incarnation: identifies the process; a restarted actor has another one.
    numbers, messages: responses, packed.
    bids: number -> bid.
    failed: number -> (class, text, traceback) of the error.
    not_started: calls that the actor has not started and will not start.
    other_load: calls of other callers that the process works on.
    problem: why the process cannot answer any call; empty if it can.
    """

    incarnation: str
    numbers: Sequence[int] = ()
    messages: Any = ()
    bids: Mapping[int, float] = {}
    failed: Mapping[int, tuple[str, str, str]] = {}
    not_started: Sequence[int] = ()
    other_load: int = 0
    problem: str = ""

    def pickled(self) -> bytes:
        """Return the reply as bytes. A response that cannot be pickled becomes an error."""
        try:
            return bytes(cloudpickle.dumps(tuple(self)))
        except Exception:
            good, failed = {}, dict(self.failed)
            for number, message in zip(self.numbers, unpack(self.messages), strict=True):
                try:
                    cloudpickle.dumps(message)
                    good[number] = message
                except Exception as error:
                    text = f"a response cannot be sent to another process: {type(error).__name__}: {error}"
                    failed[number] = ("", text, "")
            reply = self._replace(numbers=list(good), messages=pack([*good.values()]), failed=failed)
            return bytes(cloudpickle.dumps(tuple(reply)))


def agent_error(class_name: str, text: str, traceback: str = "") -> AgentError:
    """Return the error of this package that an entry of `ActorReply.failed` describes."""
    cls = getattr(errors, class_name, AgentError)
    error = cls(text) if isinstance(cls, type) and issubclass(cls, AgentError) else AgentError(text)
    error.traceback = traceback
    return error
