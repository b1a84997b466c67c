"""The entry point: finds the verb, runs it, and turns what can go wrong into one line and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from herder.cli import verbs
from herder.core.errors import HerderError, StorageError

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command line (sys.argv by default) and returns its exit code."""
    arguments = list(sys.argv[1:] if words is None else words)
    # --debug belongs to no verb and may stand anywhere; what follows -- is never an option.
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [word for word in arguments[:end] if word != "--debug"] + arguments[end:]
    if sys.stdout is None:  # started with standard output closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be no UTF-8, and a model may write what this terminal cannot show: neither is an error.
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "replace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except HerderError as error:
        if debug:
            raise
        print(f"herder: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print(file=sys.stderr)  # the next prompt starts on its own line
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except OSError as error:  # a full disk under standard output, a directory that may not be read, ...
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"herder: {where}{error.strerror or error}", file=sys.stderr)
        _forget_output()
        return StorageError.exit_code


def command(word: str) -> object:
    """The Command of a verb that exists; imports its module."""
    import importlib

    verb = verbs.find(word)
    assert verb is not None
    return importlib.import_module(f"herder.cli.{verb.module}").COMMANDS[word]


def _run(arguments: list[str]) -> int:
    from herder.cli.command import Command, unknown_verb

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if len(arguments) < 2 or arguments[0] != "help":
            from herder.cli import usage

            print(usage.overview())
            return 0
        arguments = [*arguments[1:], "--help"]
    if arguments[0] == "--version":
        arguments[0] = "version"
    word, rest = arguments[0], arguments[1:]
    if verbs.find(word) is None:
        raise unknown_verb(word, verbs.names())
    found = command(word)
    assert isinstance(found, Command)
    found, rest = found.within(rest)
    options = rest[: rest.index("--")] if "--" in rest else rest
    if word != "complete" and ("-h" in options or "--help" in options):
        from herder.cli import usage

        print(usage.of(found))
        return 0
    return found.run(found.parse(rest))


def _forget_output() -> None:
    """Keeps the interpreter from complaining, at exit, that standard output is gone."""
    import contextlib

    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
