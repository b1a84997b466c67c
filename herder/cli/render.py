"""herder render: the prompt that a list of messages becomes."""

from __future__ import annotations

import json
import sys
from typing import Any

from herder.cli.command import FILE, TEXT, Argument, Command, Option, Parsed
from herder.cli.generation import TEMPLATE, read_template
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import harmless, print_json, read_file
from herder.core.errors import UnsupportedModel, UsageError


def render(parsed: Parsed) -> int:
    from herder.chat.load import load_chat_format
    from herder.chat.message import read_messages, read_tools
    from herder.text.load import load_tokenizer
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    messages = read_messages(_json(parsed.messages))
    tools = read_tools(_json(parsed.tools) if parsed.tools is not None else None)
    options = dict(_option(text) for text in parsed.option)
    template = read_template(parsed.template)
    with transfer() as progress:
        path = resolve(parsed.model, offline=parsed.offline, progress=progress)
    with open_model(path) as files:
        tokenizer = load_tokenizer(files.metadata if files.kind == "gguf" else files.path)
        chat_format = load_chat_format(tokenizer, files.chat_templates, override=template)
    if chat_format is None:
        raise UnsupportedModel(f"{parsed.model} has no chat format: give one with --template")
    prompt = chat_format.render(
        messages, tools=tools or None, add_generation_prompt=not parsed.no_generation_prompt, **options
    )
    if parsed.json:
        print_json(prompt.encode(tokenizer))
    else:
        sys.stdout.write(harmless(prompt.text))
        if sys.stdout.isatty():
            print()  # the shell's prompt starts on its own line; a pipe gets exactly the text
    return 0


def _json(file: str) -> Any:
    try:
        return json.loads(read_file(file))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{file} is not JSON: {error}") from None


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is meant as such, any other as text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"--option is {text!r}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


COMMANDS = {
    "render": Command(
        name="render",
        summary="Print the prompt that a list of messages becomes",
        run=render,
        arguments=(
            MODEL_ARGUMENT,
            Argument("messages", FILE, 'A JSON file: [{"role": "user", "content": "Hello"}, ...]; - is standard input'),
        ),
        options=(
            JSON._replace(help="Print the token ids as one JSON list"),
            Option(
                "--no-generation-prompt", None, "End after the last message, not where the assistant begins to speak"
            ),
            Option("--tools", FILE, "A JSON file with a list of tools, as OpenAI's API takes them"),
            TEMPLATE,
            Option("--option", TEXT, "NAME=VALUE, an option of the chat format such as date_string", many=True),
            OFFLINE,
        ),
        details="""
        Prints exactly the text that the model is given; control tokens are spelled out. The ids of --json are what the
        model sees: text that spells a control token is not one there.
        """,
        examples=("herder render smollm2 messages.json", "herder render smollm2 - --json < messages.json"),
    )
}
