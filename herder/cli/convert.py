"""herder convert: a model's files in another format, weight by weight the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from herder.cli.command import FILE, Argument, Command, Kind, Option, Parsed, choice
from herder.cli.progress import transfer
from herder.cli.pull import JSON, MODEL_ARGUMENT, OFFLINE
from herder.cli.terminal import note, print_json
from herder.core.sizes import bytes_text

if TYPE_CHECKING:
    from herder.convert.convert import Report

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"([1-9]\d{0,14})([KMG]I?B|)")


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.upper())
    if match is None:
        raise ValueError
    return int(match[1]) * _UNITS[match[2]]


SIZE = Kind("SIZE", _size, "must be a size such as 5GB or 500MB")


def convert(parsed: Parsed) -> int:
    from herder.convert.convert import SHARD
    from herder.convert.convert import convert as write
    from herder.formats.table import BY_NAME
    from herder.weights.source import open_model
    from herder.weights.store import resolve

    fmt = None if parsed.type is None else BY_NAME[parsed.type.upper()]
    with transfer() as progress:
        path = resolve(parsed.model, offline=parsed.offline, progress=progress)
        with open_model(path) as files:
            report = write(
                files,
                Path(parsed.dest),
                kind=parsed.to,
                fmt=fmt,
                shard_size=SHARD if parsed.shard_size is None else parsed.shard_size,
                force=parsed.force,
                progress=progress,
            )
    if parsed.json:
        print_json(
            {
                "path": str(report.path), "format": report.kind, "tensors": report.tensors, "bytes": report.bytes,
                "rounded": report.rounded,
            }
        )  # fmt: skip
    else:
        _say(report, parsed.type)
    return 0


def _say(report: Report, kind: str | None) -> None:
    if report.rounded:
        weights = sum(report.rounded.values())
        note(f"{weights:,} weights of {len(report.rounded)} tensors were rounded: {kind} cannot hold them exactly")
    note(f"{report.tensors} tensors, {bytes_text(report.bytes)}")
    print(report.path)


COMMANDS = {
    "convert": Command(
        name="convert",
        summary="Write a model in another format, weight by weight the same",
        run=convert,
        arguments=(MODEL_ARGUMENT, Argument("dest", FILE, "A .gguf file, or a directory for --to hf and meta")),
        options=(
            Option("--to", choice("hf", "meta", "gguf"), "The format; by default what DEST says: .gguf, else hf"),
            Option("--type", choice("f32", "f16", "bf16"), "Cast the weights to this type; rounding is reported"),
            Option("--shard-size", SIZE, "With hf: the largest file, such as 5GB, the default"),
            Option("--force", None, "Replace DEST if it is there and holds a model"),
            JSON,
            OFFLINE,
        ),
        details="""
        Between Hugging Face's files (hf), Meta's (meta: params.json and consolidated.00.pth) and GGUF, with the
        vocabulary, the chat template and the stop tokens. Weights keep their bytes, quantized ones too where the format
        holds them: GPTQ, AWQ and the like become GGUF blocks where that is exact. What the format cannot say exactly is
        refused by name. Quantized weights become a directory only with --type, which expands them. DEST appears whole
        or not at all.
        """,
        examples=(
            "herder convert org/name model.gguf",
            "herder convert model.gguf model/ --to hf --type bf16",
            "herder convert Llama-2-7b/ llama-2.gguf",
            "herder convert org/name original/ --to meta",
        ),
    )
}
