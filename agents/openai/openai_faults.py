"""What can go wrong between an agent and a server: what is worth another attempt, and the sentence that tells it."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol

from a2a_ray.core.errors import AgentError, AuthenticationError, ContextLengthError
from a2a_ray.core.message import EMPTY

HIDDEN = "[key]"
RETRIED = frozenset({408, 409, 429})  # and all from 500 on
TOO_LONG = ("context_length_exceeded", "context length", "context size")
REMEDIES = {
    400: "; does the server take all of these settings (send_seed: false leaves out the seed)?",
    401: "; check the key in the environment variable {key}",
    403: "; may the key in the environment variable {key} use this model?",
    404: "; check model and base_url (most servers want it to end in /v1)",
    429: "; lower max_concurrency, or raise max_attempts and backoff",
}


class MalformedResponse(Exception):
    """A response with a good status that holds no answer."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.body = body


class Asker(Protocol):
    """What of an agent its failures tell."""

    mode: Literal["chat", "completion"]
    base_url: str
    api_key_env: str | None
    timeout: float


def failure(error: Exception, attempts: int, where: str, asker: Asker, secret: str | None) -> AgentError:
    """The error of this package for what a request ended in: one sentence, without the key.

    attempts: made so far. where: how the sentence begins. secret: the key's value, if one was sent.
    """
    import openai

    url = asker.base_url
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return AgentError(f"{where}: {url} gave no answer within {asker.timeout:g} s, after {tries}; raise timeout")
    if isinstance(error, MalformedResponse):
        return AgentError(
            f"{where}: {url} answered, but not with a {asker.mode} completion, after {tries}:"
            f" {shown(error.body, secret)!r}; check base_url and mode"
        )
    if isinstance(error, openai.APIConnectionError):
        cause = shown(f"{type(error.__cause__).__name__}: {error.__cause__}", secret)
        return AgentError(
            f"{where}: no connection to {url} after {tries} ({cause}); is the server running, and base_url right?"
        )
    if not isinstance(error, openai.APIStatusError):
        return AgentError(f"{where}: the request failed: {shown(f'{type(error).__name__}: {error}', secret)}")
    said = shown(_said(error), secret)
    sentence = f"{where}: {url} answered {error.status_code} after {tries}: {said}"
    if error.status_code < 500 and any(t in f"{error.code} {said}".lower() for t in TOO_LONG):
        return ContextLengthError(f"{sentence}; show less of the talk, or lower max_tokens")
    if error.status_code in (401, 403):
        remedy = REMEDIES[error.status_code].format(key=asker.api_key_env)
        if asker.api_key_env is None:
            remedy = "; the server wants a key: api_key_env names the environment variable that holds it"
        return AuthenticationError(sentence + remedy)
    return AgentError(sentence + REMEDIES.get(error.status_code, "").format(key=asker.api_key_env))


def worth_retrying(error: BaseException) -> bool:
    """Whether another attempt can help."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return (error.status_code in RETRIED or error.status_code >= 500) and error.code != "insufficient_quota"
    return isinstance(error, TimeoutError | openai.APIConnectionError | MalformedResponse)


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait: Retry-After as a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = getattr(getattr(error, "response", None), "headers", EMPTY).get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


def scrubbed(text: str, secret: str | None) -> str:
    """The text with the secret hidden wherever it stands in it."""
    return text.replace(secret, HIDDEN) if secret else text


def shown(text: str, secret: str | None) -> str:
    """Foreign text for a sentence of ours: without the key, on one line, of at most 300 characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in scrubbed(text, secret)).split())
    return line if len(line) <= 300 else line[:299] + "…"


def _said(error: Any) -> str:
    """What a server says of its own error, in whichever of the usual places."""
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body.get("error") or body)
    return str(body or error.response.text or error.response.reason_phrase)
