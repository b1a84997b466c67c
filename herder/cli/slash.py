"""The commands of a chat, which begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from herder.cli.command import did_you_mean
from herder.cli.conversation import load, saved_names, saved_path
from herder.cli.generation import LIMITS, SAMPLING
from herder.cli.run import statistics
from herder.cli.session import Session
from herder.core.errors import UsageError

_SETTINGS = {option.name: option for option in (*SAMPLING, *LIMITS) if not option.many}
OFF = "off"


class Quit(Exception):
    """The user wants to leave."""


class Slash(NamedTuple):
    """run gets the session and what follows the command's name; it returns text for the model to answer, or None."""

    usage: str
    help: str
    run: Callable[[Session, str], str | None]


def run(session: Session, line: str) -> str | None:
    """Runs one command, given without its slash. Raises UsageError for one that does not exist."""
    name, _, rest = line.partition(" ")
    command = SLASH.get(name)
    if command is None:
        hint = did_you_mean(f"/{name}", [f"/{known}" for known in SLASH])
        raise UsageError(f"there is no command /{name}{hint}; /help lists them, // at the start sends a slash")
    return command.run(session, rest.strip())


def _help(session: Session, rest: str) -> None:
    width = max(len(command.usage) for command in SLASH.values())
    for command in SLASH.values():
        print(f"  {command.usage.ljust(width)}  {command.help}")
    print('Enter sends. Alt-Enter, a backslash at the end, or """ around a block make several lines.')
    print("Ctrl-C stops an answer, Ctrl-D ends the chat.")


def _system(session: Session, rest: str) -> None:
    conversation = session.conversation
    if rest:
        conversation.system = None if rest == OFF else rest
    print(conversation.system if conversation.system is not None else "no system message")


def _model(session: Session, rest: str) -> None:
    if rest:
        session.switch(rest)
    print(session.title)


def _save(session: Session, rest: str) -> None:
    if not rest:
        raise UsageError("name the conversation or a file: /save NAME")
    path = saved_path(rest)
    session.conversation.save(path)
    print(f"saved {len(session.conversation.messages)} messages to {path}")


def _load(session: Session, rest: str) -> None:
    if not rest:
        names = saved_names()
        raise UsageError(f"name a conversation or a file: /load NAME; saved are {', '.join(names) or 'none'}")
    session.replace(load(saved_path(rest)))
    print(f"loaded {len(session.conversation.messages)} messages; {session.title}")


def _clear(session: Session, rest: str) -> None:
    session.clear()
    print("the conversation is empty; the system message stays")


def _stats(session: Session, rest: str) -> None:
    print(session.title)
    print(f"{len(session.conversation.messages)} messages, {session.meter}")
    if session.last is not None:
        print(f"last: {statistics(session.last)}")


def _set(session: Session, rest: str) -> None:
    name, _, text = rest.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    settings = session.conversation.settings
    if not name:
        for one in _SETTINGS:
            print(f"  {one.ljust(20)}{settings.get(one, 'as the model has it')}")
        return
    option = _SETTINGS.get(name)
    if option is None or option.kind is None:
        raise UsageError(f"there is no setting {name}{did_you_mean(name, list(_SETTINGS))}; /set lists them")
    value: Any = None
    if text.strip() not in ("", OFF):
        try:
            value = option.kind.parse(text.strip())
        except ValueError:
            raise UsageError(f"{name} is {text.strip()!r}: {option.kind.rule}") from None
    session.conversation.set(name, value)
    print(f"{name} is {'as the model has it' if value is None else value}")


def _image(session: Session, rest: str) -> None:
    if rest == OFF:
        session.images.clear()
    elif rest:
        session.attach(rest)
    count = len(session.images)
    print(f"{count} image{'' if count == 1 else 's'} with the next message")


def _regenerate(session: Session, rest: str) -> str:
    if "seed" in session.conversation.settings:
        print("the seed is set, so the answer will be the same: /set seed off draws a new one")
    return session.take_back()


def _quit(session: Session, rest: str) -> None:
    raise Quit


SLASH: dict[str, Slash] = {
    "help": Slash("/help", "This list", _help),
    "system": Slash("/system [TEXT|off]", "Show or change the system message", _system),
    "model": Slash("/model [NAME]", "Show the model, or go on with another", _model),
    "set": Slash("/set [NAME VALUE|off]", "Show or change sampling: temperature, top_p, seed, max_tokens ...", _set),
    "image": Slash("/image [FILE|off]", "Show the model an image with the next message", _image),
    "regenerate": Slash("/regenerate", "Answer the last message anew", _regenerate),
    "clear": Slash("/clear", "Forget what was said", _clear),
    "save": Slash("/save NAME", "Write the conversation to a file", _save),
    "load": Slash("/load NAME", "Go on with a saved conversation", _load),
    "stats": Slash("/stats", "Tokens, speed and how full the context is", _stats),
    "quit": Slash("/quit", "End the chat", _quit),
}
