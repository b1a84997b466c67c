"""ChatML, rendered in code for the templates that are known to say just that.

    <|im_start|>{role}\\n{content}<|im_end|>\\n

Rendering SmolLM2's own template in code instead of Jinja saves a start-up the import of Jinja, about 45 ms. Only a
template that equals a known one, character for character, comes here; a test holds both renderings against each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat.format import Control, Prompt, Reading, Segment, Text, refuse_images, refuse_options, refuse_reasoning
from herder.chat.message import Message, Tool
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"

# SmolLM2's template, whose default system message is free to differ.
_WITH_DEFAULT = re.compile(
    re.escape(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "DEFAULT<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("DEFAULT", r"([^'\\{}]*)")
)
_PLAIN = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml_format(tokenizer: Tokenizer, template: str) -> ChatMLFormat | None:
    """The format that `template` describes, if it is one of the known templates and the vocabulary has the tokens."""
    if not {START, END} <= tokenizer.control_tokens().keys():
        return None
    text = template.replace("\\n", "\n")  # in a literal, a newline may be written either way
    if text == _PLAIN:
        return ChatMLFormat(tokenizer, None)
    match = _WITH_DEFAULT.fullmatch(text)
    return ChatMLFormat(tokenizer, match[1]) if match else None


class ChatMLFormat:
    """default_system: what the system message says when the conversation has none; None leaves it out.

    Raises UnsupportedModel when the vocabulary lacks the two control tokens.
    """

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer, default_system: str | None) -> None:
        control = tokenizer.control_tokens()
        if not {START, END} <= control.keys():
            raise UnsupportedModel(f"the vocabulary lacks {START} or {END}: it is not one of ChatML")
        start, end = control[START], control[END]
        self._tokenizer = tokenizer
        self._start, self._end = start, end
        self.default_system = default_system
        self.stop_ids = tokenizer.stop_ids | {end}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """Takes no options and no tools."""
        refuse_options(options, (), self.name)
        refuse_images(messages, self.name)
        refuse_reasoning(messages, self.name)
        if tools:
            raise UsageError("this model's chat format has no place for tools: leave them out")
        if self.default_system is not None and messages and messages[0].role != "system":
            messages = [Message("system", self.default_system), *messages]
        segments: list[Segment] = []
        for message in messages:
            if message.tool_calls:
                raise UsageError("this model's chat format has no place for tool calls: leave them out")
            learn = message.role == "assistant"
            head = f"{message.role}\n"
            text = head + message.text
            segments += [
                Control(self._start, START),
                Text(text, ((len(head), len(text)),) if learn and message.text else ()),
                Control(self._end, END, learn),
                Text("\n"),
            ]
        if add_generation_prompt:
            segments += [Control(self._start, START), Text("assistant\n")]
        return Prompt(tuple(segments))

    @property
    def reading(self) -> Reading:
        return Reading()

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The answer as it is: the format knows no tool calls."""
        if isinstance(answer, str):
            return Message("assistant", answer.removesuffix(END))
        return Message("assistant", self._tokenizer.decode(list(answer)))
