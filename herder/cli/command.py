"""What a verb understands, as data: parsing, help and shell completion all read the same description.

Why not a library: importing typer and building its commands takes 0.1 s, a third of the time in which `herder run` has
to show its first token; argparse cannot take an option between two positionals where the second may be missing
(`run MODEL --seed 1 PROMPT`), nor an option whose value may be left out in front of one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

from herder.core.errors import UsageError

Parsed = SimpleNamespace  # attributes are the names of arguments and options, `-` written `_`

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class Kind(NamedTuple):
    """A kind of value. parse raises ValueError; rule ends the message then. complete: "model", "file" or choices."""

    metavar: str
    parse: Callable[[str], Any]
    rule: str
    complete: str = ""


def _integers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if not values or min(values) < 1:
        raise ValueError
    return values


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def choice(*values: str) -> Kind:
    """One of a few words."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError
        return text

    return Kind("|".join(values), parse, f"must be one of {', '.join(values)}", " ".join(values))


TEXT = Kind("TEXT", str, "must be text")
FILE = Kind("FILE", str, "must be a path", "file")
MODEL = Kind("MODEL", str, "must be a model", "model")
INTEGER = Kind("N", int, "must be a whole number")
COUNT = Kind("N", _count, "must be a whole number, 1 or more")
COUNTS = Kind("N,N,...", _integers, "must be whole numbers, 1 or more, with commas between them")
NUMBER = Kind("X", float, "must be a number")


class Argument(NamedTuple):
    """A positional. optional: may be left out, and is None then. many: takes all that are left, as a list."""

    name: str
    kind: Kind
    help: str
    optional: bool = False
    many: bool = False


class Option(NamedTuple):
    """kind None is a switch. bare: the value when the option stands alone (its value may be left out). many: a list."""

    flag: str
    kind: Kind | None
    help: str
    default: Any = None
    bare: Any = None
    many: bool = False

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")

    @property
    def usage(self) -> str:
        if self.kind is None:
            return self.flag
        return f"{self.flag} [{self.kind.metavar}]" if self.bare is not None else f"{self.flag} {self.kind.metavar}"


class Command(NamedTuple):
    """A verb. run gets what was parsed and returns the exit code. commands: of a verb of several words, each a
    Command whose name has them all (`keys create`); the verb itself then has no arguments or options and is not run."""

    name: str
    summary: str
    run: Callable[[Parsed], int]
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    details: str = ""
    examples: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def usage(self) -> str:
        if self.commands:
            return f"herder {self.name} {'|'.join(command.word for command in self.commands)}"
        words = [f"{a.name.upper()}{'...' if a.many else ''}" for a in self.arguments]
        words = [f"[{word}]" if a.optional else word for a, word in zip(self.arguments, words, strict=True)]
        return " ".join(["herder", self.name, *words, *(["[OPTIONS]"] if self.options else [])])

    @property
    def word(self) -> str:
        """The last of its name."""
        return self.name.rpartition(" ")[2]

    def within(self, words: Sequence[str]) -> tuple[Command, list[str]]:
        """The command that words, the line after the verb, are for, and what follows its name. The verb itself when it
        has no commands or the first word names none of them."""
        for command in self.commands:
            if words and command.word == words[0]:
                return command.within(words[1:])
        return self, list(words)

    def parse(self, words: Sequence[str]) -> Parsed:
        """words, the command line after the verb, as values. Raises UsageError that says what would have been right.

        Options may stand anywhere; `--` ends them; `--option=value` and `--option value` are the same.
        """
        return _Parser(self, words).parse()


class _Parser:
    def __init__(self, command: Command, words: Sequence[str]) -> None:
        self.command, self.words, self.at = command, list(words), 0
        self.flags = {option.flag: option for option in command.options}
        self.values: dict[str, Any] = {o.name: [] if o.many else o.default for o in command.options}
        for option in command.options:
            if option.kind is None:
                self.values[option.name] = False

    def fail(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`herder {self.command.name} --help` lists what there is)")

    def parse(self) -> Parsed:
        if self.command.commands:
            known = [command.word for command in self.command.commands]
            if not self.words:
                self.fail(f"herder {self.command.name} needs one of {', '.join(known)}")
            word = self.words[0]
            self.fail(f"there is no command {self.command.name} {word!r}{did_you_mean(word, known)}")
        positionals: list[str] = []
        while self.at < len(self.words):
            word = self.words[self.at]
            self.at += 1
            if word == "--":
                positionals += self.words[self.at :]
                break
            if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
                self.option(word)
            else:
                positionals.append(word)
        arguments = self.command.arguments
        if arguments and arguments[-1].many:
            rest = positionals[len(arguments) - 1 :]
            positionals = positionals[: len(arguments) - 1]
            self.values[arguments[-1].name] = rest
            arguments = arguments[:-1]
        if len(positionals) > len(arguments):
            extra = positionals[len(arguments)]
            hint = ": put quotes around a prompt of several words" if arguments and arguments[-1].kind is TEXT else ""
            self.fail(f"{extra!r} is one argument too many{hint}")
        for argument, word in zip(arguments, positionals, strict=False):
            self.values[argument.name] = self.convert(argument.name.upper(), argument.kind, word)
        for argument in arguments[len(positionals) :]:
            if not argument.optional:
                self.fail(f"{argument.name.upper()} is missing: {self.command.usage}")
            self.values[argument.name] = None
        return Parsed(**self.values)

    def option(self, word: str) -> None:
        flag, equals, text = word.partition("=")
        option = self.flags.get(flag)
        if option is None:
            self.fail(f"there is no option {flag}{did_you_mean(flag, self.flags)}")
        if option.kind is None:
            if equals:
                self.fail(f"{flag} takes no value")
            self.values[option.name] = True
            return
        value = self.convert(flag, option.kind, text) if equals else self.next_value(option)
        if option.many:
            self.values[option.name].append(value)
        else:
            self.values[option.name] = value

    def next_value(self, option: Option) -> Any:
        following = self.words[self.at] if self.at < len(self.words) else None
        assert option.kind is not None
        if option.bare is not None:
            try:
                value = option.kind.parse(following or "")
            except ValueError:
                return option.bare
            self.at += 1
            return value
        if following is None or following.partition("=")[0] in self.flags:
            self.fail(f"{option.flag} needs a value: {option.usage}")
        self.at += 1
        return self.convert(option.flag, option.kind, following)

    def convert(self, what: str, kind: Kind, text: str) -> Any:
        try:
            return kind.parse(text)
        except ValueError:
            self.fail(f"{what} is {text!r}: {kind.rule}")


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """ ": did you mean X?", or nothing when no known word is near."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""


def unknown_verb(word: str, verbs: Sequence[str]) -> UsageError:
    """The error for a first word that is no verb."""
    from herder.weights.registry import MODELS

    hint = f": did you mean `herder run {word}`?" if word in MODELS else did_you_mean(word, verbs)
    return UsageError(f"there is no command {word!r}{hint} (`herder --help` lists them)")
