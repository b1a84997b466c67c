"""Answers and errors as Gemini's API has them: candidates of parts, whole, as server-sent events or as a JSON array."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context, Kind, Problem
from herder.serve.dialects.openai_stream import logprob
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    Call,
    CallArguments,
    CallStarted,
    ChatRequest,
    Done,
    Ended,
    Reason,
    ReasoningDelta,
    Started,
    TextDelta,
    TextRequest,
)

_STATUS: dict[Kind, tuple[int, str]] = {
    "invalid": (400, "INVALID_ARGUMENT"),
    "unauthorized": (401, "UNAUTHENTICATED"),
    "forbidden": (403, "PERMISSION_DENIED"),
    "not_found": (404, "NOT_FOUND"),
    "too_large": (413, "INVALID_ARGUMENT"),
    "rate_limited": (429, "RESOURCE_EXHAUSTED"),
    "overloaded": (503, "UNAVAILABLE"),
    "timeout": (504, "DEADLINE_EXCEEDED"),
    "internal": (500, "INTERNAL"),
    "unavailable": (503, "UNAVAILABLE"),
}
_REASONS: dict[Reason, str] = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
}
_RPC = "type.googleapis.com/google.rpc."


def error(problem: Problem) -> tuple[int, dict[str, str], dict[str, Any]]:
    """HTTP status, headers, body."""
    status, word = _STATUS[problem.kind]
    headers, details = {}, []
    if problem.field is not None and problem.kind == "invalid":
        violation = {"field": problem.field, "description": problem.message}
        details.append({"@type": f"{_RPC}BadRequest", "fieldViolations": [violation]})
    if problem.retry_after is not None:
        seconds = max(1, math.ceil(problem.retry_after))
        headers["retry-after"] = str(seconds)
        details.append({"@type": f"{_RPC}RetryInfo", "retryDelay": f"{seconds}s"})
    body: dict[str, Any] = {"code": status, "message": problem.message, "status": word}
    return status, headers, {"error": body | ({"details": details} if details else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(ChatRequest):
    """sse: the stream is of server-sent events; otherwise it is one JSON array."""

    sse: bool = False


def answer(request: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
    """A GenerateContentResponse."""
    assert found.done is not None, "an answer is encoded when it is complete"
    wanted = request.options.get("logprobs") is not None
    candidates = []
    for i, choice in enumerate(found.choices):
        parts: list[dict[str, Any]] = []
        if choice.reasoning:
            parts.append({"text": choice.reasoning, "thought": True})
        if choice.text:
            parts.append({"text": choice.text})
        parts += [part for call in choice.calls if (part := _call(call)) is not None]
        candidate = _candidate(i, parts, _REASONS[choice.reason])
        if wanted:
            candidate |= _logprobs(choice.logprobs, context.token_bytes)
        candidates.append(candidate)
    return {"candidates": candidates, "usageMetadata": _usage(found.done)} | _head(context)


class Stream:
    """A response for each piece. Function calls are sent whole; why a candidate ended comes with the usage, last."""

    def __init__(self, request: ChatRequest | TextRequest, context: Context) -> None:
        self._sse = isinstance(request, Generation) and request.sse
        self._wanted = request.options.get("logprobs") is not None
        self._context = context
        self._calls: dict[int, Call] = {}  # the one that is under way, of each candidate
        self._ended: list[dict[str, Any]] = []
        self._written = 0

    @property
    def content_type(self) -> str:
        return "text/event-stream" if self._sse else "application/json"

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(choice, text, logprobs):
                return self._finish_call(choice) + self._text(choice, text, logprobs)
            case ReasoningDelta(choice, text):
                return self._piece(_candidate(choice, [{"text": text, "thought": True}]))
            case CallStarted(choice, _, id, name):
                finished = self._finish_call(choice)
                self._calls[choice] = Call(id, name)
                return finished
            case CallArguments(choice, _, json):
                self._calls[choice].arguments += json
                return b""
            case Ended(choice, reason):
                self._ended.append(_candidate(choice, [], _REASONS[reason]))
                return self._finish_call(choice)
            case Started():
                return b""
            case Done():
                self._ended.sort(key=lambda candidate: int(candidate["index"]))
                last = {"candidates": self._ended, "usageMetadata": _usage(event)} | _head(self._context)
                return self._chunk(last) + (b"" if self._sse else b"]")

    def error(self, problem: Problem) -> bytes:
        return self._chunk(error(problem)[2]) + (b"" if self._sse else b"]")

    def _text(self, choice: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        candidate = _candidate(choice, [{"text": text}] if text else [])
        if self._wanted and logprobs:
            candidate |= _logprobs(logprobs, self._context.token_bytes)
        elif not text:
            return b""
        return self._piece(candidate)

    def _finish_call(self, choice: int) -> bytes:
        call = self._calls.pop(choice, None)
        part = None if call is None else _call(call)
        return b"" if part is None else self._piece(_candidate(choice, [part]))

    def _piece(self, candidate: dict[str, Any]) -> bytes:
        return self._chunk({"candidates": [candidate]} | _head(self._context))

    def _chunk(self, value: dict[str, Any]) -> bytes:
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        self._written += 1
        if self._sse:
            return b"data: " + data + b"\r\n\r\n"
        return (b"[" if self._written == 1 else b",\r\n") + data


def stream(request: ChatRequest | TextRequest, context: Context) -> Stream:
    return Stream(request, context)


def _head(context: Context) -> dict[str, str]:
    return {"modelVersion": context.model, "responseId": context.id}


def _candidate(index: int, parts: list[dict[str, Any]], reason: str | None = None) -> dict[str, Any]:
    candidate = {"content": {"parts": parts, "role": "model"}, "index": index}
    return candidate if reason is None else candidate | {"finishReason": reason}


def _call(call: Call) -> dict[str, Any] | None:
    """The part of a call; None for one that the answer's end has cut off, whose arguments are no object."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except ValueError:
        return None
    return {"functionCall": {"id": call.id, "name": call.name, "args": arguments}}


def _logprobs(found: Sequence[TokenLogprob], spell: Callable[[int], bytes]) -> dict[str, Any]:
    def entry(token: int, value: float) -> dict[str, Any]:
        text = spell(token).decode("utf-8", "replace")
        return {"token": text, "tokenId": token, "logProbability": logprob(value)}

    total = sum(logprob(one.logprob) for one in found)
    result = {
        "chosenCandidates": [entry(one.token, one.logprob) for one in found],
        "topCandidates": [{"candidates": [entry(*other) for other in one.top]} for one in found],
        "logProbabilitySum": total,
    }
    return {"avgLogprobs": total / max(1, len(found)), "logprobsResult": result}


def _usage(done: Done) -> dict[str, Any]:
    usage = {
        "promptTokenCount": done.prompt_tokens,
        "candidatesTokenCount": done.completion_tokens - done.reasoning_tokens,
        "totalTokenCount": done.prompt_tokens + done.completion_tokens,
    }
    if done.cached_tokens:
        usage["cachedContentTokenCount"] = done.cached_tokens
    if done.reasoning_tokens:
        usage["thoughtsTokenCount"] = done.reasoning_tokens
    return usage
