"""Meta's own files as ModelFiles: params.json and consolidated.NN.pth, one file a tensor-parallel rank.

Each canonical tensor is looked up by names_meta.py, cut out of each rank's file and joined by windows.py: handed on
where it lies when one rank has all of it as it should be, made when asked for otherwise. Source of the rules:
llama_models' `checkpoint.py` and load hooks.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herder.core.config import MllamaVision, ModelConfig
from herder.core.errors import ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights import names_meta
from herder.weights.config_meta import config_from_meta
from herder.weights.fields import short
from herder.weights.mapping import MappedFile, OwnedBytes
from herder.weights.names import Place, Role, canonical_name, interleaved_rows
from herder.weights.names_meta import Origin
from herder.weights.quantized_llama32 import Int4
from herder.weights.quantized_meta import Quantized, Scales
from herder.weights.ranks import Ranks, torch_windows
from herder.weights.safetensors import parse_object
from herder.weights.source import (
    ModelFiles,
    TensorSource,
    check_complete,
    check_shape_sanity,
    required,
    shape_of,
)
from herder.weights.torch_file import TorchFile
from herder.weights.vision_tensors import aspect_ratios, vision_shapes
from herder.weights.windows import Window, float_format, join

MAX_PARAMS = 1 << 20  # bytes of params.json
MAX_RANKS = 64
_SHARD = re.compile(r"consolidated\.\d\d\.pth?")

# vocabulary -> bos, and what ends a turn or a text, as llama_models' tokenizers and generation code have them. The
# first of the latter is the end of text.
_TOKENS: dict[int, tuple[int, tuple[int, ...]]] = {
    32000: (1, (2,)),
    32016: (1, (2,)),
    128256: (128000, (128001, 128008, 128009)),
    202048: (200000, (200001, 200007, 200008)),
}


def open_meta(directory: Path) -> ModelFiles:
    """Opens a directory with params.json and consolidated.NN.pth (or consolidated.pth). Maps the weights; reads none.

    Raises ModelNotFound (a missing file is named), ModelFileError, UnsupportedModel.
    """
    directory = Path(directory)
    params = read_params(directory)
    opened: list[MappedFile] = []
    try:
        ranks = _open(directory, shard_paths(directory), opened)
        prefix = "text_model." if "text_model." + names_meta.EMBEDDING in ranks else ""
        where = str(directory / "params.json")
        embedding = ranks.pieces(prefix + names_meta.EMBEDDING)
        tied = _tied(ranks, prefix)
        config = config_from_meta(
            where,
            params,
            vocab=_vocab(directory, params, embedding),
            tied=tied,
            name=name_of(directory),
            licence=_licence(directory),
        )
        check_shape_sanity(where, config)
        quantized = _quantized(directory, params, config, ranks, opened)
        tensors = _tensors(config, ranks, quantized)
        for name in ranks.left_over():
            if not names_meta.ignored(name):
                raise UnsupportedModel(
                    f"{directory}: tensor {short(name)} is not known here: is this a model of another kind?"
                )
        check_complete(str(directory), config, tensors)
        bos, stops = _TOKENS.get(config.vocab, (None, ()))
        return ModelFiles(
            kind="meta",
            path=directory,
            files=opened,
            config=config,
            tensors=tensors,
            metadata={"params.json": params},
            chat_templates={},
            bos=bos,
            eos=stops[0] if stops else None,
            stop_token_ids=frozenset(stops),
            name=config.name,
            licence=config.licence,
        )
    except BaseException:
        for file in opened:
            file.close()
        raise


def read_params(directory: Path) -> dict[str, Any]:
    """params.json as it is. Raises ModelNotFound, ModelFileError."""
    path = directory / "params.json"
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_PARAMS + 1)
    except FileNotFoundError:
        raise ModelNotFound(f"{path} is missing: download it beside the weights") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    if len(raw) > MAX_PARAMS:
        raise ModelFileError(f"{path} is larger than {MAX_PARAMS >> 20} MiB: it is not the file of a model")
    return parse_object(raw, path)


def shard_paths(directory: Path, suffix: str = "pth") -> list[Path]:
    """The file of each rank, in order. Raises ModelNotFound naming the first that is missing."""
    names = (path.name for path in directory.iterdir() if _SHARD.fullmatch(path.name))
    found = sorted(name for name in names if name.endswith(f".{suffix}"))
    single = directory / "consolidated.pth"
    if not found:
        if single.exists():
            return [single]
        raise ModelNotFound(f"{directory} has params.json but no consolidated.00.pth: download the weights too")
    if single.exists():
        raise ModelFileError(
            f"{directory} has both {single.name} and {found[0]}: remove the one that is not the model's"
        )
    if len(found) > MAX_RANKS:
        raise UnsupportedModel(f"{directory} has {len(found)} files consolidated.NN.pth; supported are {MAX_RANKS}")
    expected = [f"consolidated.{rank:02d}.{suffix}" for rank in range(len(found))]
    if found != expected:
        missing = next(name for name, other in zip(expected, found, strict=True) if name != other)
        raise ModelNotFound(f"{directory / missing} is missing, although {found[-1]} is there: download it too")
    return [directory / name for name in found]


def name_of(directory: Path) -> str:
    """The directory's name; that of the one above for `original`, where Hugging Face's repositories keep them."""
    place = directory.resolve()
    return place.parent.name if place.name == "original" else place.name


def _licence(directory: Path) -> str:
    """The first line of LICENSE beside the weights, such as LLAMA 3.1 COMMUNITY LICENSE AGREEMENT, or nothing."""
    for name in ("LICENSE", "LICENSE.txt"):
        try:
            with open(directory / name, encoding="utf-8", errors="replace") as file:
                return file.read(4096).strip().split("\n", 1)[0].strip()[:100]
        except OSError:
            continue
    return ""


def _open(directory: Path, paths: list[Path], opened: list[MappedFile]) -> Ranks:
    ranks: list[dict[str, Window]] = []
    for path in paths:
        file = TorchFile(path)
        opened.append(file.file)
        ranks.append(torch_windows(file))
        if strange := [name for name in file.ignored if not names_meta.ignored(name)]:
            raise UnsupportedModel(f"{path}: {short(strange[0])} is a file in memory, not a tensor")
    if names_meta.EMBEDDING not in ranks[0] and "text_model." + names_meta.EMBEDDING not in ranks[0]:
        raise UnsupportedModel(f"{paths[0]} has no tensor {names_meta.EMBEDDING}: it is not a Llama in Meta's format")
    return Ranks(str(directory), ranks)


def _quantized(
    directory: Path, params: dict[str, Any], config: ModelConfig, ranks: Ranks, opened: list[MappedFile]
) -> Quantized | None:
    """The quantized tensors, None where there are none. Opens the files of their scales."""
    inner = params.get("model", params)
    settings, adaptor = inner.get("quantization_args"), inner.get("lora_args")
    if settings is not None:
        return Int4(str(directory / "params.json"), settings, adaptor, config, ranks)
    if adaptor is not None:
        raise UnsupportedModel(f"{directory / 'params.json'}: lora_args without quantization_args is not supported")
    kinds = [kind for kind in ("fp8", "int4") if (directory / f"{kind}_scales_0.pt").exists()]
    if not kinds:
        return None
    if len(kinds) == 2:
        raise ModelFileError(f"{directory} has both fp8 and int4 scales: remove those that are not the weights'")
    scales: list[dict[str, Window]] = []
    for rank in range(ranks.count):
        file = TorchFile(directory / f"{kinds[0]}_scales_{rank}.pt")
        opened.append(file.file)
        scales.append(torch_windows(file))
    return Scales(kinds[0], config, ranks, scales)


def _vocab(directory: Path, params: dict[str, Any], embedding: list[Window]) -> int:
    """Rows of the embedding: split over the ranks by rows (Llama 3, 4) or by columns (before). Raises ModelNotFound
    where the ranks hold a part of what params.json says."""
    inner = params.get("model", params)
    keys = inner if isinstance(inner, dict) else {}
    dim, vocab, count = keys.get("dim"), keys.get("vocab_size"), len(embedding)
    rows, cols = embedding[0].rows, embedding[0].cols
    if cols == dim:
        rows = rows if rows == vocab else rows * count  # or the same on each rank
        whole, part = vocab, rows
    elif cols * count == dim:
        whole, part = dim, dim
    else:
        whole, part = dim, cols * count
    if type(whole) is int and 0 < part < whole and whole % part == 0:
        raise ModelNotFound(
            f"{directory} has {count} of {whole // part * count} files consolidated.NN.pth: download the others too"
        )
    if cols != dim and cols * count != dim:
        raise ModelFileError(
            f"{directory / 'params.json'}: dim is {short(dim)}, but the embedding has {cols} columns on each rank"
        )
    return rows


def _tied(ranks: Ranks, prefix: str) -> bool:
    """Whether the output matrix is the embedding: not there, or (Llama 3.2 1B and 3B) the same bytes of the file."""
    name = prefix + "output.weight"
    if name not in ranks:
        return True
    pairs = zip(ranks.pieces(name), ranks.pieces(prefix + names_meta.EMBEDDING), strict=True)
    return all(
        (head.offset, head.rows, head.cols, head.row_step, head.col_step)
        == (embedding.offset, embedding.rows, embedding.cols, embedding.row_step, embedding.col_step)
        for head, embedding in pairs
    )


def _tensors(config: ModelConfig, ranks: Ranks, quantized: Quantized | None) -> list[TensorSource]:
    return [*_text(config, ranks, quantized), *_vision(config, ranks)]


def _text(config: ModelConfig, ranks: Ranks, quantized: Quantized | None) -> Iterator[TensorSource]:
    maps = {
        Role.WQ: interleaved_rows(config.heads, config.head_dim),
        Role.WK: interleaved_rows(config.kv_heads, config.head_dim),
    }
    for place in required(config):
        row_map = None if place.cross else maps.get(place.role)
        shape = shape_of(place.role, config)
        made = quantized.tensor(place, shape, row_map) if quantized is not None else None
        yield made if made is not None else _plain(config, ranks, place, shape, row_map)


def _plain(
    config: ModelConfig, ranks: Ranks, place: Place, shape: tuple[int, int], row_map: array[int] | None
) -> TensorSource:
    """A tensor that is not quantized."""
    name = canonical_name(*place)
    if place.role is Role.EMBED:
        prefix = names_meta.text_prefix(config)
        pieces = ranks.pieces(prefix + names_meta.EMBEDDING)
        along = 0 if pieces[0].cols == config.dim else 1
        if config.embedding_rows is not None:
            pieces = [*pieces, *ranks.pieces(prefix + names_meta.LEARNABLE)]
        return join(name, place.role, 0, 0, pieces, along, shape)
    origin = names_meta.origin_of(config, place, ranks)
    pieces = [_part(piece, origin, config, place, ranks.count) for piece in ranks.pieces(origin.name)]
    return join(name, place.role, place.layer, place.expert, pieces, origin.axis, shape, row_map)


def _part(piece: Window, origin: Origin, config: ModelConfig, place: Place, ranks: int) -> Window:
    """What is meant of one rank's piece. Raises ModelFileError when it cannot be cut so."""
    if origin.part == "all":
        return piece
    if origin.part == "turned":
        return piece.transposed()
    if origin.part in ("first", "second"):
        return piece.share(int(origin.part == "second"), 2)
    if origin.part == "expert":
        assert config.experts is not None
        return piece.share(place.expert, config.experts.count).transposed()
    q = config.heads * config.head_dim // ranks
    kv, left = divmod(piece.rows - q, 2)
    if kv < 1 or left:
        raise ModelFileError(f"{piece.where} has {piece.rows} rows, which are not {q} of q and those of k and v")
    begin, count = {"q": (0, q), "k": (q, kv), "v": (q + kv, kv)}[origin.part]
    return piece.some_rows(begin, begin + count)


def _vision(config: ModelConfig, ranks: Ranks) -> Iterator[TensorSource]:
    """The image encoder and its projector under Hugging Face's names."""
    for name, dimensions in vision_shapes(config).items():
        origin = names_meta.vision_origin(config, name)
        pieces = ranks.pieces(origin.name)
        rows, cols = (1, dimensions[0]) if len(dimensions) == 1 else (dimensions[0], 1)
        for size in dimensions[1:]:
            cols *= size
        if isinstance(config.vision, MllamaVision) and name.endswith(
            (".tile_embedding.weight", "embedding.embedding.weight")
        ):
            yield _by_aspect_ratio(name, pieces, config.vision, rows, cols)
            continue
        axis = 1 if origin.axis is not None and rows == 1 else origin.axis
        yield join(name, Role.VISION, 0, 0, pieces, axis, (rows, cols))


def _by_aspect_ratio(name: str, pieces: list[Window], vision: MllamaVision, rows: int, cols: int) -> TensorSource:
    """A tile embedding. Meta's is a grid (max_tiles, max_tiles, tokens, dim), of which a canvas of h x w tiles uses the
    upper left corner; Hugging Face's has a row for each canvas, its tiles one after another, the rest zero."""
    side = vision.max_tiles
    grid = join(name, Role.VISION, 0, 0, pieces, None, (side, cols))
    source = pieces[0]

    def make() -> OwnedBytes:
        import numpy as np

        data = bytearray(rows * cols * source.item)
        target = np.frombuffer(data, f"u{source.item}").reshape(rows, side, -1)
        stored = np.frombuffer(grid.view(), f"u{source.item}").reshape(side, side, -1)
        for index, (high, wide) in enumerate(aspect_ratios(side)):
            target[index + 1, : high * wide] = stored[:high, :wide].reshape(high * wide, -1)
        return OwnedBytes(data)

    fmt = float_format(source)
    return TensorSource(name, Role.VISION, 0, fmt.id, rows, cols, 0, rows * cols * source.item, make=make)
