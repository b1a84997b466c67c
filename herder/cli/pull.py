"""herder pull: fetch a model, or bring it up to date."""

from __future__ import annotations

from herder.cli.command import MODEL, Argument, Command, Option, Parsed
from herder.cli.progress import transfer
from herder.cli.terminal import print_json

OFFLINE = Option("--offline", None, "Never use the network, whatever happens")
JSON = Option("--json", None, "Print one JSON document")

MODEL_ARGUMENT = Argument("model", MODEL, "A short name (smollm2), a hub name (org/name, org/name:Q4_K_M) or a path")


def pull(parsed: Parsed) -> int:
    from herder.weights import store

    with transfer() as progress:
        path = store.pull(parsed.model, offline=parsed.offline, progress=progress)
    if parsed.json:
        print_json({"model": parsed.model, "path": str(path)})
    else:
        print(path)
    return 0


COMMANDS = {
    "pull": Command(
        name="pull",
        summary="Fetch a model, or bring it up to date",
        run=pull,
        arguments=(MODEL_ARGUMENT,),
        options=(OFFLINE, JSON),
        details="""
        Prints the path. Short names are listed by `herder list --all`. Hub models go to the cache that huggingface_hub
        and the tools built on it share (HF_HUB_CACHE); only what is needed is fetched, an interrupted download goes on
        where it stopped, and every file is compared with its checksum. A gated model needs its licence accepted on its
        page and a token (`hf auth login`, or HF_TOKEN).
        """,
        examples=(
            "herder pull smollm2",
            "herder pull meta-llama/Llama-3.2-1B-Instruct",
            "herder pull org/name-GGUF:Q4_K_M",
            "herder pull org/name@v1.0",
        ),
    )
}
