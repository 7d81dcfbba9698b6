"""Log records that name the run, the conversation and the turn, whoever writes them."""

from __future__ import annotations

import logging
import os
from contextvars import ContextVar
from typing import Any

LEVEL = "A2A_RAY_LOG"
"""Environment variable: the level from which a worker writes log records; WARNING by default."""
FORMAT = "%(asctime)s %(levelname)s %(name)s [%(where)s] %(message)s"

about: ContextVar[Any] = ContextVar("about", default=None)
"""The transcript of the conversation that the running task holds, or the message that it answers."""


def name_records(run: str) -> None:
    """From now on every log record of this process has the attributes run, conversation, turn and `where` (all three
    in one word, "-" where there is none), and is written to standard error in FORMAT; Ray keeps that in a file."""
    make = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        talk, conversation, turn = about.get(), "", 0
        if talk is not None:
            conversation = getattr(talk, "conversation", None) or talk.id
            turn = getattr(talk, "turn", 0) or len(talk.messages) + 1
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
