"""Whether a chat template says what one of the formats in code says.

Fine-tunes keep a vocabulary and bring a template of their own, so what a template mentions only makes a format likely;
then the template is tried on a few conversations. Where both say the same, apart from the differences listed here, the
format in code is taken: it encodes as the model's makers do, parses calls, and takes images and options by name. What
differs beyond those conversations is written down in tests/chat/test_templates_differ.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from herder.chat.format import ChatFormat
from herder.chat.load import named_format
from herder.chat.message import Message
from herder.chat.template import JinjaFormat
from herder.core.errors import HerderError, TemplateError
from herder.text.tokenizer import Tokenizer

_CONVERSATION = (
    Message("system", "Be brief."),
    Message("user", "Hello."),
    Message("assistant", "Yes?"),
    Message("user", "Bye."),
)
_SAFETY = "<BEGIN UNSAFE CONTENT CATEGORIES>"
_IPYTHON = "Environment: ipython"

_DATES = re.compile(r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n\n")
_EMPTY = "<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
_AROUND_BRACKETS = re.compile(r" *(\[/?[A-Z_]+\]|</?s>) *")
_AROUND_STEP = re.compile(r" *(<step>|<s>) *")
_NEWLINES = re.compile(r"(assistant<\|(?:end_header_id|header_end)\|>)\n\n\Z")


def recognized(tokenizer: Tokenizer, source: str, tool_source: str | None) -> ChatFormat | None:
    """The format in code that the template `source` says, or None. tool_source: another one for tools; only Llama 3's
    format goes before that."""
    try:
        chat_format, reads = _likely(tokenizer, source)
        if chat_format is None or (tool_source is not None and chat_format.name != "llama3"):
            return None
        theirs = JinjaFormat(tokenizer, source)
        if chat_format.name in ("llama-guard-3-1b", "llama-guard-3-vision"):
            conversations: list[Sequence[Message]] = [_in_parts(_CONVERSATION[1:3]), _in_parts(_CONVERSATION[1:2])]
        elif chat_format.name.startswith("llama-guard"):
            conversations = [_CONVERSATION[1:3], _CONVERSATION[1:2]]
        else:
            conversations = [_CONVERSATION[1:], _CONVERSATION[1:2]]
            if not _refuses_systems(theirs):
                conversations.append(_CONVERSATION)
        for messages in conversations:
            if reads(theirs.render(messages).text) != reads(chat_format.render(messages).text):
                return None
    except HerderError:
        return None
    return chat_format


def _likely(tokenizer: Tokenizer, source: str) -> tuple[ChatFormat | None, Callable[[str], str]]:
    """The format that a template's words point to, and how to read both renderings, so that known differences do not
    count. A template that speaks of tools must do so in the format's own way."""
    tools = "tools" in source
    if _SAFETY in source:
        return _guard(tokenizer, source), lambda text: _NEWLINES.sub(r"\1", text).removeprefix("<s>")
    if "<|start_header_id|>" in source and (_IPYTHON in source or not tools):
        return named_format(tokenizer, "llama3"), lambda text: _DATES.sub("", text).replace(_EMPTY, "")
    if "<|header_start|>" in source and (_IPYTHON in source or not tools):
        return named_format(tokenizer, "llama4"), _as_it_is
    if "<\uff5cUser\uff5c>" in source and not tools:
        from herder.chat.r1 import OPEN, R1Format

        return R1Format(tokenizer, prefill=OPEN in source), _as_it_is
    if "<step>" in source and "Source: " in source:
        return named_format(tokenizer, "codellama-70b"), _without_steps
    if "<<SYS>>" in source and not tools:
        from herder.chat.codellama import PRE

        return named_format(tokenizer, "codellama" if PRE in tokenizer.control_tokens() else "llama2"), _as_it_is
    if "[INST]" in source and ("[AVAILABLE_TOOLS]" in source or not tools):
        from herder.chat.mistral import version_of

        version = version_of(tokenizer)
        if version is not None and not (version == "v1" and tools):
            return named_format(tokenizer, f"mistral-{version}"), lambda text: _AROUND_BRACKETS.sub(r"\1", text)
    return None, _as_it_is


def _guard(tokenizer: Tokenizer, source: str) -> ChatFormat:
    from herder.chat.guard import GuardFormat, categories_of
    from herder.chat.llama3 import IMAGE

    if "<|header_start|>" in source:
        return GuardFormat(tokenizer, "llama-guard-4")
    if "<|start_header_id|>" not in source:
        one = categories_of(source)
        return GuardFormat(tokenizer, "llama-guard-1", one) if one else GuardFormat(tokenizer, "llama-guard-2")
    if "S14" in source:
        return GuardFormat(tokenizer, "llama-guard-3")
    seeing = IMAGE in tokenizer.control_tokens()
    return GuardFormat(tokenizer, "llama-guard-3-vision" if seeing else "llama-guard-3-1b")


def _refuses_systems(theirs: JinjaFormat) -> bool:
    """Whether a template has no place for a system message (Mistral's oldest), which is no difference here."""
    try:
        theirs.render(_CONVERSATION)
    except TemplateError:
        return True
    return False


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [Message(message.role, message.content, parts=(message.text,)) for message in messages]


def _without_steps(text: str) -> str:
    return _AROUND_STEP.sub(r"\1", text).replace("Source: system<step>", "").rstrip()


def _as_it_is(text: str) -> str:
    return text
