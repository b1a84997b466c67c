"""herder list and herder rm: what is on this machine."""

from __future__ import annotations

import time

from herder.cli.command import Command, Option, Parsed
from herder.cli.pull import JSON, MODEL_ARGUMENT
from herder.cli.terminal import note, print_json, table
from herder.core.sizes import bytes_text


def list_(parsed: Parsed) -> int:
    from herder.weights import registry, store

    models = store.list_models()
    here = {model.name for model in models}
    absent = [name for name in registry.MODELS if name not in here] if parsed.all else []
    if parsed.json:
        rows: list[dict[str, object]] = [model._asdict() | {"path": str(model.path)} for model in models]
        print_json(
            rows + [{"name": name, "path": None, "bytes": None, "used": None, "origin": None} for name in absent]
        )
        return 0
    lines = [[m.name, bytes_text(m.bytes), _ago(m.used), m.origin, str(m.path)] for m in models]
    lines += [[name, "", "", "not fetched", registry.MODELS[name].title] for name in absent]
    if lines:
        table(["NAME", "SIZE", "USED", "FROM", "PATH"], lines, right=frozenset({1}))
    else:
        note("no model is on this machine yet: `herder pull smollm2` fetches the default one (93 MB)")
    return 0


def rm(parsed: Parsed) -> int:
    from herder.weights import store

    freed = store.remove(parsed.model)
    note(f"removed {parsed.model}, {bytes_text(freed)} freed")
    return 0


def _ago(used: float | None) -> str:
    """How long ago, in the largest unit that says enough."""
    if used is None:
        return ""
    seconds = max(0.0, time.time() - used)
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


COMMANDS = {
    "list": Command(
        name="list",
        summary="List the models on this machine",
        run=list_,
        options=(Option("--all", None, "Also the short names that are not fetched yet"), JSON),
        details="""
        Most recently used first: what Herder has fetched, and what any tool that uses huggingface_hub has left in the
        shared cache in a form Herder reads. A model file of your own needs no listing: name its path.
        """,
        examples=("herder list", "herder list --all", "herder list --json"),
    ),
    "rm": Command(
        name="rm",
        summary="Delete a fetched model",
        run=rm,
        arguments=(MODEL_ARGUMENT,),
        details="""
        Deletes a model that was fetched by name. Files of your own are never deleted. A model in the shared Hugging
        Face cache is gone for the other tools that use it too.
        """,
        examples=("herder rm smollm2", "herder rm org/name-GGUF:Q4_K_M"),
    ),
}
