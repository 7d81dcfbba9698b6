"""The agent behind an OpenAI-compatible server: requests, retries, secrets, and a real server on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.agents.hf.hf_source import embedded
from a2a_ray.agents.openai.openai_agent import OpenAIAgent
from a2a_ray.agents.openai.openai_retry import retry_after, retrying
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, AuthenticationError, ConfigurationError, ContextLengthError
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents

KEY = "sk-planted_0123456789/abcdef"
URL = "http://server.test/v1"
SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "models" / "stories260K"

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


class Mocked(OpenAIAgent):
    """Talks to a function instead of a server, and keeps the requests that it sent."""

    def __init__(self, handler: Handler, **settings: Any) -> None:
        super().__init__(**{"name": "ann", "model": "m", "base_url": URL, "backoff": 0.0, **settings})
        self.handler = handler
        self.requests: list[httpx2.Request] = []

    def _http_client(self) -> httpx2.AsyncClient:
        def handle(request: httpx2.Request) -> httpx2.Response:
            self.requests.append(request)
            return self.handler(request)

        return httpx2.AsyncClient(transport=httpx2.MockTransport(handle))

    @property
    def sent(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.requests[-1].content)
        return body


def completion(text: str | None = "Hi.", **more: Any) -> httpx2.Response:
    choice = {"index": 0, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return httpx2.Response(200, json={"id": "c1", "model": "m-served", "choices": [choice], "usage": usage, **more})


def refusal(status: int, said: str, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"message": said, **more}}, headers=headers)


def answers(*responses: httpx2.Response | Exception) -> Handler:
    """These, one after the other; the last for ever."""
    left = list(responses)

    def handle(request: httpx2.Request) -> httpx2.Response:
        response = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(response, Exception):
            raise response
        return httpx2.Response(response.status_code, headers=response.headers, content=response.content)

    return handle


def ask(agent: OpenAIAgent, content: Any = "Hello.", **parts: Any) -> Message:
    return asyncio.run(agent.step(Message("c", 3, "bob", content, **parts)))


def failure(agent: OpenAIAgent, content: Any = "Hello.", **parts: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        ask(agent, content, **parts)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or isinstance(error.__context__, ConfigurationError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert KEY not in f"{error!r} {error} {vars(error)}"
    assert "\n" not in str(error)
    return error


# --- what is sent -------------------------------------------------------------------------------------------------


def test_chat_roles_and_settings() -> None:
    agent = Mocked(lambda _: completion(), instructions="Be brief.", temperature=0.7, max_tokens=50, stop="END")
    history = (Message("c", 0, "", "Opening."), Message("c", 1, "ann", "One."), Message("c", 2, "eve", "Two."))
    answer = ask(agent, "Three.", history=history, seed=2**31 + 5)
    assert agent.sent == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Opening."},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Two.\n\nThree."},
        ],
        "temperature": 0.7,
        "stop": "END",
        "max_tokens": 50,
        "seed": 5,
    }
    assert agent.requests[-1].url == f"{URL}/chat/completions"
    assert agent.requests[-1].headers["authorization"] == f"Bearer {KEY}"
    assert (answer.content, answer.sender, answer.turn) == ("Hi.", "ann", 3)
    assert answer.usage == {"input_tokens": 7, "output_tokens": 3, "requests": 1}
    assert answer.metadata == {"finish_reason": "stop", "model": "m-served", "response_id": "c1"}


def test_completion_is_a_running_text() -> None:
    agent = Mocked(
        lambda _: completion(" and so on"), mode="completion", instructions="A tale:", send_seed=False, max_tokens=9
    )
    answer = ask(agent, "was a dog", history=(Message("c", 0, "", "Once there "),))
    assert agent.sent == {"model": "m", "prompt": "A tale: Once there was a dog", "max_tokens": 9}
    assert agent.requests[-1].url == f"{URL}/completions"
    assert answer.content == " and so on"


@pytest.mark.parametrize(
    ("base_url", "mode", "name"),
    [
        (None, "chat", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "chat", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1", "chat", "max_completion_tokens"),
        (None, "completion", "max_tokens"),
        ("https://notopenai.com/v1", "chat", "max_tokens"),
    ],
)
def test_name_of_the_token_limit(base_url: str | None, mode: str, name: str) -> None:
    agent = Mocked(lambda _: completion(), base_url=base_url, mode=mode, max_tokens=5)
    ask(agent)
    assert {key for key in agent.sent if "tokens" in key} == {name}


def test_the_environment_does_not_choose_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.test/v1")
    agent = Mocked(lambda _: completion(), base_url=None)
    ask(agent)
    assert agent.requests[-1].url.host == "api.openai.com"


def test_options_of_a_turn_and_extra_body() -> None:
    agent = Mocked(lambda _: completion(), temperature=0.7, extra_body={"top_k": 5})
    ask(agent, options={"temperature": 0, "instructions": "Now."})
    assert (agent.sent["temperature"], agent.sent["top_k"], agent.sent["messages"][0]["content"]) == (0, 5, "Now.")
    ask(agent)
    assert agent.sent["temperature"] == 0.7
    assert "Did you mean 'temperature'" in str(failure(agent, options={"temprature": 1}))
    assert "temperature: -1" in str(failure(agent, options={"temperature": -1}))
    assert len(agent.requests) == 2


def test_empty_answers_and_cost() -> None:
    agent = Mocked(lambda _: completion(None), price={"input": 1.0, "output": 10.0})
    answer = ask(agent)
    assert answer.content == ""
    assert answer.usage["cost"] == pytest.approx(37e-6)
    half_a_pair = completion("\\ud800!", usage=None, id=7).text.replace("\\\\", "\\")
    answer = ask(Mocked(lambda _: httpx2.Response(200, text=half_a_pair)))
    assert (answer.content, answer.usage) == ("?!", {"requests": 1})
    assert "response_id" not in answer.metadata


def test_vectors_are_refused() -> None:
    import numpy as np

    agent = Mocked(lambda _: completion())
    assert "turn 3 is a ndarray" in str(failure(agent, np.zeros(2)))
    assert not agent.requests


# --- faults -------------------------------------------------------------------------------------------------------


def test_every_attempt_is_counted() -> None:
    faults = [refusal(s, "later") for s in (429, 500, 409)] + [httpx2.ReadTimeout("slow"), httpx2.ConnectError("no")]
    agent = Mocked(answers(*faults, completion()), max_attempts=6)
    usage = ask(agent).usage
    assert usage["requests"] == 6 == len(agent.requests)
    assert usage["unanswered"] == 2, "of these nobody knows whether they are on the bill"


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_attempts_are_bounded(status: int) -> None:
    agent = Mocked(answers(refusal(status, f"not now, {KEY}")), max_attempts=3)
    error = failure(agent)
    assert len(agent.requests) == 3
    assert f"agent 'ann' at turn 3: {URL} answered {status} after 3 attempts: not now, [key]" in str(error)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "send_seed"),
        (401, "environment variable OPENAI_API_KEY"),
        (403, "OPENAI_API_KEY"),
        (404, "/v1"),
        (422, "no such thing"),
    ],
)
def test_no_second_attempt_for_what_stays_wrong(status: int, remedy: str) -> None:
    agent = Mocked(answers(refusal(status, f"no such thing for {KEY}")))
    error = failure(agent)
    assert len(agent.requests) == 1
    assert isinstance(error, AuthenticationError) is (status in (401, 403))
    assert "after 1 attempt: no such thing for [key]" in str(error)
    assert remedy in str(error)


def test_a_server_that_wants_a_key_after_all() -> None:
    agent = Mocked(answers(refusal(401, "who are you?")), api_key_env=None)
    assert "who are you?; the server wants a key: api_key_env" in str(failure(agent))


def test_an_exhausted_quota_is_not_tried_again() -> None:
    agent = Mocked(answers(refusal(429, "no credit", code="insufficient_quota")))
    failure(agent)
    assert len(agent.requests) == 1


def test_a_full_context_has_its_own_error() -> None:
    agent = Mocked(answers(refusal(400, "too long", code="context_length_exceeded")))
    assert isinstance(failure(agent), ContextLengthError)


def test_retry_after_is_honoured_and_capped() -> None:
    def seconds(retry: str, cap: float) -> float:
        agent = Mocked(answers(refusal(429, "later", {"retry-after": retry}), completion()), max_backoff=cap)
        start = time.monotonic()
        assert ask(agent).usage["requests"] == 2
        return time.monotonic() - start

    assert seconds("0.3", 60) >= 0.3
    assert seconds("3600", 0.2) >= 0.2  # and not an hour
    seconds("soon", 60)  # is no number, and ignored


def test_forms_of_retry_after() -> None:
    class Error(Exception):
        def __init__(self, value: str) -> None:
            self.response = httpx2.Response(429, headers={"Retry-After": value})

    now = datetime.now(UTC)
    assert retry_after(Error("12")) == 12
    assert retry_after(Error(format_datetime(now + timedelta(seconds=30), usegmt=True))) == pytest.approx(30, abs=2)
    assert retry_after(Error(format_datetime(now - timedelta(seconds=30)))) == 0
    for nonsense in ("nan", "-5", "", "tomorrow", "Fri, 99 Foo"):
        assert retry_after(Error(nonsense)) is None
    assert retry_after(None) is None
    assert retry_after(TimeoutError()) is None


def test_backoff_doubles() -> None:
    from types import SimpleNamespace

    wait = retrying(5, backoff=0.5, max_backoff=3).wait
    for attempt, least in ((1, 0.5), (2, 1.0), (3, 2.0), (4, 3.0), (50, 3.0)):
        waits = [wait(SimpleNamespace(attempt_number=attempt, outcome=None)) for _ in range(200)]
        assert least <= min(waits) <= max(waits) <= least + 0.5
    assert len({wait(SimpleNamespace(attempt_number=1, outcome=None)) for _ in range(9)}) == 9


@pytest.mark.parametrize(
    "body",
    [
        f"<html>{KEY}</html>",
        "{",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"message": null}]}',
        '{"choices": [{"message": {"content": 5}}]}',
        '{"choices": null, "error": {"message": "overloaded"}}',
        "[" * 100_000,
    ],
)
def test_a_malformed_answer(body: str) -> None:
    agent = Mocked(lambda _: httpx2.Response(200, text=body, headers={"content-type": "application/json"}))
    error = failure(agent)
    assert "answered, but not with a chat completion, after 5 attempts: " in str(error)
    assert len(str(error)) < 500
    assert len(agent.requests) == 5


@pytest.mark.parametrize("body", ["", "<html>busy</html>", '{"choices": []}', '{"choices": [{"message": {}}]}'])
def test_a_malformed_answer_is_asked_for_again(body: str) -> None:
    agent = Mocked(answers(httpx2.Response(200, text=body), refusal(429, "later"), completion()))
    assert ask(agent).usage == {"requests": 3, "retries": 2, "input_tokens": 7, "output_tokens": 3}


def test_tokens_of_an_answer_without_content_are_on_the_bill() -> None:
    empty = httpx2.Response(200, json={"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})
    answer = ask(Mocked(answers(empty, completion()), price={"input": 1.0, "output": 10.0}))
    assert answer.usage["input_tokens"] == 14
    assert answer.usage["output_tokens"] == 8
    assert answer.usage["cost"] == pytest.approx((14 + 80) * 1e-6)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_sent_again(status: int) -> None:
    agent = Mocked(answers(refusal(status, "no"), completion()), max_concurrency=2)
    asked = [Message("c", i, "bob", "x") for i in range(20)]
    answered = asyncio.run(agent.step_batch(asked))
    refused = [a for a in answered if isinstance(a, AuthenticationError)]
    assert len(agent.requests) <= 2, "no more than were under way"
    assert len(refused) >= 19
    assert all("environment variable OPENAI_API_KEY" in str(error) for error in refused)
    assert ask(agent).content == "Hi.", "another client begins anew, for the key may have been changed"


def test_malformed_errors() -> None:
    for content, said in (
        (b"", "Bad Gateway"),
        (b"\x1b[31m<h1>\nbusy", "[31m<h1> busy"),
        (b'{"detail": "Off"}', "Off"),
    ):
        agent = Mocked(lambda _, c=content: httpx2.Response(502, content=c), max_attempts=1)
        assert str(failure(agent)).endswith(f"answered 502 after 1 attempt: {said}")


def test_timeout_of_a_whole_attempt() -> None:
    """A server that sends a little now and then would never time out per read."""

    async def drip() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n")
            try:
                while True:
                    writer.write(b" ")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        agent = OpenAIAgent("ann", "m", base_url=url, timeout=0.2, max_attempts=2, backoff=0)
        with pytest.raises(AgentError) as caught:
            await agent.step(Message("c", 1, "", "Hello."))
        server.close()
        return str(caught.value)

    assert "gave no answer within 0.2 s, after 2 attempts" in asyncio.run(drip())


def test_unreachable_server_keeps_the_turns() -> None:
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        ann = OpenAIAgent("ann", "m", base_url=url, max_attempts=2, backoff=0.01)
        conversation = Conversation([EchoAgent("bob"), ann], opening="Hello.", max_rounds=2)
        with pytest.raises(AgentError, match=rf"no connection to {url} after 2 attempts \(ConnectError"):
            conversation.run()
    assert [m.content for m in conversation.transcript] == ["Hello."]
    assert conversation.transcript.status == "failed"


# --- many at once -------------------------------------------------------------------------------------------------


def test_a_batch_keeps_order_bound_and_each_fault_apart() -> None:
    class Slow(Mocked):
        now = most = 0

        def _http_client(self) -> httpx2.AsyncClient:
            async def handle(request: httpx2.Request) -> httpx2.Response:
                self.now += 1
                self.most = max(self.most, self.now)
                await asyncio.sleep(0.01)
                self.now -= 1
                said = json.loads(request.content)["messages"][0]["content"]
                return refusal(400, "no") if said == "5" else completion(f"<{said}>")

            return httpx2.AsyncClient(transport=httpx2.MockTransport(handle))

    agent = Slow(answers(completion()), max_concurrency=4)
    asked = [Message("c", i, "bob", str(i)) for i in range(10)]
    for _ in range(2):  # each run has an event loop of its own
        answered = asyncio.run(agent.step_batch(asked))
        assert [a.content if isinstance(a, Message) else type(a) for a in answered] == [
            AgentError if i == 5 else f"<{i}>" for i in range(10)
        ]
        assert agent.most == 4
        assert len(agent._lines) == 1


def test_connections_are_closed_with_their_loop() -> None:
    agent = Mocked(lambda _: completion())
    ask(agent)
    (line,) = agent._lines.values()
    assert line.client.is_closed()
    ask(agent)
    assert len(agent._lines) == 1
    assert len(agent.requests) == 2


# --- the key ------------------------------------------------------------------------------------------------------


def test_the_key_stays_out_of_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    agent = Mocked(answers(completion(f"You are {KEY}.", id=KEY, model=f"m {KEY}")))
    answer = ask(agent)
    assert KEY not in json.dumps(answer.to_dict())
    assert answer.content == "You are [key]."
    real = OpenAIAgent("ann", "m", base_url="http://127.0.0.1:1/v1", max_attempts=1)
    failure(real)
    assert real._lines  # a client exists, and holds the key
    assert KEY.encode() not in pickle.dumps(real)
    assert KEY not in f"{real!r} {vars(real)}"
    assert pickle.loads(pickle.dumps(real)).settings == real.settings
    assert KEY not in caplog.text


def test_another_key_of_the_environment_is_never_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", KEY)
    agent = Mocked(lambda _: completion("no-key is kept"), api_key_env=None)
    agent.check()
    assert ask(agent).content == "no-key is kept"
    assert KEY not in str(agent.requests[-1].headers.raw)


@pytest.mark.parametrize("value", [None, "", "  ", "two words", "sk-\u00fc"])
def test_a_missing_or_impossible_key(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    agent = Mocked(lambda _: completion())
    for start in (agent.check, agent.setup):
        with pytest.raises(ConfigurationError, match="api_key_env: 'OPENAI_API_KEY'"):
            start()
    with pytest.raises(AuthenticationError, match="turn 3: api_key_env"):
        ask(agent)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")  # as `export KEY="$(cat file)"` may leave it
    agent.check()
    ask(agent)
    assert agent.requests[-1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("setting", [{"api_key": KEY}, {"api_key_env": KEY}, {"api_key_env": "gsk_0123abc"}])
def test_a_key_in_a_specification_is_refused_and_not_repeated(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        agents.build({"kind": "openai", "name": "a", "model": "m", **setting}, "agents.0")
    assert "api_key_env" in str(caught.value)
    assert not any(value in str(caught.value) for value in setting.values())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"base_url": "server.test/v1"}, "base_url: 'server.test/v1'; expected an address such as http"),
        ({"base_url": "ftp://server.test"}, "base_url"),
        ({"base_url": "http://server.test:port/v1"}, "base_url"),
        ({"base_url": f"https://me:{KEY}@server.test/v1"}, "base_url"),
        ({"base_url": f"https://server.test/v1?key={KEY}"}, "base_url"),
        ({"model": ""}, "model: ''"),
        ({"mode": "chatt"}, "Did you mean 'chat'"),
        ({"temperature": -0.1}, "temperature: -0.1"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0}, "top_p: 0"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"stop": [""]}, "stop: ['']"),
        ({"timeout": 0}, "timeout: 0"),
        ({"max_attempts": 0}, "max_attempts: 0; expected at least 1"),
        ({"max_concurrency": 0}, "max_concurrency: 0"),
        ({"backoff": -1}, "backoff: -1"),
        ({"price": {"inputs": 1}}, "Did you mean 'input'"),
        ({"price": {"input": -1}}, "price.input: -1"),
    ],
)
def test_bad_settings(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OpenAIAgent(**{"name": "ann", "model": "m", **setting})
    assert said in str(caught.value)
    assert KEY not in str(caught.value)


# --- a real server ------------------------------------------------------------------------------------------------


def served_model() -> Path:
    found = [*embedded().values(), *(p for p in [SHARED] if p.is_dir())]
    if not found:
        pytest.skip("neither an embedded model nor ../shared/data/models is there to be served")
    return found[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and model name of a `transformers serve` process."""
    pytest.importorskip("fastapi", reason="pip install 'transformers[serving]'")
    home = tmp_path_factory.mktemp("served")
    folder = home / "model"
    shutil.copytree(served_model(), folder)
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    generation = folder / "generation_config.json"
    config = json.loads(generation.read_text()) if generation.exists() else {}
    generation.write_text(json.dumps({**config, "do_sample": True}))  # the server is greedy without it
    (home / "hf" / "hub").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    environment = {**os.environ, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < end, (home / "log").read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chat", "completion"])
def test_two_agents_over_a_real_server(server: tuple[str, str], mode: str) -> None:
    url, model = server

    def hold(seed: int) -> list[Message]:
        pair = [
            OpenAIAgent(name, model, base_url=url, api_key_env=None, mode=mode, max_tokens=12, temperature=1.0)
            for name in ("ann", "bob")
        ]
        conversation = Conversation(pair, opening="Once upon a time", max_turns=4, seed=seed)
        transcript = conversation.run()
        assert transcript.status == "done"
        return transcript.turns

    first, again, other = hold(1), hold(1), hold(2)
    assert [m.sender for m in first] == ["ann", "bob", "ann", "bob"]
    assert all(m.usage["requests"] == 1 and 0 <= m.usage["output_tokens"] <= 12 for m in first)
    assert all(m.metadata["finish_reason"] in ("stop", "length") for m in first)
    assert [m.content for m in first] == [m.content for m in again]
    assert [m.content for m in first] != [m.content for m in other]


@pytest.mark.slow
def test_a_real_server_refuses(server: tuple[str, str]) -> None:
    url, _ = server
    assert "answered 400 after 1 attempt: Server is pinned to" in str(
        failure(OpenAIAgent("ann", "other", base_url=url))
    )
    lost = OpenAIAgent("ann", "m", base_url=url.removesuffix("/v1"))
    assert "answered 404 after 1 attempt: Not Found; check model and base_url" in str(failure(lost))


@pytest.mark.slow
def test_a_batch_over_a_real_server(server: tuple[str, str]) -> None:
    url, model = server
    agent = OpenAIAgent("ann", model, base_url=url, max_tokens=5, max_concurrency=2)
    asked = [Message("c", i, "bob", f"There were {i} dogs") for i in range(6)]
    answered = asyncio.run(agent.step_batch(asked))
    assert [a.turn for a in answered if isinstance(a, Message)] == list(range(6))
