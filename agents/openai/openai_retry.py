"""Requests that fail: which ones are retried and after how long, and the error that reports the rest."""

from __future__ import annotations

import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from a2a_ray.core.errors import AgentError, AuthenticationError, ContextLengthError
from a2a_ray.core.message import EMPTY

if TYPE_CHECKING:
    from tenacity import RetryCallState

HIDDEN = "[key]"
RETRIED_STATUSES = frozenset({408, 409, 429})
"""Statuses that are retried, besides 500 and above."""
CONTEXT_ERRORS = ("context_length_exceeded", "context length", "context size")
REMEDIES = {
    400: "; does the server accept all of these settings (send_seed: false leaves out the seed)?",
    401: "; check the key in the environment variable {key}",
    403: "; may the key in the environment variable {key} use this model?",
    404: "; check model and base_url (most servers expect it to end in /v1)",
    429: "; lower max_concurrency, or raise max_attempts and backoff",
}


class MalformedResponse(Exception):
    """A response with a good status that holds no answer."""

    def __init__(self, body: str) -> None:
        super().__init__()
        self.body = body


class ServerSettings(Protocol):
    """The settings of an agent that its errors mention."""

    mode: Literal["chat", "completion"]
    base_url: str
    api_key_env: str | None
    timeout: float


def retrying(max_attempts: int, backoff: float, max_backoff: float) -> Any:
    """Return tenacity's retrying of one request; `backoff` seconds are doubled each time, plus up to `backoff`."""
    from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

    doubled, jitter = wait_exponential(backoff, max_backoff), wait_random(0, backoff)

    def wait(state: RetryCallState) -> float:
        requested = retry_after(state.outcome.exception() if state.outcome else None)
        return jitter(state) + (doubled(state) if requested is None else min(requested, max_backoff))

    return AsyncRetrying(
        stop=stop_after_attempt(max_attempts), wait=wait, retry=retry_if_exception(worth_retrying), reraise=True
    )


def worth_retrying(error: BaseException) -> bool:
    """Return whether another attempt can succeed."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return (
            error.status_code in RETRIED_STATUSES or error.status_code >= 500
        ) and error.code != "insufficient_quota"
    return isinstance(error, TimeoutError | openai.APIConnectionError | MalformedResponse)


def retry_after(error: BaseException | None) -> float | None:
    """Return the seconds that the server asks to wait: Retry-After, a number or an HTTP date (RFC 9110, 10.2.3)."""
    value = getattr(getattr(error, "response", None), "headers", EMPTY).get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


def failure(error: Exception, attempts: int, where: str, server: ServerSettings, secret: str | None) -> AgentError:
    """Return the error of this package for a failed request: one sentence, without the key.

    Args:
        attempts: the number of requests made. where: the beginning of the sentence. secret: the key, if one was sent.
    """
    import openai

    url = server.base_url
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    if isinstance(error, TimeoutError | openai.APITimeoutError):
        return AgentError(f"{where}: {url} gave no answer within {server.timeout:g} s, after {tries}; raise timeout")
    if isinstance(error, MalformedResponse):
        return AgentError(
            f"{where}: {url} answered, but not with a {server.mode} completion, after {tries}:"
            f" {excerpt(error.body, secret)!r}; check base_url and mode"
        )
    if isinstance(error, openai.APIConnectionError):
        cause = excerpt(f"{type(error.__cause__).__name__}: {error.__cause__}", secret)
        return AgentError(
            f"{where}: no connection to {url} after {tries} ({cause}); is the server running, and base_url right?"
        )
    if not isinstance(error, openai.APIStatusError):
        return AgentError(f"{where}: the request failed: {excerpt(f'{type(error).__name__}: {error}', secret)}")
    reason = excerpt(_reason(error), secret)
    sentence = f"{where}: {url} answered {error.status_code} after {tries}: {reason}"
    if error.status_code < 500 and any(t in f"{error.code} {reason}".lower() for t in CONTEXT_ERRORS):
        return ContextLengthError(f"{sentence}; use a shorter context, or lower max_tokens")
    if error.status_code in (401, 403):
        remedy = REMEDIES[error.status_code].format(key=server.api_key_env)
        if server.api_key_env is None:
            remedy = "; the server wants a key: api_key_env names the environment variable that holds it"
        return AuthenticationError(sentence + remedy)
    return AgentError(sentence + REMEDIES.get(error.status_code, "").format(key=server.api_key_env))


def scrubbed(text: str, secret: str | None) -> str:
    """Return the text with every occurrence of the secret hidden."""
    return text.replace(secret, HIDDEN) if secret else text


def excerpt(text: str, secret: str | None) -> str:
    """Return foreign text for an error: without the key, on one line, at most 300 characters long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in scrubbed(text, secret)).split())
    return line if len(line) <= 300 else line[:299] + "…"


def _reason(error: Any) -> str:
    """Return the server's description of its error, from whichever of the usual places holds it."""
    body = error.body
    if isinstance(body, dict):
        return str(body.get("message") or body.get("detail") or body.get("error") or body)
    return str(body or error.response.text or error.response.reason_phrase)
