"""Log records that name the run, the conversation and the turn, whichever code writes them."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from typing import Any

LEVEL = "A2A_RAY_LOG"
"""Environment variable: the level from which a worker writes log records; WARNING by default."""
FORMAT = "%(asctime)s %(levelname)s %(name)s [%(where)s] %(message)s"

log_context: ContextVar[Any] = ContextVar("log_context", default=None)
"""The transcript of the conversation that the running task belongs to, or the message that it answers."""


def name_records(run: str) -> None:
    """Add the attributes run, conversation, turn and `where` to every log record of this process.

    `where` joins the other three with spaces, without those that are empty. Records are written to standard error in
    FORMAT; Ray keeps them in a file.
    """
    make = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        context, conversation, turn = log_context.get(), "", 0
        if context is not None:
            conversation = getattr(context, "conversation", None) or context.id
            turn = getattr(context, "turn", 0) or len(context.messages) + 1
        where = " ".join(word for word in (run, conversation, str(turn or "")) if word)
        vars(record).update(run=run, conversation=conversation, turn=turn, where=where)
        return record

    logging.setLogRecordFactory(named)
    level = os.environ.get(LEVEL, "WARNING").upper()
    known = level if level in logging.getLevelNamesMapping() else "WARNING"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    logging.getLogger().addHandler(handler)
    logging.getLogger("a2a_ray").setLevel(known)
