"""The help texts, made from the same description that the command line is parsed with."""

from __future__ import annotations

import textwrap

from herder.cli.command import Command
from herder.cli.terminal import styled, width
from herder.cli.verbs import VERBS

HELP = ("-h, --help", "Print this help")
DEBUG = ("--debug", "Print the traceback of an error")


def overview() -> str:
    """What `herder --help` prints."""
    lines = [styled("Usage:", "1") + " herder COMMAND [ARGUMENTS] [OPTIONS]", ""]
    lines += ["Runs every Llama on hardware you own. Start with: herder run smollm2 'Why is the sky blue?'", ""]
    for group, verbs in VERBS.items():
        shown = [(name, verb.summary) for name, verb in verbs.items() if not verb.hidden]
        lines += [styled(f"{group}:", "1"), *_columns(shown, 12), ""]
    options = [HELP, ("--version", "Print the version"), DEBUG]
    lines += [styled("Options:", "1"), *_columns(options, 12), ""]
    lines += ["`herder COMMAND --help` explains a command. Settings: HERDER_HOME (where models are kept),"]
    lines += ["HERDER_OFFLINE=1 (never use the network), NO_COLOR, HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE."]
    return "\n".join(lines)


def of(command: Command) -> str:
    """What `herder VERB --help` prints."""
    lines = [styled("Usage:", "1") + f" {command.usage}", "", f"{command.summary}.", ""]
    if command.details:
        for paragraph in textwrap.dedent(command.details).strip().split("\n\n"):
            lines += [*textwrap.wrap(paragraph, width()), ""]
    if command.commands:
        rows = [(one.word, one.summary) for one in command.commands]
        lines += [styled("Commands:", "1"), *_columns(rows, max(len(word) for word, _ in rows)), ""]
    arguments = [(argument.name.upper(), argument.help) for argument in command.arguments]
    options = [(option.usage, _with_default(option.help, option.default)) for option in command.options]
    options += [HELP, DEBUG]
    column = min(max(len(left) for left, _ in [*arguments, *options]), 28)
    if arguments:
        lines += [styled("Arguments:", "1"), *_columns(arguments, column), ""]
    lines += [styled("Options:", "1"), *_columns(options, column)]
    if command.examples:
        lines += ["", styled("Examples:", "1"), *(f"  {example}" for example in command.examples)]
    return "\n".join(lines)


def _with_default(text: str, default: object) -> str:
    if default is None or default is False:
        return text
    shown = ",".join(str(one) for one in default) if isinstance(default, tuple) else default
    return f"{text} [default: {shown}]"


def _columns(rows: list[tuple[str, str]], column: int) -> list[str]:
    """Two columns; a left side that is too wide gets a line of its own."""
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(width() - column - 4, 30)) or [""]
        if len(left) > column:
            lines.append(f"  {left}")
            lines += [" " * (column + 4) + text for text in wrapped]
        else:
            lines.append(f"  {left.ljust(column)}  {wrapped[0]}".rstrip())
            lines += [" " * (column + 4) + text for text in wrapped[1:]]
    return lines
