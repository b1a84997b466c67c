"""The answer of OpenAI's responses, streamed: numbered events that open, fill and close one item after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context, Kind, Problem
from herder.serve.dialects import openai_responses_answer as form
from herder.serve.dialects.openai_responses_request import Asked
from herder.serve.dialects.openai_stream import CONTENT_TYPE, dumps
from herder.serve.wire import (
    AnswerEvent,
    Call,
    CallArguments,
    CallStarted,
    Done,
    Ended,
    ReasoningDelta,
    Started,
    TextDelta,
)

# The words that response.error.code has for what can go wrong once an answer has begun.
_CODES: dict[Kind, str] = {"rate_limited": "rate_limit_exceeded", "invalid": "invalid_prompt"}


class Stream:
    """keep: called with the response when it has ended, before the event that says so is given out."""

    content_type = CONTENT_TYPE

    def __init__(self, asked: Asked, context: Context, keep: Callable[[Mapping[str, Any]], None]) -> None:
        self._asked, self._context, self._keep = asked, context, keep
        self._number = 0
        self._output: list[dict[str, Any]] = []  # items that are closed
        self._open: Literal["message", "reasoning", "call", None] = None
        self._text: list[str] = []  # of the open item
        self._logprobs: list[TokenLogprob] = []  # of the open message
        self._early: tuple[TokenLogprob, ...] = ()  # of tokens whose text is still to come
        self._call = Call("", "")
        self._where: dict[str, Any] = {}  # what every event of the open item says
        self._truncated = 0
        self._cut = False

    def event(self, event: AnswerEvent) -> bytes:
        match event:
            case TextDelta(_, text, found):
                return self._said(text, found)
            case ReasoningDelta(_, text):
                return self._thought(text)
            case CallStarted(_, _, id, name):
                return self._called(Call(id, name))
            case CallArguments(_, _, json):
                self._text.append(json)
                return self._send("response.function_call_arguments.delta", {**self._where, "delta": json})
            case Ended():
                return self._ended(event)
            case Started():
                self._truncated = event.truncated
                begun = {"response": form.response(self._asked, self._context, "in_progress")}
                return self._send("response.created", begun) + self._send("response.in_progress", begun)
            case Done():
                asked, context = self._asked, self._context
                response = form.ended(asked, context, self._output, event, self._cut, self._truncated)
                self._keep(response)
                return self._send(f"response.{response['status']}", {"response": response})

    def error(self, problem: Problem) -> bytes:
        """response.failed, with what there was. It is not stored."""
        out = self._close(cut=True)
        found = form.response(self._asked, self._context, "failed", self._output)
        found["error"] = {"code": _CODES.get(problem.kind, "server_error"), "message": problem.message}
        return out + self._send("response.failed", {"response": found})

    # Items -----------------------------------------------------------------------------------------------------------
    def _said(self, text: str, found: tuple[TokenLogprob, ...]) -> bytes:
        if not text and self._open != "message":
            self._early += found
            return b""
        out = b""
        if self._open != "message":
            out = self._begin("message", lambda index: form.message_head(self._context, index))
            out += self._part("added", form.text_part(self._asked, self._context, ""))
        found, self._early = self._early + found, ()
        self._text.append(text)
        self._logprobs += found
        logprobs = form.spelled(self._asked, self._context, found)
        delta = {**self._where, "content_index": 0, "delta": text, "logprobs": logprobs}
        return out + self._send("response.output_text.delta", delta)

    def _thought(self, text: str) -> bytes:
        out = b""
        if self._open != "reasoning":
            out = self._begin("reasoning", lambda index: form.reasoning_head(self._asked, self._context, index))
            out += self._part("added", form.reasoning_part(self._asked, ""))
        self._text.append(text)
        delta = {**self._where, **self._index(), "delta": text}
        return out + self._send(f"response.{self._reasoning()}_text.delta", delta)

    def _called(self, call: Call) -> bytes:
        out = self._begin("call", lambda index: form.call_head(self._context, index, call))
        self._call = call
        return out

    def _ended(self, event: Ended) -> bytes:
        self._cut = event.reason == "length"
        out = b""
        if self._open is None and not self._output:  # nothing was said: an empty message says so
            out = self._begin("message", lambda index: form.message_head(self._context, index))
            out += self._part("added", form.text_part(self._asked, self._context, ""))
            self._logprobs, self._early = list(self._early), ()
        return out + self._close(self._cut)

    def _begin(self, kind: Literal["message", "reasoning", "call"], head: Callable[[int], dict[str, Any]]) -> bytes:
        """Closes the open item and opens another one. head: the new item, by its index."""
        out = self._close(cut=False)
        index = len(self._output)
        item = head(index)
        self._open, self._text, self._logprobs = kind, [], []
        self._where = {"item_id": item["id"], "output_index": index}
        return out + self._send("response.output_item.added", {"output_index": index, "item": item})

    def _close(self, cut: bool) -> bytes:
        asked, context, index, text = self._asked, self._context, len(self._output), "".join(self._text)
        out = b""
        match self._open:
            case None:
                return out
            case "message":
                item = form.message_item(asked, context, index, text, self._logprobs, cut)
                part = item["content"][0]
                done = {**self._where, "content_index": 0, "text": text, "logprobs": part["logprobs"]}
                out += self._send("response.output_text.done", done) + self._part("done", part)
            case "reasoning":
                item = form.reasoning_item(asked, context, index, text, cut)
                done = {**self._where, **self._index(), "text": text}
                out += self._send(f"response.{self._reasoning()}_text.done", done)
                out += self._part("done", form.reasoning_part(asked, text))
            case "call":
                self._call.arguments = text
                item = form.call_item(context, index, self._call, cut)
                whole = item["arguments"]
                if whole != text:  # a call without arguments: the deltas join to what the end says
                    out += self._send("response.function_call_arguments.delta", {**self._where, "delta": whole})
                done = {**self._where, "name": self._call.name, "arguments": whole}
                out += self._send("response.function_call_arguments.done", done)
        out += self._send("response.output_item.done", {"output_index": index, "item": item})
        self._output.append(item)
        self._open = None
        return out

    def _part(self, what: str, part: Mapping[str, Any]) -> bytes:
        """A part of the open item begins (`added`) or ends (`done`)."""
        place = "reasoning_summary_part" if part["type"] == "summary_text" else "content_part"
        index = {"summary_index" if part["type"] == "summary_text" else "content_index": 0}
        return self._send(f"response.{place}.{what}", {**self._where, **index, "part": part})

    def _reasoning(self) -> str:
        return "reasoning_summary" if self._asked.summary else "reasoning"

    def _index(self) -> dict[str, int]:
        return {"summary_index": 0} if self._asked.summary else {"content_index": 0}

    def _send(self, kind: str, values: Mapping[str, Any]) -> bytes:
        number, self._number = self._number, self._number + 1
        event = {"type": kind, "sequence_number": number, **values}
        return f"event: {kind}\ndata: {dumps(event)}\n\n".encode()
