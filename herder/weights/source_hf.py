"""A Hugging Face directory as ModelFiles: config.json, safetensors files, and the small files beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from herder.core.config import ModelConfig
from herder.core.errors import ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.config_hf import config_from_hf
from herder.weights.fields import short
from herder.weights.images_hf import image_keys, with_preprocessing
from herder.weights.names import ATTENTION_BIASES, MLP_BIASES, Role
from herder.weights.safetensors import SafeTensor, SafeTensors, parse_object
from herder.weights.source import ModelFiles, TensorSource, check_complete, check_shape_sanity
from herder.weights.tensors_hf import HubTensors

if TYPE_CHECKING:
    from herder.weights.quantized.made import Made

MAX_JSON = 64 << 20  # bytes; the largest real ones are tokenizer_config.json with a list of special tokens
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # as transformers names them
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")

_LICENCE = re.compile(r"^license(?:_name)?:[ \t]*([^\s#][^\n#]{0,100})", re.MULTILINE)


class Stored(NamedTuple):
    """A tensor and the file it is in."""

    shard: SafeTensors
    info: SafeTensor


def open_directory(directory: Path) -> ModelFiles:
    """Raises ModelNotFound, ModelFileError, UnsupportedModel."""
    documents = {name: _json(directory / name) for name in ("config.json", "generation_config.json")}
    documents |= {name: _json(directory / name) for name in ("tokenizer_config.json", "chat_template.json")}
    documents |= {name: _json(directory / name) for name in ("preprocessor_config.json", "processor_config.json")}
    metadata = {name: document for name, document in documents.items() if document is not None}
    raw = metadata["config.json"]
    where = str(directory / "config.json")
    shards: list[SafeTensors] = []
    try:
        config = config_from_hf(where, raw, _name(directory), _licence(directory))
        check_shape_sanity(where, config)
        if config.vision is not None and (images := image_keys(str(directory), metadata)) is not None:
            config = replace(config, vision=with_preprocessing(images, config.vision))
        paths, index = _weight_files(directory)
        for path in paths:
            shards.append(SafeTensors(path))
        tensors = _tensors(where, directory, config, raw, shards, index)
        generation = metadata.get("generation_config.json", {})
        text = _text_keys(raw)
        eos = _ids(where, "eos_token_id", generation, text, config.vocab)
        bos = _ids(where, "bos_token_id", generation, text, config.vocab)
        return ModelFiles(
            kind="safetensors",
            path=directory,
            files=[shard.file for shard in shards],
            config=config,
            tensors=tensors,
            metadata=metadata,
            chat_templates=_chat_templates(directory, metadata),
            bos=bos[0] if bos else None,
            eos=eos[0] if eos else None,
            stop_token_ids=frozenset(eos),
            name=config.name,
            licence=config.licence,
        )
    except BaseException:
        for shard in shards:
            shard.close()
        raise


def _json(path: Path) -> dict[str, Any] | None:
    raw = _read(path, MAX_JSON)
    return None if raw is None else parse_object(raw, path)


def _read(path: Path, limit: int) -> bytes | None:
    """The file's bytes, or None when there is no such file."""
    try:
        with open(path, "rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if len(raw) > limit:
        raise ModelFileError(f"{path} is larger than {limit >> 20} MiB: it is not the file of a model")
    return raw


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """model.safetensors, or the shards that model.safetensors.index.json names, as transformers chooses; and the index:
    tensor name -> file name."""
    single, index_path = (directory / name for name in WEIGHTS)
    if single.exists():
        return [single], {}
    index = _json(index_path)
    if index is None:
        if pickles := sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pth", ".pt")):
            raise UnsupportedModel(
                f"{directory} has its weights in {pickles[0]}, a pickle of another tool's: convert it to safetensors"
            )
        raise ModelNotFound(f"{directory} has no model.safetensors and no {index_path.name}: download the weights too")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index_path}: weight_map is {short(weight_map)}, not an object of file names")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise ModelFileError(
                f"{index_path}: tensor {short(tensor)} lies in {short(name)}, not the name of a safetensors file"
            )
    names = sorted(set(weight_map.values()))
    for name in names:
        if not (directory / name).exists():
            raise ModelNotFound(f"{directory / name} is missing (the model has {len(names)} files): download it too")
    return [directory / name for name in names], weight_map


def _tensors(
    where: str,
    directory: Path,
    config: ModelConfig,
    raw: Mapping[str, Any],
    shards: list[SafeTensors],
    index: Mapping[str, str],
) -> list[TensorSource]:
    """The tensors of all files, checked against the configuration and the index."""
    stored = _stored(directory, shards, index)
    reader = HubTensors(config)
    tensors: list[TensorSource] = []
    taken: frozenset[str] = frozenset()
    said, quantization = _quantization(where, directory, raw)
    if quantization is not None:
        made, taken = _quantized(said, quantization, raw, config, stored)
        tensors += [reader.made(where, matrix) for matrix in made]
    for name, tensor in stored.items():
        if name not in taken:
            tensors += reader.read(*tensor)
    if config.tied:
        tensors = _without_tied_head(directory, tensors)
    check_complete(str(directory), config, tensors, _biases(config))
    return tensors


def _stored(directory: Path, shards: list[SafeTensors], index: Mapping[str, str]) -> dict[str, Stored]:
    """Every tensor of all files by its name there, which must be where the index says."""
    stored: dict[str, Stored] = {}
    for shard in shards:
        for info in shard.tensors:
            if info.name in stored:
                other = stored[info.name].shard.path
                raise ModelFileError(f"{shard.path}: tensor {short(info.name)} is also in {other}")
            stored[info.name] = Stored(shard, info)
    for name, file in index.items():
        if name not in stored or stored[name].shard.path.name != file:
            raise ModelFileError(
                f"{directory / file} does not hold tensor {short(name)}, as the index says: get it again"
            )
    return stored


def _quantization(where: str, directory: Path, raw: Mapping[str, Any]) -> tuple[str, Any]:
    """Where it is said how the weights are quantized, and what is said there: in config.json, or in the file of their
    own that the first releases of AutoGPTQ and AutoAWQ wrote, which names no method."""
    said = raw.get("quantization_config") or raw.get("compression_config")
    if said is not None:
        return where, said
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (found := _json(directory / name)) is not None:
            return str(directory / name), {"quant_method": method} | found
    return where, None


def _quantized(
    where: str, quantization: Any, raw: Mapping[str, Any], config: ModelConfig, stored: Mapping[str, Stored]
) -> tuple[list[Made], frozenset[str]]:
    """The matrices that weights/quantized makes of the stored tensors, under the names they would have without it, and
    the names of what they are made from. All other tensors are read as in any model."""
    from herder.weights.quantized.methods import read_quantized
    from herder.weights.quantized.parts import Part

    if not isinstance(quantization, dict):
        raise ModelFileError(f"{where}: quantization_config is {short(quantization)}: expected an object")
    text = _text_keys(raw)
    dtype = text.get("dtype", text.get("torch_dtype"))
    if dtype is not None and not isinstance(dtype, str):
        raise ModelFileError(f"{where}: dtype is {short(dtype)}: expected a string")
    biases = config.attention_bias or config.mlp_bias
    parts = {name: Part(*tensor) for name, tensor in stored.items()}
    made, taken = read_quantized(where, quantization, parts, dtype=dtype, biases=biases)
    return made, taken


def _biases(config: ModelConfig) -> frozenset[Role]:
    none: frozenset[Role] = frozenset()
    return (ATTENTION_BIASES if config.attention_bias else none) | (MLP_BIASES if config.mlp_bias else none)


def _without_tied_head(directory: Path, tensors: list[TensorSource]) -> list[TensorSource]:
    """Drops a head that merely repeats the embedding. A different one contradicts tie_word_embeddings."""
    by_role = {tensor.role: tensor for tensor in tensors}
    head, embedding = by_role.get(Role.HEAD), by_role.get(Role.EMBED)
    if head is None or embedding is None:
        return tensors
    if head.format_id != embedding.format_id or not _same_bytes(head, embedding):
        raise ModelFileError(
            f"{directory}: tie_word_embeddings is true, but lm_head.weight differs from model.embed_tokens.weight: "
            "set it to false in config.json to use both"
        )
    return [tensor for tensor in tensors if tensor is not head]


def _same_bytes(a: TensorSource, b: TensorSource) -> bool:
    """Compares by ordinary reads, a window at a time. Matrices made from quantized ones count as different."""
    if a.file is None or b.file is None:
        return False
    step = 8 << 20
    return all(
        a.file.read(a.offset + i, min(step, a.bytes - i)) == b.file.read(b.offset + i, min(step, a.bytes - i))
        for i in range(0, a.bytes, step)
    )


def _text_keys(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of the language model, which a model with images has in text_config; those outside it come first."""
    text = raw.get("text_config")
    if not isinstance(text, dict):
        return raw
    return {**text, **{key: value for key, value in raw.items() if value is not None}}


def _ids(where: str, key: str, generation: Mapping[str, Any], config: Mapping[str, Any], vocab: int) -> list[int]:
    """One id or a list of them. generation_config.json overrides config.json, as in transformers; -1 means none."""
    value = generation.get(key)
    if value is None:
        value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for i in ids:
        if type(i) is not int or i < -1 or i >= vocab:
            raise ModelFileError(f"{where}: {key} is {short(value)}, outside the vocabulary of {vocab}")
    return [i for i in ids if i >= 0]


def _chat_templates(directory: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Jinja sources by name. As in transformers, chat_template.jinja comes before chat_template.json, and that before
    the key of tokenizer_config.json, which may be a list of {name, template}."""
    templates: dict[str, str] = {}
    for file in ("tokenizer_config.json", "chat_template.json"):
        value = metadata.get(file, {}).get("chat_template")
        entries = (
            value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
        )
        for entry in entries:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("name", "template")):
                raise ModelFileError(f"{directory / file}: chat_template is {short(value)}: expected Jinja source")
            templates[entry["name"]] = entry["template"]
    files = {"default": directory / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        raw = _read(path, MAX_JSON)
        if raw is not None:
            try:
                templates[name] = raw.decode()
            except UnicodeDecodeError:
                raise ModelFileError(f"{path} is not UTF-8: download it again") from None
    return templates


def _name(directory: Path) -> str:
    """The directory's name, or `org/model` in the hub's cache, whose directories are named by commit."""
    place = directory.resolve()
    if place.parent.name == "snapshots" and place.parents[1].name.startswith("models--"):
        return place.parents[1].name.removeprefix("models--").replace("--", "/")
    return place.name


def _licence(directory: Path) -> str:
    """`license:` (or the more telling `license_name:`) of the model card's front matter, or nothing."""
    raw = _read(directory / "README.md", MAX_JSON) or b""
    text = raw[: 1 << 16].decode("utf-8", "replace")
    if not text.startswith("---"):
        return ""
    found = _LICENCE.findall(text.split("\n---", 1)[0])
    return found[-1].strip().strip("'\"") if found else ""
