"""Answers and errors as Anthropic's Messages API has them: content blocks, whole or as server-sent events."""

from __future__ import annotations

import json
from typing import Any

from herder.serve.dialect import Context, Kind, Problem
from herder.serve.wire import (
    Answer,
    AnswerEvent,
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

_TYPES: dict[Kind, str] = {
    "invalid": "invalid_request_error",
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "overloaded": "overloaded_error",
    "timeout": "timeout_error",
    "internal": "api_error",
    "unavailable": "overloaded_error",
}


def error_body(problem: Problem) -> dict[str, Any]:
    """What stands in the response, and in the event that ends a stream."""
    return {"type": "error", "error": {"type": _TYPES[problem.kind], "message": problem.message}}


def answer(request: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
    """A message. A tool call that the answer's end has cut off is left out: its input is no object."""
    [choice] = found.choices
    assert found.done is not None, "an answer is encoded when it is complete"
    blocks: list[dict[str, Any]] = []
    if choice.reasoning:
        blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    for call in choice.calls:
        try:
            arguments = json.loads(call.arguments or "{}")
        except ValueError:
            continue
        blocks.append({"type": "tool_use", "id": _call_id(call.id), "name": call.name, "input": arguments})
    ended = Ended(0, choice.reason, choice.stop, choice.tokens, choice.seed)
    message = _message(context, blocks)
    return message | _stop(request, ended) | {"usage": _usage(found.done) | {"service_tier": "standard"}}


class Stream:
    """Blocks one after another; what ends the message comes with Done, which knows the usage."""

    content_type = "text/event-stream"

    def __init__(self, request: ChatRequest | TextRequest, context: Context) -> None:
        self._request, self._context = request, context
        self._blocks = 0
        self._open: str | None = None  # the type of the block that is being sent; of a call, with its number
        self._ended: Ended | None = None

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(_, text):
                if not text:
                    return b""
                begun = self._begin("text", {"type": "text", "text": ""})
                return begun + self._delta({"type": "text_delta", "text": text})
            case ReasoningDelta(_, text):
                begun = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                return begun + self._delta({"type": "thinking_delta", "thinking": text})
            case CallStarted(_, call, id, name):
                block = {"type": "tool_use", "id": _call_id(id), "name": name, "input": {}}
                return self._begin(f"call {call}", block)
            case CallArguments(_, call, json):
                assert self._open == f"call {call}", "calls come one after another"
                return self._delta({"type": "input_json_delta", "partial_json": json})
            case Started():
                return self._started(event)
            case Ended():
                self._ended = event
                return self._end()
            case Done():
                assert self._ended is not None
                delta = _stop(self._request, self._ended)
                return _sse({"type": "message_delta", "delta": delta, "usage": _usage(event)}) + _sse(
                    {"type": "message_stop"}
                )

    def error(self, problem: Problem) -> bytes:
        return _sse(error_body(problem))

    def _started(self, event: Started) -> bytes:
        usage = _prompt_usage(event.prompt_tokens, event.cached_tokens)
        message = _message(self._context, []) | {"stop_reason": None, "stop_sequence": None}
        message["usage"] = usage | {"output_tokens": 0, "service_tier": "standard"}
        return _sse({"type": "message_start", "message": message}) + _sse({"type": "ping"})

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        """The beginning of a block, unless this is the one that is being sent."""
        if self._open == kind:
            return b""
        ended = self._end()
        self._open = kind
        return ended + _sse({"type": "content_block_start", "index": self._blocks, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _sse({"type": "content_block_delta", "index": self._blocks, "delta": delta})

    def _end(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        self._blocks += 1
        return _sse({"type": "content_block_stop", "index": self._blocks - 1})


def stream(request: ChatRequest | TextRequest, context: Context) -> Stream:
    return Stream(request, context)


def _message(context: Context, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"msg_{context.id}",
        "type": "message",
        "role": "assistant",
        "model": context.model,
        "content": blocks,
    }


_REASONS: dict[Reason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def _stop(request: ChatRequest | TextRequest, ended: Ended) -> dict[str, Any]:
    """An answer that is cut before max_tokens has met the end of the window, unless a deadline may have cut it."""
    reason = _REASONS[ended.reason]
    sequence = ended.stop if ended.reason == "stop" and ended.stop in request.options.get("stop", ()) else None
    if sequence is not None:
        reason = "stop_sequence"
    if ended.reason == "length" and request.deadline is None and ended.tokens < request.options["max_tokens"]:
        reason = "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(done: Done) -> dict[str, Any]:
    return _prompt_usage(done.prompt_tokens, done.cached_tokens) | {
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"thinking_tokens": done.reasoning_tokens},
    }


def _prompt_usage(prompt: int, cached: int) -> dict[str, int]:
    """input_tokens are those that were computed; the three make up the prompt."""
    return {"input_tokens": prompt - cached, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}


def _call_id(id: str) -> str:
    return f"toolu_{id.removeprefix('call_')}"


def _sse(value: dict[str, Any]) -> bytes:
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"event: {value['type']}\ndata: {data}\n\n".encode()
