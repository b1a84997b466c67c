"""The Llama 3 chat format (3.0 to 3.3, 3.2 Vision), rendered and parsed in code.

    <|begin_of_text|> then, for each message,
    <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>

A tool's result has the role ipython. An assistant's message that waits for one ends in <|eom_id|> where the system
message turned the environment ipython on; there, and for the built-in tools, calls begin with <|python_tag|>. An image
is <|image|>, which is seen by the text after it.

This is Meta's own encoder (llama-models, llama3/chat_format.py): contents are encoded by themselves, nothing is trimmed
and nothing is added that the caller did not ask for. Hugging Face's template for 3.1 and later differs: it trims, and
always writes a system message that begins "Cutting Knowledge Date: December 2023"; ask for that block with `date`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from herder.chat import calls
from herder.chat.format import CallStyle, Control, Prompt, Reading, Segment, Text, refuse_options, refuse_reasoning
from herder.chat.message import ImagePart, Message, Tool, ToolCall
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

IPYTHON = "Environment: ipython"
IMAGE = "<|image|>"
# Meta's vocabulary has <|image|> at 128011, but the model's row for it is the first past the vocabulary, where Hugging
# Face's has the token, too (chat_format.py, _model_input_from_tokens_images).
IMAGE_ROW = 128_256

_NOTATIONS = {"json": calls.write_json, "tag": calls.write_tag, "python": calls.write_python}
_READERS = (calls.read_tag, calls.read_json, calls.read_python, calls.read_builtin)
_INSTRUCTIONS = {
    "json": 'To call a function, answer with JSON and nothing else, in the format {"name": function name, '
    '"parameters": dictionary of argument name and its value}. Do not use variables.',
    "tag": "To call a function, answer in the following format, on one line, with no prefix or suffix:\n\n"
    '<function=example_function_name>{"example_name": "example_value"}</function>',
    "python": "To call one or more functions, answer in the following format and nothing else:\n\n"
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]",
}


class Llama3Format:
    """See the module. Raises UnsupportedModel when the vocabulary lacks the format's control tokens.

    The class variables are what Llama 4 spells differently (chat/llama4.py).
    """

    name = "llama3"
    begin: ClassVar[str] = "<|begin_of_text|>"
    header: ClassVar[tuple[str, str]] = ("<|start_header_id|>", "<|end_header_id|>")
    turn_end: ClassVar[str] = "<|eot_id|>"
    message_end: ClassVar[str] = "<|eom_id|>"  # of a message that waits for a tool's result; Llama 3.0 has none
    python: ClassVar[tuple[str, str | None]] = ("<|python_tag|>", None)  # before and after a call
    options: ClassVar[tuple[str, ...]] = ("date", "builtin_tools", "tool_notation")
    notation: ClassVar[str] = "json"  # of calls, where the option does not say

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = tokenizer.control_tokens()
        missing = [token for token in self.needed() if token not in control]
        if missing:
            raise UnsupportedModel(f"the vocabulary lacks {missing[0]}: it is not that of {self.name}")
        self._tokenizer = tokenizer
        self._ids = control
        self._eom = self.message_end if self.message_end in control else self.turn_end
        self.stop_ids = tokenizer.stop_ids | {control[self.turn_end], control[self._eom]}

    @classmethod
    def needed(cls) -> tuple[str, ...]:
        """The control tokens without which there is no such format."""
        return (cls.begin, *cls.header, cls.turn_end)

    # Rendering -----------------------------------------------------------------------------------------------------
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """Options: date, such as "26 Jul 2024": the system message names it, after the cutting knowledge date.
        builtin_tools: of brave_search, wolfram_alpha, code_interpreter; an empty list, too, turns the environment
        ipython on. tool_notation: json, tag or python: how `tools` are to be called, see chat/calls.py.
        """
        refuse_options(options, self.options, self.name)
        refuse_reasoning(messages, self.name)
        notation = options.get("tool_notation", self.notation)
        if notation not in _NOTATIONS:
            raise UsageError(f"tool_notation is {notation!r}: expected one of {', '.join(_NOTATIONS)}")
        builtin = options.get("builtin_tools")
        self._check_images(messages, calling=bool(tools) or builtin is not None)
        head = _system_head(options.get("date"), builtin, tools or (), notation)
        if head:
            first, rest = (
                (messages[0].text, messages[1:]) if messages and messages[0].role == "system" else ("", messages)
            )
            messages = [Message("system", head + "\n\n" + first if first else head), *rest]
        ipython = bool(messages) and messages[0].role == "system" and messages[0].text.startswith(IPYTHON)

        segments: list[Segment] = [self._control(self.begin)]
        for message in messages:
            segments += self._header(message.role)
            segments += self._body(message, notation, ipython)
        if add_generation_prompt:
            segments += self._header("assistant")
        return Prompt(tuple(segments), tuple(image for message in messages for image in message.images))

    def _check_images(self, messages: Sequence[Message], *, calling: bool) -> None:
        for i, message in enumerate(messages):
            if not message.images:
                continue
            if IMAGE not in self._ids:
                raise UsageError(f"messages[{i}] has an image: this model's vocabulary has no {IMAGE}, leave it out")
            if message.role != "user":
                raise UsageError(f"messages[{i}] has an image, but its role is {message.role}: only users show images")
            self._check_image_among_tools(i, calling)

    def _check_image_among_tools(self, i: int, calling: bool) -> None:
        if calling:
            raise UsageError(
                f"messages[{i}] has an image: Llama 3.2 Vision calls no tools where there are images, leave out one or "
                "the other"
            )

    def _header(self, role: str) -> list[Segment]:
        return [
            self._control(self.header[0]),
            Text("ipython" if role == "tool" else role),
            self._control(self.header[1]),
            Text("\n\n"),
        ]

    def _body(self, message: Message, notation: str, ipython: bool) -> list[Segment]:
        learn = message.role == "assistant"
        segments: list[Segment] = []
        for part in self._in_order(message):
            segments += self._image(part) if isinstance(part, ImagePart) else [_text(part, learn)]
        tagged = bool(message.tool_calls) and self._tagged(message.tool_calls, ipython)
        if tagged:
            if self.python[0] not in self._ids:
                raise UsageError(f"this vocabulary has no {self.python[0]}: Llama 3.0 has no built-in tools")
            segments.append(self._control(self.python[0], learn))
        if message.tool_calls:
            segments += [_text(written, learn) for written in _written(message.tool_calls, notation)]
        if tagged and self.python[1] is not None:
            segments.append(self._control(self.python[1], learn))
        return [*segments, self._control(self._end(message, tagged), learn)]

    def _in_order(self, message: Message) -> Sequence[str | ImagePart]:
        """The parts of a message as they are said. Images that stand after all text would be seen by none of it, so
        they go before it, where Meta's documentation wants them."""
        if not message.images:
            return (message.text,) if message.text else ()
        parts = [part for part in message.parts or () if part != ""]
        texts = [part for part in parts if isinstance(part, str)]
        if parts[: len(texts)] == texts:
            return [*message.images, *texts]
        return parts

    def _image(self, image: ImagePart) -> list[Segment]:
        return [Control(max(self._ids[IMAGE], IMAGE_ROW), IMAGE)]

    def _tagged(self, found: Sequence[ToolCall], ipython: bool) -> bool:
        """Whether calls stand behind <|python_tag|>."""
        return ipython or any(is_builtin(call) for call in found)

    def _end(self, message: Message, tagged: bool) -> str:
        return self._eom if tagged else self.turn_end

    def _control(self, spelling: str, learn: bool = False) -> Control:
        return Control(self._ids[spelling], spelling, learn)

    # Parsing -------------------------------------------------------------------------------------------------------
    def call_style(self, **options: Any) -> CallStyle | None:
        """Behind <|python_tag|> or not; code and built-in tools only where the conversation turned them on."""
        closing = None if self.python[1] is None else self._ids.get(self.python[1])
        return CallStyle(
            options.get("tool_notation", self.notation),
            self._ids.get(self.python[0]),
            closing,
            optional=True,
            builtin=options.get("builtin_tools") is not None,
        )

    @property
    def reading(self) -> Reading:
        tag = self._ids.get(self.python[0])
        tokens = frozenset(() if tag is None else (tag,))
        return Reading(frozenset({"json", "python", "builtin"}), ("tag",), tokens)

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """All calls, in any of the notations. Behind <|python_tag|> what is no call in any notation is Python code for
        the code interpreter."""
        before, tagged, after = self._split(answer)
        if tagged is None:
            return calls.read(before, _READERS, tools)
        if after.strip():  # Hugging Face's template for Llama 4 puts the text between the tags and the calls behind
            message = calls.read(after, _READERS, None)
            if message.tool_calls:
                return Message("assistant", (before + tagged + message.text) or None, message.tool_calls)
        message = calls.read(tagged, (calls.read_builtin, *_READERS), None)
        found = message.tool_calls or (ToolCall(calls.CODE_INTERPRETER, {"code": tagged}),)
        text = before + message.text if message.tool_calls else before
        return Message("assistant", (text + after) or None, found)

    def _split(self, answer: Sequence[int] | str) -> tuple[str, str | None, str]:
        """The text before <|python_tag|>, what is tagged (None without a tag), and what comes after the closing tag;
        without the tokens that end the answer."""
        tag, close = self.python
        if isinstance(answer, str):
            for token in (self.turn_end, self.message_end, "<|end_of_text|>"):
                answer = answer.removesuffix(token)
            before, found, rest = answer.partition(tag)
            tagged, _, after = rest.partition(close) if close is not None else (rest, "", "")
            return before, tagged if found else None, after
        ids = list(answer)
        while ids and ids[-1] in self.stop_ids:
            del ids[-1]
        decode = self._tokenizer.decode
        if self._ids.get(tag) not in ids:
            return decode(ids), None, ""
        at = ids.index(self._ids[tag])
        end = len(ids)
        if close is not None and self._ids[close] in ids[at:]:
            end = ids.index(self._ids[close], at)
        return decode(ids[:at]), decode(ids[at + 1 : end]), decode(ids[end:])


def _text(text: str, learn: bool) -> Text:
    return Text(text, ((0, len(text)),) if learn else ())


def is_builtin(call: ToolCall) -> bool:
    return call.name in (*calls.BUILTIN_TOOLS, calls.CODE_INTERPRETER)


def _written(found: Sequence[ToolCall], notation: str) -> list[str]:
    """The calls as texts, each encoded by itself as Meta's encoder does."""
    written = [calls.write_builtin(call) for call in found if is_builtin(call)]
    others = [call for call in found if not is_builtin(call)]
    return written + ([_NOTATIONS[notation](others)] if others else [])


def _system_head(date: Any, builtin: Any, tools: Sequence[Tool], notation: str) -> str:
    """What the options and tools put before the system message: nothing without them."""
    if date is not None and not isinstance(date, str):
        raise UsageError(f"date is {date!r}: expected text, such as '26 Jul 2024'")
    if builtin is not None and (isinstance(builtin, str) or not isinstance(builtin, Sequence)):
        raise UsageError(f"builtin_tools is {builtin!r}: expected a list of names")
    lines = []
    if builtin is not None:
        for name in builtin:
            if name not in (*calls.BUILTIN_TOOLS, calls.CODE_INTERPRETER):
                known = ", ".join((*calls.BUILTIN_TOOLS, calls.CODE_INTERPRETER))
                raise UsageError(f"builtin_tools has {name!r}: known are {known}")
        lines.append(IPYTHON)
        names = [name for name in builtin if name != calls.CODE_INTERPRETER]
        if names:
            lines.append("Tools: " + ", ".join(names))
    if date is not None:
        lines += ["Cutting Knowledge Date: December 2023", f"Today Date: {date}"]
    blocks = ["\n".join(lines)] if lines else []
    if tools:
        for tool in tools:
            if tool.name in (*calls.BUILTIN_TOOLS, calls.CODE_INTERPRETER):
                raise UsageError(f"the tool {tool.name} has the name of a built-in one: pass it in builtin_tools")
        described = (
            json.dumps([tool.function() for tool in tools], indent=4, ensure_ascii=False)
            if notation == "python"
            else "\n\n".join([json.dumps(tool.as_json(), indent=4, ensure_ascii=False) for tool in tools])
        )
        blocks.append(f"You have access to the following functions. {_INSTRUCTIONS[notation]}\n\n{described}")
    return "\n\n".join(blocks)
