"""Which files of a repository make up one model: the weights in one form only, and what is needed beside them.

Pure functions over {file name: bytes}; the same choice is made from a hub's listing and from a cache directory.

GGUF: one file, or all parts of one split file (`name-00001-of-00003.gguf`, as llama.cpp's gguf-split names them).
Hugging Face: `model.safetensors` or its shards, configuration and tokenizer. Where neither is there, Mistral's own
`consolidated.safetensors` or Meta's `consolidated.NN.pth`, with params.json; the pickles in the latter are read without
running anything (weights/unpickler.py). Other pickled weights (`.bin`) are never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from herder.core.errors import ModelNotFound, UnsupportedModel
from herder.core.sizes import bytes_text

SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "quantize_config.json",
    "quant_config.json",
    "params.json",
    "tekken.json",
)

_QUANTIZATION = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_[A-Z0-9]+)*|NVFP4|(?:B?F|FP)16|F32))(?=$|[-./])",
    re.IGNORECASE,
)
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")
_MODEL = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_SPARE = re.compile(r"(consolidated|adapter_model|optimizer)")
_MISTRAL = re.compile(r"consolidated(-\d{5}-of-\d{5})?\.safetensors")
_META = re.compile(r"consolidated(\.\d\d)?\.pth|(fp8|int4)_scales_\d+\.pt")
_RANK = re.compile(r"consolidated\.(\d\d)\.pth")


class Selection(NamedTuple):
    """files: everything to have. entry: the file to open, or None when the directory is the model."""

    files: tuple[str, ...]
    entry: str | None


class _Gguf(NamedTuple):
    """One model in GGUF form, whole or split. parts are sorted; missing counts parts that are not there."""

    parts: tuple[str, ...]
    missing: int
    bytes: int

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def quantization(self) -> str:
        return quantization(self.name)


def quantization(file: str) -> str:
    """The quantization that a GGUF file's name states ("Q4_K_M"), empty when it states none."""
    stem = _PART.sub("", file.removesuffix(".gguf"))
    found = _QUANTIZATION.findall(stem)
    return found[-1].upper() if found else ""


def gguf_models(files: Mapping[str, int]) -> list[_Gguf]:
    """The GGUF models among files, split ones joined, smallest first, without vision projectors and calibrations."""
    groups: dict[str, list[str]] = {}
    expected: dict[str, int] = {}
    for file in sorted(files):
        base = file.rpartition("/")[2].lower()
        if not base.endswith(".gguf") or "mmproj" in base or "imatrix" in base:
            continue
        part = _PART.search(file[: -len(".gguf")])
        key = file[: part.start()] + f"#{part.group(2)}" if part else file
        groups.setdefault(key, []).append(file)
        expected[key] = int(part.group(2)) if part else 1
    found = [
        _Gguf(tuple(parts), expected[key] - len(parts), sum(files[part] for part in parts))
        for key, parts in groups.items()
    ]
    return sorted(found, key=lambda model: (model.bytes, model.name))


def select(files: Mapping[str, int], wanted: str, where: str) -> Selection:
    """The files that make the model called wanted (a quantization, a GGUF file name, or empty for the only one).

    files: name -> bytes of everything in the repository. where: its name, for messages.
    Raises ModelNotFound when nothing or more than one thing fits, UnsupportedModel for pickled weights and adapters.
    """
    models = gguf_models(files)
    if wanted:
        return _gguf(_named(models, wanted, where), where)
    weights = _safetensors(files)
    if weights and "config.json" in files:
        part = _PART.search(weights[0].removesuffix(".safetensors"))
        if part and len(weights) != int(part.group(2)):
            raise ModelNotFound(f"{where} has {len(weights)} of {int(part.group(2))} shards: the model is incomplete")
        index = [file for file in ("model.safetensors.index.json",) if file in files and len(weights) > 1]
        return Selection((*weights, *index, *(file for file in SIDE_FILES if file in files)), None)
    if len(models) == 1:
        return _gguf(models[0], where)
    if models:
        raise ModelNotFound(f"{where} holds {len(models)} GGUF files: name one of them, {_choices(models, where)}")
    if consolidated := _consolidated(files, where):
        return Selection((*consolidated, *(file for file in SIDE_FILES if file in files)), None)
    if any(file.startswith("adapter_model.") for file in files):
        raise UnsupportedModel(f"{where} is an adapter, not a whole model: name the model that it was trained on")
    if "original/params.json" in files:
        raise UnsupportedModel(
            f"{where} has its weights only in Meta's own format, in original/: download that folder and give its path"
        )
    if any(file.endswith((".bin", ".pth", ".pt")) for file in files):
        raise UnsupportedModel(
            f"{where} has pickled weights only, which can run code when they are read: "
            "choose a repository with safetensors or GGUF files"
        )
    raise ModelNotFound(f"{where} holds no model: neither safetensors with a config.json nor GGUF files")


def _safetensors(files: Mapping[str, int]) -> list[str]:
    """Weights in Hugging Face's own names; without any, all other safetensors at the top that are weights."""
    top = sorted(file for file in files if "/" not in file and file.endswith(".safetensors"))
    return [file for file in top if _MODEL.fullmatch(file)] or [file for file in top if not _SPARE.match(file)]


def _consolidated(files: Mapping[str, int], where: str) -> list[str]:
    """The files of a model in Mistral's or Meta's own format, nothing without one. Raises ModelNotFound for a part."""
    if "params.json" not in files:
        return []
    parts = sorted(file for file in files if _MISTRAL.fullmatch(file))
    if parts:
        part = _PART.search(parts[0].removesuffix(".safetensors"))
        if part and len(parts) != int(part.group(2)):
            raise ModelNotFound(f"{where} has {len(parts)} of {int(part.group(2))} parts: the model is incomplete")
        return parts
    found = sorted(file for file in files if _META.fullmatch(file))
    ranks = [int(match[1]) for file in found if (match := _RANK.fullmatch(file))]
    if ranks and ranks != list(range(len(ranks))):
        raise ModelNotFound(f"{where} lacks one of the files before {max(found)}: the model is incomplete")
    return found if any(file.startswith("consolidated") for file in found) else []


def _named(models: list[_Gguf], wanted: str, where: str) -> _Gguf:
    if wanted.lower().endswith(".gguf"):
        found = [m for m in models if wanted in m.parts] or [m for m in models if m.name.rpartition("/")[2] == wanted]
    else:
        tag = wanted.upper()
        found = [m for m in models if m.quantization == tag]
        found = found or [m for m in models if m.quantization == f"UD-{tag}"]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelNotFound(f"{where} holds {len(found)} files of {wanted}: name one, {_choices(found, where, True)}")
    if models:
        raise ModelNotFound(f"{where} holds no GGUF file {wanted}: it has {_choices(models, where)}")
    raise ModelNotFound(f"{where} holds no GGUF files, so no {wanted}: leave out ':{wanted}' to use what it has")


def _gguf(model: _Gguf, where: str) -> Selection:
    if model.missing:
        raise ModelNotFound(f"{where} lacks {model.missing} of the parts of {model.name}: the model is incomplete")
    return Selection(model.parts, model.name)


def _choices(models: list[_Gguf], where: str, by_file: bool = False) -> str:
    tags = [model.quantization for model in models]
    texts = [
        f"{where}:{tag if tag and tags.count(tag) == 1 and not by_file else model.name} ({bytes_text(model.bytes)})"
        for model, tag in zip(models, tags, strict=True)
    ]
    return ", ".join(texts)
