"""Reading the response of an OpenAI-compatible server, whatever it sends."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Completion(NamedTuple):
    """A usable response: its body, its first choice, and the text of that choice."""

    body: dict[str, Any]
    choice: dict[str, Any]
    text: str


def read_completion(body: str, mode: str) -> Completion | Any:
    """Return the completion in a body. If there is none, return the body's JSON value, or None if it is not JSON."""
    value: Any = None
    try:
        value = json.loads(body)
        choice = value["choices"][0]
        text = choice["text"] if mode == "completion" else choice["message"]["content"]
        if isinstance(text, str | None):  # half a surrogate pair cannot be stored
            return Completion(value, choice, (text or "").encode("utf-8", "replace").decode())
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return value


def token_counts(value: Any) -> dict[str, int]:
    """Return the token counts of a response, as far as it reports them."""
    counts = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(counts, dict):
        return {}
    both = {"input_tokens": counts.get("prompt_tokens"), "output_tokens": counts.get("completion_tokens")}
    return {name: count for name, count in both.items() if isinstance(count, int)}
