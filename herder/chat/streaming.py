"""Answers read while they come: tokens in, pieces of text, reasoning and tool calls out as soon as they are certain.

What the pieces join to is what the format's parse() says of the whole answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from herder.chat import calls as notations
from herder.chat.format import Calling, CallStyle, ChatFormat, Reading, Streaming, Thinking, Thoughts
from herder.chat.gates import CallReader, Head, TextGate, ThoughtGate
from herder.chat.message import Message, ToolCall
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
    arguments are sent as they come, from where it begins (those of a python call when it is complete). Otherwise calls
    are sent at the answer's end, since until then something may follow that makes text of them.
    options: what the conversation was rendered with.

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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.message: Message | None = None
        self.cut: int | None = None
        self.reasoning_tokens = 0
        self._format = chat_format
        self._tokenizer = tokenizer
        self._tools = None if tools is None else frozenset(tools)
        self._stop = stop
        self._calls = calls
        self._tokens: list[int] = []
        self._whole: list[str] = []  # everything, as text
        self._said: list[str] = []  # what was sent: text,
        self._thought: list[str] = []  # thoughts,
        self._called: list[tuple[str, list[str]]] = []  # and calls
        source: object = chat_format
        self._reading = source.reading if isinstance(source, Streaming) else None
        self._thoughts: Thoughts | None = source.thoughts if isinstance(source, Thinking) else None
        self._style: CallStyle | None = None
        if isinstance(source, Calling):
            if not calls:
                self._reading = Reading()
            elif enforced:
                self._style = source.call_style(**(options or {}))
        self._thinking: ThoughtGate | None = None
        if self._thoughts is not None:
            self._thinking = ThoughtGate(self._thoughts.open, self._thoughts.close, self._thoughts.prefilled)
            self._reading = Reading()
        reading = self._reading or Reading()
        self._spelled = reading.spelled or self._thoughts is not None
        self._text = self._new_text()
        self._gate = TextGate(reading.whole, reading.marked, self._tools)
        self._reader: CallReader | None = None
        self._behind: str | None = None  # text behind a token that opens calls, as long as nobody knows what it is
        self._blank = reading.stripped or self._thoughts is not None  # white space that comes now is no text
        self._space = ""  # of a stripped text: white space that may be its end

    @property
    def stopped(self) -> str | None:
        return self._text.stopped

    def push(self, token: int) -> list[AnswerPiece]:
        """What has become certain with this token; often nothing."""
        if self.stopped is not None:
            return []
        self._tokens.append(token)
        pieces: list[AnswerPiece] = []
        if self._thinking is not None:
            self.reasoning_tokens += 1
        if self._reading is not None and token in self._reading.tokens and self._behind is None and not self._reader:
            self._read(self._text.finish(), pieces)
            self._say(self._gate.flush(), pieces)
            self._text = self._new_text()
            self._behind = ""
        elif self._thoughts is None or self._kept(token):
            self._read(self._text.push(token), pieces)
        return pieces

    def finish(self) -> list[AnswerPiece]:
        """The rest, when no more tokens come. Call it once."""
        pieces: list[AnswerPiece] = []
        self._read(self._text.finish(), pieces)
        self.message = message = self._parsed()
        if self._called and self._style is not None:  # what has been sent stands, however the answer was cut off
            if self._reader is not None and self._reader.open:
                self.cut = len(self._called) - 1
            complete = self._called[: self.cut]
            if self.cut is not None or len(message.tool_calls) != len(complete):
                made = tuple([ToolCall(name, json.loads("".join(parts))) for name, parts in complete])
                self.message = message = Message("assistant", "".join(self._said) or None, made)
        self._rest(message.reasoning, self._thought, ReasoningPiece, pieces)
        self._rest(message.text, self._said, TextPiece, pieces)
        for name, arguments in [(call.name, call.arguments) for call in message.tool_calls[len(self._called) :]]:
            if self.cut is None:
                number = len(self._called)
                self._called.append((name, []))
                pieces += [CallBegan(number, name), ArgumentsPiece(number, json.dumps(arguments, ensure_ascii=False))]
        if not message.reasoning:
            self.reasoning_tokens = 0
        return pieces

    # -----------------------------------------------------------------------------------------------------------------
    def _new_text(self) -> TextStream:
        return TextStream(self._tokenizer, stop=self._stop, skip_special=not self._spelled)

    def _kept(self, token: int) -> bool:
        """Whether a token is a part of an answer with thoughts."""
        assert self._thoughts is not None
        return token in (self._thoughts.open_id, self._thoughts.close_id) or not self._tokenizer.is_control(token)

    def _parsed(self) -> Message:
        if not self._calls and isinstance(self._format, Calling):
            return Message("assistant", "".join(self._whole))
        # Tokens say more than text (a control token announces a call), but know nothing of stop strings.
        whole: Sequence[int] | str = self._tokens if self.stopped is None else "".join(self._whole)
        return self._format.parse(whole, tools=self._tools)

    def _rest(
        self,
        whole: str | None,
        sent: list[str],
        kind: type[TextPiece] | type[ReasoningPiece],
        pieces: list[AnswerPiece],
    ) -> None:
        already = "".join(sent)
        if whole and whole.startswith(already) and len(whole) > len(already):
            pieces.append(kind(whole[len(already) :]))

    def _read(self, text: str, pieces: list[AnswerPiece]) -> None:
        """Takes the text of a token, or of several, through the gates."""
        if not text:
            return
        self._whole.append(text)
        if self._reading is None:
            return
        if self._thinking is not None:
            thought = self._thinking.push(text)
            if thought:
                self._thought.append(thought)
                pieces.append(ReasoningPiece(thought))
            if not self._thinking.done:
                return
            text, self._thinking = self._thinking.rest, None
        if self._reader is not None:
            self._call(text, pieces)
        elif self._behind is not None:
            self._read_behind(text, pieces)
        else:
            self._say(self._gate.push(text), pieces)
            self._begin_call(pieces)

    def _say(self, text: str, pieces: list[AnswerPiece]) -> None:
        """Sends text, without the white space that does not belong to it."""
        assert self._reading is not None
        text = self._space + text
        self._space = ""
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        if self._reading.stripped:
            self._space = text[len(text.rstrip()) :]
            text = text.rstrip()
        if text:
            self._said.append(text)
            pieces.append(TextPiece(text))

    def _begin_call(self, pieces: list[AnswerPiece]) -> None:
        """Whether what the gate holds back begins a call that a grammar holds to its form."""
        if self._style is None:
            return
        notation, gate = self._style.notation, self._gate
        reader = CallReader(notation, _json_of_python)
        if notation in ("tag", "hermes"):
            if gate.mark >= 0 and reader.begins(gate.held[gate.mark :]):
                self._reader = reader
                self._call(gate.cut(gate.mark), pieces)
        elif gate.held and gate.whole and reader.begins(gate.held):
            self._reader = reader
            self._call(gate.cut(0), pieces)

    def _read_behind(self, text: str, pieces: list[AnswerPiece]) -> None:
        """Text behind a token that opens calls; it may also be code, where there are built-in tools."""
        assert self._behind is not None
        self._behind += text
        if self._style is not None:
            reader = CallReader(self._style.notation, _json_of_python)
            if reader.begins(self._behind) and (not self._style.builtin or self._behind.lstrip()[:1] in ("{", "[")):
                self._reader = reader
                self._call(self._behind, pieces)

    def _call(self, text: str, pieces: list[AnswerPiece]) -> None:
        assert self._reader is not None
        for found in self._reader.push(text):
            number = len(self._called) - 1
            if isinstance(found, Head):
                self._called.append((found.name, []))
                pieces.append(CallBegan(number + 1, found.name))
            else:
                self._called[-1][1].append(found.text)
                if found.text:
                    pieces.append(ArgumentsPiece(number, found.text))
        if self._reader.done:
            rest, self._reader = self._reader.rest, None
            self._say(self._gate.push(rest), pieces)
            self._begin_call(pieces)


def _json_of_python(call: str) -> str:
    """The arguments of a call in Python, as JSON."""
    found = notations.read_python(f"[{call}]")
    assert found is not None, "a python call that is not in its form"
    return json.dumps(found.calls[0].arguments, ensure_ascii=False)
