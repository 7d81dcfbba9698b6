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

Each holds one plain string, so that it survives pickling between processes.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

MOST_TRACEBACK = 4000
"""Characters of a traceback that are kept: its end, with the error itself."""
_OURS = str(Path(__file__).parent.parent) + "/"


class A2AError(Exception):
    """Base of all errors that the package raises on purpose.

    traceback: of the original error in another process; empty if the error arose in this one.
    """

    traceback: str = ""


class ConfigurationError(A2AError, ValueError):
    """The configuration is invalid; nothing was started."""


class MissingDependencyError(ConfigurationError):
    """An optional package is missing."""


class AgentError(A2AError):
    """A step of an agent failed; its conversation ends as `failed`."""


class InvalidResponseError(AgentError):
    """An agent returned something other than a message, or another part broke its contract."""


class AuthenticationError(AgentError):
    """A server refused the agent's key, or the process has none.

    Every further request would fail as well, so a run stops and can be resumed. Its conversations are not marked as
    failed.
    """


class ContextLengthError(AgentError):
    """The newest message and the instructions do not fit into the model's context."""


class LostCall(AgentError):
    """The process that worked on the call died; whether the call was made is unknown.

    Only calls of paid agents are lost; other calls are repeated.
    """


class StorageError(A2AError):
    """Turns could not be written or read; acknowledged turns are stored."""


class PlacementError(A2AError):
    """The cluster cannot place what the run requests."""


def traceback_of(error: BaseException) -> str:
    """Return the end of the traceback without the package's own frames; empty if only the package's code failed.

    If an error of the package states its cause, the traceback is that of the cause. Other errors in the chain are left
    out, because they may contain what the message hides, such as a key.
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
    """Return a sentence for an unknown name: the value, the nearest known name, and all known names."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {value!r}.{hint} There is: {', '.join(names) or 'none'}."
