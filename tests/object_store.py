"""An object store on this machine that can be told to fail: moto's S3 server behind a gate.

    python -m tests.object_store PORT

A POST of `[{"method": "PUT", "part": "_delta_log", "times": 2, "done": true}]` to /gate makes the next requests of that
method with that part in their path fail with status 500; with `done`, after they were carried out.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ERROR = b"<Error><Code>InternalError</Code><Message>told to fail</Message></Error>"


class Gate:
    """WSGI application around moto's."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.rules: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/gate":
            with self.lock:
                failed = sum(rule["times"] for rule in self.rules)
                self.rules = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or "[]")
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(failed).encode()]
        with self.lock:
            rule = next((r for r in self.rules if r["method"] == method and r["part"] in path and r["times"] > 0), None)
            if rule is not None:
                rule["times"] -= 1
        if rule is None:
            return self.inner(environ, start_response)
        if rule.get("done"):
            list(self.inner(environ, lambda *_: None))
        start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
        return [ERROR]


class Store:
    """The running server; `uri` is a bucket in it."""

    def __init__(self, address: str) -> None:
        self.address, self.uri = address, "s3://runs"
        self.environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def fail(self, *rules: dict[str, Any]) -> int:
        """Sets what fails from now on. How many failures of the former rules were not used up."""
        request = urllib.request.Request(f"{self.address}/gate", json.dumps(rules).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            return int(answer.read())


@contextmanager
def serving() -> Iterator[Store]:
    """Starts a server with an empty bucket; ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.object_store", str(port)], stderr=subprocess.DEVNULL)
    try:
        store = Store(f"http://127.0.0.1:{port}")
        for _ in range(300):
            try:
                bucket = urllib.request.Request(f"{store.address}/runs", method="PUT", headers={"Host": "s3"})
                urllib.request.urlopen(bucket).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("the object store did not start; see python -m tests.object_store") from None
                time.sleep(0.2)
        yield store
    finally:
        process.kill()
        process.wait()


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app  # type: ignore[import-not-found]
    from werkzeug.serving import run_simple  # type: ignore[import-not-found]

    run_simple("127.0.0.1", int(sys.argv[1]), Gate(DomainDispatcherApplication(create_backend_app)), threaded=True)


if __name__ == "__main__":
    main()
