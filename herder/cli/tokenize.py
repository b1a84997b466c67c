"""herder tokenize: text in, token ids out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from herder.cli.command import Command, Option, Parsed
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import print_json, read_standard_input
from herder.core.errors import UsageError

if TYPE_CHECKING:
    from herder.text.tokenizer import Tokenizer


def open_tokenizer(model: str, offline: bool) -> Tokenizer:
    """The tokenizer of a model, or in a file of its own; no weight is read."""
    from herder.text.load import load_tokenizer
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    with transfer() as progress:
        path = resolve(model, offline=offline, progress=progress)
    if path.is_dir() or path.suffix in (".json", ".model"):
        return load_tokenizer(path)
    with open_model(path) as files:
        return load_tokenizer(files.metadata)


def tokenize(parsed: Parsed) -> int:
    text = read_standard_input()
    tokenizer = open_tokenizer(parsed.model, parsed.offline)
    if parsed.bos and tokenizer.bos_id is None:
        raise UsageError(f"{parsed.model} has no BOS token: leave out --bos")
    ids = tokenizer.encode(text, bos=parsed.bos, special=parsed.special)
    if parsed.json:
        print_json(ids)
    else:
        for token in ids:
            print(f"{token}\t{tokenizer.token(token)}")
    return 0


COMMANDS = {
    "tokenize": Command(
        name="tokenize",
        summary="Turn text on standard input into token ids",
        run=tokenize,
        arguments=(MODEL_ARGUMENT._replace(help=MODEL_ARGUMENT.help + "; a GGUF with a vocabulary only will do"),),
        options=(
            Option("--bos", None, "Put the model's BOS token first"),
            Option("--special", None, "Read the spellings of control tokens, such as <|eot_id|>, as those tokens"),
            JSON._replace(help="Print the ids as one JSON list"),
            OFFLINE,
        ),
        details="""
        Prints one token a line: its id and its spelling in the vocabulary. The text is taken exactly, a newline at the
        end included; use printf rather than echo. Without --special, control tokens spelled out in the text are text.
        """,
        examples=(
            "printf 'Hello world' | herder tokenize smollm2 --json",
            "herder tokenize tokenizer.model < book.txt",
        ),
    )
}
