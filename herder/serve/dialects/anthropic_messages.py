"""Anthropic's content blocks -> messages: text, images, documents, tool calls and their results, thinking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herder.chat import images
from herder.chat.message import ImageLink, ImagePart, Message, ToolCall
from herder.core.errors import UsageError
from herder.serve import values
from herder.serve.dialects.anthropic_fields import MAX_BLOCKS, MAX_MESSAGES
from herder.serve.fields import FieldError, Table, checked

ERROR = "Error: "  # before the text of a tool's result that is one
_TURNS = "\n\n"  # between turns of one role
_BLOCKS = "\n"  # between text blocks of one turn

_CACHE = {"type", "cache_control"}
_KNOWN = {
    "text": _CACHE | {"text"},
    "image": _CACHE | {"source"},
    "document": _CACHE | {"source", "title", "context"},
    "tool_use": _CACHE | {"id", "name", "input"},
    "tool_result": _CACHE | {"tool_use_id", "content", "is_error"},
    "thinking": {"type", "thinking", "signature"},
}
_OF_ROLE = {
    "user": ("text", "image", "document", "tool_result"),
    "assistant": ("text", "tool_use", "thinking"),
    "system": ("text",),
}
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")


@dataclass(slots=True)
class Reader:
    """Reads one request's messages. table: whose fields are checked. Every method raises FieldError."""

    table: Table
    dropped: list[str] | None

    def fields(self, value: Any, where: str, known: set[str] | None = None, what: str = "") -> dict[str, Any]:
        """One object's fields, without those that are null. known: those that an object of this type may have."""
        found = checked(values.mapping(value, where), self.table, self.dropped, f"{where}.")
        given = {name: value for name, value in found.items() if value is not None}
        for name in given.keys() - (known if known is not None else given.keys()):
            inside = f"{where}.{name}"
            if self.dropped is None:
                raise FieldError(f"{inside} is not a field of {what}", inside)
            self.dropped.append(inside)
            del given[name]
        if "cache_control" in given:
            self.cache_control(given["cache_control"], f"{where}.cache_control")
        return given

    def cache_control(self, value: Any, where: str) -> None:
        given = self.fields(value, where)
        values.one_of(given.get("type"), f"{where}.type", ("ephemeral",))
        if "ttl" in given:
            values.one_of(given["ttl"], f"{where}.ttl", ("5m", "1h"))

    def system(self, value: Any) -> str:
        if isinstance(value, str):
            return values.text(value, "system")
        blocks = []
        for i, block in enumerate(values.listed(value, "system", MAX_BLOCKS)):
            where = f"system[{i}]"
            given = self.fields(block, where)
            values.one_of(given.get("type"), f"{where}.type", ("text",))
            blocks.append(values.text(given.get("text"), f"{where}.text"))
        return _BLOCKS.join(blocks)

    def messages(self, value: Any, system: str, *, to_answer: bool) -> tuple[Message, ...]:
        """to_answer: the conversation is to be answered, so its last word must not be the assistant's."""
        turns = [Message("system", system)] if system else []
        given = values.listed(value, "messages", MAX_MESSAGES, 1)
        for i, message in enumerate(given):
            for turn in self._message(message, f"messages[{i}]"):
                if turns and (joined := _joined(turns[-1], turn)) is not None:
                    turns[-1] = joined
                else:
                    turns.append(turn)
        if to_answer and turns[-1].role == "assistant":
            where = f"messages[{len(given) - 1}]"
            raise FieldError(
                f"{where} is the assistant's: its text is not continued (prefill), end with a user's message or a "
                "tool_result",
                where,
            )
        return tuple(turns)

    def _message(self, value: Any, where: str) -> list[Message]:
        given = self.fields(value, where)
        role: Any = values.one_of(given.get("role"), f"{where}.role", tuple(_OF_ROLE))
        content = given.get("content")
        if isinstance(content, str):
            return [Message(role, values.text(content, f"{where}.content"))]
        turn = _Turn(role)
        for i, block in enumerate(values.listed(content, f"{where}.content", MAX_BLOCKS)):
            self._block(block, f"{where}.content[{i}]", turn)
        return turn.messages()

    def _block(self, value: Any, where: str, turn: _Turn) -> None:
        kind = self._kind(value, where, _OF_ROLE[turn.role], f"of the {turn.role}")
        given = self.fields(value, where, _KNOWN[kind], f"a block of type {kind}")
        match kind:
            case "text":
                turn.parts.append(values.text(given.get("text"), f"{where}.text"))
            case "image":
                turn.parts.append(self._image(given.get("source"), f"{where}.source"))
            case "document":
                turn.parts.append(self._document(given, where))
            case "thinking":
                turn.thinking.append(values.text(given.get("thinking"), f"{where}.thinking"))
                values.text(given.get("signature", ""), f"{where}.signature")
            case "tool_use":
                turn.calls.append(
                    ToolCall(
                        name=_word(given.get("name"), f"{where}.name"),
                        arguments=values.schema(given.get("input"), f"{where}.input"),
                        id=_word(given.get("id"), f"{where}.id"),
                    )
                )
            case "tool_result":
                turn.close()
                turn.done.append(self._result(given, where))

    def _kind(self, value: Any, where: str, known: Sequence[str], of: str) -> str:
        kind = values.mapping(value, where).get("type")
        if not isinstance(kind, str) or kind not in known:
            raise FieldError(
                f"{where}.type is {values.kind(kind)}: blocks {of} are {', '.join(known)}", f"{where}.type"
            )
        return kind

    def _image(self, value: Any, where: str) -> ImagePart:
        kind = values.mapping(value, where).get("type")
        if kind not in ("base64", "url"):
            raise FieldError(f"{where}.type is {values.kind(kind)}: images are base64 or url", f"{where}.type")
        known = {"type", "url"} if kind == "url" else {"type", "media_type", "data"}
        given = self.fields(value, where, known, f"a source of type {kind}")
        if kind == "url":
            return ImageLink(url=values.text(given.get("url"), f"{where}.url"), where=f"{where}.url")
        media_type = values.one_of(given.get("media_type"), f"{where}.media_type", _MEDIA_TYPES)
        data = values.text(given.get("data"), f"{where}.data")
        try:
            return ImagePart(images.read_url(f"data:{media_type};base64,{data}", f"{where}.data"))
        except UsageError as error:
            raise FieldError(str(error), f"{where}.data") from None

    def _document(self, block: Mapping[str, Any], where: str) -> str:
        """A document's text, its title and context before it."""
        inside = f"{where}.source"
        kind = values.mapping(block.get("source"), inside).get("type")
        if kind != "text":
            raise FieldError(
                f"{inside}.type is {values.kind(kind)}: documents are read as text only, send their text",
                f"{inside}.type",
            )
        given = self.fields(block["source"], inside, {"type", "media_type", "data"}, "a source of type text")
        values.one_of(given.get("media_type"), f"{inside}.media_type", ("text/plain",))
        before = [values.text(block[name], f"{where}.{name}") for name in ("title", "context") if name in block]
        return _BLOCKS.join([*before, values.text(given.get("data"), f"{inside}.data")])

    def _result(self, given: Mapping[str, Any], where: str) -> Message:
        content = given.get("content", "")
        parts: list[str | ImagePart] = []
        if isinstance(content, str):
            parts.append(values.text(content, f"{where}.content"))
        else:
            for i, block in enumerate(values.listed(content, f"{where}.content", MAX_BLOCKS)):
                inside = f"{where}.content[{i}]"
                kind = self._kind(block, inside, ("text", "image"), "of a tool_result")
                inner = self.fields(block, inside, _KNOWN[kind], f"a block of type {kind}")
                if kind == "text":
                    parts.append(values.text(inner.get("text"), f"{inside}.text"))
                else:
                    parts.append(self._image(inner.get("source"), f"{inside}.source"))
        if values.boolean(given.get("is_error", False), f"{where}.is_error"):
            if parts and isinstance(parts[0], str):
                parts[0] = ERROR + parts[0]
            else:
                parts.insert(0, ERROR)
        text, kept = _content(parts)
        call = _word(given.get("tool_use_id"), f"{where}.tool_use_id")
        return Message("tool", text, tool_call_id=call, parts=kept)


@dataclass(slots=True)
class _Turn:
    """One message's blocks. A user's tool results become messages of their own, in their places."""

    role: Any
    parts: list[str | ImagePart] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    done: list[Message] = field(default_factory=list)

    def close(self) -> None:
        if self.parts:
            text, kept = _content(self.parts)
            self.done.append(Message(self.role, text, parts=kept))
            self.parts = []

    def messages(self) -> list[Message]:
        if self.role == "assistant":
            text = "".join([part for part in self.parts if isinstance(part, str)])
            reasoning = "\n".join(self.thinking) if self.thinking else None
            return [Message("assistant", text, tool_calls=tuple(self.calls), reasoning=reasoning)]
        self.close()
        return self.done or [Message(self.role, "")]


def _content(parts: Sequence[str | ImagePart]) -> tuple[str, tuple[str | ImagePart, ...] | None]:
    """Content and parts of a message. What is all text is one text: what any chat format takes."""
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return _BLOCKS.join(texts), None
    return "".join(texts), tuple(parts)


def _joined(before: Message, after: Message) -> Message | None:
    """Two turns of one role as one, None where there is nothing to join."""
    if before.role != after.role or before.role == "tool":
        return None
    if before.role == "assistant":
        reasoning = [one for one in (before.reasoning, after.reasoning) if one]
        return Message(
            "assistant",
            _TURNS.join([text for text in (before.text, after.text) if text]),
            tool_calls=before.tool_calls + after.tool_calls,
            reasoning=_TURNS.join(reasoning) if reasoning else None,
        )
    if before.parts is None and after.parts is None:
        return Message(before.role, _TURNS.join([text for text in (before.text, after.text) if text]))
    parts = (*(before.parts or (before.text,)), _TURNS, *(after.parts or (after.text,)))
    return Message(before.role, "".join([part for part in parts if isinstance(part, str)]), parts=parts)


def _word(value: Any, where: str) -> str:
    found = values.text(value, where, 256)
    if not found:
        raise FieldError(f"{where} is empty", where)
    return found
