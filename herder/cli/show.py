"""herder show: what a model is, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herder.cli.command import COUNT, Command, Option, Parsed
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import print_json, styled
from herder.core.errors import HerderError
from herder.core.sizes import bytes_text, count_text

if TYPE_CHECKING:
    from herder.weights.source import ModelFiles
    from herder.weights.summary import Summary


def show(parsed: Parsed) -> int:
    from herder.weights.source import open_model
    from herder.weights.store import resolve
    from herder.weights.summary import summarize

    with transfer() as progress:
        path = resolve(parsed.model, offline=parsed.offline, progress=progress)
    with open_model(path) as files:
        summary = summarize(files, parsed.context)
        chat = _chat(files)
    if parsed.json:
        print_json(_document(parsed.model, summary) | {"chat_format": chat})
    else:
        for name, value in _lines(summary, chat or "none: continues text"):
            print(f"{styled(name.ljust(12), '1')}  {value}")
    return 0


def _chat(files: ModelFiles) -> str | None:
    """The chat format's name; None for a model without one. A template that cannot be read is said, not raised."""
    from herder.chat.load import load_chat_format
    from herder.text.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(files.metadata if files.kind == "gguf" else files.path)
        found = load_chat_format(tokenizer, files.chat_templates, model=files.name)
    except HerderError as error:
        return f"unusable: {error}"
    return None if found is None else found.name


def _lines(summary: Summary, chat: str) -> list[tuple[str, str]]:
    config = summary.config
    rope = f"{config.rope.kind}, theta {config.rope.theta:g}"
    if config.rope.factor != 1:
        rope += f", factor {config.rope.factor:g}"
    lines = [
        ("name", summary.name),
        ("architecture", config.architecture),
        ("parameters", _parameters(summary)),
        ("layers", f"{config.layers} of dimension {config.dim}, feed-forward {config.ffn_dim}"),
        *_kinds(summary),
        ("heads", f"{config.heads} of {config.head_dim}, {config.kv_heads} for keys and values"),
        ("vocabulary", f"{config.vocab} tokens, " + ("head tied to the embedding" if config.tied else "own head")),
        ("context", f"{config.context} tokens"),
        ("rope", rope),
        ("size", f"{bytes_text(summary.file_bytes)}, {summary.bits_per_weight:.2f} bits per weight"),
        ("types", ", ".join(f"{s.tensors} {s.name} ({bytes_text(s.bytes)})" for s in summary.formats)),
        ("licence", summary.licence or "not stated in the file"),
        ("chat", chat),
        ("file", summary.paths[0] + (f" and {len(summary.paths) - 1} more" if len(summary.paths) > 1 else "")),
    ]
    for context, kv in summary.kv_bytes:
        total = summary.file_bytes + kv
        lines.append(("memory", f"{bytes_text(total)} at {context} tokens: file and {bytes_text(kv)} of KV cache"))
    return lines


def _parameters(summary: Summary) -> str:
    text = f"{count_text(summary.parameters)} ({summary.parameters:,})"
    if summary.config.experts is not None:
        text += f", {count_text(summary.active_parameters)} active"
    if summary.vision_parameters:
        text += f", {count_text(summary.vision_parameters)} of them for images"
    return text


def _kinds(summary: Summary) -> list[tuple[str, str]]:
    """What a dense model of full attention has nothing of: kinds of layers, experts, images."""
    from herder.weights.summary import describe

    config, lines = summary.config, []
    if len(summary.layers) > 1 or describe(summary.layers[0][0]) != "full attention":
        lines += [("attention", "; ".join(f"{count} x {describe(plan)}" for plan, count in summary.layers))]
    if (moe := config.experts) is not None:
        shared = f" and a shared one of {moe.shared_ffn_dim}" if moe.shared_ffn_dim else ""
        lines += [("experts", f"{moe.active} of {moe.count} of {moe.ffn_dim}{shared}, by {moe.router}")]
    if (vision := config.vision) is not None:
        tiles = f"up to {vision.max_tiles} tiles of {vision.tile} x {vision.tile} pixels"
        lines += [("images", f"{tiles}, {vision.layers} layers of dimension {vision.dim}")]
    return lines


def _document(model: str, summary: Summary) -> dict[str, Any]:
    import dataclasses

    return {
        "model": model,
        "name": summary.name,
        "kind": summary.kind,
        "paths": list(summary.paths),
        "file_bytes": summary.file_bytes,
        "licence": summary.licence,
        "parameters": summary.parameters,
        "active_parameters": summary.active_parameters,
        "vision_parameters": summary.vision_parameters,
        "bits_per_weight": summary.bits_per_weight,
        "types": [dataclasses.asdict(share) for share in summary.formats],
        "chat_template": summary.template,
        "chat_templates": list(summary.templates),
        "config": dataclasses.asdict(summary.config),
        "memory": [
            {"context": context, "kv_bytes": kv, "total_bytes": summary.file_bytes + kv}
            for context, kv in summary.kv_bytes
        ],
    }


COMMANDS = {
    "show": Command(
        name="show",
        summary="Print a model's shape, types, size, licence and memory need",
        run=show,
        arguments=(MODEL_ARGUMENT,),
        options=(
            Option("--context", COUNT, "Tokens to give the memory for; several times for several", many=True),
            JSON,
            OFFLINE,
        ),
        details="Reads no weights. Memory is the file and one sequence's 16-bit KV cache at the given context.",
        examples=("herder show smollm2", "herder show ./model.gguf --context 8192 --json"),
    )
}
