"""Users of an OpenAI-compatible server: streamed chats over plain sockets, and when their tokens came."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Answer:
    """times: seconds from sending the request to each piece of the answer. tokens: as the server's usage counts."""

    times: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """conversations: of each user, the bodies of its requests, sent one after the other."""

    conversations: Sequence[Sequence[dict[str, Any]]]


async def ask(url: str, body: dict[str, Any]) -> Answer:
    """One streamed chat completion. Raises RuntimeError when the answer is no stream that ends well."""
    parts = urlsplit(url)
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    answer = Answer()
    try:
        begin = time.perf_counter()
        writer.write(head.encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(
                f"{url}: {status.decode().strip()}: {(await reader.read(2000)).decode(errors='replace')}"
            )
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                break
            event = json.loads(line[6:])
            if usage := event.get("usage"):
                answer.tokens = usage["completion_tokens"]
            if event.get("choices") and (event["choices"][0].get("delta") or {}).get("content"):
                answer.times.append(time.perf_counter() - begin)
        else:
            raise RuntimeError(f"{url}: the stream ended without [DONE]")
    finally:
        writer.close()
    if not answer.times or not answer.tokens:
        raise RuntimeError(f"{url}: an answer without text or usage")
    return answer


async def run(url: str, load: Load) -> tuple[float, list[Answer]]:
    """(seconds from the first request to the last token, every answer)."""

    async def user(bodies: Sequence[dict[str, Any]]) -> list[Answer]:
        return [await ask(url, body) for body in bodies]

    begin = time.perf_counter()
    answers = await asyncio.gather(*(user(bodies) for bodies in load.conversations))
    return time.perf_counter() - begin, [answer for user_answers in answers for answer in user_answers]


def figures(seconds: float, answers: Sequence[Answer]) -> dict[str, float]:
    """tokens_per_s: of all answers together. ttft, gap: seconds to the first piece, and between two pieces."""
    first = [answer.times[0] for answer in answers]
    gaps = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:], strict=False)]
    return {
        "tokens_per_s": sum(answer.tokens for answer in answers) / seconds,
        "ttft_p50": statistics.median(first),
        "ttft_p95": percentile(first, 95),
        "gap_p50": statistics.median(gaps),
        "gap_p99": percentile(gaps, 99),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
