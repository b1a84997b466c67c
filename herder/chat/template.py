"""A model's own chat template, in Jinja: messages -> prompt in the sandbox; the answer back by what it looks like."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType
from typing import Any, NoReturn

from jinja2 import nodes

from herder.chat import calls
from herder.chat.format import CallStyle, Control, Prompt, Reading, Segment, refuse_reasoning
from herder.chat.message import ImagePart, Message, Tool, check_json
from herder.chat.meter import Meter
from herder.chat.provenance import Marks, Span
from herder.chat.sandbox import MAX_SOURCE, Refused, Sandbox
from herder.core.errors import TemplateError, UsageError
from herder.text.tokenizer import Tokenizer

_GIVEN = ("messages", "tools", "add_generation_prompt")
_LOADS = {nodes.Include: "include", nodes.Import: "import", nodes.FromImport: "import", nodes.Extends: "extends"}
_READERS = {  # what a template must mention for an answer to be read that way
    "<tool_call>": calls.read_hermes,
    "[TOOL_CALLS]": calls.read_json,
    "<function=": calls.read_tag,
    '"parameters": ': calls.read_json,
}


class JinjaFormat:
    """source: the template. tool_source: another one, for conversations with tools (Hugging Face's `tool_use`).

    Raises TemplateError when a template is too long, not Jinja, or loads other files.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, source: str, *, tool_source: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._sandbox = Sandbox()
        self._marks = Marks(tokenizer.control_tokens())
        self._template = _Compiled(self._sandbox, source, self._marks)
        self._tool_template = self._template
        if tool_source is not None:
            self._tool_template = _Compiled(self._sandbox, tool_source, self._marks)
        special = tokenizer.special
        roles = {"bos": special.bos, "eos": special.eos, "pad": special.pad, "unk": special.unknown}
        self._tokens = {
            f"{role}_token": "" if token is None else self._marks.mark(tokenizer.token(token))
            for role, token in roles.items()
        }
        self._readers = tuple(dict.fromkeys(r for hint, r in _READERS.items() if hint in source + (tool_source or "")))
        self.takes_reasoning = "reasoning_content" in source + (tool_source or "")
        self.stop_ids = tokenizer.stop_ids

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
        """Options: whatever variables the template reads.

        learn: where the template does not mark what the assistant said with {% generation %}, find it out by rendering
        the conversation up to each answer. TemplateError when that does not tell.
        """
        template = self._tool_template if tools else self._template
        if tools and "tools" not in template.variables and "custom_tools" not in template.variables:
            raise UsageError("this model's chat template has no place for tools: leave them out")
        for option, value in options.items():
            if option not in template.variables or option in (*_GIVEN, *self._tokens):
                raise UsageError(f"there is no option {option!r}: the model's chat template does not read it")
            check_json(value, option)
        if not self.takes_reasoning:
            refuse_reasoning(messages, self.name)
        given = [message.as_json() for message in messages]
        check_json(given, "messages")
        tool_list = [tool.as_json() for tool in tools] if tools else None
        check_json(tool_list, "tools")

        def text(count: int, prompt: bool) -> str:
            variables = {
                **self._tokens,
                "documents": None,
                **options,
                "messages": given[:count],
                "tools": tool_list,
                "add_generation_prompt": prompt,
            }
            return template.run(variables)

        marked = text(len(given), add_generation_prompt)
        spans: list[Span] = []
        if learn and not template.marks_generation:
            for i, message in enumerate(messages):
                if message.role == "assistant":
                    spans.append(self._span(text(i, True), text(i + 1, False), marked))
        images = [image for message in messages for image in message.images]
        segments = list(self._marks.split(marked, spans))
        return Prompt(tuple(self._with_images(segments, images) if images else segments), tuple(images))

    def _with_images(self, segments: list[Segment], images: list[ImagePart]) -> list[Segment]:
        """The template writes <|image|> for each image; for Llama 4 that stands for the tokens of all its tiles."""
        from herder.chat.llama3 import IMAGE, IMAGE_ROW
        from herder.chat.llama4 import image_layout

        found = [i for i, one in enumerate(segments) if isinstance(one, Control) and one.spelling == IMAGE]
        if len(found) != len(images):
            raise UsageError(
                f"the messages have {len(images)} images, but the model's chat template has places for {len(found)}"
            )
        for i, image in zip(reversed(found), reversed(images), strict=True):
            control = self._tokenizer.control_tokens()
            whole = [Control(max(control[IMAGE], IMAGE_ROW), IMAGE)]
            segments[i : i + 1] = image_layout(image, control) if image.tile_tokens else whole
        return segments

    def _span(self, before: str, after: str, whole: str) -> Span:
        """Where an answer lies in the whole: from the generation prompt to the token that ends it."""
        if not (after.startswith(before) and whole.startswith(after)):
            raise TemplateError(
                "the chat template renders the beginning of a conversation differently from the whole, so what the "
                "assistant said cannot be told: mark it in the template with {% generation %}"
            )
        begin = len(before)
        for at in range(begin, len(after)):
            segments = list(self._marks.split(after[at], []))
            if segments and isinstance(segments[0], Control) and segments[0].id in self.stop_ids:
                return begin, at + 1
        return begin, len(after)

    # Parsing -------------------------------------------------------------------------------------------------------
    def call_style(self, **options: Any) -> CallStyle | None:
        """The first notation that the template mentions; None where it mentions none that is known."""
        control = self._tokenizer.control_tokens()
        if "[TOOL_CALLS]" in control and calls.read_json in self._readers:
            return CallStyle("list", control["[TOOL_CALLS]"])
        if not self._readers:
            return None
        if self._readers[0] is calls.read_hermes:
            return CallStyle("hermes", control.get("<tool_call>"), control.get("</tool_call>"))
        return CallStyle("tag" if self._readers[0] is calls.read_tag else "json")

    @property
    def reading(self) -> Reading:
        control = self._tokenizer.control_tokens()
        names = {calls.read_tag: "tag", calls.read_hermes: "hermes"}
        return Reading(
            frozenset({"json"} if calls.read_json in self._readers else ()),
            tuple(names[reader] for reader in self._readers if reader in names),
            frozenset({control["[TOOL_CALLS]"]} if "[TOOL_CALLS]" in control else ()),
            spelled="<tool_call>" in control,
        )

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """Tool calls are looked for in the notations that the template itself mentions."""
        if isinstance(answer, str):
            return calls.read(answer, self._readers, tools)
        ids = list(answer)
        call_mark = self._tokenizer.id_of("[TOOL_CALLS]")
        if call_mark in ids and self._tokenizer.is_control(call_mark):
            at = ids.index(call_mark)
            found = calls.read_json(self._tokenizer.decode(ids[at + 1 :]))
            if found:
                return Message("assistant", self._tokenizer.decode(ids[:at]) or None, found.calls)
        text = self._tokenizer.decode(ids)
        hermes = self._tokenizer.id_of("<tool_call>")
        if hermes is not None and self._tokenizer.is_control(hermes):
            text = self._tokenizer.decode(ids, skip_special=False)
        return calls.read(text, self._readers, tools)


class _Compiled:
    """A template, parsed, marked and compiled. variables: the names it reads."""

    def __init__(self, sandbox: Sandbox, source: str, marks: Marks) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters: at most {MAX_SOURCE} are read")
        self._sandbox = sandbox
        self._marks = marks
        try:
            source.encode()
            tree = sandbox.parse(source)
            for node in tree.find_all(tuple(_LOADS)):
                raise TemplateError(
                    f"the chat template uses {{% {_LOADS[type(node)]} %}} in line {node.lineno}: it must not load files"
                )
            self.variables = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
            self.marks_generation = bool(re.search(r"\{%[-+]?\s*generation\b", source))
            marks.mark_template(tree)
            self._code: CodeType = sandbox.compile(tree)
        except UnicodeEncodeError:
            raise TemplateError("the chat template is not valid UTF-8") from None
        except Exception as error:
            _raise("cannot be read", error, marks)

    def run(self, variables: Mapping[str, Any]) -> str:
        try:
            meter = Meter(variables["messages"], variables["tools"], variables["documents"])
            return self._sandbox.run(self._code, variables, meter)
        except Exception as error:
            _raise("failed", error, self._marks)


def _raise(what: str, error: Exception, marks: Marks) -> NoReturn:
    """One line, whatever the template did."""
    if isinstance(error, TemplateError | UsageError):
        raise error
    if isinstance(error, RecursionError):
        message = "it calls itself for ever, or is nested too deep"
    else:
        message = " ".join(marks.plain(str(error)).split())[:300] or type(error).__name__
    if isinstance(error, Refused):
        raise TemplateError(f"the model's chat template refuses these messages: {message}") from None
    line = getattr(error, "lineno", None)
    where = "" if line is None else f" in line {line}"
    raise TemplateError(f"the chat template {what}{where}: {message}") from None
