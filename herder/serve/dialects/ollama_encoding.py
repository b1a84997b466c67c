"""Answers of Ollama's API: whole, as lines of JSON, and errors."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context, Kind, Problem
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    Call,
    CallArguments,
    CallStarted,
    ChatRequest,
    Choice,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
    TextRequest,
)

CONTENT_TYPE = "application/x-ndjson"
NEVER = -9999.0  # the log-probability of what cannot be: JSON has no infinity
FOREVER = "9999-12-31T23:59:59Z"  # Ollama's clients read a moment so far away as for ever

_STATUSES: dict[Kind, int] = {
    "invalid": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "too_large": 413,
    "rate_limited": 429,
    "overloaded": 503,  # what Ollama answers when its queue is full
    "timeout": 504,
    "internal": 500,
    "unavailable": 503,
}


def error(problem: Problem) -> tuple[int, dict[str, str], dict[str, Any]]:
    """HTTP status, headers, body."""
    headers = {}
    if problem.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(problem.retry_after)))
    if problem.kind == "unauthorized":
        headers["www-authenticate"] = "Bearer"  # RFC 9110 asks for it
    return _STATUSES[problem.kind], headers, {"error": problem.message}


def line(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def moment(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 has them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def logprobs(found: Iterable[TokenLogprob], context: Context) -> list[dict[str, Any]]:
    """With the exact bytes of each token: it may be a part of a character."""

    def entry(token: int, value: float) -> dict[str, Any]:
        raw = context.token_bytes(token)
        known = NEVER if math.isnan(value) else max(value, NEVER)
        return {"token": raw.decode("utf-8", "replace"), "logprob": known, "bytes": list(raw)}

    return [
        entry(one.token, one.logprob)
        | ({"top_logprobs": [entry(token, value) for token, value in one.top]} if one.top else {})
        for one in found
    ]


class Encoding:
    """An answer to one request, in either form. chats: of /api/chat, not /api/generate. load: seconds that loading the
    model took before."""

    def __init__(self, chats: bool, load: float = 0.0) -> None:
        self.chats, self.load = chats, load

    def answer(self, request: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
        [choice] = found.choices
        assert found.done is not None, "an answer is encoded when it is complete"
        document = self.head(context) | self.said(choice.text, choice.reasoning, choice.calls)
        if request.options.get("logprobs") is not None:
            document["logprobs"] = logprobs(choice.logprobs, context)
        return document | self.end(choice, found.done)

    def stream(self, request: ChatRequest | TextRequest, context: Context) -> Stream:
        return Stream(self, context, request.options.get("logprobs") is not None)

    def head(self, context: Context) -> dict[str, Any]:
        return {"model": context.body.get("model", context.model), "created_at": moment(context.created)}

    def said(self, text: str, thinking: str = "", calls: Iterable[Call] = (), first: int = 0) -> dict[str, Any]:
        """first: the index of the first call."""
        if not self.chats:
            return {"response": text} | ({"thinking": thinking} if thinking else {})
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if listed := [_call(call, arguments, index) for index, (call, arguments) in enumerate(whole(calls), first)]:
            message["tool_calls"] = listed
        return {"message": message}

    def end(self, choice: Choice, done: Done) -> dict[str, Any]:
        """Durations are in nanoseconds."""
        return {
            "done": True,
            "done_reason": "length" if choice.reason == "length" else "stop",
            "total_duration": nanoseconds(self.load + done.queue + done.prefill + done.decode),
            "load_duration": nanoseconds(self.load),
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": nanoseconds(done.prefill),
            "eval_count": done.completion_tokens,
            "eval_duration": nanoseconds(done.decode),
        }

    def only(self, reason: str, name: str, created: float) -> dict[str, Any]:
        """What is said when a model was only loaded or unloaded."""
        document = {"model": name, "created_at": moment(created), **self.said(""), "done": True, "done_reason": reason}
        if self.load:
            document |= {"total_duration": nanoseconds(self.load), "load_duration": nanoseconds(self.load)}
        return document


def whole(calls: Iterable[Call]) -> list[tuple[Call, Any]]:
    """The calls with their arguments. One that max_tokens cut off is left out, as its arguments are no object; the
    answer's done_reason is then length."""
    found = []
    for call in calls:
        with contextlib.suppress(json.JSONDecodeError):
            found.append((call, json.loads(call.arguments or "{}")))
    return found


def _call(call: Call, arguments: Any, index: int) -> dict[str, Any]:
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


class Stream:
    """One line of JSON for each piece, the last with done true. A call comes whole, when its arguments do."""

    content_type = CONTENT_TYPE

    def __init__(self, encoding: Encoding, context: Context, wants_logprobs: bool) -> None:
        self._encoding, self._context, self._logprobs = encoding, context, wants_logprobs
        self._head = encoding.head(context)
        self._choice = Choice()
        self._call: Call | None = None
        self._calls = 0

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(_, text, found):
                more = {"logprobs": logprobs(found, self._context)} if self._logprobs and found else {}
                return self._called() + self._line(self._encoding.said(text) | more)
            case ReasoningDelta(_, text):
                return self._line(self._encoding.said("", text))
            case CallStarted(_, _, id, name):
                before = self._called()
                self._call = Call(id, name)
                return before
            case CallArguments(_, _, piece):
                assert self._call is not None, "arguments of no call"
                self._call.arguments += piece
                return b""
            case Ended(_, reason):
                self._choice.reason = reason
                return self._called()
            case Started():
                return b""
            case Done():
                return line(self._head | self._encoding.said("") | self._encoding.end(self._choice, event))

    def error(self, problem: Problem) -> bytes:
        return line({"error": problem.message})

    def _called(self) -> bytes:
        """The call that has come to its end, if there is one."""
        call, self._call = self._call, None
        if call is None or not whole([call]):
            return b""
        self._calls += 1
        return self._line(self._encoding.said("", calls=(call,), first=self._calls - 1))

    def _line(self, said: dict[str, Any]) -> bytes:
        return line(self._head | said | {"done": False})
