"""OpenAI's chat completions: POST /v1/chat/completions, whole and streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context, Generate, Problem
from herder.serve.dialects import openai_error
from herder.serve.dialects.openai_chat_request import TABLE, parse
from herder.serve.dialects.openai_stream import CONTENT_TYPE, DONE, done_of, dumps, logprob, sse, usage
from herder.serve.wire import (
    Answer,
    AnswerEvent,
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

NAME = "openai_chat"
TABLES = (TABLE,)
error = openai_error.error


def answer(request: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
    """A chat.completion. What a cut prompt has lost is `truncated_prompt_tokens`, which OpenAI does not have."""
    wanted = request.options.get("logprobs") is not None
    body = _head("chat.completion", context) | {
        "choices": [
            {
                "index": i,
                "message": _message(choice),
                "logprobs": logprobs(choice.logprobs, context.token_bytes) if wanted else None,
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(found.choices)
        ],
        "usage": usage(done_of(found)),
    }
    if "metadata" in context.body:
        body["metadata"] = context.body["metadata"]
    if request.truncate and found.started is not None:
        body["truncated_prompt_tokens"] = found.started.truncated
    return body


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or (None if choice.calls else "")}
    message["refusal"] = None
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in choice.calls
        ]
    return message


def logprobs(found: Iterable[TokenLogprob], spell: Callable[[int], bytes]) -> dict[str, Any]:
    """The log-probabilities of some tokens, with their exact bytes: a token may be a part of a character."""

    def entry(token: int, value: float) -> dict[str, Any]:
        raw = spell(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob(value), "bytes": list(raw)}

    content = [
        entry(one.token, one.logprob) | {"top_logprobs": [entry(token, value) for token, value in one.top]}
        for one in found
    ]
    return {"content": content, "refusal": None}


def _head(kind: str, context: Context) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{context.id}", "object": kind, "created": context.created, "model": context.model}
    if context.fingerprint is not None:
        head["system_fingerprint"] = context.fingerprint
    if context.body.get("service_tier") is not None:
        head["service_tier"] = "default"
    return head


class Stream:
    """Chunks: the role of each choice first, then what it says, its reason to end, the usage if asked for, [DONE]."""

    content_type = CONTENT_TYPE

    def __init__(self, request: ChatRequest | TextRequest, context: Context) -> None:
        self._request = request
        self._spell = context.token_bytes
        self._logprobs = request.options.get("logprobs") is not None
        # Whether there will be text is not known at first; with tools, OpenAI's own chunks say null then.
        self._null = isinstance(request, ChatRequest) and bool(request.tools)
        self._said: set[int] = set()  # choices with text or calls
        # The same for every chunk, so it is written once.
        self._head = f"data: {dumps(_head('chat.completion.chunk', context))[:-1]},"
        self._tail = ',"usage":null}\n\n' if request.stream_usage else "}\n\n"

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(choice, text, found):
                self._said.add(choice)
                return self._chunk(choice, {"content": text}, found)
            case ReasoningDelta(choice, text):
                return self._chunk(choice, {"reasoning_content": text})
            case CallStarted(choice, call, id, name):
                self._said.add(choice)
                function = {"name": name, "arguments": ""}
                return self._chunk(
                    choice, {"tool_calls": [{"index": call, "id": id, "type": "function", "function": function}]}
                )
            case CallArguments(choice, call, json):
                return self._chunk(choice, {"tool_calls": [{"index": call, "function": {"arguments": json}}]})
            case Ended(choice, reason):
                empty = self._null and choice not in self._said
                return self._chunk(choice, {"content": ""} if empty else {}, reason=reason)
            case Started():
                return self._started(event)
            case Done():
                return self._done(event)

    def error(self, problem: Problem) -> bytes:
        return sse(openai_error.body(problem))

    def _chunk(
        self,
        choice: int,
        delta: dict[str, Any],
        found: Iterable[TokenLogprob] = (),
        reason: str | None = None,
        more: str = "",
    ) -> bytes:
        spelled = logprobs(found, self._spell) if self._logprobs and found else None
        chunk = {"index": choice, "delta": delta, "logprobs": spelled, "finish_reason": reason}
        return f'{self._head}"choices":[{dumps(chunk)}]{more}{self._tail}'.encode()

    def _started(self, event: Started) -> bytes:
        delta = {"role": "assistant", "content": None if self._null else "", "refusal": None}
        cut = f',"truncated_prompt_tokens":{event.truncated}' if self._request.truncate else ""
        return b"".join([self._chunk(choice, delta, more=cut) for choice in range(self._request.n)])

    def _done(self, event: Done) -> bytes:
        if not self._request.stream_usage:
            return DONE
        return f'{self._head}"choices":[],"usage":{dumps(usage(event))}}}\n\n'.encode() + DONE


def stream(request: ChatRequest | TextRequest, context: Context) -> Stream:
    return Stream(request, context)


ROUTES = (Generate("POST", "/v1/chat/completions", parse, answer, stream),)
