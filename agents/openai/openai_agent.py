"""A language model behind an OpenAI-compatible server: OpenAI, vLLM, Ollama, llama.cpp, `transformers serve`, ..."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from a2a_ray.agents.chat_prompts import chat, running_text
from a2a_ray.agents.openai.openai_faults import MalformedResponse, failure, retry_after, scrubbed, worth_retrying
from a2a_ray.core.errors import AgentError, AuthenticationError, ConfigurationError, unknown
from a2a_ray.core.message import Message

if TYPE_CHECKING:
    import httpx2
    from tenacity import RetryCallState

    from openai import AsyncOpenAI

OPENAI = "https://api.openai.com/v1"
NO_KEY = "no-key"  # what a server that wants no key gets: the client always sends one
SEEDS = 2**31  # many servers keep the seed in 32 bits with a sign


class _Line(NamedTuple):
    """The way to the server from one event loop: its connections belong to that loop, and are closed with it.

    opened: gave the client; a loop that ends (`asyncio.run`) closes its generators, and this one the connections.
    refused: what the server said of the key, once it has refused it: nothing more is sent with it.
    """

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    opened: AsyncGenerator[AsyncOpenAI, None]
    refused: list[str]


class _Read(NamedTuple):
    """A response: all of it, its first choice and the text of that."""

    answer: dict[str, Any]
    choice: dict[str, Any]
    text: str


class OpenAIAgent:
    """Answers through the chat or the completions endpoint of an OpenAI-compatible server.

    model: as the server names it.
    base_url: of the server, e.g. http://127.0.0.1:8000/v1; OpenAI's own where None (OPENAI_BASE_URL is not consulted:
        what decides a run stands in its specification).
    api_key_env: NAME of the environment variable that holds the key, read in the process where the agent works when it
        first answers, kept nowhere else; None for a server that wants no key.
    mode: "chat": own turns are the assistant's, all others (and the opening) the user's. "completion": what is shown is
        one running text that the model continues.
    instructions: chat: the system message. Completion: a text before all that is shown.
    temperature, top_p, max_tokens, stop: the server's defaults where None. max_tokens is sent as max_completion_tokens
        to chats of OpenAI and Azure (newer models refuse the old name) and as max_tokens to all others (many of which
        know no other name); `extra_body` can send any name.
    send_seed: sends the turn's seed modulo 2**31; how far a server keeps to it is its own affair.
    timeout: seconds for one attempt, from the connection to the last byte.
    max_attempts: requests for one turn, the first one included. Time-outs, failed connections, the statuses 408, 409,
        429 and 5xx, and responses without an answer in them (no JSON, no choices) are tried again after `backoff`
        seconds, doubled each time, or as long as Retry-After asks for, at most `max_backoff` seconds; plus up to
        `backoff` at random. An exhausted quota is not tried again.
    max_concurrency: most requests under way from one replica, and where a specification gives it, from all replicas
        together (docs/guides/budgets.md); one that waits for its next attempt keeps its place.
    price: money per million tokens, {"input": x, "output": y}; gives usage["cost"].
    extra_body: further fields of each request.

    usage: input_tokens and output_tokens as far as the server tells, requests (failed attempts included), retries (all
        of them but the first), unanswered (those that timed out or lost their connection: they may have been served,
        and be on the bill), cost. Tokens that a response without an answer reports are counted: they were paid.
    metadata: finish_reason, and model and response_id as served. An answer without content (finish_reason tells why) is
    kept as empty text.
    """

    placement = "actor"
    paid = True
    own_limits = frozenset({"timeout", "max_concurrency"})
    turn_options = frozenset({"temperature", "top_p", "max_tokens", "stop", "instructions"})

    def __init__(
        self,
        name: str,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = "OPENAI_API_KEY",
        mode: Literal["chat", "completion"] = "chat",
        instructions: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stop: str | list[str] | None = None,
        send_seed: bool = True,
        timeout: float = 60.0,
        max_attempts: int = 5,
        backoff: float = 0.5,
        max_backoff: float = 60.0,
        max_concurrency: int = 16,
        price: dict[str, float] | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        if not model:
            raise ConfigurationError("model: ''; expected a model as the server names it")
        if mode not in ("chat", "completion"):
            raise ConfigurationError("mode: " + unknown("mode", mode, ("chat", "completion")))
        if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
            # Not repeated in the error: it may be the key itself.
            raise ConfigurationError(
                "api_key_env: not the name of an environment variable in capitals, such as OPENAI_API_KEY;"
                " a key itself must not stand in a specification"
            )
        for key, value, least in (("max_attempts", max_attempts, 1), ("max_concurrency", max_concurrency, 1)):
            if value < least:
                raise ConfigurationError(f"{key}: {value}; expected at least {least}")
        for key, seconds in (("backoff", backoff), ("max_backoff", max_backoff)):
            if not 0 <= seconds < math.inf:
                raise ConfigurationError(f"{key}: {seconds}; expected seconds, at least 0")
        if not 0 < timeout < math.inf:
            raise ConfigurationError(f"timeout: {timeout}; expected seconds above 0")
        for key, money in (price or {}).items():
            if key not in ("input", "output"):
                raise ConfigurationError("price: " + unknown("key", key, ("input", "output")))
            if not 0 <= money < math.inf:
                raise ConfigurationError(f"price.{key}: {money}; expected money per million tokens, at least 0")
        self.name = name
        self.model = model
        self.base_url = OPENAI if base_url is None else base_url
        self.api_key_env = api_key_env
        self.mode = mode
        self.send_seed = send_seed
        self.timeout = timeout
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.max_backoff = max_backoff
        self.max_concurrency = max_concurrency
        self.price = price
        self.extra_body = extra_body
        self.settings: Mapping[str, Any] = _checked(
            {
                "temperature": temperature,
                "top_p": top_p,
                "max_tokens": max_tokens,
                "stop": stop,
                "instructions": instructions,
            }
        )
        host = _host(self.base_url)
        known = host in ("api.openai.com", "openai.azure.com") or host.endswith(
            (".api.openai.com", ".openai.azure.com")
        )
        self._limit = "max_completion_tokens" if known and mode == "chat" else "max_tokens"
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}}  # clients hold the key, and connections of one process

    def check(self) -> None:
        """Raises ConfigurationError where the environment holds no key; nothing is sent."""
        self._key()

    def max_output_tokens(self) -> int | None:
        """`max_tokens`, if it is set."""
        limit: int | None = self.settings["max_tokens"]
        return limit

    def setup(self) -> None:
        """Loads the client library; raises ConfigurationError where this process has no key."""
        import openai  # noqa: F401

        self._key()

    async def step(self, message: Message) -> Message:
        """The answer to one message. Raises AgentError: ContextLengthError, or AuthenticationError if the server
        refuses
        the key or the process has none; after that, nothing more is sent with this key."""
        from openai import APIStatusError

        where = f"agent {self.name!r} at turn {message.turn}"
        try:
            line = await self._line()
        except ConfigurationError as error:
            raise AuthenticationError(f"{where}: {error}") from None
        request = self._request(message, where)
        secret = None if self.api_key_env is None else line.client.api_key
        foreign: Exception | None = None
        attempts = answered = 0
        wasted: Counter[str] = Counter()  # tokens of responses without an answer

        async def attempt() -> _Read:
            nonlocal attempts, answered
            attempts += 1
            async with asyncio.timeout(self.timeout):
                try:
                    body = await _post(line.client, self.mode, request, self.extra_body)
                except APIStatusError:
                    answered += 1
                    raise
            answered += 1
            read = _read(body, self.mode)
            if isinstance(read, _Read):
                return read
            wasted.update(_tokens(read))
            raise MalformedResponse(body)

        async with line.slots:
            if line.refused:
                raise AuthenticationError(f"{where}: not sent, since {line.refused[0]}")
            try:
                read = await self._retrying()(attempt)
            except Exception as error:
                foreign = error
        if foreign is not None:  # raised out here, so that no foreign error, which may hold the key, is its context
            told = failure(foreign, attempts, where, self, secret)
            if isinstance(told, AuthenticationError):
                line.refused.append(str(told))
            raise told
        return self._answer(message, read, attempts, attempts - answered, wasted, secret)

    async def step_batch(self, messages: Sequence[Message]) -> list[Message | AgentError]:
        """The answers in order, asked for at once (see `max_concurrency`); a failed one is its error."""

        async def one(message: Message) -> Message | AgentError:
            try:
                return await self.step(message)
            except AgentError as error:
                return error

        return await asyncio.gather(*(one(m) for m in messages))

    def _http_client(self) -> httpx2.AsyncClient | None:
        """The HTTP client to use; None for openai's own. Tests put theirs here."""
        return None

    def _key(self) -> str:
        if self.api_key_env is None:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigurationError(
                f"api_key_env: {self.api_key_env!r}; this environment variable is not set, or empty; put the key into"
                " it, on every node, or use api_key_env: null for a server that wants no key"
            )
        if not re.fullmatch(r"[!-~]+", key):
            raise ConfigurationError(
                f"api_key_env: {self.api_key_env!r}; its value has spaces or signs that no key can have"
            )
        return key

    async def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            self._lines = {k: v for k, v in self._lines.items() if not k.is_closed()}
            opened = self._open(self._key())
            self._lines[loop] = _Line(await anext(opened), asyncio.Semaphore(self.max_concurrency), opened, [])
        return self._lines[loop]

    async def _open(self, key: str) -> AsyncGenerator[AsyncOpenAI, None]:
        from openai import AsyncOpenAI

        # Retries are ours, so that each is counted; so is the time-out, for the client's is per read.
        async with AsyncOpenAI(
            api_key=key, base_url=self.base_url, max_retries=0, timeout=None, http_client=self._http_client()
        ) as client:
            yield client

    def _request(self, message: Message, where: str) -> dict[str, Any]:
        settings = self.settings
        if message.options:
            if strange := next((key for key in message.options if key not in self.turn_options), None):
                raise AgentError(f"{where}: " + unknown("turn option", strange, self.turn_options))
            try:
                settings = _checked({**settings, **message.options})
            except ConfigurationError as error:
                raise AgentError(f"{where}: {error}") from None
        shown = (*message.history, message)
        if vector := next((m for m in shown if not isinstance(m.content, str)), None):
            raise AgentError(
                f"{where}: turn {vector.turn} is a {type(vector.content).__name__}; a language model reads text"
            )
        request: dict[str, Any] = {"model": self.model}
        if self.mode == "chat":
            request["messages"] = chat(shown, self.name, settings["instructions"])
        else:
            request["prompt"] = running_text([settings["instructions"] or "", *(str(m.content) for m in shown)], " ")
        sampling = {key: settings[key] for key in ("temperature", "top_p", "stop")}
        sampling[self._limit] = settings["max_tokens"]
        request.update((key, value) for key, value in sampling.items() if value is not None)
        if self.send_seed:
            request["seed"] = message.seed % SEEDS
        return request

    def _retrying(self) -> Any:
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

        doubled, jitter = wait_exponential(self.backoff, self.max_backoff), wait_random(0, self.backoff)

        def wait(state: RetryCallState) -> float:
            asked = retry_after(state.outcome.exception() if state.outcome else None)
            return jitter(state) + (doubled(state) if asked is None else min(asked, self.max_backoff))

        return AsyncRetrying(
            stop=stop_after_attempt(self.max_attempts),
            wait=wait,
            retry=retry_if_exception(worth_retrying),
            reraise=True,
        )

    def _answer(
        self, message: Message, read: _Read, attempts: int, unanswered: int, wasted: Counter[str], secret: str | None
    ) -> Message:
        answer, choice, text = read
        usage: dict[str, Any] = {"requests": attempts}
        if attempts > 1:
            usage["retries"] = attempts - 1
        if unanswered:
            usage["unanswered"] = unanswered
        counts = Counter(wasted)
        counts.update(_tokens(answer))  # a sum of counters would leave zeros out
        usage |= counts
        if self.price is not None:
            usage["cost"] = sum(
                usage.get(f"{side}_tokens", 0) * self.price.get(side, 0.0) / 1e6 for side in ("input", "output")
            )
        told = {
            "finish_reason": choice.get("finish_reason"),
            "model": answer.get("model"),
            "response_id": answer.get("id"),
        }
        metadata = {k: scrubbed(v, secret) for k, v in told.items() if isinstance(v, str)}
        return message.reply(scrubbed(text, secret), self.name, usage, metadata)


async def _post(client: AsyncOpenAI, mode: str, request: Mapping[str, Any], extra: Mapping[str, Any] | None) -> str:
    """The body of the server's answer; as text, because what comes may not be what the client's types promise."""
    endpoint = client.chat.completions if mode == "chat" else client.completions
    return str((await endpoint.with_raw_response.create(**request, extra_body=extra)).text)


def _read(body: str, mode: str) -> _Read | Any:
    """What a body holds; where that is no completion of this mode, its plain JSON value, or None for no JSON."""
    answer: Any = None
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["text"] if mode == "completion" else choice["message"]["content"]
        if isinstance(text, str | None):  # half a surrogate pair cannot be stored
            return _Read(answer, choice, (text or "").encode("utf-8", "replace").decode())
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return answer


def _tokens(answer: Any) -> dict[str, int]:
    """The token counts of a response, as far as it has some."""
    counts = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(counts, dict):
        return {}
    both = {"input_tokens": counts.get("prompt_tokens"), "output_tokens": counts.get("completion_tokens")}
    return {name: count for name, count in both.items() if isinstance(count, int)}


def _host(base_url: str) -> str:
    """The host of a server's address. Raises ConfigurationError, which repeats no address that may hold a secret."""
    try:
        parts = urlsplit(base_url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if "@" in base_url or "?" in base_url or "#" in base_url:
        raise ConfigurationError(
            "base_url: expected http(s)://host[:port]/path only; name, password and key do not belong there"
        )
    if not good:
        raise ConfigurationError(f"base_url: {base_url!r}; expected an address such as http://127.0.0.1:8000/v1")
    return parts.hostname or ""


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of one turn, proven to be usable. Raises ConfigurationError."""
    temperature, top_p, limit, stop = (settings[k] for k in ("temperature", "top_p", "max_tokens", "stop"))
    if temperature is not None and not (_number(temperature) and 0 <= temperature < math.inf):
        raise ConfigurationError(f"temperature: {temperature!r}; expected a number of at least 0")
    if top_p is not None and not (_number(top_p) and 0 < top_p <= 1):
        raise ConfigurationError(f"top_p: {top_p!r}; expected a number above 0 and at most 1")
    if limit is not None and not (isinstance(limit, int) and _number(limit) and limit >= 1):
        raise ConfigurationError(f"max_tokens: {limit!r}; expected a whole number of at least 1")
    stops = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(stops, list) and stops and all(isinstance(s, str) and s for s in stops)):
        raise ConfigurationError(f"stop: {stop!r}; expected a text, or a list of texts")
    if not isinstance(settings["instructions"], str | None):
        raise ConfigurationError(f"instructions: {settings['instructions']!r}; expected text")
    return settings


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
