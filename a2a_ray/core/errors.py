"""Every error of the package, in one tree.

    A2AError
    ├── ConfigurationError          cannot be started as configured (also a ValueError); exit status 2
    │   └── MissingDependencyError  an optional package is not installed; the message is the install command
    ├── AgentError                  one agent's step failed; its conversation is kept and marked failed
    │   ├── InvalidResponseError    an agent, observer or protocol returned None, NaN, a wrong type or a wrong shape
    │   ├── AuthenticationError     a server refused the key, or there is none; a run stops and can be resumed
    │   ├── ContextLengthError      the context does not fit into the model
    │   └── LostCall                the process that worked on the call died; whether the call was made is unknown
    ├── StorageError                turns could not be written or read; acknowledged turns are stored
    └── PlacementError              the cluster cannot place what the run requests; the message says what is missing

All of them carry one plain string, so that they cross process boundaries unharmed.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

MOST_TRACEBACK = 4000
"""Characters that are kept of a traceback: its end, where the error is."""
_OURS = str(Path(__file__).parent.parent) + "/"


class A2AError(Exception):
    """Base of all errors raised on purpose by the package.

    traceback: of the error in another process that this one stands for; empty if it arose here.
    """

    traceback: str = ""


class ConfigurationError(A2AError, ValueError):
    """What was asked for is wrong and nothing was started."""


class MissingDependencyError(ConfigurationError):
    """An optional package is missing."""


class AgentError(A2AError):
    """A step of an agent failed; the conversation it belongs to ends as `failed`."""


class InvalidResponseError(AgentError):
    """An agent answered something that is no message, or another part something that its contract does not allow."""


class AuthenticationError(AgentError):
    """A server refused the agent's key, or the process has none. Every further request would fail as well, so a run
    stops and can be resumed; its conversations are not marked as failed."""


class ContextLengthError(AgentError):
    """The part of the conversation that must be shown does not fit the model's context."""


class LostCall(AgentError):
    """The process that worked on the call died; whether it was made is not known. Only a paid agent's call is lost:
    others are asked again."""


class StorageError(A2AError):
    """Turns could not be written or read."""


class PlacementError(A2AError):
    """The cluster cannot place what is asked for."""


def traceback_of(error: BaseException) -> str:
    """Where somebody's code failed: the end of the traceback without our own frames; empty if nothing but ours failed.

    An error of the package that states its cause stands for it. What else it may have been raised from is left out: it
    can hold what the sentence hides, a key for instance.
    """
    while isinstance(error, A2AError) and not error.traceback and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, A2AError) and error.traceback:
        return error.traceback
    planned = isinstance(error, A2AError)
    found = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in found.stack if not frame.filename.startswith(_OURS)]
    if theirs or planned:
        found.stack = traceback.StackSummary.from_list(theirs)
    text = "".join(found.format(chain=not planned)).rstrip() if theirs or not planned else ""
    if len(text) > MOST_TRACEBACK:
        text = "...\n" + text[-MOST_TRACEBACK:].partition("\n")[2]
    return text


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """Sentence for a name that does not exist: the value, the nearest known name, and all that exist."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {value!r}.{hint} There is: {', '.join(names) or 'none'}."


def plainer(sentence: str) -> str:
    """A sentence of pydantic in our words."""
    for theirs, ours in _PLAINER.items():
        sentence = sentence.replace(theirs, ours)
    return sentence


_PLAINER = {
    "Value error, ": "",
    "Input should be a valid": "expected a",
    "Input should be": "expected",
    "List should have at least 1 item after validation, not 0": "expected at least 1",
    "a dictionary": "a mapping",
    "a integer": "a whole number",
    "a string": "text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    " or instance of AgentSpec": " with name and kind",
    " or instance of Price": " with input and output",
}
"""Words of pydantic and what we say for them."""
