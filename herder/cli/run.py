"""herder run: one prompt in, the answer out as it comes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from herder.cli.command import FILE, INTEGER, TEXT, Argument, Command, Option, Parsed
from herder.cli.generation import (
    CHAT_FORMAT,
    FORMS,
    LIMITS,
    LOADING,
    SAMPLING,
    SPECULATE,
    SYSTEM,
    TEMPLATE,
    form_options,
    loaded,
    read_template,
    sampling_options,
    start_chat,
)
from herder.cli.images import image_part
from herder.cli.pull import JSON, MODEL_ARGUMENT
from herder.cli.terminal import harmless, note, print_json, read_standard_input
from herder.core.errors import UsageError
from herder.core.sizes import seconds_text

if TYPE_CHECKING:
    from herder.completion import Completion, CompletionStream
    from herder.core.request import TokenLogprob
    from herder.llm import LLM


def run(parsed: Parsed) -> int:
    if parsed.logprobs is not None and not parsed.json:
        raise UsageError("--logprobs needs --json: the streamed text has no place for them")
    plain = "--raw" if parsed.raw else "--suffix" if parsed.suffix is not None else None
    if plain is not None:
        for name in ("system", "template", "chat_format", "image"):
            if getattr(parsed, name):
                raise UsageError(f"{plain} uses no chat format: leave out --{name.replace('_', '-')}, or {plain}")
    options = sampling_options(parsed) | {"max_tokens": parsed.max_tokens, "stop": parsed.stop} | form_options(parsed)
    template = read_template(parsed.template)
    images = [image_part(path) for path in parsed.image]
    prompt = _prompt(parsed)
    started = time.monotonic()
    with loaded(parsed.model, parsed, template=template) as llm:
        ready = time.monotonic() - started
        with _start(llm, parsed, prompt, images, options) as stream:
            if not parsed.json:
                _print(stream)
            completion = stream.result()
        if parsed.json:
            print_json(_document(llm, parsed.model, completion, ready))
        if parsed.stats:
            note(statistics(completion) + f", loaded in {seconds_text(ready)}")
    return 0


def _prompt(parsed: Parsed) -> str:
    """The argument, standard input, or the one, an empty line, and the other. Chats lose the newline at the end."""
    given = None if parsed.prompt == "-" else parsed.prompt
    piped = read_standard_input() if _piped(given) else ""
    if not parsed.raw and parsed.suffix is None:
        piped = piped.rstrip("\n")
    prompt = "\n\n".join(part for part in (given, piped) if part)
    if not prompt:
        raise UsageError(
            f"PROMPT is missing: herder run {parsed.model} 'your question', or pipe one in; "
            f"`herder chat {parsed.model}` holds a conversation"
        )
    return prompt


def _piped(prompt: str | None) -> bool:
    """Whether standard input is to be read. With a prompt, only a pipe or a file is: anything else may never end."""
    import os
    import stat

    if sys.stdin is None:  # started with standard input closed
        return False
    if prompt is None:
        return not sys.stdin.isatty()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _start(
    llm: LLM, parsed: Parsed, prompt: str, images: list[dict[str, Any]], options: dict[str, Any]
) -> CompletionStream:
    if parsed.suffix is not None:
        return llm.infill(prompt, parsed.suffix, **options)
    if parsed.raw:
        return llm.generate(prompt, stream=True, **options)
    messages = [{"role": "system", "content": parsed.system}] if parsed.system is not None else []
    content: Any = [*images, {"type": "text", "text": prompt}] if images else prompt
    return start_chat(llm, parsed.model, [*messages, {"role": "user", "content": content}], options)


def _print(stream: CompletionStream) -> None:
    """The text as it comes, each piece flushed: the reader may be a person, or a program that waits for the first."""
    out = sys.stdout
    last = "\n"
    try:
        for piece in stream:
            out.write(harmless(piece))
            out.flush()
            last = piece
    finally:
        if not last.endswith("\n"):
            out.write("\n")


def statistics(completion: Completion) -> str:
    """One line: tokens and speed of both phases."""
    usage, timings = completion.usage, completion.timings
    new = usage.prompt_tokens - usage.cached_tokens
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    return (
        f"prompt {usage.prompt_tokens} tokens{cached} in {seconds_text(timings.prefill)} "
        f"({_rate(new, timings.prefill):.0f}/s), answer {usage.completion_tokens} tokens in "
        f"{seconds_text(timings.decode)} ({_rate(usage.completion_tokens - 1, timings.decode):.1f}/s), "
        f"seed {completion.seed}"
    )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 and tokens > 0 else 0.0


def _document(llm: LLM, model: str, completion: Completion, load: float) -> dict[str, Any]:
    usage, timings = completion.usage, completion.timings

    def described(one: TokenLogprob) -> dict[str, Any]:
        top = [{"token": token, "text": llm.tokenizer.decode([token]), "logprob": value} for token, value in one.top]
        return {"token": one.token, "text": llm.tokenizer.decode([one.token]), "logprob": one.logprob, "top": top}

    return {
        "model": model,
        "text": completion.text,
        "tokens": list(completion.tokens),
        "logprobs": [described(one) for one in completion.logprobs] or None,
        "finish_reason": str(completion.finish_reason),
        "stop": completion.stop,
        "seed": completion.seed,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
        },
        "timings": {
            "load": load,
            "queue": timings.queue,
            "prefill": timings.prefill,
            "decode": timings.decode,
            "prefill_tokens_per_s": _rate(usage.prompt_tokens - usage.cached_tokens, timings.prefill),
            "decode_tokens_per_s": _rate(usage.completion_tokens - 1, timings.decode),
        },
    }


COMMANDS = {
    "run": Command(
        name="run",
        summary="Answer one prompt, from the command line or a pipe",
        run=run,
        arguments=(
            MODEL_ARGUMENT,
            Argument("prompt", TEXT, "The prompt; without it, standard input is the prompt", optional=True),
        ),
        options=(
            SYSTEM,
            Option("--image", FILE, "An image before the prompt, for a vision model with --runtime torch", many=True),
            Option("--raw", None, "Continue the prompt as plain text, without the model's chat format"),
            Option("--suffix", TEXT, "Fill the gap between the prompt and this text, with Code Llama"),
            *LIMITS,
            *FORMS,
            *SAMPLING,
            Option(
                "--logprobs", INTEGER, "With --json: log-probabilities, and of N alternatives to each token", bare=0
            ),
            JSON,
            Option("--stats", None, "Print tokens and speed on standard error"),
            TEMPLATE,
            CHAT_FORMAT,
            SPECULATE,
            *LOADING,
        ),
        details="""
        The answer goes to standard output as it is generated, everything else to standard error. With a prompt and
        something piped in, the model sees the prompt, an empty line, and what was piped in (add </dev/null in a loop
        that reads a file itself). Sampling that is not given is what the model's makers recommend; with --raw it is
        greedy. Times in --json are in seconds, log-probabilities are natural logarithms.
        """,
        examples=(
            "herder run smollm2 'Why is the sky blue?'",
            "herder run smollm2 'Summarize this text.' < notes.txt",
            "herder run smollm2 --raw --temperature 0 --max-tokens 20 'Once upon a time'",
            "herder run smollm2 'Is the sky blue?' --choice yes --choice no",
            "herder run smollm2 --json --logprobs 3 --seed 1 'Hello' | jq .text",
        ),
    )
}
