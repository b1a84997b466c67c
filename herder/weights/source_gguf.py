"""A GGUF model as ModelFiles."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herder.core.config import Experts, ModelConfig
from herder.core.errors import ModelFileError, UnsupportedModel
from herder.weights.config_gguf import config_from_gguf
from herder.weights.fields import short
from herder.weights.gguf import GGUF, GGUFTensor, StringArray, open_parts
from herder.weights.names import BIASES, EXPERTS, STACKED, Place, Role, canonical_name, gguf_name, ignored, parse_name
from herder.weights.rows import RowMaps, gathered_bias
from herder.weights.source import ModelFiles, TensorSource, check_complete, check_shape_sanity, shape_of

_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
NO_TOKEN = 2**32 - 1  # an absent id in an unsigned key


def open_gguf(path: Path) -> ModelFiles:
    """Raises ModelNotFound, ModelFileError, UnsupportedModel."""
    parts = open_parts(path)
    try:
        metadata = parts[0].metadata
        where = str(path)
        config: ModelConfig | None = None
        tensors: list[TensorSource] = []
        if any(part.tensors for part in parts):
            config, tensors = _model(where, parts)
        vocab = config.vocab if config is not None else _token_count(where, metadata)
        stops = {key: _token_id(where, metadata, key, vocab) for key in _STOP_KEYS}
        return ModelFiles(
            kind="gguf",
            path=path,
            files=[part.file for part in parts],
            config=config,
            tensors=tensors,
            metadata=metadata,
            chat_templates=_chat_templates(where, metadata),
            bos=_token_id(where, metadata, "bos_token_id", vocab),
            eos=stops["eos_token_id"],
            stop_token_ids=frozenset(i for i in stops.values() if i is not None),
            name=_text(where, metadata, "general.name") or path.stem,
            licence=_text(where, metadata, "general.license"),
        )
    except BaseException:
        for part in parts:
            part.close()
        raise


def _model(where: str, parts: list[GGUF]) -> tuple[ModelConfig, list[TensorSource]]:
    """The configuration and the tensors of all parts, checked against each other."""
    owner: dict[str, GGUF] = {}
    infos: dict[str, GGUFTensor] = {}
    for part in parts:
        for info in part.tensors:
            if info.name in infos:
                raise ModelFileError(f"{part.path}: tensor {info.name!r} is also in {owner[info.name].path}")
            owner[info.name], infos[info.name] = part, info
    factors = {name: _read_factors(owner[name], infos[name]) for name in _FACTORS if name in infos}
    places = {name: parse_name(name) for name in infos}
    roles = {place.role for place in places.values() if place is not None}
    embedding = infos.get(gguf_name(Role.EMBED))
    rows = embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0
    config = config_from_gguf(where, parts[0].metadata, embedding_rows=rows, roles=roles, factors=factors)
    check_shape_sanity(where, config)
    for name, values in factors.items():
        if len(values) != config.head_dim // 2:
            raise ModelFileError(f"{where}: tensor {name} has {len(values)} values, not {config.head_dim // 2}")

    row_maps = RowMaps(config)
    tensors: list[TensorSource] = []
    for name, info in infos.items():
        place = places[name]
        if place is not None and place.role in EXPERTS and config.experts is not None:
            tensors += _experts(owner[name], info, place, config, config.experts)
        elif place is not None:
            tensors.append(_tensor(owner[name], info, place, config, row_maps))
        elif ignored(name) is None:
            raise UnsupportedModel(f"{where}: tensor {short(name)} is not known here: is this a model of another kind?")
    check_complete(where, config, tensors, BIASES & roles)
    return config, tensors


def _tensor(part: GGUF, info: GGUFTensor, place: Place, config: ModelConfig, row_maps: RowMaps) -> TensorSource:
    role, expected = place.role, shape_of(place.role, config)
    rows, cols = expected
    _check_shape(part, info, (cols,) if rows == 1 else (cols, rows))
    name, row_map = canonical_name(role, place.layer), row_maps.of(role)
    if role in BIASES and row_map is not None:
        if info.format.block != 1:
            raise UnsupportedModel(
                f"{part.path}: tensor {info.name} is a bias stored as {info.format.name}; supported are F32, F16, BF16"
            )
        owned = gathered_bias(part.file, info.offset, info.format.block_bytes, row_map)
        return TensorSource(
            name, role, place.layer, info.format.id, 1, cols, owned.address(0), info.bytes, None, owned, 0
        )
    return TensorSource(
        name, role, place.layer, info.format.id, rows, cols, part.address(info), info.bytes, row_map, part.file,
        info.offset,
    )  # fmt: skip


def _experts(part: GGUF, info: GGUFTensor, place: Place, config: ModelConfig, moe: Experts) -> Iterator[TensorSource]:
    """One expert's matrix, or those of all experts of a layer, one after another."""
    rows, cols = shape_of(place.role, config)
    stacked = place.expert == STACKED
    _check_shape(part, info, (cols, rows, moe.count) if stacked else (cols, rows))
    size = rows * info.format.row_bytes(cols)
    for i, expert in enumerate(range(moe.count) if stacked else (place.expert,)):
        yield TensorSource(
            canonical_name(place.role, place.layer, expert), place.role, place.layer, info.format.id, rows, cols,
            part.address(info) + i * size, size, None, part.file, info.offset + i * size, expert,
        )  # fmt: skip


def _check_shape(part: GGUF, info: GGUFTensor, expected: tuple[int, ...]) -> None:
    """Both as GGUF has them, fastest dimension first. ggml pads shapes with ones, and drops those at the end."""
    if _unpadded(info.shape) != _unpadded(expected):
        raise ModelFileError(
            f"{part.path}: tensor {info.name} has shape {' x '.join(map(str, reversed(info.shape)))}, but the model's "
            f"configuration asks for {' x '.join(map(str, reversed(expected)))}: download the file again"
        )


def _unpadded(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _read_factors(part: GGUF, info: GGUFTensor) -> tuple[float, ...]:
    where = f"{part.path}: tensor {info.name}"
    if info.format.name != "F32" or len(info.shape) != 1 or info.shape[0] > 1 << 16:
        raise ModelFileError(f"{where} is {info.format.name} of shape {info.shape}: expected a vector of F32")
    data = part.file.read(info.offset, info.bytes)
    if len(data) != info.bytes:
        part.file.verify_unchanged()
    values = struct.unpack(f"<{info.shape[0]}f", data)
    if not all(0 < v < float("inf") for v in values):
        raise ModelFileError(f"{where} holds {short(min(values))}: expected finite numbers above 0, download it again")
    return values


def _token_count(where: str, metadata: dict[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray) or not tokens:
        raise ModelFileError(f"{where} holds neither tensors nor tokenizer.ggml.tokens: there is nothing to use in it")
    return len(tokens)


def _token_id(where: str, metadata: dict[str, Any], key: str, vocab: int) -> int | None:
    value = metadata.get("tokenizer.ggml." + key)
    if value is None or value == NO_TOKEN or value == -1:
        return None
    if type(value) is not int or not 0 <= value < vocab:
        raise ModelFileError(f"{where}: tokenizer.ggml.{key} is {short(value)}, outside the vocabulary of {vocab}")
    return value


def _text(where: str, metadata: dict[str, Any], key: str) -> str:
    value = metadata.get(key, "")
    if not isinstance(value, str):
        raise ModelFileError(f"{where}: {key} is {short(value)}: expected a string")
    return value


def _chat_templates(where: str, metadata: dict[str, Any]) -> dict[str, str]:
    """tokenizer.chat_template is the default one; tokenizer.chat_template.NAME are further ones (`tool_use`, `rag`)."""
    prefix = "tokenizer.chat_template"
    names = {
        key: key[len(prefix) + 1 :] or "default" for key in metadata if key == prefix or key.startswith(prefix + ".")
    }
    return {name: _text(where, metadata, key) for key, name in names.items()}
