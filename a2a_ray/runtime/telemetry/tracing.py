"""OpenTelemetry spans of agents' turns, by the GenAI semantic conventions.

A worker traces in two cases:

* its process has a tracer provider already, for example from a set-up hook of Ray;
* OTEL_TRACES_EXPORTER or an OTLP endpoint was set when the run was started. The OTEL_* variables are passed to the
  workers, where the SDK reads them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from a2a_ray.core.errors import MissingDependencyError
from a2a_ray.core.message import Message

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

EXPORTER = "OTEL_TRACES_EXPORTER"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def settings() -> dict[str, str]:
    """Return the OTEL_* variables of this process; none if they request no spans. Raises MissingDependencyError."""
    otel = {key: value for key, value in os.environ.items() if key.startswith("OTEL_")}
    if any(otel.get(key) for key in ENDPOINTS):
        otel.setdefault(EXPORTER, "otlp")
    if otel.get(EXPORTER, "none") == "none" or otel.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return {}
    _exporter(otel)  # raises if it is not installed
    return otel


def tracing(run: str, otel: Mapping[str, str]) -> Tracing | None:
    """Return the tracing of this process; None if spans would not be exported. otel: from `settings`."""
    if find_spec("opentelemetry") is None:
        return None
    from opentelemetry import trace

    if otel and type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider":  # none is set
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        for key, value in otel.items():
            os.environ.setdefault(key, value)
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(_exporter(otel)()))
        trace.set_tracer_provider(provider)
    if not hasattr(trace.get_tracer_provider(), "add_span_processor"):  # the API alone drops all spans
        return None
    return Tracing(run)


def _exporter(otel: Mapping[str, str]) -> Any:
    """Return the exporter class that the variables name. Raises MissingDependencyError."""
    name = otel[EXPORTER]
    if name == "otlp":
        protocol = next((otel[key] for key in PROTOCOLS if otel.get(key)), "http/protobuf")
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise MissingDependencyError(
            f"{EXPORTER}: {otel[EXPORTER]!r}; the exporter {name} is not installed. On every node:"
            " pip install opentelemetry-sdk opentelemetry-exporter-otlp; or unset the variable"
        )
    return found[0].load()


class Tracing:
    """Makes spans. A conversation has one trace, whichever processes run it and however often it is resumed."""

    def __init__(self, run: str) -> None:
        from opentelemetry import trace

        self._run = run
        self._tracer = trace.get_tracer("a2a_ray")

    @contextmanager
    def span(self, agent: str, model: str | None, message: Message, method: str) -> Iterator[Span]:
        """Make the span of one call. An exception ends it with error.type, and propagates."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent,
            "gen_ai.conversation.id": message.conversation,
            "a2a_ray.run": self._run,
            "a2a_ray.turn": message.turn,
            "a2a_ray.method": method,
        }
        if model:
            attributes["gen_ai.request.model"] = model
        parent = self._parent(message.conversation)
        span = self._tracer.start_span(f"invoke_agent {agent}", parent, SpanKind.INTERNAL, attributes)
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(Status(StatusCode.ERROR, str(error)[:300]))
            raise
        finally:
            span.end()

    @staticmethod
    def set_usage(span: Span, usage: Mapping[str, Any]) -> None:
        """Set the tokens of a response on its span."""
        for key in ("input_tokens", "output_tokens"):
            if key in usage:
                span.set_attribute(f"gen_ai.usage.{key}", usage[key])

    def flush(self) -> None:
        """Send the queued spans, for at most 5 s; a worker that is killed would lose them."""
        from opentelemetry import trace

        provider: Any = trace.get_tracer_provider()
        if hasattr(provider, "force_flush"):
            provider.force_flush(5_000)

    def _parent(self, conversation: str) -> Context:
        """Return the context of a conversation's trace. Its id is a digest of the names: the same in every process."""
        from opentelemetry import trace

        digest = hashlib.sha256(f"{self._run}\0{conversation}".encode()).digest()
        trace_id, span_id = int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        root = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags)
        return trace.set_span_in_context(trace.NonRecordingSpan(root))
