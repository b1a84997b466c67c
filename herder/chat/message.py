"""What is said in a conversation: messages, images, tool calls and tools, checked field by field.

The JSON is the one that OpenAI's chat API and Hugging Face's chat templates share (chat/images.py reads its images).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from herder.core.errors import UsageError

Role = Literal["system", "user", "assistant", "tool", "ipython"]  # ipython: Llama 3's own word for tool
ROLES: tuple[str, ...] = get_args(Role)
MAX_DEPTH = 64  # of JSON inside messages and tools

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the assistant wants called. arguments: a JSON object. id: matches the result to the call, if given."""

    name: str
    arguments: Json = field(default_factory=dict)
    id: str | None = None

    def as_json(self) -> dict[str, Any]:
        call: dict[str, Any] = {} if self.id is None else {"id": self.id}
        return call | {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the assistant may call. parameters: a JSON schema. extra: `strict`, `return`, as they were given."""

    name: str
    description: str | None = None
    parameters: Json | None = None
    extra: Json = field(default_factory=dict)

    def function(self) -> dict[str, Any]:
        """The inner object: name, description, parameters, ..."""
        known = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {key: value for key, value in known.items() if value is not None} | dict(self.extra)

    def as_json(self) -> dict[str, Any]:
        return {"type": "function", "function": self.function()}


@dataclass(frozen=True, slots=True, eq=False)
class ImagePart:
    """An image among a message's parts.

    data: the bytes of the image file. grid, tile_tokens: set by who prepares the image for a model, before rendering:
    the (rows, columns) of tiles it was cut into, and how many prompt tokens stand for one tile (Llama 4; 0 where the
    whole image is one token).
    """

    data: bytes
    grid: tuple[int, int] | None = None
    tile_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageLink(ImagePart):
    """An image that a message names by its URL: who has the message replaces it by the image, or refuses it.

    url: as it was given, not checked. where: the field that has it, for errors. data: empty.
    """

    data: bytes = b""
    url: str
    where: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    content: text; None only beside tool calls. parts: the texts and images in order, if it came in parts; content is
    then its texts joined.
    tool_calls: of an assistant. tool_call_id, name: of a tool's result, or a speaker's name.
    reasoning: what an assistant thought before it spoke, for models that say so.
    """

    role: Role
    content: str | None = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    parts: tuple[str | ImagePart, ...] | None = None
    reasoning: str | None = None

    @property
    def text(self) -> str:
        return self.content or ""

    @property
    def images(self) -> tuple[ImagePart, ...]:
        return tuple(part for part in self.parts or () if isinstance(part, ImagePart))

    def as_json(self) -> dict[str, Any]:
        """As chat templates expect it: keys that say nothing are left out."""
        content: Any = self.content
        if self.parts is not None:
            content = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in self.parts
            ]
        message: dict[str, Any] = {"role": self.role, "content": content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_json() for call in self.tool_calls]
        for key in ("tool_call_id", "name"):
            if (value := getattr(self, key)) is not None:
                message[key] = value
        return message


def read_messages(values: str | Iterable[Message | Json], *, files: bool = True) -> list[Message]:
    """Messages from JSON, from Message, or one user's words as a string. Raises UsageError naming what is wrong.

    files: whether an image may be a path; False for what a stranger sends.
    """
    if isinstance(values, str):
        values = [{"role": "user", "content": values}]
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise UsageError(f"messages is {_kind(values)}: expected a list of messages")
    messages = [
        value if isinstance(value, Message) else read_message(value, f"messages[{i}]", files=files)
        for i, value in enumerate(values)
    ]
    if not messages:
        raise UsageError("messages is empty: give at least one")
    return messages


def read_message(value: Any, where: str = "message", *, files: bool = True, links: bool = False) -> Message:
    """A message from JSON. files: whether an image may be a path. links: whether it may be a URL that is to be fetched,
    which becomes an ImageLink. Raises UsageError naming what is wrong."""
    known = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content")
    given = _object(value, where, known, needed=("role",))
    role = given["role"]
    if role not in ROLES:
        raise UsageError(f"{where}.role is {role!r}: expected one of {', '.join(ROLES)}")
    calls = given.get("tool_calls")
    if calls is not None and not isinstance(calls, list | tuple):
        raise UsageError(f"{where}.tool_calls is {_kind(calls)}: expected a list")
    if calls and role != "assistant":
        raise UsageError(f"{where} has tool_calls, but its role is {role}: only the assistant calls tools")
    content, parts = _content(given.get("content"), f"{where}.content", may_lack=bool(calls), files=files, links=links)
    if given.get("reasoning_content") is not None and role != "assistant":
        raise UsageError(f"{where} has reasoning_content, but its role is {role}: only the assistant's is known")
    if given.get("tool_call_id") is not None and role not in ("tool", "ipython"):
        raise UsageError(f"{where} has tool_call_id, but its role is {role}: only a tool's result answers a call")
    return Message(
        role=role,
        content=content,
        tool_calls=tuple(read_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls or ())),
        tool_call_id=_text(given.get("tool_call_id"), f"{where}.tool_call_id", optional=True),
        name=_text(given.get("name"), f"{where}.name", optional=True),
        parts=parts,
        reasoning=_text(given.get("reasoning_content"), f"{where}.reasoning_content", optional=True),
    )


def read_tool_call(value: Any, where: str = "tool_call") -> ToolCall:
    given = _object(value, where, ("id", "type", "function"), needed=("function",))
    if given.get("type", "function") != "function":
        raise UsageError(f"{where}.type is {given['type']!r}: expected function")
    function = _object(given["function"], f"{where}.function", ("name", "arguments"), needed=("name",))
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI sends the object as a string
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise UsageError(f"{where}.function.arguments is a string, but not of JSON") from None
    if not isinstance(arguments, Mapping):
        raise UsageError(f"{where}.function.arguments is {_kind(arguments)}: expected an object")
    check_json(arguments, f"{where}.function.arguments")
    return ToolCall(
        name=_name(function["name"], f"{where}.function.name"),
        arguments=dict(arguments),
        id=_text(given.get("id"), f"{where}.id", optional=True),
    )


def read_tools(values: Iterable[Tool | Json] | None) -> list[Tool]:
    """Tools from JSON. Raises UsageError naming what is wrong."""
    if values is None:
        return []
    if isinstance(values, Mapping | str) or not isinstance(values, Iterable):
        raise UsageError(f"tools is {_kind(values)}: expected a list of tools")
    return [value if isinstance(value, Tool) else read_tool(value, f"tools[{i}]") for i, value in enumerate(values)]


def read_tool(value: Any, where: str = "tool") -> Tool:
    given = _object(value, where, ("type", "function"), needed=("function",))
    if given.get("type", "function") != "function":
        raise UsageError(f"{where}.type is {given['type']!r}: only functions can be called")
    known = ("name", "description", "parameters", "strict", "return")
    function = _object(given["function"], f"{where}.function", known, needed=("name",))
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UsageError(f"{where}.function.parameters is {_kind(parameters)}: expected a JSON schema, an object")
    check_json(function, f"{where}.function")
    return Tool(
        name=_name(function["name"], f"{where}.function.name"),
        description=_text(function.get("description"), f"{where}.function.description", optional=True),
        parameters=parameters,
        extra={key: function[key] for key in ("strict", "return") if function.get(key) is not None},
    )


def check_json(value: Any, where: str, depth: int = MAX_DEPTH) -> None:
    """Raises UsageError unless `value` is what JSON in UTF-8 can hold, nested at most MAX_DEPTH deep."""
    if depth == 0:
        raise UsageError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        _text(value, where)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_json(inner, f"{where}.{_text(key, f'a key of {where}')}", depth - 1)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            check_json(inner, f"{where}[{i}]", depth - 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise UsageError(f"{where} is {_kind(value)}: expected JSON")


def _content(
    value: Any, where: str, *, may_lack: bool, files: bool, links: bool
) -> tuple[str | None, tuple[str | ImagePart, ...] | None]:
    if value is None:
        if not may_lack:
            raise UsageError(f"{where} is missing: expected text")
        return None, None
    if isinstance(value, str):
        return _text(value, where), None
    if not isinstance(value, Sequence):
        raise UsageError(f"{where} is {_kind(value)}: expected text or a list of parts")
    parts: list[str | ImagePart] = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            given = _object(part, f"{where}[{i}]", ("type", "text"), needed=("text",))
            parts.append(_text(given["text"], f"{where}[{i}].text"))
        elif kind == "image_url" or kind == "image":
            parts.append(_image(part, f"{where}[{i}]", files, links))
        else:
            raise UsageError(f"{where}[{i}] is a part of type {kind!r}: expected text, image or image_url")
    return "".join([part for part in parts if isinstance(part, str)]), tuple(parts)


def _image(part: Json, where: str, files: bool, links: bool) -> ImagePart:
    """{"type": "image_url", "image_url": {"url", "detail"}} or {"type": "image", "image": ...}."""
    from herder.chat import images  # text alone needs no base64

    if part["type"] == "image":
        given = _object(part, where, ("type", "image"), needed=("image",))
        return ImagePart(images.read(given["image"], f"{where}.image", files=files))
    given = _object(part, where, ("type", "image_url"), needed=("image_url",))
    value = given["image_url"]
    if not isinstance(value, str):
        value = _object(value, f"{where}.image_url", ("url", "detail"), needed=("url",))
        images.check_detail(value.get("detail"), f"{where}.image_url.detail")
        value = value["url"]
    url = _text(value, f"{where}.image_url")
    if links and images.is_link(url):
        return ImageLink(url=url, where=f"{where}.image_url")
    return ImagePart(images.read_url(url, f"{where}.image_url"))


def _object(value: Any, where: str, known: Sequence[str], needed: Sequence[str]) -> Json:
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} is {_kind(value)}: expected an object")
    for key in value:
        if key not in known:
            raise UsageError(f"{where} has {key!r}, which is not known: known are {', '.join(known)}")
    for key in needed:
        if key not in value:
            raise UsageError(f"{where} lacks {key}")
    return value


def _name(value: Any, where: str) -> str:
    name: str = _text(value, where)
    if not name:
        raise UsageError(f"{where} is empty")
    return name


def _text(value: Any, where: str, *, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{where} is {_kind(value)}: expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(value[error.start])
        raise UsageError(f"{where} holds a lone surrogate (U+{surrogate:04X}): send valid UTF-8") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), f"{type(value).__name__} {value!r:.40}")
