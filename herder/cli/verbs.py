"""The verbs: where each one lives and what it is for, so that a list of them costs no import."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """module has a COMMAND (herder.cli.command.Command)."""

    module: str
    summary: str
    hidden: bool = False


VERBS: dict[str, dict[str, Verb]] = {
    "Talk": {
        "run": Verb("run", "Answer one prompt, from the command line or a pipe"),
        "chat": Verb("chat", "Talk with a model in the terminal"),
    },
    "Models": {
        "pull": Verb("pull", "Fetch a model, or bring it up to date"),
        "list": Verb("models", "List the models on this machine"),
        "models": Verb("catalogue", "Print the published models, their shapes and sizes, and what runs them"),
        "show": Verb("show", "Print a model's shape, types, size, licence and memory need"),
        "rm": Verb("models", "Delete a fetched model"),
        "convert": Verb("convert", "Write a model in another format, weight by weight the same"),
        "pack": Verb("pack", "Keep a model's packed weights on disk, so that it loads at once"),
    },
    "Serve": {
        "serve": Verb("serve", "Serve models to the clients of OpenAI, Anthropic, Gemini and Ollama"),
        "keys": Verb("keys", "Make, list and revoke the API keys of a server, and see what they used"),
    },
    "Look inside": {
        "tokenize": Verb("tokenize", "Turn text on standard input into token ids"),
        "render": Verb("render", "Print the prompt that a list of messages becomes"),
        "perplexity": Verb("perplexity", "Measure how well a model predicts a text"),
        "bench": Verb("bench", "Measure speed, and how near it is to this machine's limits"),
    },
    "Herder": {
        "doctor": Verb("doctor", "Check this machine and this installation"),
        "completion": Verb("shell", "Print the shell completion for bash, zsh or fish"),
        "version": Verb("version", "Print the version"),
        "complete": Verb("shell", "Print what a command line can go on with", hidden=True),
    },
}


def find(word: str) -> Verb | None:
    return next((verbs[word] for verbs in VERBS.values() if word in verbs), None)


def names(hidden: bool = False) -> list[str]:
    return [name for verbs in VERBS.values() for name, verb in verbs.items() if hidden or not verb.hidden]
