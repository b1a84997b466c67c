"""load_chat_format: which chat format a model speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from herder.chat.format import ChatFormat
from herder.chat.message import Message
from herder.core.errors import HerderError
from herder.text.tokenizer import Tokenizer

_DATES = re.compile(r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n\n")


def load_chat_format(
    tokenizer: Tokenizer, template: str | Mapping[str, str] | None, override: str | None = None
) -> ChatFormat | None:
    """The format of a model, or None for one that has none (a base model): then there is only plain text.

    template: Jinja source from the model's files, or several by name, of which `default` and `tool_use` count.
    override: Jinja source that the user gave instead; it is used whatever the model is.
    Otherwise: a vocabulary with Llama 3's headers speaks Llama 3, in code, unless it has a template that says something
    else; a template known to be plain ChatML is rendered in code; any other in the sandbox.
    Raises TemplateError for a template that cannot be read.
    """
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    if override is not None:
        return _jinja(tokenizer, override, None)
    source, tool_source = templates.get("default"), templates.get("tool_use")
    source = source if source is not None else tool_source
    if _is_llama3(tokenizer, source):
        from herder.chat.llama3 import Llama3Format

        return Llama3Format(tokenizer)
    if source is None:
        return None
    if tool_source is None:
        from herder.chat.chatml import chatml_format

        known = chatml_format(tokenizer, source)
        if known is not None:
            return known
    return _jinja(tokenizer, source, tool_source)


def _jinja(tokenizer: Tokenizer, source: str, tool_source: str | None) -> ChatFormat:
    from herder.chat.template import JinjaFormat

    return JinjaFormat(tokenizer, source, tool_source=tool_source)


def _is_llama3(tokenizer: Tokenizer, source: str | None) -> bool:
    """Whether the model speaks Llama 3: by its control tokens, and by its template where it has one.

    Fine-tunes and Llama Guard keep the vocabulary and bring a template of their own, so the template is tried: on a
    plain conversation it must say what Llama 3 says, apart from the dates that Hugging Face's puts first; and if it
    speaks of tools, it must do so as Llama 3.1's, in the environment ipython.
    """
    control = tokenizer.control_tokens()
    if "<|start_header_id|>" not in control:
        return False
    from herder.chat.llama3 import IPYTHON, NEEDED, Llama3Format

    if not all(token in control for token in NEEDED):
        return False
    if source is None:
        return True
    if "<|start_header_id|>" not in source or ("tools" in source and IPYTHON not in source):
        return False
    conversation = [
        Message("system", "Be brief."),
        Message("user", "Hello."),
        Message("assistant", "Yes?"),
        Message("user", "Bye."),
    ]
    try:
        theirs: Any = _jinja(tokenizer, source, None)
        for messages in (conversation, conversation[1:], conversation[1:2]):
            expected = Llama3Format(tokenizer).render(messages).text
            found = _DATES.sub("", theirs.render(messages).text)
            empty = "<|start_header_id|>system<|end_header_id|>\n\n<|eot_id|>"
            if found.replace(empty, "") != expected:
                return False
    except HerderError:
        return False
    return True
