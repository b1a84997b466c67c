"""Traces: the spans of a request by the SDK's in-memory exporter, and what a collector receives."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from herder.core.errors import UnsupportedModel
from herder.serve.config import Config
from herder.serve.server import Server
from herder.serve.traces import Traces
from tests.serve.live import live
from tests.serve.models import fake_llm, server_of

BODY = {"model": "tiny-alias", "messages": [{"role": "user", "content": "SECRET"}], "max_tokens": 4}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def traced(exporter: InMemorySpanExporter | None, *paths: str, endpoint: str | None = None) -> None:
    """Serves with traces, asks for a chat, then for each path, and ends the server."""

    def make(config: Config) -> Server:
        server = server_of(fake_llm(), config=config)
        server.traces = Traces(endpoint, exporter)
        return server

    with live(make=make) as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        answer = client.post("/v1/chat/completions", json=BODY, headers={"traceparent": PARENT})
        assert answer.status_code == 200, answer.text
        for path in paths:
            client.get(path)


def start(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def test_a_request_is_a_span_with_its_phases() -> None:
    exporter = InMemorySpanExporter()
    traced(exporter, "/health/live", "/nowhere/at/all")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"POST /v1/chat/completions", "queue", "prefill", "decode", "GET /health/live", "GET (other)"}
    whole = spans["POST /v1/chat/completions"]
    attributes = dict(whole.attributes or {})
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.request.model"] == "tiny" and attributes["gen_ai.usage.output_tokens"] == 4
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert "SECRET" not in whole.to_json()
    assert whole.parent is not None and f"{whole.parent.trace_id:032x}-{whole.parent.span_id:016x}" == PARENT[3:52]
    phases = [spans[name] for name in ("queue", "prefill", "decode")]
    assert start(whole) <= start(phases[0])
    for phase, following in zip(phases, [*phases[1:], None], strict=True):
        assert phase.parent is not None and phase.parent.span_id == whole.context.span_id
        assert phase.end_time == (whole.end_time if following is None else start(following))


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            import gzip

            data = self.rfile.read(int(self.headers["content-length"]))
            data = gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data
            received.append(ExportTraceServiceRequest.FromString(data))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", received
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_the_spans_before_the_server_ends(
    collector: tuple[str, list[ExportTraceServiceRequest]],
) -> None:
    url, received = collector
    traced(None, endpoint=url)
    (resource,) = [resource for request in received for resource in request.resource_spans]
    assert {"herder"} == {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/chat/completions", "decode", "prefill", "queue"]


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(UnsupportedModel, match="pip install 'herder"):
        Traces("http://127.0.0.1:1/")
