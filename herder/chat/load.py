"""load_chat_format: which chat format a model speaks.

Asked in this order: what the user chose (a template, or a format by name), the model's own template, the control tokens
of its vocabulary, and, for files without either, the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from herder.chat.format import ChatFormat
from herder.core.errors import HerderError, UsageError
from herder.text.tokenizer import Tokenizer

GUARDS = (
    "llama-guard-1",
    "llama-guard-2",
    "llama-guard-3",
    "llama-guard-3-1b",
    "llama-guard-3-vision",
    "llama-guard-4",
)
NAMES = (
    *("chatml", "llama2", "codellama", "codellama-70b", "llama3", "llama4", "mistral-v1", "mistral-v2", "mistral-v3"),
    *("r1", *GUARDS),
)
# For files without a template, as Meta's own are: the first that matches the name in small letters counts. Names tell
# guards from other models in any case, and chats from base models where the vocabulary has no tokens for turns.
_SPECIAL = (
    (r"guard-?4", "llama-guard-4"),
    (r"guard-?3-11b", "llama-guard-3-vision"),
    (r"guard-?3-1b", "llama-guard-3-1b"),
    (r"guard-?3", "llama-guard-3"),
    (r"guard-?2", "llama-guard-2"),
    (r"llama-?guard", "llama-guard-1"),
    (r"r1-distill", "r1"),
)
_CHATS = (
    (r"code-?llama-?70b-instruct", "codellama-70b"),
    (r"code-?llama.*instruct", "codellama"),
    (r"llama-?2.*chat", "llama2"),
    (r"(mistral-7b|mixtral-8x7b)-instruct", "mistral-v1"),
)


def load_chat_format(
    tokenizer: Tokenizer,
    template: str | Mapping[str, str] | None,
    override: str | None = None,
    *,
    name: str | None = None,
    model: str = "",
) -> ChatFormat | None:
    """The format of a model, or None for one that has none (a base model): then there is only plain text.

    template: Jinja source from the model's files, or several by name, of which `default` and `tool_use` count.
    override: Jinja source that the user gave instead; it is used whatever the model is. name: one of NAMES, likewise.
    model: what the model is called.
    A template that says what a format here says (recognize.py tries it) is rendered by that, any other in the sandbox.
    Raises TemplateError for a template that cannot be read, UsageError for a name that is none, UnsupportedModel for
    one whose control tokens the vocabulary lacks.
    """
    if override is not None and name is not None:
        raise UsageError("a template and a chat format were given: leave out one of them")
    if override is not None:
        from herder.chat.template import JinjaFormat

        return JinjaFormat(tokenizer, override)
    if name is not None:
        return named_format(tokenizer, name)
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    source, tool_source = templates.get("default"), templates.get("tool_use")
    source = source if source is not None else tool_source
    if source is None:
        return _without_template(tokenizer, model)
    if tool_source is None:
        from herder.chat.chatml import chatml_format

        known = chatml_format(tokenizer, source)
        if known is not None:
            return known
    from herder.chat.recognize import recognized
    from herder.chat.template import JinjaFormat

    return recognized(tokenizer, source, tool_source) or JinjaFormat(tokenizer, source, tool_source=tool_source)


def named_format(tokenizer: Tokenizer, name: str) -> ChatFormat:
    """The format called `name`. Raises UsageError for no name of NAMES, UnsupportedModel when it does not fit."""
    if name not in NAMES:
        raise UsageError(f"there is no chat format {name!r}: known are {', '.join(NAMES)}")
    if name == "chatml":
        from herder.chat.chatml import ChatMLFormat

        return ChatMLFormat(tokenizer, None)
    if name in ("llama2", "codellama"):
        from herder.chat.llama2 import Llama2Format

        return Llama2Format(tokenizer, name)
    if name == "codellama-70b":
        from herder.chat.codellama import CodeLlama70BFormat

        return CodeLlama70BFormat(tokenizer)
    if name == "llama3":
        from herder.chat.llama3 import Llama3Format

        return Llama3Format(tokenizer)
    if name == "llama4":
        from herder.chat.llama4 import Llama4Format

        return Llama4Format(tokenizer)
    if name == "r1":
        from herder.chat.r1 import R1Format

        return R1Format(tokenizer)
    if name in GUARDS:
        from herder.chat.guard import GuardFormat

        return GuardFormat(tokenizer, name)
    from herder.chat.mistral import MistralFormat

    return MistralFormat(tokenizer, name.removeprefix("mistral-"))


def _without_template(tokenizer: Tokenizer, model: str) -> ChatFormat | None:
    called = re.sub(r"[\s_]+", "-", model.lower())
    found = _by_name(tokenizer, called, _SPECIAL)
    if found is not None:
        return found
    control = tokenizer.control_tokens()
    if "<|start_header_id|>" in control or "<|header_start|>" in control:
        for name in ("llama3", "llama4"):
            try:
                return named_format(tokenizer, name)
            except HerderError:
                continue
    if "[INST]" in control:
        from herder.chat.mistral import MistralFormat, version_of

        version = version_of(tokenizer)
        return None if version in ("v1", None) else MistralFormat(tokenizer, str(version))
    return _by_name(tokenizer, called, _CHATS)


def _by_name(tokenizer: Tokenizer, called: str, patterns: tuple[tuple[str, str], ...]) -> ChatFormat | None:
    for pattern, name in patterns:
        if re.search(pattern, called):
            try:
                return named_format(tokenizer, name)
            except HerderError:  # another model's vocabulary under that name
                return None
    return None
