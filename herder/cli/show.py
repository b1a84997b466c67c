"""herder show: what a model is, and what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from herder.cache.plan import sequence_bytes
from herder.cli.command import COUNT, Command, Option, Parsed
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.shape import Lines, kv_text, parameters_text, shape_lines
from herder.cli.terminal import print_json, styled
from herder.core.errors import HerderError
from herder.core.sizes import bytes_text

if TYPE_CHECKING:
    from herder.assemble import NativeBytes
    from herder.weights.source import ModelFiles
    from herder.weights.summary import Summary


def show(parsed: Parsed) -> int:
    from herder.weights.source import open_model
    from herder.weights.store import resolve
    from herder.weights.summary import summarize

    with transfer() as progress:
        path = resolve(parsed.model, offline=parsed.offline, progress=progress)
        if parsed.verify:
            from herder.weights.checklist import verify

            verify(path if path.is_dir() else path.parent, progress)
    with open_model(path) as files:
        summary = summarize(files, parsed.context)
        needs = _needs(files)
        chat = _chat(files)
    if parsed.json:
        print_json(_document(parsed.model, summary, needs) | {"chat_format": chat})
    else:
        for name, value in _lines(summary, needs, chat or "none: continues text"):
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


def _lines(summary: Summary, needs: Needs, chat: str) -> Lines:
    config = summary.config
    lines = [
        ("name", summary.name),
        ("architecture", config.architecture),
        ("parameters", parameters_text(config, summary.parameters, summary.vision_parameters)),
        *shape_lines(config),
        ("size", f"{bytes_text(summary.file_bytes)}, {summary.bits_per_weight:.2f} bits per weight"),
        ("types", ", ".join(f"{s.tensors} {s.name} ({bytes_text(s.bytes)})" for s in summary.formats)),
        ("licence", summary.licence or "not stated in the file"),
        ("chat", chat),
        ("file", summary.paths[0] + (f" and {len(summary.paths) - 1} more" if len(summary.paths) > 1 else "")),
        ("weights", _weights(needs)),
    ]
    for context, _ in summary.kv_bytes:
        total = bytes_text(needs.native_bytes + sum(sequence_bytes(config, context)))
        lines.append(
            ("memory", f"{total} at {context} tokens: native weights and a KV cache of {kv_text(config, context)}")
        )
    return lines


class Needs(NamedTuple):
    """Bytes of weights in memory, by runtime. native: see assemble.native_bytes. torch: in bfloat16."""

    native: NativeBytes
    torch: int

    @property
    def native_bytes(self) -> int:
        return self.native.resident + self.native.active


def _needs(files: ModelFiles) -> Needs:
    from herder.assemble import native_bytes

    return Needs(native_bytes(files), 2 * sum(tensor.rows * tensor.cols for tensor in files.tensors))


def _weights(needs: Needs) -> str:
    native = f"native {bytes_text(needs.native_bytes)}"
    if needs.native.experts:
        rest = bytes_text(needs.native.experts - needs.native.active)
        native += f" and up to {rest} of experts as they are used"
    return f"{native}; torch {bytes_text(needs.torch)} in bfloat16, {bytes_text(2 * needs.torch)} in float32"


def _document(model: str, summary: Summary, needs: Needs) -> dict[str, Any]:
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
        "weights": {
            "native": needs.native._asdict(),
            "torch": {"bfloat16": needs.torch, "float32": 2 * needs.torch},
        },
        "memory": [_memory(summary, needs, context) for context, _ in summary.kv_bytes],
    }


def _memory(summary: Summary, needs: Needs, context: int) -> dict[str, int]:
    kv = sequence_bytes(summary.config, context)
    return {
        "context": context,
        "kv_bytes": sum(kv),
        "kv_local_bytes": kv.local,
        "total_bytes": needs.native_bytes + sum(kv),
    }


COMMANDS = {
    "show": Command(
        name="show",
        summary="Print a model's shape, types, size, licence and memory need",
        run=show,
        arguments=(MODEL_ARGUMENT,),
        options=(
            Option("--context", COUNT, "Tokens to give the memory for; several times for several", many=True),
            Option("--verify", None, "Compare the files with the MD5 sums of Meta's checklist.chk first"),
            JSON,
            OFFLINE,
        ),
        details="""
        Reads no weights but with --verify. Memory is what the native core makes of the file, which keeps quantized
        weights quantized, and one sequence's 16-bit KV cache at the given context. Layers of bounded reach (sliding
        window, chunks) keep no more of it than they see.
        """,
        examples=("herder show smollm2", "herder show ./model.gguf --context 8192 --json"),
    )
}
