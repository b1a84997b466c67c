"""convert(source, target): a model's files written again in another format, whole or not at all.

Everything is written under a temporary name beside the target, synced and renamed; an interruption leaves nothing. A
directory appears as a whole. The free space is compared with what will be written before the first byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

from herder.convert.tensors import FLOATS, Casts
from herder.convert.to_gguf import gguf_model
from herder.convert.to_hf import DTYPES, float_format, generation_config, hf_config, hf_tensors, kind_of
from herder.convert.to_meta import meta_params, meta_tensors, shared_tensors
from herder.convert.tokenizer_files import hf_settings, hf_vocabulary, spm_model, tiktoken_model
from herder.convert.vocabulary import Words, read_words
from herder.core.errors import StorageError, UnsupportedModel, UsageError
from herder.formats.table import Format
from herder.weights.output import Output
from herder.weights.source import ModelFiles
from herder.weights.storage import Progress, require_space, storing, sync_directory
from herder.weights.write_gguf import gguf_bytes, write_gguf
from herder.weights.write_safetensors import INDEX, index_of, shards, write_safetensors
from herder.weights.write_torch import write_torch

Kind = Literal["hf", "meta", "gguf"]
KINDS: tuple[Kind, ...] = ("hf", "meta", "gguf")
SHARD = 5_000_000_000  # bytes of a safetensors file, as in Hugging Face's own tools

_MODEL_MARKS = ("config.json", "params.json")  # what a directory that may be replaced holds
_REWRITTEN = ("quantization_config", "compression_config", "dtype", "torch_dtype")  # keys of config.json
_KIND = {"gguf": "gguf", "safetensors": "hf", "meta": "meta", "mistral": "mistral"}
_WAY_OUT = "free some space, or write it elsewhere"


@dataclass(frozen=True, slots=True)
class Report:
    """path: what was written. bytes: of all its files. rounded: tensors that a cast has changed -> how many weights."""

    path: Path
    kind: Kind
    tensors: int
    bytes: int
    rounded: dict[str, int]


@dataclass
class _Plan:
    """One file to be written, or a directory of them: name -> what writes it, and its size."""

    files: dict[str, tuple[Callable[[BinaryIO, Callable[[int], None]], None], int]] = field(default_factory=dict)

    def add(self, name: str, data: bytes | dict[str, Any]) -> None:
        raw = data if isinstance(data, bytes) else (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
        self.files[name] = (lambda file, advance: _write(file, raw)), len(raw)


def convert(
    files: ModelFiles,
    target: Path,
    *,
    kind: Kind | None = None,
    fmt: Format | None = None,
    shard_size: int = SHARD,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes an open model to `target`: a .gguf file, or a directory of Hugging Face's or Meta's files.

    kind: None is `gguf` for a target that ends so, else `hf`. fmt: F32, F16 or BF16, which matrices of floats (and, for
    a directory, quantized ones) are cast to; None keeps the bytes as they are. shard_size: bytes of a safetensors file.
    force: replace what is there, of a directory only one that holds a model.

    Raises UsageError, StorageError, and UnsupportedModel, by name, for what the format cannot say exactly.
    """
    kind = kind or ("gguf" if target.suffix == ".gguf" else "hf")
    _check(files, target, kind, fmt, shard_size, force)
    casts = Casts()
    if kind == "gguf":
        metadata, outputs = gguf_model(files, fmt, casts)
        plan = _Plan(
            {target.name: (lambda f, advance: write_gguf(f, metadata, outputs, advance), gguf_bytes(metadata, outputs))}
        )
    else:
        plan, outputs = (_hf if kind == "hf" else _meta)(files, fmt, shard_size, casts)
    total = sum(size for _, size in plan.files.values())
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, total, target.name, _WAY_OUT)
    with storing(target.parent, total, target.name, _WAY_OUT):
        written = _run(files, target, kind, plan, total, progress)
    return Report(target, kind, len(outputs), written, casts.rounded)


def _check(files: ModelFiles, target: Path, kind: Kind, fmt: Format | None, shard_size: int, force: bool) -> None:
    if files.vocabulary_only:
        raise UnsupportedModel(f"{files.path} holds only a vocabulary: there are no weights to convert")
    if fmt is not None and fmt not in FLOATS:
        raise UnsupportedModel(
            f"--type {fmt.name.lower()} would quantize the weights, which convert does not: use f32, f16, bf16"
        )
    if shard_size < 1:
        raise UsageError(f"shard size is {shard_size}: must be at least one byte")
    if _KIND[files.kind] == kind and kind != "hf":
        raise UsageError(f"{files.path} is in this format already: give --to with another one")
    if (kind == "gguf") != (target.suffix == ".gguf"):
        raise UsageError(
            f"{target} is to hold {kind}: give {'a name that ends in .gguf' if kind == 'gguf' else 'a directory'}"
        )
    resolved = target.resolve()
    if any(resolved in (path.resolve(), *path.resolve().parents) for path in files.paths):
        raise UsageError(f"{target} holds the model that is to be converted: write it elsewhere")
    if not os.path.lexists(target):
        return
    if not force:
        raise UsageError(f"{target} exists: give --force to replace it, or another name")
    if target.is_dir() and (kind == "gguf" or not any((target / mark).is_file() for mark in _MODEL_MARKS)):
        raise UsageError(
            f"{target} is a directory that holds no model, which --force does not replace: give another name"
        )
    if not target.is_dir() and kind != "gguf":
        raise UsageError(f"{target} is a file, and the model a directory: give another name")


def _hf(files: ModelFiles, fmt: Format | None, shard_size: int, casts: Casts) -> tuple[_Plan, list[Output]]:
    base = float_format(files, fmt)
    plan = _Plan()
    words = None if _KIND[files.kind] == "hf" else read_words(files)
    if words is None:
        kept = {key: value for key, value in files.metadata["config.json"].items() if key not in _REWRITTEN}
        plan.add("config.json", {**kept, "torch_dtype": DTYPES[base.name]})
        _carry(files.path, plan, but=("config.json",))
    else:
        plan.add("config.json", hf_config(files, base, words.special))
        plan.add("generation_config.json", generation_config(words.special))
        name, data = hf_vocabulary(words)
        original = files.path / name if files.path.is_dir() else None
        plan.add(name, original.read_bytes() if original is not None and original.is_file() else data)
        plan.add("tokenizer_config.json", hf_settings(words, files.chat_templates))
        if files.licence:
            plan.add("README.md", f"---\nlicense: {files.licence}\n---\n".encode())
    kind = files.config.architecture if words is None else kind_of(files.config)
    outputs = hf_tensors(files, kind, base, fmt, casts)
    groups = shards(outputs, shard_size)
    for name, group in groups.items():
        plan.files[name] = _safetensors(group)
    if len(groups) > 1:
        plan.add(INDEX, index_of(groups))
    return plan, outputs


def _safetensors(group: Sequence[Output]) -> tuple[Callable[[BinaryIO, Callable[[int], None]], None], int]:
    return lambda file, advance: write_safetensors(file, group, advance), sum(o.bytes + 160 for o in group)


def _meta(files: ModelFiles, fmt: Format | None, shard_size: int, casts: Casts) -> tuple[_Plan, list[Output]]:
    base = float_format(files, fmt)
    plan = _Plan()
    plan.add("params.json", meta_params(files))
    plan.add("tokenizer.model", _meta_tokenizer(files, read_words(files)))
    outputs = meta_tensors(files, base, fmt, casts)
    shared = shared_tensors(files.config)
    size = sum(output.bytes + 256 for output in outputs)
    plan.files["consolidated.00.pth"] = (lambda file, advance: write_torch(file, outputs, advance, shared)), size
    return plan, outputs


def _meta_tokenizer(files: ModelFiles, words: Words) -> bytes:
    """The model's own file where Hugging Face's repositories keep it, else one of the same vocabulary."""
    for name in ("original/tokenizer.model", "tokenizer.model"):
        path = files.path / name
        if files.path.is_dir() and path.is_file():
            return path.read_bytes()
    return tiktoken_model(words) if words.kind == "bpe" else spm_model(words)


def _carry(directory: Path, plan: _Plan, but: Sequence[str]) -> None:
    """The small files beside Hugging Face's weights, as they are."""
    from herder.weights.selection import SIDE_FILES

    for name in (*SIDE_FILES, "README.md", "LICENSE", "LICENSE.txt", "USE_POLICY.md"):
        path = directory / name
        if name not in but and path.is_file():
            plan.add(name, path.read_bytes())
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        plan.add(f"additional_chat_templates/{path.name}", path.read_bytes())


def _run(files: ModelFiles, target: Path, kind: Kind, plan: _Plan, total: int, progress: Progress | None) -> int:
    """Writes every file, then puts the whole in its place. Returns the bytes."""
    done = 0

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(f"Writing {target.name}", done, total)

    written = 0
    with _temporary(target, kind) as place:
        for name, (write, _) in plan.files.items():
            path = place if kind == "gguf" else place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            files.verify_unchanged()
            with open(path, "wb") as file:
                write(file, advance)
                file.flush()
                os.fsync(file.fileno())
                written += os.fstat(file.fileno()).st_size
        files.verify_unchanged()
        if kind != "gguf":
            sync_directory(place)
        _replace(place, target)
    return written


@contextmanager
def _temporary(target: Path, kind: Kind) -> Iterator[Path]:
    """A name beside the target that nothing has, gone afterwards."""
    place = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if kind != "gguf":
            place.mkdir()
        yield place
    finally:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def _replace(place: Path, target: Path) -> None:
    if target.is_dir():  # with force: out of the way first, since a directory does not replace another
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        os.rename(target, old)
        try:
            os.rename(place, target)
        except OSError as error:
            os.rename(old, target)
            raise StorageError(f"{target} cannot be replaced ({error.strerror}): nothing was changed") from error
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(place, target)
    sync_directory(target.parent)


def _write(file: BinaryIO, raw: bytes) -> None:
    file.write(raw)
