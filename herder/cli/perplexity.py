"""herder perplexity: how well a model predicts a text."""

from __future__ import annotations

from herder.cli.command import COUNT, FILE, Argument, Command, Option, Parsed
from herder.cli.generation import LOADING, loaded
from herder.cli.progress import counting
from herder.cli.pull import JSON, MODEL_ARGUMENT
from herder.cli.terminal import note, print_json, read_file
from herder.core.errors import UsageError


def perplexity(parsed: Parsed) -> int:
    from herder.evals.perplexity import measure, windows

    if parsed.context < 2:
        raise UsageError(f"--context is {parsed.context}: a window needs 2 tokens or more")
    text = read_file(parsed.file)
    with loaded(parsed.model, parsed) as llm:
        tokens = llm.tokenizer.encode(text, bos=llm.tokenizer.add_bos)
        total = sum(1 for _ in windows(tokens, parsed.context))
        with counting("scoring", total) as progress:
            for result in measure(llm.score, tokens, parsed.context):
                progress(result.windows, f"perplexity {result.perplexity:.3f}")
    if parsed.json:
        print_json(
            {
                "model": parsed.model,
                "perplexity": result.perplexity,
                "tokens": result.tokens,
                "nll": result.nll,
                "windows": result.windows,
                "context": parsed.context,
                "text_tokens": len(tokens),
            }
        )
    else:
        print(f"{result.perplexity:.4f}")
        note(f"{result.tokens} tokens scored in {result.windows} windows of {parsed.context}")
    return 0


COMMANDS = {
    "perplexity": Command(
        name="perplexity",
        summary="Measure how well a model predicts a text",
        run=perplexity,
        arguments=(MODEL_ARGUMENT, Argument("file", FILE, "A UTF-8 text file; - is standard input")),
        options=(
            Option("--context", COUNT, "Tokens of a window", 512),
            *(option for option in LOADING if option.flag != "--context"),
            JSON,
        ),
        details="""
        The text's tokens, with the model's BOS first where it wants one (and only there), are cut into windows that do
        not overlap. Each is scored by itself; its first token, which nothing precedes, is not scored. Perplexity is
        exp(-mean log-probability) over all scored tokens. --json adds how many tokens were scored (tokens), the sum of
        their negative log-probabilities in nats (nll), and the windows.
        """,
        examples=("herder perplexity smollm2 book.txt --context 512 --json",),
    )
}
