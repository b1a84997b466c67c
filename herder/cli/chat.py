"""herder chat: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from herder.cli import slash
from herder.cli.command import TEXT, Command, Option, Parsed
from herder.cli.conversation import Conversation, load, saved_path
from herder.cli.generation import (
    CHAT_FORMAT,
    LIMITS,
    LOADING,
    SAMPLING,
    SPECULATE,
    SYSTEM,
    TEMPLATE,
    loaded,
    read_template,
    sampling_options,
)
from herder.cli.pull import MODEL_ARGUMENT
from herder.cli.reader import LineReader, Reader, TerminalReader
from herder.cli.session import Session
from herder.cli.terminal import coloured, harmless, styled
from herder.core.errors import ContextOverflow, HerderError
from herder.core.request import FinishReason

if TYPE_CHECKING:
    from herder.completion import Completion


class View(Protocol):
    """Where the pieces of an answer go."""

    def write(self, piece: str) -> object: ...


def chat(parsed: Parsed) -> int:
    conversation = _conversation(parsed)
    template = read_template(parsed.template)
    with Session(conversation, lambda model: loaded(model, parsed, template=template), parsed.stop) as session:
        if sys.stdin.isatty() and sys.stdout.isatty():
            print(styled(f"{session.title}. /help lists the commands, Ctrl-D ends.", "2"))
            reader: Reader = TerminalReader(lambda: _toolbar(session), [f"/{name}" for name in slash.SLASH])
        else:
            reader = LineReader()
        return _loop(session, reader, plain=parsed.plain or not coloured(sys.stdout))


def _conversation(parsed: Parsed) -> Conversation:
    """What the command line says: a saved conversation or a new one, and the settings that were given."""
    from herder.weights.registry import DEFAULT

    if parsed.load is not None:
        conversation = load(saved_path(parsed.load))
        conversation.model = parsed.model or conversation.model
    else:
        conversation = Conversation(parsed.model or DEFAULT)
    if parsed.system is not None:
        conversation.system = parsed.system
    for name, value in (sampling_options(parsed) | {"max_tokens": parsed.max_tokens}).items():
        if value is not None:
            conversation.set(name, value)
    return conversation


def _loop(session: Session, reader: Reader, *, plain: bool) -> int:
    """Reads and answers until the end. An error is said and the chat goes on; without a terminal the last one's exit
    code is the program's."""
    terminal = not isinstance(reader, LineReader)
    code = 0
    while True:
        try:
            text = reader.read()
        except EOFError:
            return 0 if terminal else code
        except KeyboardInterrupt:
            if not terminal:
                raise
            continue
        try:
            if text.startswith("/") and not text.startswith("//"):
                before = list(session.conversation.messages)
                said = slash.run(session, text[1:])
            else:
                before = session.conversation.messages
                said = text.removeprefix("/") if text.startswith("//") else text
            if said:
                try:
                    _answer(session, said, plain=plain, terminal=terminal)
                except HerderError:
                    session.conversation.messages = before  # what /regenerate took back
                    raise
        except slash.Quit:
            return 0 if terminal else code
        except HerderError as error:
            hint = "; /clear forgets what was said" if isinstance(error, ContextOverflow) else ""
            print(f"herder: {error}{hint}", file=sys.stderr)
            code = error.exit_code


def _answer(session: Session, text: str, *, plain: bool, terminal: bool) -> None:
    """Shows the answer as it comes. Ctrl-C ends the answer; what came of it stays in the conversation."""
    with session.ask(text) as stream:
        view: AbstractContextManager[View] = nullcontext(sys.stdout) if plain else _markdown()
        with view as out:
            try:
                for piece in stream:
                    out.write(harmless(piece))
                    if plain:
                        sys.stdout.flush()
            except KeyboardInterrupt:
                stream.abort()
        completion = stream.result()
    if plain and not completion.text.endswith("\n"):
        print()
    session.keep(text, completion)
    if terminal:
        print(styled(_line(session, completion), "2"))


def _markdown() -> AbstractContextManager[View]:
    from rich.console import Console

    from herder.cli.markdown import MarkdownView

    return MarkdownView(Console())


def _line(session: Session, completion: Completion) -> str:
    """What is said below an answer."""
    timings, tokens = completion.timings, completion.usage.completion_tokens
    speed = f", {(tokens - 1) / timings.decode:.1f}/s" if tokens > 1 and timings.decode > 0 else ""
    ended = {FinishReason.ABORT: ", stopped", FinishReason.LENGTH: ", cut off by max_tokens or the context"}
    return f"{tokens} tokens{speed}{ended.get(completion.finish_reason, '')}; {session.meter}"


def _toolbar(session: Session) -> str:
    return f" {session.conversation.model}   {session.meter}"


COMMANDS = {
    "chat": Command(
        name="chat",
        summary="Talk with a model in the terminal",
        run=chat,
        arguments=(MODEL_ARGUMENT._replace(optional=True, help=MODEL_ARGUMENT.help + "; smollm2 if left out"),),
        options=(
            SYSTEM,
            Option("--load", TEXT, "Go on with a conversation that /save wrote: its name, or a file"),
            Option("--plain", None, "Show the text as it is, not as Markdown"),
            *LIMITS,
            *SAMPLING,
            TEMPLATE,
            CHAT_FORMAT,
            SPECULATE,
            *LOADING,
        ),
        details="""
        Ctrl-C stops an answer and Ctrl-D ends the chat; /help lists the commands. Alt-Enter, a backslash at the end of
        a line, or three quotes around a block make messages of several lines. What you typed is kept in a history file
        below HERDER_HOME or XDG_STATE_HOME. Without a terminal each line of standard input is a message, and only the
        answers are printed.
        """,
        examples=("herder chat", "herder chat llama3.2:1b --system 'Answer in one sentence.'"),
    )
}
