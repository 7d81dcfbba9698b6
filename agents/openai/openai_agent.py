"""A language model behind an OpenAI-compatible server: OpenAI, vLLM, Ollama, llama.cpp, `transformers serve`, ..."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from a2a_ray.agents.chat_prompts import chat, require_text, running_text
from a2a_ray.agents.openai.openai_response import Completion, read_completion, token_counts
from a2a_ray.agents.openai.openai_retry import MalformedResponse, failure, retrying, scrubbed
from a2a_ray.agents.openai.openai_settings import (
    OPENAI_URL,
    Address,
    StopTexts,
    TokenPrice,
    VariableName,
    cost_of,
    key_from,
    limit_name,
)
from a2a_ray.agents.setting_types import Count, Fraction, NonEmptyText, NonNegative, Positive
from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import AgentError, AuthenticationError, ConfigurationError
from a2a_ray.core.message import Message
from a2a_ray.core.validation import turn_settings, validated

if TYPE_CHECKING:
    import httpx2

    from openai import AsyncOpenAI

SEEDS = 2**31
"""Seeds are sent modulo this number, because many servers keep a signed 32-bit seed."""


class _Line(NamedTuple):
    """The connections to the server from one event loop; they belong to that loop and close with it.

    opened: the generator that made the client; a loop that ends (`asyncio.run`) closes its generators, and with this
        one the connections.
    refused: why the server refused the key; after that nothing more is sent with it.
    """

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    opened: AsyncGenerator[AsyncOpenAI, None]
    refused: list[str]


class OpenAIAgent(BaseAgent):
    """Answers through the chat or the completions endpoint of an OpenAI-compatible server.

    model: as the server names it.
    base_url: of the server, e.g. http://127.0.0.1:8000/v1; None for OpenAI's own. OPENAI_BASE_URL is ignored, so that
        the specification alone decides what a run does.
    api_key_env: NAME of the environment variable that holds the key. The process where the agent works reads it for
        the first answer and stores it nowhere else. None for a server that needs no key.
    mode: "chat": own turns have the role assistant, all others and the opening the role user. "completion": the context
        is one running text that the model continues.
    instructions: chat: the system message. Completion: a text before the context.
    temperature, top_p, max_tokens, stop: None leaves them to the server. max_tokens is sent as max_completion_tokens
        in chats of OpenAI and Azure (newer models refuse the old name) and as max_tokens otherwise (many servers know
        no other name); `extra_body` can send any name.
    send_seed: sends the turn's seed modulo 2**31; whether it has an effect depends on the server.
    timeout: seconds for one attempt, from the connection to the last byte.
    max_attempts: requests for one turn, the first one included. Retried are time-outs, failed connections, the statuses
        408, 409, 429 and 5xx, and responses without an answer (no JSON, no choices), but not an exhausted quota. A
        retry waits `backoff` seconds, doubled each time, or as long as Retry-After asks for, at most `max_backoff`
        seconds, plus up to `backoff` at random.
    max_concurrency: the most requests in flight from one replica; if a specification gives it, from all replicas
        together (docs/guides/budgets.md). A request that waits for its retry counts.
    price: money per million tokens, {"input": x, "output": y}; adds usage["cost"].
    extra_body: additional fields of each request.

    usage: input_tokens and output_tokens as far as the server reports them, including those of responses without an
        answer, which were paid. requests: all attempts. retries: all but the first. unanswered: requests that timed out
        or lost their connection; they may have been served and billed. cost.
    metadata: finish_reason, and model and response_id as served. An answer without content is kept as empty text;
        finish_reason says why.
    """

    placement = "actor"
    paid = True
    own_limits = frozenset({"timeout", "max_concurrency"})
    turn_options = frozenset({"temperature", "top_p", "max_tokens", "stop", "instructions"})

    @validated
    def __init__(
        self,
        name: str,
        model: NonEmptyText,
        *,
        base_url: Address = None,
        api_key_env: VariableName = "OPENAI_API_KEY",
        mode: Literal["chat", "completion"] = "chat",
        instructions: str | None = None,
        temperature: NonNegative | None = None,
        top_p: Fraction | None = None,
        max_tokens: Count | None = None,
        stop: StopTexts = None,
        send_seed: bool = True,
        timeout: Positive = 60.0,
        max_attempts: Count = 5,
        backoff: NonNegative = 0.5,
        max_backoff: NonNegative = 60.0,
        max_concurrency: Count = 16,
        price: TokenPrice | None = None,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        self.model = model
        self.base_url = OPENAI_URL if base_url is None else base_url
        self.api_key_env = api_key_env
        self.mode = mode
        self.send_seed = send_seed
        self.timeout = timeout
        self.max_attempts, self.backoff, self.max_backoff = max_attempts, backoff, max_backoff
        self.max_concurrency = max_concurrency
        self.price = price
        self.extra_body = extra_body
        self.settings: Mapping[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "max_tokens": max_tokens,
            "stop": stop,
            "instructions": instructions,
        }
        self._limit_name = limit_name(self.base_url, mode)
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lines": {}}  # clients hold the key, and connections of one process

    def check(self) -> None:
        """Raise ConfigurationError if the environment holds no key; sends nothing."""
        self._key()

    def max_output_tokens(self) -> int | None:
        """Return `max_tokens`, or None if it is not set."""
        limit: int | None = self.settings["max_tokens"]
        return limit

    def setup(self) -> None:
        """Load the client library. Raises ConfigurationError if this process has no key."""
        import openai  # noqa: F401

        self._key()

    def _key(self) -> str:
        return key_from(self.api_key_env)

    async def step(self, message: Message) -> Message:
        """Return the answer to one message.

        Raises AgentError: ContextLengthError, or AuthenticationError if the server refuses the key or the process has
        none. After that, nothing more is sent with this key.
        """
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

        async def attempt() -> Completion:
            nonlocal attempts, answered
            attempts += 1
            async with asyncio.timeout(self.timeout):
                try:
                    body = await _post(line.client, self.mode, request, self.extra_body)
                except APIStatusError:
                    answered += 1
                    raise
            answered += 1
            completion = read_completion(body, self.mode)
            if isinstance(completion, Completion):
                return completion
            wasted.update(token_counts(completion))
            raise MalformedResponse(body)

        async with line.slots:
            if line.refused:
                raise AuthenticationError(f"{where}: not sent, since {line.refused[0]}")
            try:
                completion = await retrying(self.max_attempts, self.backoff, self.max_backoff)(attempt)
            except Exception as error:
                foreign = error
        if foreign is not None:  # raised out here, so that no foreign error, which may hold the key, is its context
            reported = failure(foreign, attempts, where, self, secret)
            if isinstance(reported, AuthenticationError):
                line.refused.append(str(reported))
            raise reported
        usage = self._usage(completion, attempts, attempts - answered, wasted)
        return self._answer(message, completion, usage, secret)

    async def step_batch(self, messages: Sequence[Message]) -> list[Message | AgentError]:
        """Return the answers in order, requested at once up to `max_concurrency`; a failed one is its error."""

        async def one(message: Message) -> Message | AgentError:
            try:
                return await self.step(message)
            except AgentError as error:
                return error

        return await asyncio.gather(*(one(m) for m in messages))

    def _http_client(self) -> httpx2.AsyncClient | None:
        """Return the HTTP client to use; None for openai's own. Tests put theirs here."""
        return None

    async def _line(self) -> _Line:
        loop = asyncio.get_running_loop()
        if loop not in self._lines:
            self._lines = {k: v for k, v in self._lines.items() if not k.is_closed()}
            opened = self._open(self._key())
            self._lines[loop] = _Line(await anext(opened), asyncio.Semaphore(self.max_concurrency), opened, [])
        return self._lines[loop]

    async def _open(self, key: str) -> AsyncGenerator[AsyncOpenAI, None]:
        from openai import AsyncOpenAI

        # Retries are ours, so that each is counted; so is the time-out, because the client's applies to each read.
        async with AsyncOpenAI(
            api_key=key, base_url=self.base_url, max_retries=0, timeout=None, http_client=self._http_client()
        ) as client:
            yield client

    def _request(self, message: Message, where: str) -> dict[str, Any]:
        settings = turn_settings(OpenAIAgent, self.settings, message.options, where)
        context = (*message.history, message)
        require_text(context, where)
        request: dict[str, Any] = {"model": self.model}
        if self.mode == "chat":
            request["messages"] = chat(context, self.name, settings["instructions"])
        else:
            request["prompt"] = running_text([settings["instructions"] or "", *(str(m.content) for m in context)], " ")
        sampling = {key: settings[key] for key in ("temperature", "top_p", "stop")}
        sampling[self._limit_name] = settings["max_tokens"]
        request.update((key, value) for key, value in sampling.items() if value is not None)
        if self.send_seed:
            request["seed"] = message.seed % SEEDS
        return request

    def _usage(
        self, completion: Completion, attempts: int, unanswered: int, wasted: Mapping[str, int]
    ) -> dict[str, Any]:
        usage: dict[str, Any] = {"requests": attempts}
        if attempts > 1:
            usage["retries"] = attempts - 1
        if unanswered:
            usage["unanswered"] = unanswered
        counts = Counter(wasted)
        counts.update(token_counts(completion.body))  # a sum of counters would leave zeros out
        usage |= counts
        if self.price is not None:
            usage["cost"] = cost_of(usage, self.price)
        return usage

    def _answer(self, message: Message, completion: Completion, usage: dict[str, Any], secret: str | None) -> Message:
        served = {
            "finish_reason": completion.choice.get("finish_reason"),
            "model": completion.body.get("model"),
            "response_id": completion.body.get("id"),
        }
        metadata = {k: scrubbed(v, secret) for k, v in served.items() if isinstance(v, str)}
        return message.reply(scrubbed(completion.text, secret), self.name, usage, metadata)


async def _post(client: AsyncOpenAI, mode: str, request: Mapping[str, Any], extra: Mapping[str, Any] | None) -> str:
    """Return the body of the server's response as text, because it may not be what the client's types promise."""
    endpoint = client.chat.completions if mode == "chat" else client.completions
    return str((await endpoint.with_raw_response.create(**request, extra_body=extra)).text)
