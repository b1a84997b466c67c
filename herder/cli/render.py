"""herder render: the prompt that a list of messages becomes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from herder.cli.command import FILE, TEXT, Argument, Command, Option, Parsed
from herder.cli.generation import CHAT_FORMAT, TEMPLATE, read_template
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import harmless, print_json, read_file
from herder.core.errors import UnsupportedModel, UsageError

if TYPE_CHECKING:
    from herder.chat.format import Prompt

SPELLED_OUT = 8  # of one control token in a row


def render(parsed: Parsed) -> int:
    from herder.chat.load import load_chat_format
    from herder.chat.message import read_messages, read_tools
    from herder.prompt_images import PromptImages
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
        chat_format = load_chat_format(
            tokenizer, files.chat_templates, override=template, name=parsed.chat_format, model=files.name
        )
        if any(message.images for message in messages):
            messages = PromptImages(messages, files.config, runs_images=True).messages
    if chat_format is None:
        raise UnsupportedModel(f"{parsed.model} has no chat format: give one with --chat-format or --template")
    prompt = chat_format.render(
        messages, tools=tools or None, add_generation_prompt=not parsed.no_generation_prompt, **options
    )
    if parsed.json:
        print_json(prompt.encode(tokenizer))
    else:
        sys.stdout.write(harmless(_readable(prompt)))
        if sys.stdout.isatty():
            print()  # the shell's prompt starts on its own line; a pipe gets exactly the text
    return 0


def _readable(prompt: Prompt) -> str:
    """The prompt's text, where a long run of one control token is written once, with its length."""
    from itertools import groupby

    from herder.chat.format import Control

    pieces = []
    for one, run in groupby(prompt.segments, lambda segment: segment if isinstance(segment, Control) else None):
        found = list(run)
        if isinstance(one, Control) and len(found) > SPELLED_OUT:
            pieces.append(f"{one.spelling}... ({len(found)} in all)")
        else:
            pieces += [segment.spelling if isinstance(segment, Control) else segment.text for segment in found]
    return "".join(pieces)


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
            CHAT_FORMAT,
            Option("--option", TEXT, "NAME=VALUE, an option of the chat format such as date_string", many=True),
            OFFLINE,
        ),
        details="""
        Prints exactly the text that the model is given; control tokens are spelled out, and of many of a kind in a row,
        such as those of an image's patches, the number is said. The ids of --json are what the model sees: text that
        spells a control token is not one there. --chat-format is one of chatml, llama2, codellama,
        codellama-70b, llama3, llama4, mistral-v1, mistral-v2, mistral-v3, r1, llama-guard-1, llama-guard-2,
        llama-guard-3, llama-guard-3-1b, llama-guard-3-vision and llama-guard-4.
        """,
        examples=("herder render smollm2 messages.json", "herder render smollm2 - --json < messages.json"),
    )
}
