"""Requests of Ollama's API: JSON -> what is asked of a model, and for how long it is to stay loaded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herder.chat.message import ImagePart, Message, Tool, ToolCall, read_tool
from herder.core.errors import UsageError
from herder.core.request import Constraint
from herder.core.sizes import bound_text
from herder.images.decode import MAX_BYTES
from herder.serve import values
from herder.serve.dialect import Call
from herder.serve.dialects import ollama_fields as fields
from herder.serve.dialects.ollama_options import Settings, given, keep_alive, settings
from herder.serve.fields import FieldError, Table, checked
from herder.serve.wire import ChatRequest, EmbedRequest, TextRequest

MAX_NAME = 1024  # characters

# Ollama's defaults, for text that no chat format's model was made for: its maker recommends nothing.
RAW = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}

_OF_ROLES = {
    "thinking": ("assistant",),
    "tool_calls": ("assistant",),
    "tool_name": ("tool",),
    "tool_call_id": ("tool",),
    "images": ("system", "user"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """wanted: None where the model is only to be loaded (or unloaded). plain: what stands for it on a model without a
    chat format, None where it needs one. keep: seconds of idleness that the model stays loaded, negative for ever, None
    as it is. context: the tokens of num_ctx. think: whether thoughts were asked for, None where nothing was said."""

    model: str
    wanted: ChatRequest | TextRequest | None = None
    plain: TextRequest | None = None
    keep: float | None = None
    context: int | None = None
    think: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedVectors:
    """wanted: with no inputs, the model is only to be loaded."""

    wanted: EmbedRequest
    keep: float | None = None
    context: int | None = None


def chat(call: Call) -> Asked:
    """Raises FieldError."""
    reader = _Reader(fields.CHAT, call)
    common, asked = reader.common()
    tools = reader.tools()
    messages = reader.messages()
    if not messages:
        return Asked(**asked)
    return Asked(**asked, wanted=ChatRequest(**common, **reader.chat(), messages=messages, tools=tools))


def generate(call: Call) -> Asked:
    """Raises FieldError."""
    reader = _Reader(fields.GENERATE, call)
    body = reader.body
    common, asked = reader.common()
    prompt = values.text(body.get("prompt", ""), "prompt")
    suffix = values.text(body.get("suffix", ""), "suffix")
    system = values.text(body.get("system", ""), "system")
    images = reader.images(body.get("images", ()), "images")
    raw = values.boolean(body.get("raw", False), "raw")
    if not (prompt or suffix or images):
        return Asked(**asked)
    text = TextRequest(**common | {"options": RAW | common["options"]}, prompts=(prompt,), suffix=suffix or None)
    if raw or suffix:
        for name, value in (("system", system), ("images", images), ("think", asked["think"])):
            if value:
                beside = "raw" if raw else "suffix"
                raise FieldError(f"{name} has no place in a prompt with {beside}: leave one of them out", name)
        return Asked(**asked, wanted=text)
    said = (Message("system", system),) if system else ()
    messages = (*said, _message("user", prompt, images))
    plain = None if system or images else text
    return Asked(**asked, wanted=ChatRequest(**common, **reader.chat(), messages=messages), plain=plain)


def embed(call: Call) -> AskedVectors:
    """Raises FieldError."""
    reader = _Reader(fields.EMBED, call)
    body = reader.body
    found = body.get("input", ())
    single = isinstance(found, str)
    many = [found] if single else values.listed(found, "input", fields.MAX_INPUTS)
    texts = tuple(values.text(one, "input" if single else f"input[{i}]") for i, one in enumerate(many))
    if single:
        texts = tuple(filter(None, texts))
    dimensions = body.get("dimensions", 0)  # Ollama's clients say 0 for all of them
    return reader.vectors(
        texts,
        dimensions=values.integer(dimensions, "dimensions", 0, 2**31 - 1) or None,
        truncate=values.boolean(body.get("truncate", False), "truncate"),
    )


def embeddings(call: Call) -> AskedVectors:
    """The older form: one text, and the vector as long as it is. Raises FieldError."""
    reader = _Reader(fields.EMBEDDINGS, call)
    prompt = values.text(reader.body.get("prompt", ""), "prompt")
    return reader.vectors((prompt,) if prompt else (), normalize=False)


def model(body: Mapping[str, Any]) -> str:
    """The name in `model`, or in `name` as older clients say it. Raises FieldError."""
    name = body.get("model") or body.get("name")
    if name is None:
        raise FieldError("model is missing: name a served one", "model")
    return values.text(name, "model", MAX_NAME)


class _Reader:
    """One request's body, checked against its table."""

    def __init__(self, table: Table, call: Call) -> None:
        self._table, self._dropped = table, call.dropped
        self.body = self._object(call.body, "")

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        found = values.mapping(value, where or "the body")
        return given(checked(found, self._table, self._dropped, f"{where}." if where else ""))

    def _settings(self) -> Settings:
        return settings(self._object(self.body.get("options", {}), "options"))

    def common(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arguments of wire.Common, and of Asked."""
        body = self.body
        found = self._settings()
        options = dict(found.options)
        wanted = values.boolean(body.get("logprobs", False), "logprobs")
        top = values.integer(body.get("top_logprobs", 0), "top_logprobs", 0, fields.MAX_TOP)
        if top and not wanted:
            raise FieldError(
                "top_logprobs is given, but logprobs is not true: set it, or leave this out", "top_logprobs"
            )
        if wanted:
            options["logprobs"] = top
        common = {
            "model": model(body),
            "options": options,
            "stream": values.boolean(body.get("stream", True), "stream"),
            "constraint": _constraint(body.get("format", "")),
            "truncate": values.boolean(body.get("truncate", False), "truncate"),
        }
        asked = {
            "model": common["model"],
            "keep": keep_alive(body["keep_alive"]) if "keep_alive" in body else None,
            "context": found.context,
            "think": _think(body.get("think")),
        }
        return common, asked

    def chat(self) -> dict[str, Any]:
        return {"reasoning": self.body.get("think") is not False}

    def vectors(self, texts: tuple[str, ...], **more: Any) -> AskedVectors:
        body = self.body
        return AskedVectors(
            wanted=EmbedRequest(model(body), texts, **more),
            keep=keep_alive(body["keep_alive"]) if "keep_alive" in body else None,
            context=self._settings().context,
        )

    # Messages --------------------------------------------------------------------------------------------------------
    def messages(self) -> tuple[Message, ...]:
        found = values.listed(self.body.get("messages", ()), "messages", fields.MAX_MESSAGES)
        calls = _Calls()
        return tuple(self._message(value, f"messages[{i}]", calls) for i, value in enumerate(found))

    def _message(self, value: Any, where: str, calls: _Calls) -> Message:
        body = self._object(value, where)
        role = values.one_of(body.get("role"), f"{where}.role", ("system", "user", "assistant", "tool"))
        text = values.text(body.get("content", ""), f"{where}.content")
        images = self.images(body.get("images", ()), f"{where}.images")
        for name, roles in _OF_ROLES.items():
            if body.get(name) and role not in roles:
                message = f"{where}.{name} is given, but the role is {role}: only of {' or '.join(roles)} it is known"
                raise FieldError(message, f"{where}.{name}")
        if role == "tool":
            tool = values.text(body.get("tool_name", ""), f"{where}.tool_name") or None
            said = values.text(body.get("tool_call_id", ""), f"{where}.tool_call_id") or None
            return Message("tool", text, tool_call_id=calls.answered(said, tool), name=tool)
        if role != "assistant":
            return _message(role, text, images)
        thinking = values.text(body.get("thinking", ""), f"{where}.thinking") or None
        listed = values.listed(body.get("tool_calls", ()), f"{where}.tool_calls", fields.MAX_TOOLS)
        made = tuple(self._call(one, f"{where}.tool_calls[{i}]", calls) for i, one in enumerate(listed))
        return Message("assistant", text, tool_calls=made, reasoning=thinking)

    def _call(self, value: Any, where: str, calls: _Calls) -> ToolCall:
        body = self._object(value, where)
        inside = f"{where}.function"
        function = self._object(body.get("function"), inside)
        name = values.text(function.get("name"), f"{inside}.name")
        if not name:
            raise FieldError(f"{inside}.name is empty", f"{inside}.name")
        if "index" in function:
            values.integer(function["index"], f"{inside}.index", 0)
        arguments = values.schema(function.get("arguments", {}), f"{inside}.arguments")
        return ToolCall(name, arguments, calls.made(values.text(body.get("id", ""), f"{where}.id") or None, name))

    def images(self, value: Any, where: str) -> tuple[ImagePart, ...]:
        found = values.listed(value, where, fields.MAX_IMAGES)
        return tuple(_image(one, f"{where}[{i}]") for i, one in enumerate(found))

    def tools(self) -> tuple[Tool, ...]:
        tools: dict[str, Tool] = {}
        for i, value in enumerate(values.listed(self.body.get("tools", ()), "tools", fields.MAX_TOOLS)):
            where = f"tools[{i}]"
            body = self._object(value, where)
            if "function" in body:
                body["function"] = self._object(body["function"], f"{where}.function")
            try:
                tool = read_tool(body, where)
            except UsageError as error:
                raise FieldError(str(error), where) from None
            if tools.setdefault(tool.name, tool) is not tool:
                raise FieldError(f"{where} has the name of another tool, {tool.name!r}", f"{where}.function.name")
        return tuple(tools.values())


class _Calls:
    """Ids of tool calls. Ollama's clients may leave them out and match a result to its call by the tool's name, or by
    order; some chat formats write them (Mistral's wants nine letters or digits)."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[tuple[str, str]] = []  # (id, name) of calls without a result

    def made(self, identity: str | None, name: str) -> str:
        self._count += 1
        identity = identity or f"call{self._count:05}"
        self._open.append((identity, name))
        return identity

    def answered(self, identity: str | None, name: str | None) -> str | None:
        """The id of the call that a result belongs to."""
        fitting = (
            [one for one in self._open if one[0] == identity]
            if identity
            else [one for one in self._open if name in (None, one[1])]
        )
        if not fitting:
            return identity
        self._open.remove(fitting[0])
        return fitting[0][0]


def _message(role: Any, text: str, images: tuple[ImagePart, ...]) -> Message:
    return Message(role, text, parts=(*images, text) if images else None)


def _image(value: Any, where: str) -> ImagePart:
    spelled = values.text(value, where)
    if len(spelled) > MAX_BYTES // 3 * 4 + 4:
        raise FieldError(f"{where} is larger than {bound_text(MAX_BYTES)}: send a smaller image", where)
    try:
        data = base64.b64decode(spelled, validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(f"{where} is not base64 of an image file", where) from None
    if not data:
        raise FieldError(f"{where} is empty: send an image", where)
    return ImagePart(data)


def _constraint(value: Any) -> Constraint | None:
    if value == "":
        return None
    if isinstance(value, str):
        values.one_of(value, "format", ("json",))
        return Constraint("json")
    return Constraint("schema", values.schema(value, "format"))


def _think(value: Any) -> bool | None:
    if isinstance(value, str):
        raise FieldError(f"think is {values.kind(value)}: no model here has levels of it, say true or false", "think")
    return None if value is None else values.boolean(value, "think")
