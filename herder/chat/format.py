"""What a chat format is: messages -> Prompt -> tokens, and the answer's tokens -> Message.

A prompt is a list of segments, and only two kinds exist: control tokens, which come from the format and nowhere else,
and text, which is encoded as plain text whatever it spells. So nothing a user writes can become a control token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from herder.chat.message import ImagePart, Message, Tool
from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Control:
    """One control token. learn: the assistant wrote it (it counts in the loss)."""

    id: int
    spelling: str
    learn: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is encoded in one piece. learn: the spans (start, end), in characters, that the assistant wrote.

    space: whether a SentencePiece vocabulary puts its own space before it: True, as before a text of its own; False,
    never, as where it continues a text; None, as the vocabulary has it at this place. No other vocabulary has one.
    """

    text: str
    learn: tuple[tuple[int, int], ...] = ()
    space: bool | None = None


Segment = Control | Text


@dataclass(frozen=True, slots=True)
class Prompt:
    """images: the pictures of the prompt, in the order in which their tokens stand in it."""

    segments: tuple[Segment, ...]
    images: tuple[ImagePart, ...] = ()

    @property
    def text(self) -> str:
        """For reading: control tokens are spelled out, so this does not tell them from text that spells the same."""
        return "".join([s.spelling if isinstance(s, Control) else s.text for s in self.segments])

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's token ids."""
        ids: list[int] = []
        for i, segment in enumerate(self.segments):
            if isinstance(segment, Control):
                ids.append(segment.id)
            else:
                ids += _encode(segment, i == 0, tokenizer)
        return ids

    def least(self, tokenizer: Tokenizer) -> int:
        """A number of tokens that the prompt has at the least, found without encoding it."""
        return sum(1 if isinstance(s, Control) else tokenizer.least(s.text) for s in self.segments)

    def encode_with_mask(self, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
        """The ids, and for each whether the assistant wrote it: the tokens a training loss is taken over.

        A token that is partly the assistant's counts as its own.
        """
        ids: list[int] = []
        mask: list[bool] = []
        for i, segment in enumerate(self.segments):
            if isinstance(segment, Control):
                ids.append(segment.id)
                mask.append(segment.learn)
                continue
            found = _encode(segment, i == 0, tokenizer)
            ids += found
            mask += _overlapping(segment, found, tokenizer)
        return ids, mask


def _encode(segment: Text, first: bool, tokenizer: Tokenizer) -> list[int]:
    if segment.space is None:
        return tokenizer.encode(segment.text, start=first)
    return tokenizer.encode(segment.text, start=True, space=segment.space)


def _overlapping(segment: Text, ids: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """Which tokens share a byte with a learnt span."""
    if not segment.learn:
        return [False] * len(ids)
    spans = [(_bytes(segment.text, start), _bytes(segment.text, end)) for start, end in segment.learn]
    data = segment.text.encode()
    mask = []
    at = 0
    for token in ids:
        raw = tokenizer.token_bytes(token)
        if not data.startswith(raw, at):
            if raw.startswith(b" ") and data.startswith(raw[1:], at):  # SentencePiece's own space before a text
                raw = raw[1:]
            else:  # a byte that the vocabulary lacks was left out
                at = max(at, data.find(raw, at))
        mask.append(any(at < end and start < at + len(raw) for start, end in spans))
        at += len(raw)
    return mask


def _bytes(text: str, characters: int) -> int:
    return len(text[:characters].encode())


class ChatFormat(Protocol):
    """Renders conversations for one model and reads its answers.

    name: for people. stop_ids: control tokens that end an answer.
    """

    @property
    def name(self) -> str: ...

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        learn: bool = False,
        **options: Any,
    ) -> Prompt:
        """The prompt of a conversation; with add_generation_prompt, up to where the assistant begins to speak.

        tools: functions the assistant may call. learn: mark what the assistant wrote, for encode_with_mask (formats
        that know it anyway always do). options: the format's own; one it does not know is refused.
        Raises UsageError for messages, tools or options it cannot express, TemplateError for a broken template.
        """
        ...

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        """The assistant's message, from the tokens it generated (or their text), tool calls included.

        tools: names that may be called; anything else stays text. None: any name. A call that is only spelled like one
        (JSON, a Python list) counts when its name is allowed; one that a control token introduces always counts.
        """
        ...


@dataclass(frozen=True, slots=True)
class CallStyle:
    """How a model is to spell calls in its answers.

    notation: json, tag, python or hermes of chat/calls.py, or list: a JSON list of {"name", "arguments"}.
    opening, closing: control tokens around the calls (hermes: around each). optional: the calls also count without
    them. builtin: between them may also stand a built-in tool's call, or code.
    """

    notation: Literal["json", "tag", "python", "hermes", "list"]
    opening: int | None = None
    closing: int | None = None
    optional: bool = False
    builtin: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What parse() makes of an answer's text, as far as it can be known before the answer's end (chat/streaming.py).

    whole: notations of calls that an answer may be in from its beginning to its end: json, python, builtin. marked:
    those whose calls stand among text: tag, hermes. tokens: control tokens behind which calls stand. spelled: control
    tokens are part of the text. stripped: the white space around the text is not.
    """

    whole: frozenset[str] = frozenset()
    marked: tuple[str, ...] = ()
    tokens: frozenset[int] = frozenset()
    spelled: bool = False
    stripped: bool = False


@runtime_checkable
class Streaming(Protocol):
    """A chat format whose answers can be read while they come; those of others are read at their end."""

    @property
    def reading(self) -> Reading: ...


@runtime_checkable
class Calling(Protocol):
    """A chat format whose model can call tools."""

    def call_style(self, **options: Any) -> CallStyle | None:
        """How, in a conversation rendered with these options; None where nobody knows."""
        ...


@dataclass(frozen=True, slots=True)
class Thoughts:
    """How a model's thoughts stand before its answer: between two texts, which may be control tokens (ids). prefilled:
    the prompt has opened them."""

    open: str
    close: str
    open_id: int | None
    close_id: int | None
    prefilled: bool


@runtime_checkable
class Thinking(Protocol):
    """A chat format whose model thinks before it answers."""

    @property
    def thoughts(self) -> Thoughts: ...


@runtime_checkable
class Remembering(Protocol):
    """A chat format that may be given what the assistant thought in earlier turns; others refuse it."""

    @property
    def takes_reasoning(self) -> bool: ...


def refuse_options(options: dict[str, Any], known: Sequence[str], name: str) -> None:
    """Raises UsageError for the first option that is not known."""
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise UsageError(f"there is no option {option!r}: the chat format {name} {takes}")


def refuse_images(messages: Sequence[Message], name: str) -> None:
    """Raises UsageError for the first message with an image."""
    for i, message in enumerate(messages):
        if message.images:
            raise UsageError(f"messages[{i}] has an image: the chat format {name} has no images, leave them out")


def refuse_reasoning(messages: Sequence[Message], name: str) -> None:
    """Raises UsageError for the first message with reasoning."""
    for i, message in enumerate(messages):
        if message.reasoning is not None:
            raise UsageError(f"messages[{i}] has reasoning_content: the chat format {name} has no place for it")
