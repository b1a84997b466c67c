"""The options of the verbs that generate, and a model loaded with them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from herder.cli.command import COUNT, FILE, INTEGER, NUMBER, TEXT, Option, Parsed, choice
from herder.cli.pull import OFFLINE
from herder.core.errors import HerderError, UsageError

if TYPE_CHECKING:
    from herder.completion import CompletionStream
    from herder.llm import LLM

# Named as in core.request.Sampling; a default of None leaves the choice to the model (chat) or to Sampling (--raw).
SAMPLING = (
    Option("--temperature", NUMBER, "Randomness; 0 always takes the likeliest token"),
    Option("--top-k", INTEGER, "Draw from the k likeliest tokens; 0 is off"),
    Option("--top-p", NUMBER, "Draw from the likeliest tokens that together have probability p; 1 is off"),
    Option("--min-p", NUMBER, "Leave out tokens less likely than p times the likeliest; 0 is off"),
    Option("--repetition-penalty", NUMBER, "Divide the logits of tokens that occurred (prompt and answer); 1 is off"),
    Option("--presence-penalty", NUMBER, "Lower the logits of tokens that the answer has; 0 is off"),
    Option("--frequency-penalty", NUMBER, "Lower them once for each time the answer has them; 0 is off"),
    Option("--seed", INTEGER, "The same prompt, options and seed give the same answer"),
)
LIMITS = (
    Option(
        "--max-tokens", COUNT, "Stop after this many tokens; without it, when the model ends or the context is full"
    ),
    Option("--stop", TEXT, "End the answer before this text; may be given several times", many=True),
)
FORMS = (
    Option("--schema", FILE, "Answer with JSON that this JSON Schema admits"),
    Option("--regex", TEXT, "Answer with a text that this regular expression matches whole"),
    Option("--choice", TEXT, "Answer with one of these texts; given once for each", many=True),
    Option("--grammar", FILE, "Answer with what this grammar admits, in llguidance's kind of Lark"),
)
PROMPT_DTYPE = Option(
    "--prompt-dtype",
    choice("auto", "int8", "bfloat16"),
    "Arithmetic of prompts: bfloat16 is faster where the CPU has AMX and rounds less, and auto takes it there; "
    "int8 gives the same bits on every CPU",
    "auto",
)
LOADING = (
    Option("--context", COUNT, "Longest prompt plus answer, in tokens; without it the model's, at most 8192"),
    Option("--threads", COUNT, "Threads; without it one per core this process may use"),
    Option(
        "--runtime",
        choice("native", "torch"),
        "native is Herder's core, on the CPU; torch is PyTorch, also for GPUs and images",
        "native",
    ),
    Option("--device", TEXT, "Where PyTorch runs: auto, cpu, cuda, cuda:1; auto takes a GPU if there is one", "auto"),
    Option(
        "--dtype",
        choice("auto", "float32", "bfloat16", "float16"),
        "auto computes in the stored formats (torch: in what suits the device), float32 expands everything; "
        "bfloat16 and float16 only with torch",
        "auto",
    ),
    PROMPT_DTYPE,
    OFFLINE,
)
SPECULATE = Option("--speculate", INTEGER, "Guess up to N tokens ahead from the text; changes speed, never the answer")
SYSTEM = Option("--system", TEXT, "The system message")
TEMPLATE = Option("--template", FILE, "A Jinja chat template to use instead of the model's own")
CHAT_FORMAT = Option("--chat-format", TEXT, "A chat format by name, such as llama3, instead of the model's own")


def sampling_options(parsed: Parsed) -> dict[str, Any]:
    """The sampling options that were given, named as herder.LLM takes them; checked before any model is loaded."""
    from herder.core.request import Sampling

    names = [option.name for option in SAMPLING] + ["logprobs"]
    values = {name: getattr(parsed, name, None) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    Sampling(**given)
    return given


def form_options(parsed: Parsed) -> dict[str, Any]:
    """The FORMS that were given, named as herder.LLM takes them. Raises UsageError for a file that is no JSON."""
    from herder.cli.terminal import read_file

    given: dict[str, Any] = {"regex": parsed.regex, "choice": parsed.choice or None}
    if parsed.schema is not None:
        try:
            given["schema"] = json.loads(read_file(parsed.schema))
        except (ValueError, RecursionError) as error:
            if isinstance(error, HerderError):
                raise
            raise UsageError(f"{parsed.schema} is not JSON: {error}") from None
    if parsed.grammar is not None:
        given["grammar"] = read_file(parsed.grammar)
    return {name: value for name, value in given.items() if value is not None}


def read_template(path: str | None) -> str | None:
    """The text of a template file. Raises UsageError when it cannot be read."""
    from herder.cli.terminal import read_file

    return None if path is None else read_file(path)


@contextlib.contextmanager
def loaded(model: str, parsed: Parsed, *, template: str | None = None) -> Iterator[LLM]:
    """The model, loaded with the LOADING options; fetched first, with a progress bar, if it is not here."""
    import herder
    from herder.cli.progress import transfer

    with transfer() as progress:
        llm = herder.load(
            model,
            context=parsed.context,
            threads=parsed.threads or 0,
            runtime=parsed.runtime,
            device=parsed.device,
            dtype=parsed.dtype,
            prompt_dtype=parsed.prompt_dtype,
            template=template,
            chat_format=getattr(parsed, "chat_format", None),
            speculate=getattr(parsed, "speculate", None) or 0,
            offline=parsed.offline,
            progress=progress,
        )
    with llm:
        yield llm


def start_chat(llm: LLM, model: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> CompletionStream:
    """Starts an answer. A base model is refused with the options that help on the command line."""
    from herder.core.errors import UnsupportedModel

    try:
        return llm.chat(messages, stream=True, **options)
    except UnsupportedModel as error:
        if llm.chat_format is not None:
            raise
        raise UnsupportedModel(
            f"{model} has no chat format: `herder run --raw` continues a text, --chat-format NAME or --template FILE "
            "gives the model one"
        ) from error
