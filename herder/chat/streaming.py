"""Answers read while they come: tokens in, pieces of text, reasoning and tool calls out as soon as they are certain.

What the pieces join to is what the format's parse() says of the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from herder.chat.format import ChatFormat
from herder.chat.message import Message
from herder.text.stream import TextStream
from herder.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Some more of the answer's text; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Some more of what the model thinks before it answers; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A tool call begins. call: 0, 1, ... within the answer."""

    call: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsPiece:
    """Some more of a call's arguments; the pieces of a call joined are one JSON object."""

    call: int
    json: str


AnswerPiece = TextPiece | ReasoningPiece | CallBegan | ArgumentsPiece


class AnswerStream:
    """Reads one answer, token by token: push() each, then finish().

    tools: names that may be called, as for ChatFormat.parse; None: any. stop: strings that end the answer (see
    TextStream); `stopped` is the one that did, and whoever pushes should then abort the request.
    calls: False: nothing is a call, whatever it looks like.
    enforced: a grammar (chat/tool_grammar.py) holds the answer to the form of calls, so a call is certain, and its
    arguments are sent as they come, from where it begins. Otherwise a call is sent when it is complete.

    After finish(): message is the whole answer, cut the number of the call that the answer's end left unfinished (its
    pieces are then no whole JSON), None without one. reasoning_tokens: how many tokens were thoughts, so far.
    """

    def __init__(
        self,
        chat_format: ChatFormat,
        tokenizer: Tokenizer,
        *,
        tools: Iterable[str] | None = None,
        stop: Sequence[str] = (),
        calls: bool = True,
        enforced: bool = False,
    ) -> None:
        self.message: Message | None = None
        self.cut: int | None = None
        self.reasoning_tokens = 0
        self._format = chat_format
        self._tools = None if tools is None else frozenset(tools)
        self._tokens: list[int] = []
        self._text = TextStream(tokenizer, stop=stop)
        self._pieces: list[str] = []

    @property
    def stopped(self) -> str | None:
        return self._text.stopped

    def push(self, token: int) -> list[AnswerPiece]:
        """What has become certain with this token; often nothing."""
        self._tokens.append(token)
        self._pieces.append(self._text.push(token))
        return []

    def finish(self) -> list[AnswerPiece]:
        """The rest, when no more tokens come. Call it once."""
        self._pieces.append(self._text.finish())
        whole: Sequence[int] | str = self._tokens if self.stopped is None else "".join(self._pieces)
        self.message = message = self._format.parse(whole, tools=self._tools)
        pieces: list[AnswerPiece] = []
        if message.reasoning:
            pieces.append(ReasoningPiece(message.reasoning))
        if message.text:
            pieces.append(TextPiece(message.text))
        for i, call in enumerate(message.tool_calls):
            pieces += [CallBegan(i, call.name), ArgumentsPiece(i, json.dumps(call.arguments, ensure_ascii=False))]
        return pieces
