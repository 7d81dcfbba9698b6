"""A calculator with rounding and noise behind an OpenAI-compatible address. It is NOT a language model.

It stands in for one where the way to a server is tested: a real HTTP server on 127.0.0.1 that reads the examples, the
iterate and the rule out of the prompt's text, takes the gradient step, adds Gaussian noise, rounds, and answers JSON.
Which model answers well, it cannot tell; that the asking, reading, re-asking and recording is right, it can.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

import numpy as np

MODEL = "calculator-with-rounding-and-noise-not-a-language-model"
CHATTER = "Sure! Taking one step gives about [0.5, 0.5], I think."
AGAIN = "cannot be used"  # stands in a second ask only


class RoundingServer:
    """Serves /v1/chat/completions while the `with` block runs; every answer is a function of its request.

    noise: standard deviation added to each number, drawn from the request. decimals: kept of each number.
    malformed: when it answers with chatter: the share of requests, or at every "first" ask, or "always".
    requests: the bodies that came, in order.
    """

    def __init__(
        self, noise: float = 0.0, decimals: int = 3, malformed: float | Literal["first", "always"] = 0.0
    ) -> None:
        self.noise, self.decimals, self.malformed = noise, decimals, malformed
        self.requests: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """What an agent takes as base_url."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> RoundingServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: dict[str, Any]) -> str:
        """What it says to one request."""
        prompt = request["messages"][-1]["content"]
        rng = np.random.default_rng(int.from_bytes(digest(request)))
        if self.malformed == "always" or (self.malformed == "first" and AGAIN not in prompt):
            return CHATTER
        if isinstance(self.malformed, float) and rng.random() < self.malformed:
            return CHATTER
        w = gradient_step(prompt)
        return json.dumps([round(float(v), self.decimals) for v in w + self.noise * rng.normal(size=len(w))])


def digest(request: dict[str, Any]) -> bytes:
    """Eight bytes that follow from all of a request."""
    return hashlib.blake2b(json.dumps(request, sort_keys=True).encode(), digest_size=8).digest()


def gradient_step(prompt: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The next weights, shape (d,), by the numbers and the rule in a prompt's text."""
    rows = re.findall(r"^x = (\[.*\]), y = (\S+)$", prompt, re.MULTILINE)
    x, y = np.array([json.loads(row) for row, _ in rows]), np.array([float(target) for _, target in rows])
    w = np.array(json.loads(_found(r"^The current weights: w = (\[.*\])$", prompt)))
    eta = float(_found(r"^The step size: eta = (\S+)$", prompt))
    times = re.search(r"done (\d+) times", prompt)
    for _ in range(int(times[1]) if times else 1):
        w = w - eta / len(x) * ((x @ w - y) @ x)
    return w


def _found(pattern: str, prompt: str) -> str:
    found = re.search(pattern, prompt, re.MULTILINE)
    if found is None:
        raise ValueError(f"nothing like {pattern} in the prompt")
    return found[1]


def _handler(server: RoundingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(request)
            if self.path != "/v1/chat/completions" or request["model"] != MODEL:
                return self._send(404, {"error": {"message": f"only {MODEL} at /v1/chat/completions is here"}})
            text = server.answer(request)
            message = {"role": "assistant", "content": text}
            spent = [len(request["messages"][-1]["content"]) // 4, len(text) // 4]
            return self._send(
                200,
                {
                    "id": f"answer-{digest(request).hex()}",
                    "object": "chat.completion",
                    "model": MODEL,
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": spent[0], "completion_tokens": spent[1], "total_tokens": sum(spent)},
                },
            )

        def _send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: a test's output is no access log."""

    return Handler
