"""The answer of a judge, read strictly: one JSON object with three keys."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from a2a_ray.core.message import Message

KEYS = {"stopped", "since_turn", "reason"}
LONGEST_REASON = 500
"""Characters of a reason, an unreadable answer or an error that are kept."""
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


class JudgeAnswer(NamedTuple):
    """One answer of a judge.

    turn: the newest turn that the judge has seen. stopped: None if the answer is not usable; `reason` then says why.
    since_turn: the first turn without anything new, as the judge sees it. problem: "" or "unreadable" or "failed".
    """

    turn: int
    stopped: bool | None
    since_turn: int | None
    reason: str
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as a JSON value; without a problem, `problem` is left out."""
        return {name: value for name, value in self._asdict().items() if name != "problem" or value}


def read_answer(record: Message, turn: int) -> JudgeAnswer:
    """Return what a record of kind "review" says. turn: the newest turn before it. Never raises.

    The answer may stand in one code fence. `metadata["error"]` is the error of a judge that gave none.
    """
    if error := record.metadata.get("error"):
        return JudgeAnswer(turn, None, None, clipped(str(error)), "failed")
    text = record.content
    if not isinstance(text, str):
        return _unreadable(turn, "expected text", "a vector")
    stripped = text.strip()
    fenced = _FENCE.match(stripped)
    try:
        value = json.loads(fenced[1] if fenced else stripped)
    except (ValueError, RecursionError):
        return _unreadable(turn, "expected one JSON object", text)
    if not isinstance(value, dict) or value.keys() != KEYS:
        return _unreadable(turn, f"expected one JSON object with the keys {', '.join(sorted(KEYS))}", text)
    stopped, since, reason = value["stopped"], value["since_turn"], value["reason"]
    if not isinstance(stopped, bool) or not isinstance(reason, str):
        return _unreadable(turn, "expected stopped: true or false, and reason: text", text)
    if since is not None and (type(since) is not int or not 1 <= since <= turn):
        return _unreadable(turn, f"expected since_turn: null or 1 to {turn}", text)
    return JudgeAnswer(turn, stopped, since if stopped else None, clipped(reason))


def clipped(text: str) -> str:
    """Return at most LONGEST_REASON characters of a text, on one line."""
    line = " ".join(text[: 2 * LONGEST_REASON].split())
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _unreadable(turn: int, expected: str, text: str) -> JudgeAnswer:
    return JudgeAnswer(turn, None, None, clipped(f"{expected}; the judge answered: {text}"), "unreadable")
