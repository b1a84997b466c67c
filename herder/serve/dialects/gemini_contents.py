"""Gemini's contents and tools -> messages and tools: text, images, function calls and their responses, thoughts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from herder.chat import images
from herder.chat.message import ImageLink, ImagePart, Message, Tool, ToolCall
from herder.core.errors import UsageError
from herder.serve import values
from herder.serve.dialects.gemini_fields import MAX_CONTENTS, MAX_PARTS, MAX_TOOLS, camel
from herder.serve.dialects.gemini_schema import json_schema
from herder.serve.fields import FieldError, Table, checked
from herder.serve.wire import Named

_PARTS = "\n"  # between texts of one turn
_TURNS = "\n\n"  # between turns of one role
_URL_SAFE = str.maketrans("-_", "+/")  # their JSON takes both of base64's alphabets

Choice = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one request. table: whose fields are checked. Every method raises FieldError."""

    table: Table
    dropped: list[str] | None

    def fields(self, value: Any, where: str = "") -> dict[str, Any]:
        """One object's fields by their names in the table, without those that are null."""
        given: dict[str, Any] = {}
        for name, inner in values.mapping(value, where or "the body").items():
            known = camel(name) if len(name) < 64 else name
            if known in given:
                inside = f"{where}.{known}".lstrip(".")
                raise FieldError(f"{inside} is given twice, as {values.kind(name)} too: leave one out", inside)
            if inner is not None:
                given[known] = inner
        return checked(given, self.table, self.dropped, f"{where}." if where else "")

    def messages(self, body: Mapping[str, Any], *, to_answer: bool) -> tuple[Message, ...]:
        """to_answer: the conversation is to be answered, so its last word must not be the model's."""
        turns: list[Message] = []
        if "systemInstruction" in body and (system := self.text(body["systemInstruction"], "systemInstruction")):
            turns.append(Message("system", system))
        contents = values.listed(repeated(body.get("contents", ())), "contents", MAX_CONTENTS, 1)
        for i, content in enumerate(contents):
            for turn in self._turns(content, f"contents[{i}]"):
                if turns and (joined := _joined(turns[-1], turn)) is not None:
                    turns[-1] = joined
                else:
                    turns.append(turn)
        if to_answer and turns[-1].role == "assistant":
            where = f"contents[{len(contents) - 1}]"
            raise FieldError(f"{where} is the model's: its text is not continued, end with the user's", where)
        return tuple(turns)

    def text(self, value: Any, where: str) -> str:
        """A content that is text, such as a system instruction."""
        given = self.fields(value, where)
        texts = []
        for i, part in enumerate(values.listed(repeated(given.get("parts", ())), f"{where}.parts", MAX_PARTS, 1)):
            inside = f"{where}.parts[{i}]"
            texts.append(values.text(self.fields(part, inside).get("text"), f"{inside}.text"))
        return _PARTS.join(texts)

    def _turns(self, value: Any, where: str) -> list[Message]:
        given = self.fields(value, where)
        role = values.one_of(given.get("role", "user"), f"{where}.role", ("user", "model", "function", "tool"))
        parts = values.listed(repeated(given.get("parts", ())), f"{where}.parts", MAX_PARTS, role != "model")
        if role == "model":
            return [self._of_model(parts, where)]
        turns: list[Message] = []
        kept: list[str | ImagePart] = []
        for i, part in enumerate(parts):
            inside = f"{where}.parts[{i}]"
            kind, content = self._part(part, inside, ("text", "inlineData", "fileData", "functionResponse"))
            if kind == "functionResponse":
                turns += [_user(kept)] if kept else []
                kept = []
                turns.append(self._response(content, f"{inside}.functionResponse"))
            elif kind == "text":
                kept.append(values.text(content, f"{inside}.text"))
            elif kind == "fileData":
                kept.append(self._file(content, f"{inside}.fileData"))
            else:
                kept.append(self._image(content, f"{inside}.inlineData"))
        return [*turns, _user(kept)] if kept else turns

    def _of_model(self, parts: Iterable[Any], where: str) -> Message:
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        for i, part in enumerate(parts):
            inside = f"{where}.parts[{i}]"
            kind, content = self._part(part, inside, ("text", "functionCall"), thought=True)
            if kind == "functionCall":
                calls.append(self._call(content, f"{inside}.functionCall"))
            else:
                (thoughts if kind == "thought" else texts).append(values.text(content, f"{inside}.text"))
        return Message("assistant", "".join(texts), tool_calls=tuple(calls), reasoning="".join(thoughts) or None)

    def _part(self, value: Any, where: str, known: Sequence[str], thought: bool = False) -> tuple[str, Any]:
        """The one thing that a part is: its kind ("thought" for a text that is one) and content."""
        given = self.fields(value, where)
        given.pop("partMetadata", None)
        is_thought = values.boolean(given.pop("thought", False), f"{where}.thought")
        if len(given) != 1:
            raise FieldError(f"{where} has {len(given)} contents: a part is exactly one of {', '.join(known)}", where)
        [(kind, content)] = given.items()
        if kind not in known:
            raise FieldError(f"{where}.{kind} is not for this role: parts are {', '.join(known)}", f"{where}.{kind}")
        if is_thought and not (thought and kind == "text"):
            raise FieldError(f"{where}.thought is true: only the model's texts are thoughts", f"{where}.thought")
        return ("thought" if is_thought else kind), content

    def _image(self, value: Any, where: str) -> ImagePart:
        given = self.fields(value, where)
        mime_type = values.text(given.get("mimeType"), f"{where}.mimeType", 128)
        data = values.text(given.get("data"), f"{where}.data").translate(_URL_SAFE)
        data += "=" * (-len(data) % 4)
        try:
            return ImagePart(images.read_url(f"data:{mime_type};base64,{data}", f"{where}.data"))
        except UsageError as error:
            raise FieldError(str(error), where) from None

    def _file(self, value: Any, where: str) -> ImageLink:
        given = self.fields(value, where)
        mime_type = values.text(given.get("mimeType", "image/*"), f"{where}.mimeType", 128)
        if not mime_type.lower().startswith("image/"):
            kind = values.kind(mime_type)
            raise FieldError(f"{where}.mimeType is {kind}: expected an image's", f"{where}.mimeType")
        return ImageLink(url=values.text(given.get("fileUri"), f"{where}.fileUri"), where=f"{where}.fileUri")

    def _call(self, value: Any, where: str) -> ToolCall:
        given = self.fields(value, where)
        return ToolCall(
            name=_word(given.get("name"), f"{where}.name"),
            arguments=values.schema(given.get("args", {}), f"{where}.args"),
            id=_word(given["id"], f"{where}.id") if given.get("id") else None,
        )

    def _response(self, value: Any, where: str) -> Message:
        given = self.fields(value, where)
        response = values.schema(given.get("response", {}), f"{where}.response")
        return Message(
            "tool",
            json.dumps(response, ensure_ascii=False),
            tool_call_id=_word(given["id"], f"{where}.id") if given.get("id") else None,
            name=_word(given.get("name"), f"{where}.name"),
        )

    # Tools -----------------------------------------------------------------------------------------------------------
    def tools(self, body: Mapping[str, Any]) -> tuple[tuple[Tool, ...], Choice]:
        """The tools that the model may use, and whether it must."""
        tools: dict[str, Tool] = {}
        for i, group in enumerate(values.listed(repeated(body.get("tools", ())), "tools", MAX_TOOLS)):
            where = f"tools[{i}].functionDeclarations"
            declared = self.fields(group, f"tools[{i}]").get("functionDeclarations", ())
            for j, value in enumerate(values.listed(repeated(declared), where, MAX_TOOLS)):
                tool = self._tool(value, f"{where}[{j}]")
                if tools.setdefault(tool.name, tool) is not tool:
                    inside = f"{where}[{j}].name"
                    raise FieldError(f"{inside} is the name of another function, {values.kind(tool.name)}", inside)
        given = self.fields(body.get("toolConfig", {}), "toolConfig")
        return self._choice(given.get("functionCallingConfig", {}), tools)

    def _tool(self, value: Any, where: str) -> Tool:
        given = self.fields(value, where)
        parameters = _one_schema(given, "parameters", where)
        returns = _one_schema(given, "response", where)
        description = given.get("description")
        return Tool(
            _word(given.get("name"), f"{where}.name"),
            None if description is None else values.text(description, f"{where}.description"),
            parameters,
            {} if returns is None else {"return": returns},
        )

    def _choice(self, value: Any, tools: Mapping[str, Tool]) -> tuple[tuple[Tool, ...], Choice]:
        where = "toolConfig.functionCallingConfig"
        given = self.fields(value, where)
        known = ("AUTO", "ANY", "NONE", "VALIDATED")
        mode = values.text(given.get("mode", "AUTO"), f"{where}.mode").upper()
        mode = "AUTO" if mode == "MODE_UNSPECIFIED" else values.one_of(mode, f"{where}.mode", known)
        inside = f"{where}.allowedFunctionNames"
        names = values.listed(_several(given.get("allowedFunctionNames", ())), inside, MAX_TOOLS)
        if names and mode not in ("ANY", "VALIDATED"):
            raise FieldError(f"{inside} is given, but the mode is {mode}: it goes with ANY and VALIDATED", inside)
        allowed = [values.one_of(name, f"{inside}[{i}]", tuple(tools)) for i, name in enumerate(names)] or list(tools)
        found = tuple(tools[name] for name in dict.fromkeys(allowed))
        if mode != "ANY":
            return found, "none" if mode == "NONE" else "auto"
        if not found:
            raise FieldError(f"{where}.mode is ANY, but there are no functions: declare them", f"{where}.mode")
        return found, Named(found[0].name) if names and len(found) == 1 else "required"


def _one_schema(given: Mapping[str, Any], name: str, where: str) -> dict[str, Any] | None:
    """A schema in one of its two spellings."""
    plain, other = f"{where}.{name}", f"{name}JsonSchema"
    if name in given and other in given:
        raise FieldError(f"{plain} and {where}.{other} are both given: leave one out", plain)
    if name in given:
        return json_schema(given[name], plain)
    return values.schema(given[other], f"{where}.{other}") if other in given else None


def repeated(value: Any) -> Any:
    """Their JSON takes one object where a list of objects is meant."""
    return [value] if isinstance(value, Mapping) else value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _user(parts: Sequence[str | ImagePart]) -> Message:
    """What is all text is one text: what any chat format takes."""
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) == len(parts):
        return Message("user", _PARTS.join(texts))
    return Message("user", "".join(texts), parts=tuple(parts))


def _joined(before: Message, after: Message) -> Message | None:
    """Two turns of one role as one, None where there is nothing to join. A client that has streamed an answer sends its
    pieces back as turns."""
    if before.role != after.role or before.role not in ("user", "assistant"):
        return None
    if before.role == "assistant":
        reasoning = (before.reasoning or "") + (after.reasoning or "")
        calls = before.tool_calls + after.tool_calls
        return Message("assistant", before.text + after.text, tool_calls=calls, reasoning=reasoning or None)
    if before.parts is None and after.parts is None:
        return Message("user", _TURNS.join([text for text in (before.text, after.text) if text]))
    parts = (*(before.parts or (before.text,)), _TURNS, *(after.parts or (after.text,)))
    return Message("user", "".join([part for part in parts if isinstance(part, str)]), parts=parts)


def _word(value: Any, where: str) -> str:
    found = values.text(value, where, 256)
    if not found:
        raise FieldError(f"{where} is empty", where)
    return found
