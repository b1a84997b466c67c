"""Mistral's chat formats V1, V2 and V3 (SentencePiece and tekken), rendered and parsed in code.

    V1   <s> "[INST] {user} [/INST]" "{assistant}" </s>              [INST] is text; 7B v0.1 and v0.2, Mixtral 8x7B
    V2   <s> [INST] "{user}" [/INST] "{assistant}" </s>              [INST] is a token, as all words in brackets below
    V3   the same; tools' calls and results have ids                 7B v0.3, Mixtral 8x22B; with tekken: Nemo

         [AVAILABLE_TOOLS] "{JSON list}" [/AVAILABLE_TOOLS] before the last [INST]
         [TOOL_CALLS] "{JSON list}" </s>        [TOOL_RESULTS] "{JSON}" [/TOOL_RESULTS]

Each quoted text is encoded by itself. The system message is put before the first question (V1) or the last one (V2,
V3), with an empty line between. V2 leaves out calls and results from before the last question. An id has nine letters
or digits. Source: mistral-common, tokens/tokenizers/instruct.py, which the tests compare id for id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from herder.chat import calls
from herder.chat.format import (
    CallStyle,
    Control,
    Prompt,
    Reading,
    Segment,
    Text,
    refuse_images,
    refuse_options,
    refuse_reasoning,
)
from herder.chat.message import Message, Tool
from herder.chat.turns import in_turns, refuse_answered, refuse_tags, refuse_tools
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer

VERSIONS = ("v1", "v2", "v3")
BRACKETS = (
    *("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "[/TOOL_RESULTS]",
)
_ID = re.compile(r"[A-Za-z0-9]{9}")


def version_of(tokenizer: Tokenizer) -> str | None:
    """Which of VERSIONS a vocabulary speaks; None for a later one. Where it has the tokens and does not say: v3."""
    if not set(BRACKETS) <= tokenizer.control_tokens().keys():
        return "v1"
    version = tokenizer.version or "v3"
    return version if version in VERSIONS[1:] else None


class MistralFormat:
    """version: one of VERSIONS. Raises UnsupportedModel when the vocabulary lacks the version's control tokens."""

    def __init__(self, tokenizer: Tokenizer, version: str) -> None:
        assert version in VERSIONS
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise UnsupportedModel("the vocabulary lacks BOS or EOS: it is not Mistral's")
        self._ids = tokenizer.control_tokens()
        missing = [token for token in BRACKETS if token not in self._ids]
        if version != "v1" and missing:
            raise UnsupportedModel(f"the vocabulary lacks {missing[0]}: it is not Mistral's {version}")
        self.version = version
        self.name = f"mistral-{version}"
        self._tokenizer = tokenizer
        self._bos, self._eos = tokenizer.bos_id, tokenizer.eos_id
        self.stop_ids = tokenizer.stop_ids | {self._eos}

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
        """Takes no options; V1 takes no tools. With add_generation_prompt the last message must be the user's or a
        tool's."""
        refuse_options(options, (), self.name)
        if self.version == "v1":
            refuse_tools(tools, self.name)
            refuse_tags(messages, BRACKETS[:2], self.name)
            return self._v1(messages, add_generation_prompt)
        system, turns = self._in_order(messages)
        if add_generation_prompt:
            refuse_answered(turns, self.name)
        last = max(i for i, message in enumerate(turns) if message.role == "user")
        segments: list[Segment] = [self._end(self._bos)]
        for i, message in enumerate(turns):
            kept = self.version == "v3" or i > last
            if message.role == "user":
                if tools and i == last:
                    segments += self._bracketed("AVAILABLE_TOOLS", _json([_described(tool) for tool in tools]))
                text = f"{system}\n\n{message.text}" if system and i == last else message.text
                segments += self._bracketed("INST", text)
            elif message.role != "assistant":
                segments += self._bracketed("TOOL_RESULTS", self._result(message)) if kept else []
            elif not message.tool_calls:
                segments += [*_said(message.text.rstrip(" ")), self._end(self._eos, learn=True)]
            elif kept:
                written = _json([self._call(call.name, call.arguments, call.id) for call in message.tool_calls])
                segments += [self._bracket("[TOOL_CALLS]", learn=True), *_said(written)]
                segments.append(self._end(self._eos, learn=True))
        return Prompt(tuple(segments))

    def _v1(self, messages: Sequence[Message], answer: bool) -> Prompt:
        system, turns = in_turns(messages, self.name)
        if answer:
            refuse_answered(turns, self.name)
        segments: list[Segment] = [self._end(self._bos)]
        for i, message in enumerate(turns):
            if message.role == "assistant":
                segments += [*_said(message.text), self._end(self._eos, learn=True)]
            else:
                text = f"{system}\n\n{message.text}" if system and i == 0 else message.text
                segments.append(Text(f"[INST] {text} [/INST]", space=True))
        return Prompt(tuple(segments))

    def _in_order(self, messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
        """The system message and the rest; results follow calls, and only they do. Raises UsageError otherwise."""
        refuse_images(messages, self.name)
        refuse_reasoning(messages, self.name)
        first = 1 if messages and messages[0].role == "system" else 0
        expected: tuple[str, ...] = ("user",)
        for i, message in enumerate(messages[first:], first):
            role = "tool" if message.role == "ipython" else message.role
            if role not in expected:
                wanted = " or ".join(expected)
                raise UsageError(
                    f"messages[{i}].role is {role}: in the chat format {self.name} it must be {wanted} there"
                )
            if message.tool_calls and message.text:
                raise UsageError(
                    f"messages[{i}] has content and tool_calls: the chat format {self.name} writes one or the other"
                )
            if role == "assistant":
                expected = ("tool",) if message.tool_calls else ("user",)
            else:
                expected = ("assistant",) if role == "user" else ("tool", "assistant")
        if len(messages) == first:
            raise UsageError(f"there is no user's message: the chat format {self.name} needs one")
        return messages[0].text if first else "", messages[first:]

    def _call(self, name: str, arguments: Any, identity: str | None) -> dict[str, Any]:
        call = {"name": name, "arguments": dict(arguments)}
        return call if self.version == "v2" else call | {"id": self._id(identity, f"the call of {name}")}

    def _result(self, message: Message) -> str:
        """The result is JSON in JSON where it is JSON, else a string."""
        try:
            content = json.loads(message.text)
        except (ValueError, RecursionError):
            content = message.text
        if self.version == "v2":
            return _json([{"name": message.name, "content": content}])
        return _json({"content": content, "call_id": self._id(message.tool_call_id, "a tool's result")})

    def _id(self, identity: str | None, of: str) -> str:
        if identity is None or not _ID.fullmatch(identity):
            raise UsageError(f"{of} has the id {identity!r}: the chat format {self.name} needs nine letters or digits")
        return identity

    def _bracketed(self, word: str, text: str) -> list[Segment]:
        content: list[Segment] = [Text(text, space=True)] if text else []
        return [self._bracket(f"[{word}]"), *content, self._bracket(f"[/{word}]")]

    def _bracket(self, token: str, learn: bool = False) -> Control:
        return Control(self._ids[token], token, learn)

    def _end(self, token: int, learn: bool = False) -> Control:
        return Control(token, self._tokenizer.token(token), learn)

    # Parsing -------------------------------------------------------------------------------------------------------
    def call_style(self, **options: Any) -> CallStyle | None:
        return None if self.version == "v1" else CallStyle("list", self._ids["[TOOL_CALLS]"])

    @property
    def reading(self) -> Reading:
        return Reading() if self.version == "v1" else Reading(tokens=frozenset({self._ids["[TOOL_CALLS]"]}))

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The calls behind [TOOL_CALLS], whatever their names; where there is none, the text as it is."""
        mark = "[TOOL_CALLS]"
        if isinstance(answer, str):
            before, marked, after = answer.removesuffix(self._tokenizer.token(self._eos)).partition(mark)
        else:
            ids = list(answer)
            at = ids.index(self._ids[mark]) if self.version != "v1" and self._ids[mark] in ids else len(ids)
            before, marked = self._tokenizer.decode(ids[:at]), mark if at < len(ids) else ""
            after = self._tokenizer.decode(ids[at + 1 :])
        found = calls.read_json(after) if marked and self.version != "v1" else None
        if found is None:
            return Message("assistant", before + (mark if marked and isinstance(answer, str) else "") + after)
        return Message("assistant", before or None, found.calls)


def _described(tool: Tool) -> dict[str, Any]:
    """As mistral-common writes a tool: name, description and parameters, each always there; nothing else."""
    if tool.extra:
        raise UsageError(f"the tool {tool.name} has {next(iter(tool.extra))!r}: Mistral's formats have no place for it")
    function = {"name": tool.name, "description": tool.description or "", "parameters": dict(tool.parameters or {})}
    return {"type": "function", "function": function}


def _said(text: str) -> list[Segment]:
    return [Text(text, ((0, len(text)),), space=True)] if text else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
