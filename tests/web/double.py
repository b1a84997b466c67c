"""A server's double: the real page, and an OpenAI dialect that says what the last message asks it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from herder.serve.page import page_routes

CODE = 'def herd(n: int) -> str:\n    return "llama" * n'
ANSWER = f"""A **herd** has a shape[^1] of its own:

1. it walks *together*
2. it looks <b>around</b>

```python
{CODE}
```

| animal | legs |
|---|---|
| llama | 4 |

![a picture](https://elsewhere.example/pixel.png), [a link](https://elsewhere.example/), [no link](javascript:alert(1))
"""
CONTEXT = 4096


class Double:
    """What the tests set, and what the page has sent."""

    def __init__(self) -> None:
        self.origin = ""
        self.reset()

    def reset(self) -> None:
        self.key = ""
        self.images = True
        self.models = ["herdling", "herdling-large"]
        self.refusals: list[
            tuple[int, dict[str, str], dict[str, str]]
        ] = []  # status, headers, error: for next requests
        self.bodies: list[dict[str, Any]] = []
        self.left = threading.Event()  # a client has gone away before the end of its answer

    def app(self) -> Starlette:
        routes = [
            Route("/v1/models", self._list),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            *page_routes([]),
        ]
        return Starlette(routes=routes)

    def _barred(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse(
                {"error": {"message": "that is not a key of this server", "code": "invalid_api_key"}}, 401
            )
        return None

    async def _list(self, request: Request) -> Response:
        about = {"context": CONTEXT, "images": self.images, "chat": True}
        data: list[dict[str, Any]] = [{"id": name, "object": "model", "herder": about} for name in self.models]
        data.append({"id": "embedder", "object": "model", "herder": {"context": 512, "images": False, "chat": False}})
        return self._barred(request) or JSONResponse({"object": "list", "data": data})

    async def _chat(self, request: Request) -> Response:
        if barred := self._barred(request):
            return barred
        body = await request.json()
        self.bodies.append(body)
        if self.refusals:
            status, headers, error = self.refusals.pop(0)
            return JSONResponse({"error": error}, status, headers)
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[str]:
        content = body["messages"][-1]["content"]
        asked = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        finish = "stop"
        try:
            if "think" in asked:
                for word in ("First ", "I ", "think."):
                    yield delta(reasoning_content=word)
            if "call" in asked and body["messages"][-1]["role"] == "user":
                finish = "tool_calls"
                function = {"name": "weather", "arguments": ""}
                yield delta(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": function}])
                for piece in ('{"city": ', '"Cusco"}'):
                    yield delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
            elif "endless" in asked:
                for count in range(2000):
                    yield delta(content=f"word{count} ")
                    await asyncio.sleep(0.02)
            elif "break" in asked:
                yield delta(content="half an ")
                return
            else:
                answer = ANSWER if "herd" in asked else f"You said {asked!r}, number {len(self.bodies)}."
                for at in range(0, len(answer), 7):
                    yield delta(content=answer[at : at + 7])
                    await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise
        yield delta(finish)
        usage = {"prompt_tokens": 3800 if "long" in asked else 100, "completion_tokens": 50, "total_tokens": 150}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"


def delta(finish: str | None = None, **fields: Any) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': fields, 'finish_reason': finish}]})}\n\n"


@contextlib.contextmanager
def serve(double: Double) -> Iterator[Double]:
    """Runs it on a port of its own until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    double.origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(double.app(), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
