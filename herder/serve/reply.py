"""A request for text answered over HTTP: whole or as a stream, given up the moment its client is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from herder.core.errors import HerderError
from herder.serve import exchange as exchanges
from herder.serve.answers import Run
from herder.serve.dialect import Encoder
from herder.serve.problems import Refusal, problem_of
from herder.serve.wire import Answer, AnswerEvent, ChatRequest, Choice, Done, Ended, Started, TextRequest

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from herder.llm import LLM
    from herder.serve.exchange import Exchange
    from herder.serve.server import Server, Streamed, Whole

SSE = "text/event-stream"
COMMENT = b": keep-alive\n\n"


class Reply:
    """An ASGI response. What fails before the first token has an HTTP status of its own; later the stream says it."""

    def __init__(
        self,
        server: Server,
        request: Request,
        wanted: ChatRequest | TextRequest,
        answer: Whole,
        stream: Streamed,
        body: Mapping[str, Any],
    ) -> None:
        self._server, self._request, self._wanted = server, request, wanted
        self._answer, self._stream, self._body = answer, stream, body
        self.exchange: Exchange = exchanges.of(request.scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what goes wrong before anything was sent, for the application to encode."""
        limited = self._limited()
        async with self._server.use_for(self._request, limited.model, limited) as (llm, wanted):
            if self._server.config.logging.prompts:
                self.exchange.prompt = spelled(wanted)
            context = self._server.context(self._request, wanted.model, self._body, llm)
            events = self._followed(llm, wanted)
            async with contextlib.aclosing(events):
                if wanted.stream:
                    self.exchange.stream = True
                    await self._write(self._stream(wanted, context), events, send)
                    return
                many = len(wanted.prompts) if isinstance(wanted, TextRequest) else 1
                answer = Answer([Choice() for _ in range(wanted.n * many)])
                async for batch in events:
                    for event in batch:
                        answer.feed(event)
            document = encoded(self._answer(wanted, answer, context))
            await self.exchange.settle()
            await send(head(200, "application/json", self.exchange.headers(), len(document)))
            await send({"type": "http.response.body", "body": document})

    def _limited(self) -> ChatRequest | TextRequest:
        """With the shortest of the deadlines: the request's, its header's and the server's."""
        given = (self._wanted.deadline, self.exchange.deadline, self._server.config.limits.deadline or None)
        deadline = min((seconds for seconds in given if seconds is not None), default=None)
        return self._wanted if deadline == self._wanted.deadline else replace(self._wanted, deadline=deadline)

    async def _followed(self, llm: LLM, wanted: ChatRequest | TextRequest) -> AsyncGenerator[list[AnswerEvent]]:
        """The events, with what the metrics, the log and the key's usage need of them noted."""
        exchange, metrics = self.exchange, self._server.metrics
        reasons: list[str] = []
        previous = 0.0
        run = Run(llm, wanted, max_choices=self._server.config.limits.choices, group=exchange.principal.key)
        try:
            async for batch in run.batches():
                now = monotonic()
                first, last = batch[0], batch[-1]
                if isinstance(first, Started):
                    exchange.prompt_tokens, exchange.cached_tokens = first.prompt_tokens, first.cached_tokens
                    exchange.truncated, exchange.unenforced = first.truncated, first.unenforced
                    metrics.first_token(exchange, now - exchange.started)
                elif previous:
                    metrics.between_tokens(exchange, now - previous)
                previous = now
                if isinstance(last, Ended | Done):
                    reasons += [event.reason for event in batch if isinstance(event, Ended)]
                    if isinstance(last, Done):
                        exchange.cached_tokens = last.cached_tokens
                        exchange.queue, exchange.prefill = last.queue, last.prefill
                        exchange.decode = last.decode
                        exchange.completion_tokens = run.tokens
                        exchange.reasons = tuple(reasons)
                yield batch
        finally:
            run.abort()
            exchange.completion_tokens = run.tokens  # of an answer that was cut off, too

    async def _write(self, encoder: Encoder, events: AsyncIterator[list[AnswerEvent]], send: Send) -> None:
        """One write for all events of a wake-up."""
        writer = _Writer(send, encoder.content_type, self.exchange, self._server.config.limits.keep_alive)
        encode = encoder.event
        try:
            async for batch in events:
                if isinstance(batch[-1], Done):  # before the client sees the end
                    await self.exchange.settle()
                data = encode(batch[0]) if len(batch) == 1 else b"".join([encode(event) for event in batch])
                if data:
                    await writer.write(data)
            await writer.close()
        except Exception as error:
            if not writer.begun:
                raise
            self.exchange.status = self._server.status_of(self._request, error)
            if not isinstance(error, HerderError | Refusal):
                self._server.log.failure(self.exchange, error)
            await self.exchange.settle()
            await writer.close(encoder.error(problem_of(error, self.exchange.id)))
        finally:
            writer.stop()


class _Writer:
    """The body of a stream. A stream of server-sent events that is silent for long says that it is alive."""

    def __init__(self, send: Send, content_type: str, exchange: Exchange, keep_alive: float) -> None:
        self.begun = False
        self._send, self._content_type, self._exchange = send, content_type, exchange
        self._lock = asyncio.Lock()
        self._written = monotonic()
        self._keep_alive = keep_alive
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if content_type.startswith(SSE):
            self._timer = asyncio.get_running_loop().call_later(keep_alive, self._look)

    async def write(self, data: bytes, more: bool = True) -> None:
        async with self._lock:
            if not self.begun:
                self.begun = True
                headers = {"cache-control": "no-cache", "x-accel-buffering": "no", **self._exchange.headers()}
                await self._send(head(200, self._content_type, headers))
            self._written = monotonic()
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def close(self, data: bytes = b"") -> None:
        self.stop()
        await self.write(data, more=False)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        silent = monotonic() - self._written
        if silent >= self._keep_alive:
            self._task = asyncio.create_task(self.write(COMMENT))
            silent = 0.0
        self._timer = asyncio.get_running_loop().call_later(self._keep_alive - silent, self._look)


def spelled(wanted: ChatRequest | TextRequest) -> str:
    """A request's text, for logs."""
    if isinstance(wanted, ChatRequest):
        return "\n".join([f"{message.role}: {message.text}" for message in wanted.messages])
    return "\n".join(map(str, wanted.prompts))


def encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def head(status: int, content_type: str, headers: Mapping[str, str], length: int | None = None) -> dict[str, Any]:
    """The message that begins an ASGI response."""
    lines = [(b"content-type", content_type.encode("latin-1"))]
    if length is not None:
        lines.append((b"content-length", str(length).encode()))
    lines += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": lines}
