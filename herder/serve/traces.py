"""Traces: a span for each request, with its time in the queue, prefill and decode, for an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic, time_ns
from typing import TYPE_CHECKING

from herder.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from herder.serve.exchange import Exchange

MISSING = "traces need what the base install has not: pip install 'herder[otel]', or leave out logging.traces"
OTHER = "(other)"  # the route of a path that nobody knows


class Traces:
    """Spans are made when a request has ended, from the times that were taken on the way; a thread sends them.

    endpoint: an OTLP collector's URL for traces over HTTP (http://127.0.0.1:4318/v1/traces), the only address that a
    serving process then connects to. exporter: takes the spans instead. A request's `traceparent` header makes its span
    a child of the client's. Attributes are those of OpenTelemetry's conventions for HTTP and generative AI; there is no
    prompt among them. Raises UnsupportedModel where the extra is not installed.
    """

    def __init__(self, endpoint: str | None = None, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(endpoint=endpoint)
        except ImportError:
            raise UnsupportedModel(MISSING) from None
        self._provider = TracerProvider(resource=Resource.create({"service.name": "herder"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("herder.serve")

    def request(self, method: str, headers: Mapping[bytes, bytes], exchange: Exchange) -> None:
        """An HTTP request that has just ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            name: headers[name.encode()].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if name.encode() in headers
        }
        end = time_ns()
        route = exchange.path or OTHER
        span = self._tracer.start_span(
            f"{method} {route}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=end - _nanoseconds(monotonic() - exchange.started),
            attributes=_attributes(method, route, exchange),
        )
        if exchange.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        # The engine's phases follow each other, and the last one ends with the answer.
        inside = set_span_in_context(span)
        at = end
        for name, seconds in (("decode", exchange.decode), ("prefill", exchange.prefill), ("queue", exchange.queue)):
            if exchange.reasons:
                start = at - _nanoseconds(seconds)
                self._tracer.start_span(name, context=inside, start_time=start).end(at)
                at = start
        span.end(end)

    async def close(self) -> None:
        """Sends what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def _attributes(method: str, route: str, exchange: Exchange) -> dict[str, str | int | float | tuple[str, ...]]:
    values: dict[str, str | int | float | tuple[str, ...]] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": exchange.status,
        "herder.request.id": exchange.id,
    }
    if exchange.principal.key:
        values["herder.key"] = exchange.principal.key
    if exchange.model:
        values |= {
            "gen_ai.provider.name": "herder",
            "gen_ai.request.model": exchange.model,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": exchange.cached_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
            "gen_ai.response.finish_reasons": exchange.reasons,
            "herder.seconds.queue": exchange.queue,
            "herder.seconds.prefill": exchange.prefill,
            "herder.seconds.decode": exchange.decode,
        }
    return values


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
