"""The answer of OpenAI's responses, whole: the response object and the items of its output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context
from herder.serve.dialects.openai_chat import logprobs
from herder.serve.dialects.openai_responses_request import Asked
from herder.serve.dialects.openai_stream import done_of
from herder.serve.wire import Answer, Call, Choice, Done


def answer(asked: Asked, found: Answer, context: Context) -> dict[str, Any]:
    """A response that has ended."""
    choice = found.choices[0]
    truncated = found.started.truncated if found.started is not None else 0
    output = items(asked, choice, context)
    return ended(asked, context, output, done_of(found), choice.reason == "length", truncated)


def response_id(context: Context) -> str:
    return f"resp_{context.id}"


def response(asked: Asked, context: Context, status: str, output: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The object, as it is at this point. temperature and top_p are null where the model's own are used."""
    return {
        "id": response_id(context),
        "object": "response",
        "created_at": context.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": context.model,
        "output": list(output),
        "usage": None,
        **asked.echo,
    }


def ended(
    asked: Asked, context: Context, output: Sequence[Mapping[str, Any]], done: Done, cut: bool, truncated: int
) -> dict[str, Any]:
    """cut: the answer ended for length. What a cut prompt has lost is `truncated_prompt_tokens`, which OpenAI does not
    have."""
    found = response(asked, context, "incomplete" if cut else "completed", output)
    if cut:
        found["incomplete_details"] = {"reason": "max_output_tokens"}
    else:
        found["completed_at"] = int(context.created + done.queue + done.prefill + done.decode)
    found["usage"] = usage(done)
    if asked.common["truncate"]:
        found["truncated_prompt_tokens"] = truncated
    return found


def usage(done: Done) -> dict[str, Any]:
    return {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": done.cached_tokens,
            "cache_write_tokens": done.prompt_tokens - done.cached_tokens,
        },
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": done.reasoning_tokens},
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }


# Items ---------------------------------------------------------------------------------------------------------------
def items(asked: Asked, choice: Choice, context: Context) -> list[dict[str, Any]]:
    """What was thought, said and called, in this order; the last item is incomplete when the answer was cut."""
    parts: list[str | Call | None] = [None] if choice.reasoning else []
    if choice.text or not (choice.reasoning or choice.calls):
        parts.append(choice.text)
    parts += choice.calls
    found = []
    for i, part in enumerate(parts):
        cut = choice.reason == "length" and i == len(parts) - 1
        match part:
            case None:
                found.append(reasoning_item(asked, context, i, choice.reasoning, cut))
            case str():
                found.append(message_item(asked, context, i, part, choice.logprobs, cut))
            case Call():
                found.append(call_item(context, i, part, cut))
    return found


def message_item(
    asked: Asked, context: Context, index: int, text: str, found: Iterable[TokenLogprob], cut: bool
) -> dict[str, Any]:
    part = text_part(asked, context, text, found)
    return {**message_head(context, index), "status": _status(cut), "content": [part]}


def message_head(context: Context, index: int) -> dict[str, Any]:
    return {
        "id": f"msg_{context.id}_{index}",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }


def text_part(asked: Asked, context: Context, text: str, found: Iterable[TokenLogprob] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": spelled(asked, context, found)}


def spelled(asked: Asked, context: Context, found: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities, none where they were not asked for."""
    if not asked.logprobs:
        return []
    content: list[dict[str, Any]] = logprobs(found, context.token_bytes)["content"]
    return content


def reasoning_item(asked: Asked, context: Context, index: int, text: str, cut: bool) -> dict[str, Any]:
    place = "summary" if asked.summary else "content"
    return {**reasoning_head(asked, context, index), "status": _status(cut), place: [reasoning_part(asked, text)]}


def reasoning_head(asked: Asked, context: Context, index: int) -> dict[str, Any]:
    head: dict[str, Any] = {"id": f"rs_{context.id}_{index}", "type": "reasoning", "status": "in_progress"}
    return head | ({"summary": []} if asked.summary else {"summary": [], "content": []})


def reasoning_part(asked: Asked, text: str) -> dict[str, Any]:
    return {"type": "summary_text" if asked.summary else "reasoning_text", "text": text}


def call_item(context: Context, index: int, call: Call, cut: bool) -> dict[str, Any]:
    arguments = call.arguments or ("" if cut else "{}")
    return {
        **call_head(context, index, call),
        "status": _status(cut and not _whole(arguments)),
        "arguments": arguments,
    }


def call_head(context: Context, index: int, call: Call) -> dict[str, Any]:
    return {
        "id": f"fc_{context.id}_{index}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": call.id,
        "name": call.name,
        "arguments": "",
    }


def _whole(arguments: str) -> bool:
    """Whether an answer that was cut had this call complete."""
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _status(cut: bool) -> str:
    return "incomplete" if cut else "completed"
