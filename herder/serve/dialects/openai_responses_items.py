"""The items of OpenAI's responses: checked as they come in, kept as JSON, and joined into a conversation's messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herder.chat.message import Message, read_message
from herder.core.errors import UsageError
from herder.serve import values
from herder.serve.dialects.openai_chat_request import at_field
from herder.serve.dialects.openai_options import given
from herder.serve.dialects.openai_responses_fields import MAX_ITEMS, MAX_PARTS, TABLE, TOOL_KINDS
from herder.serve.fields import FieldError, checked

Item = Mapping[str, Any]

_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("summary", "content"),
    "item_reference": (),
}
_STATUSES = ("in_progress", "completed", "incomplete")
_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
_INPUT_PARTS = ("input_text", "input_image")
_OUTPUT_PARTS = ("output_text", "refusal", "input_text")


def read_items(value: Any, dropped: list[str] | None) -> tuple[Item, ...]:
    """`input` as items in their long form. Raises FieldError."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    found = values.listed(value, "input", MAX_ITEMS)
    return tuple(_item(one, f"input[{i}]", dropped) for i, one in enumerate(found))


def with_ids(items: Iterable[Item], unique: str) -> list[Item]:
    """The items as they are kept: each with an id."""
    return [
        item if "id" in item else {"id": f"{_PREFIX[item['type']]}_{unique}_i{i}", **item}
        for i, item in enumerate(items)
    ]


def _item(value: Any, where: str, dropped: list[str] | None) -> Item:
    value = values.mapping(value, where)
    kind = value.get("type")
    if kind is None:
        kind = "message" if "role" in value else "item_reference"
    elif kind not in tuple(_FIELDS):
        known = ", ".join(_FIELDS)
        raise FieldError(f"{where}.type is {values.kind(kind)}: expected {known}; {TOOL_KINDS}", f"{where}.type")
    item = given(checked(value, TABLE, dropped, f"{where}."))
    for name in item:
        if name not in ("type", "id", "status", *_FIELDS[kind]):
            raise FieldError(f"{where}.{name} is no field of a {kind}", f"{where}.{name}")
    for name in _FIELDS[kind]:
        if name not in item and (kind, name) != ("reasoning", "content"):
            raise FieldError(f"{where} is a {kind} and lacks {name}", f"{where}.{name}")
    kept: dict[str, Any] = {"type": kind}
    if "id" in item:
        kept["id"] = values.text(item["id"], f"{where}.id", 256)
    elif kind == "item_reference":
        raise FieldError(f"{where} has neither type, role nor id: expected an item", where)
    if kind != "item_reference":
        kept["status"] = values.one_of(item.get("status", "completed"), f"{where}.status", _STATUSES)
    match kind:
        case "message":
            _read_message(item, kept, where, dropped)
        case "function_call":
            kept["call_id"] = _named(item, "call_id", where)
            kept["name"] = _named(item, "name", where)
            kept["arguments"] = _arguments(item["arguments"], f"{where}.arguments", kept["status"])
        case "function_call_output":
            kept["call_id"] = _named(item, "call_id", where)
            output = item["output"]
            if isinstance(output, str):
                kept["output"] = values.text(output, f"{where}.output")
            else:
                kept["output"] = _parts(output, f"{where}.output", _INPUT_PARTS, dropped)
        case "reasoning":
            kept["summary"] = _texts(item["summary"], f"{where}.summary", "summary_text", dropped)
            if "content" in item:
                kept["content"] = _texts(item["content"], f"{where}.content", "reasoning_text", dropped)
    return kept


def _read_message(item: Item, kept: dict[str, Any], where: str, dropped: list[str] | None) -> None:
    roles = ("user", "assistant", "system", "developer")
    role = kept["role"] = values.one_of(item["role"], f"{where}.role", roles)
    content = item["content"]
    if isinstance(content, str):
        kind = "output_text" if role == "assistant" else "input_text"
        content = [{"type": kind, "text": content}]
    known = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
    kept["content"] = _parts(content, f"{where}.content", known, dropped)


def _parts(value: Any, where: str, known: Sequence[str], dropped: list[str] | None) -> list[dict[str, Any]]:
    return [_part(one, f"{where}[{i}]", known, dropped) for i, one in enumerate(values.listed(value, where, MAX_PARTS))]


def _part(value: Any, where: str, known: Sequence[str], dropped: list[str] | None) -> dict[str, Any]:
    value = values.mapping(value, where)
    kind = values.one_of(value.get("type"), f"{where}.type", known)
    part = given(checked(value, TABLE, dropped, f"{where}."))
    if "prompt_cache_breakpoint" in part:
        mark = f"{where}.prompt_cache_breakpoint"
        mode = checked(values.mapping(part.pop("prompt_cache_breakpoint"), mark), TABLE, dropped, f"{mark}.")
        values.one_of(mode.get("mode"), f"{mark}.mode", ("explicit",))
    own = {
        "input_image": ("image_url", "detail"),
        "output_text": ("text", "annotations", "logprobs"),
        "refusal": ("refusal",),
    }.get(kind, ("text",))
    if extra := [name for name in part if name not in ("type", *own)]:
        raise FieldError(f"{where}.{extra[0]} is no field of an {kind}", f"{where}.{extra[0]}")
    if kind == "input_image":
        # Decoded or fetched when the conversation is put together; `auto` is what the API says where nothing is said.
        url = values.text(part.get("image_url"), f"{where}.image_url")
        detail = values.one_of(part.get("detail", "auto"), f"{where}.detail", ("auto", "high"))
        return {"type": kind, "detail": detail, "image_url": url}
    name = "refusal" if kind == "refusal" else "text"
    kept: dict[str, Any] = {"type": kind, name: values.text(part.get(name), f"{where}.{name}")}
    if kind == "output_text":
        kept["annotations"] = list(values.listed(part.get("annotations", ()), f"{where}.annotations", MAX_PARTS))
        values.schema({"annotations": kept["annotations"]}, f"{where}.annotations")
    return kept


def _texts(value: Any, where: str, kind: str, dropped: list[str] | None) -> list[dict[str, Any]]:
    return [
        _part(one, f"{where}[{i}]", (kind,), dropped) for i, one in enumerate(values.listed(value, where, MAX_PARTS))
    ]


def _named(item: Item, name: str, where: str) -> str:
    found = values.text(item[name], f"{where}.{name}", 256)
    if not found:
        raise FieldError(f"{where}.{name} is empty", f"{where}.{name}")
    return found


def _arguments(value: Any, where: str, status: str) -> str:
    text = values.text(value, where)
    if status == "completed":
        try:
            found = json.loads(text or "{}")
        except (ValueError, RecursionError):
            raise FieldError(f"{where} is text, but not of JSON", where) from None
        values.schema(found, where)
    return text


# Items -> messages ---------------------------------------------------------------------------------------------------
def messages(instructions: str | None, items: Sequence[tuple[str, Item]]) -> tuple[Message, ...]:
    """The conversation that items make, each with its path for errors. Raises FieldError.

    What an assistant thinks, says and calls in a row is one message; thoughts that nothing follows are left out.
    """
    found: list[Message] = []
    if instructions is not None:
        found.append(Message("system", instructions))
    calls: dict[str, str] = {}  # the names of calls that wait for their output
    names: dict[str, str] = {}
    turn: dict[str, Any] = {}  # the assistant's message under way
    thoughts: list[str] = []  # of what comes next
    start = ""

    def end_turn() -> None:
        if turn:
            found.append(_message({"role": "assistant", "content": None, **turn}, start))
            turn.clear()

    def think() -> None:
        if thoughts:
            before = [turn["reasoning_content"]] if "reasoning_content" in turn else []
            turn["reasoning_content"] = "\n".join(before + thoughts)
            thoughts.clear()

    for where, item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                if "content" in turn:
                    end_turn()
                start = start if turn else where
                think()
                turn["content"] = "".join([part.get("text", part.get("refusal", "")) for part in item["content"]])
            case "message":
                end_turn()
                thoughts.clear()
                role = "user" if item["role"] == "user" else "system"
                found.append(_message({"role": role, "content": _content(item["content"])}, where))
            case "reasoning":
                thoughts += [part["text"] for part in item.get("content") or item["summary"]]
            case "function_call" if item["status"] == "completed":
                start = start if turn else where
                think()
                call = {"name": item["name"], "arguments": item["arguments"]}
                turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": call})
                calls[item["call_id"]] = where
                names[item["call_id"]] = item["name"]
            case "function_call_output":
                end_turn()
                thoughts.clear()
                id = item["call_id"]
                if id not in names:
                    message = f"{where}.call_id is {values.kind(id)}: no function_call before it has this call_id"
                    raise FieldError(message, f"{where}.call_id")
                calls.pop(id, None)
                output = item["output"]
                content = output if isinstance(output, str) else _content(output)
                found.append(
                    _message({"role": "tool", "tool_call_id": id, "name": names[id], "content": content}, where)
                )
    end_turn()
    if calls:
        id, where = next(iter(calls.items()))
        raise FieldError(
            f"the function_call {values.kind(id)} ({where}) has no function_call_output: send what the function gave",
            "input",
        )
    if not found or (instructions is not None and len(found) == 1):
        raise FieldError("input has nothing to answer: give at least one message", "input")
    return tuple(found)


def _content(parts: Sequence[Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    """Parts that are all text are one text: what any chat format takes."""
    if all(part["type"] == "input_text" for part in parts):
        return "".join([part["text"] for part in parts])
    return [
        {"type": "text", "text": part["text"]}
        if part["type"] == "input_text"
        else {"type": "image_url", "image_url": {"url": part["image_url"], "detail": part["detail"]}}
        for part in parts
    ]


def _message(value: Mapping[str, Any], where: str) -> Message:
    try:
        return read_message(value, where, files=False, links=True)
    except UsageError as error:
        raise at_field(error, where) from None
