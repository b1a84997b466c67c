"""The Llama 3 chat format (3.0 to 3.3), rendered and parsed in code.

    <|begin_of_text|> then, for each message,
    <|start_header_id|>{role}<|end_header_id|>\\n\\n{content}<|eot_id|>

A tool's result has the role ipython. An assistant's message that waits for one ends in <|eom_id|> where the system
message turned the environment ipython on; there, and for the built-in tools, calls begin with <|python_tag|>.

This is Meta's own encoder (llama-models, llama3/chat_format.py): contents are encoded by themselves, nothing is trimmed
and nothing is added that the caller did not ask for. Hugging Face's template for 3.1 and later differs: it trims, and
always writes a system message that begins "Cutting Knowledge Date: December 2023"; ask for that block with `date`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat import calls
from herder.chat.format import Control, Prompt, Segment, Text, refuse_options
from herder.chat.message import Message, Tool, ToolCall
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

HEADER = ("<|start_header_id|>", "<|end_header_id|>")
NEEDED = ("<|begin_of_text|>", *HEADER, "<|eot_id|>")
OPTIONS = ("date", "builtin_tools", "tool_notation")
IPYTHON = "Environment: ipython"

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
    """See the module. Raises UnsupportedModel when the vocabulary lacks the format's control tokens."""

    name = "llama3"

    def __init__(self, tokenizer: Tokenizer) -> None:
        control = tokenizer.control_tokens()
        missing = [token for token in NEEDED if token not in control]
        if missing:
            raise UnsupportedModel(f"the vocabulary lacks {missing[0]}: it is not Llama 3's")
        self._tokenizer = tokenizer
        self._ids = control
        self._eom = "<|eom_id|>" if "<|eom_id|>" in control else "<|eot_id|>"  # Llama 3.0 has no tools
        self.stop_ids = tokenizer.stop_ids | {control["<|eot_id|>"], control[self._eom]}

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
        ipython on. tool_notation: json (default), tag or python: how `tools` are to be called, see chat/calls.py.
        """
        refuse_options(options, OPTIONS, self.name)
        notation = options.get("tool_notation", "json")
        if notation not in _NOTATIONS:
            raise UsageError(f"tool_notation is {notation!r}: expected one of {', '.join(_NOTATIONS)}")
        head = _system_head(options.get("date"), options.get("builtin_tools"), tools or (), notation)
        if head:
            first, rest = (
                (messages[0].text, messages[1:]) if messages and messages[0].role == "system" else ("", messages)
            )
            messages = [Message("system", head + "\n\n" + first if first else head), *rest]
        ipython = bool(messages) and messages[0].role == "system" and messages[0].text.startswith(IPYTHON)

        segments: list[Segment] = [self._control("<|begin_of_text|>")]
        for message in messages:
            segments += self._header(message.role)
            segments += self._body(message, notation, ipython)
        if add_generation_prompt:
            segments += self._header("assistant")
        return Prompt(tuple(segments))

    def _header(self, role: str) -> list[Segment]:
        return [
            self._control(HEADER[0]),
            Text("ipython" if role == "tool" else role),
            self._control(HEADER[1]),
            Text("\n\n"),
        ]

    def _body(self, message: Message, notation: str, ipython: bool) -> list[Segment]:
        learn = message.role == "assistant"
        segments: list[Segment] = []
        if message.text:
            segments.append(_text(message.text, learn))
        end = "<|eot_id|>"
        if message.tool_calls:
            if ipython or any(_is_builtin(call) for call in message.tool_calls):
                if "<|python_tag|>" not in self._ids:
                    raise UsageError("this vocabulary has no <|python_tag|>: Llama 3.0 has no built-in tools")
                segments.append(self._control("<|python_tag|>", learn))
                end = self._eom
            segments += [_text(written, learn) for written in _written(message.tool_calls, notation)]
        return [*segments, self._control(end, learn)]

    def _control(self, spelling: str, learn: bool = False) -> Control:
        return Control(self._ids[spelling], spelling, learn)

    # Parsing -------------------------------------------------------------------------------------------------------
    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """All calls, in any of the notations. After <|python_tag|> what is no call in any notation is Python code for
        the code interpreter."""
        before, after = self._split(answer)
        if after is None:
            return calls.read(before, _READERS, tools)
        message = calls.read(after, (calls.read_builtin, *_READERS), None)
        found = message.tool_calls or (ToolCall(calls.CODE_INTERPRETER, {"code": after}),)
        text = (before + message.text) if message.tool_calls else before
        return Message("assistant", text or None, found)

    def _split(self, answer: Sequence[int] | str) -> tuple[str, str | None]:
        """The text before <|python_tag|>, and after it if it is there, without the tokens that end the answer."""
        tag = "<|python_tag|>"
        if isinstance(answer, str):
            for end in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"):
                answer = answer.removesuffix(end)
            before, found, after = answer.partition(tag)
            return before, after if found else None
        ids = list(answer)
        while ids and ids[-1] in self.stop_ids:
            del ids[-1]
        if self._ids.get(tag) in ids:
            at = ids.index(self._ids[tag])
            return self._tokenizer.decode(ids[:at]), self._tokenizer.decode(ids[at + 1 :])
        return self._tokenizer.decode(ids), None


def _text(text: str, learn: bool) -> Text:
    return Text(text, ((0, len(text)),) if learn else ())


def _is_builtin(call: ToolCall) -> bool:
    return call.name in (*calls.BUILTIN_TOOLS, calls.CODE_INTERPRETER)


def _written(found: Sequence[ToolCall], notation: str) -> list[str]:
    """The calls as texts, each encoded by itself as Meta's encoder does."""
    written = [calls.write_builtin(call) for call in found if _is_builtin(call)]
    others = [call for call in found if not _is_builtin(call)]
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
