"""OpenAI's plain completions: POST /v1/completions, with echo, suffix and log-probabilities, whole and streamed."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable
from typing import Any

from herder.core.request import MAX_TOP_LOGPROBS, TokenLogprob
from herder.serve import values
from herder.serve.dialect import Call, Context, Generate, Problem
from herder.serve.dialects import openai_constraints, openai_error, openai_options
from herder.serve.dialects.openai_prompts import prompts
from herder.serve.dialects.openai_stream import CONTENT_TYPE, DONE, done_of, dumps, logprob, sse, usage
from herder.serve.fields import FieldError, Table, checked, refused, supported
from herder.serve.wire import (
    Answer,
    AnswerEvent,
    ChatRequest,
    Choice,
    Done,
    Ended,
    Started,
    TextDelta,
    TextRequest,
)

NAME = "openai_completions"
MAX_PROMPTS = 128
DEFAULT_TOKENS = 16  # OpenAI's
DEFAULT_TEMPERATURE = 1.0

TABLE = Table(
    "POST /v1/completions",
    "openai.types.CompletionCreateParams",
    (
        supported("prompt", f"text, token ids, or a list of either (at most {MAX_PROMPTS}); null is an empty text"),
        *openai_options.FIELDS,
        supported("max_tokens", f"default {DEFAULT_TOKENS}; 0 with echo evaluates the prompt only"),
        supported("logprobs", f"0 to {MAX_TOP_LOGPROBS}"),
        supported("echo"),
        supported("suffix", "for models that fill gaps in (Code Llama)"),
        refused("best_of", "ask for n answers and choose by their logprobs", 1),
    ),
    (
        *openai_constraints.FIELDS,
        *openai_constraints.EXTENSIONS,
        refused("add_special_tokens", "give token ids for a prompt without BOS", True),
        refused("prompt_embeds", "give text or token ids"),
        *openai_options.EXTENSIONS,
    ),
)
TABLES = (TABLE,)
error = openai_error.error


def parse(call: Call) -> TextRequest:
    """Raises FieldError."""
    empty = "prompt" in call.body and call.body["prompt"] is None
    body = openai_options.given(checked(call.body, TABLE, call.dropped))
    if empty:
        body["prompt"] = ""
    options = {"temperature": DEFAULT_TEMPERATURE, **openai_options.options(body)}
    options["max_tokens"] = values.integer(body.get("max_tokens", DEFAULT_TOKENS), "max_tokens", 0)
    echo = values.boolean(body.get("echo", False), "echo")
    if not options["max_tokens"] and not echo:
        raise FieldError("max_tokens is 0: must be 1 or more, or 0 with echo", "max_tokens")
    if "logprobs" in body:
        options["logprobs"] = values.integer(body["logprobs"], "logprobs", 0, MAX_TOP_LOGPROBS)
    if "user" in body:
        values.text(body["user"], "user", 1024)
    return TextRequest(
        **openai_options.common(body, TABLE, call.dropped),
        options=options,
        constraint=openai_constraints.constraint(body, TABLE, call.dropped),
        prompts=prompts(body, "prompt", MAX_PROMPTS),
        suffix=values.text(body["suffix"], "suffix") if body.get("suffix") else None,
        echo=echo,
    )


def answer(request: ChatRequest | TextRequest, found: Answer, context: Context) -> dict[str, Any]:
    """A text_completion. What cut prompts have lost is `truncated_prompt_tokens`, which OpenAI does not have."""
    wanted = request.options.get("logprobs") is not None
    body = _head(context) | {
        "choices": [
            {
                "index": i,
                "text": choice.text,
                "logprobs": _spelled(choice, context) if wanted else None,
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(found.choices)
        ],
        "usage": usage(done_of(found)),
    }
    if request.truncate and found.started is not None:
        body["truncated_prompt_tokens"] = found.started.truncated
    return body


def _spelled(choice: Choice, context: Context) -> dict[str, Any]:
    return Offsets(context.token_bytes).logprobs(choice.text, choice.logprobs)


class Offsets:
    """Log-probabilities in the shape of this API, as they come. One for each choice: where a token begins in the text
    depends on those before it."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        self._spell = spell
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0  # characters before the next token
        self._begun = False  # whether a token has been found in the text

    def logprobs(self, text: str, found: Iterable[TokenLogprob]) -> dict[str, Any]:
        """text: what came together with these tokens."""
        start = text[:64].encode()
        tokens, values, tops, offsets = [], [], [], []
        for one in found:
            raw = self._spell(one.token)
            first = math.isnan(one.logprob)  # of a prompt; nothing predicts it
            tokens.append(spelling(raw))
            values.append(None if first else logprob(one.logprob))
            alternatives = {spelling(self._spell(token)): logprob(value) for token, value in one.top}
            tops.append(None if first else alternatives | {spelling(raw): logprob(one.logprob)})
            offsets.append(self._at)
            if not self._begun:
                # BOS is no text, and neither is the space that SentencePiece puts before one.
                if not start.startswith(raw[: len(start)]):
                    raw = raw[1:] if raw[:1] == b" " and start.startswith(raw[1:][: len(start)]) else b""
                self._begun = bool(raw)
            self._at += len(self._decoder.decode(raw))
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def spelling(raw: bytes) -> str:
    """A token as text; one that is only a part of a character as OpenAI spells it: bytes:\\xe2\\x80."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join([f"\\x{byte:02x}" for byte in raw])


def _head(context: Context) -> dict[str, Any]:
    head = {"id": f"cmpl-{context.id}", "object": "text_completion", "created": context.created, "model": context.model}
    return head if context.fingerprint is None else head | {"system_fingerprint": context.fingerprint}


class Stream:
    """Chunks in the shape of the whole, then the usage if asked for, and [DONE]."""

    content_type = CONTENT_TYPE

    def __init__(self, request: ChatRequest | TextRequest, context: Context) -> None:
        self._request = request
        self._spell = context.token_bytes
        self._offsets: dict[int, Offsets] = {}
        self._head = f"data: {dumps(_head(context))[:-1]},"
        self._tail = ',"usage":null}\n\n' if request.stream_usage else "}\n\n"
        self._cut = ""  # said once, in the first chunk

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(choice, text, found):
                spelled = None
                if found and self._request.options.get("logprobs") is not None:
                    offsets = self._offsets.setdefault(choice, Offsets(self._spell))
                    spelled = offsets.logprobs(text, found)
                return self._chunk(choice, text, spelled)
            case Ended(choice, reason):
                return self._chunk(choice, "", None, reason)
            case Started():
                if self._request.truncate:
                    self._cut = f',"truncated_prompt_tokens":{event.truncated}'
                return b""
            case Done():
                if not self._request.stream_usage:
                    return DONE
                return f'{self._head}"choices":[],"usage":{dumps(usage(event))}}}\n\n'.encode() + DONE
        return b""  # plain text has no calls and no reasoning

    def error(self, problem: Problem) -> bytes:
        return sse(openai_error.body(problem))

    def _chunk(self, choice: int, text: str, spelled: dict[str, Any] | None, reason: str | None = None) -> bytes:
        chunk = {"index": choice, "text": text, "logprobs": spelled, "finish_reason": reason}
        cut, self._cut = self._cut, ""
        return f'{self._head}"choices":[{dumps(chunk)}]{cut}{self._tail}'.encode()


def stream(request: ChatRequest | TextRequest, context: Context) -> Stream:
    return Stream(request, context)


ROUTES = (Generate("POST", "/v1/completions", parse, answer, stream),)
