"""Mistral's own files as ModelFiles: params.json with consolidated.safetensors (or its parts) or consolidated.NN.pth.

Names are Meta's, and so is the interleaved order of q and k. A Mixtral has its experts one by one
(`feed_forward.experts.E.w1`, or `block_sparse_moe.` in place of `feed_forward.`), or stacked as in its first release
(`block_sparse_moe.w1`, all experts' rows one after another, w2 transposed). Parts hold whole tensors, each one once;
so do the consolidated.NN.pth (or .pt) of the first releases, which are not ranks. Sources: mistral_inference's
`transformer_layers.py` and `moe.py`, and transformers' converter of Mixtral.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from herder.core.config import ModelConfig
from herder.core.errors import ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.config_mistral import config_from_mistral
from herder.weights.fields import short
from herder.weights.mapping import MappedFile
from herder.weights.names import Place, Role, canonical_name, interleaved_rows
from herder.weights.ranks import Ranks, safe_windows, torch_windows
from herder.weights.safetensors import SafeTensors
from herder.weights.source import ModelFiles, check_complete, check_shape_sanity, required, shape_of
from herder.weights.source_meta import name_of, read_params, shard_paths
from herder.weights.torch_file import TorchFile
from herder.weights.windows import Window, join

_PART = re.compile(r"consolidated-(\d{5})-of-(\d{5})\.safetensors")
BOS, EOS = 1, 2  # of every vocabulary of Mistral's

_OUTER = {
    Role.EMBED: "tok_embeddings.weight",
    Role.FINAL_NORM: "norm.weight",
    Role.HEAD: "output.weight",
}
_LAYER = {
    Role.ATTN_NORM: "attention_norm.weight",
    Role.WQ: "attention.wq.weight",
    Role.WK: "attention.wk.weight",
    Role.WV: "attention.wv.weight",
    Role.WO: "attention.wo.weight",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.W_GATE: "feed_forward.w1.weight",
    Role.W_UP: "feed_forward.w3.weight",
    Role.W_DOWN: "feed_forward.w2.weight",
}
_EXPERT = {Role.EXPERT_GATE: "w1", Role.EXPERT_UP: "w3", Role.EXPERT_DOWN: "w2"}
_MOE = ("feed_forward", "block_sparse_moe")


class _Stored(NamedTuple):
    """A tensor's name, and whether it is one of all experts' stacked."""

    name: str
    stacked: bool = False


def open_mistral(directory: Path) -> ModelFiles:
    """Opens a directory with Mistral's params.json and its consolidated weights. Maps the weights; reads none.

    Raises ModelNotFound (a missing file is named), ModelFileError, UnsupportedModel.
    """
    directory = Path(directory)
    params = read_params(directory)
    opened: list[MappedFile] = []
    try:
        stored = Ranks(str(directory), [_windows(directory, opened)])
        where = str(directory / "params.json")
        config = config_from_mistral(where, params, tied=_OUTER[Role.HEAD] not in stored, name=name_of(directory))
        check_shape_sanity(where, config)
        maps = {
            Role.WQ: interleaved_rows(config.heads, config.head_dim),
            Role.WK: interleaved_rows(config.kv_heads, config.head_dim),
        }
        tensors = []
        for place in required(config):
            origin = _origin(stored, place)
            [piece] = stored.pieces(origin.name)
            if origin.stacked:
                piece = _one_expert(piece, config, place)
            shape = shape_of(place.role, config)
            name = canonical_name(*place)
            tensors.append(join(name, place.role, place.layer, place.expert, [piece], 0, shape, maps.get(place.role)))
        for name in stored.left_over():
            raise UnsupportedModel(
                f"{directory}: tensor {short(name)} is not known here: is this a model of another kind?"
            )
        check_complete(str(directory), config, tensors)
        return ModelFiles(
            kind="mistral",
            path=directory,
            files=opened,
            config=config,
            tensors=tensors,
            metadata={"params.json": params},
            chat_templates={},
            bos=BOS,
            eos=EOS,
            stop_token_ids=frozenset({EOS}),
            name=config.name,
            licence=config.licence,
        )
    except BaseException:
        for file in opened:
            file.close()
        raise


def _windows(directory: Path, opened: list[MappedFile]) -> dict[str, Window]:
    files = []
    for path in _safetensors(directory):
        files.append(SafeTensors(path))
        opened.append(files[-1].file)
    if files:
        return safe_windows(files)
    windows: dict[str, Window] = {}
    for path in _pickles(directory):
        file = TorchFile(path)
        opened.append(file.file)
        found = torch_windows(file)
        if twice := sorted(set(windows) & set(found)):
            raise ModelFileError(f"{path}: tensor {short(twice[0])} is also in another file of the model")
        windows |= found
    return windows


def _pickles(directory: Path) -> list[Path]:
    if (directory / "consolidated.00.pt").exists():
        return shard_paths(directory, "pt")
    return shard_paths(directory)


def _safetensors(directory: Path) -> list[Path]:
    """consolidated.safetensors, or all of its parts. Raises ModelNotFound naming one that is missing."""
    single = directory / "consolidated.safetensors"
    parts = {path.name: match for path in directory.iterdir() if (match := _PART.fullmatch(path.name))}
    if single.exists():
        if parts:
            raise ModelFileError(f"{directory} has both {single.name} and {min(parts)}: remove one of them")
        return [single]
    if not parts:
        return []
    totals = {int(match[2]) for match in parts.values()}
    if len(totals) > 1 or max(totals) > 1000:
        raise ModelFileError(f"{directory} has parts of {len(totals)} different sets: keep those of one model")
    [total] = totals
    names = [f"consolidated-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    if missing := [name for name in names if name not in parts]:
        raise ModelNotFound(f"{directory / missing[0]} is missing, although {min(parts)} is there: download it too")
    return [directory / name for name in names]


def _origin(stored: Ranks, place: Place) -> _Stored:
    """The first of the possible names that is there."""
    if place.role in _OUTER:
        return _Stored(_OUTER[place.role])
    at = f"layers.{place.layer}."
    if place.role in _LAYER:
        return _Stored(at + _LAYER[place.role])
    if place.role is Role.ROUTER:
        possible = [_Stored(f"{at}{moe}.gate.weight") for moe in _MOE]
    else:
        matrix = _EXPERT[place.role]
        possible = [_Stored(f"{at}{moe}.experts.{place.expert}.{matrix}.weight") for moe in _MOE]
        possible.append(_Stored(f"{at}block_sparse_moe.{matrix}", stacked=True))
    return next((origin for origin in possible if origin.name in stored), possible[0])


def _one_expert(piece: Window, config: ModelConfig, place: Place) -> Window:
    """(outputs, inputs) of one expert from all experts' rows; those of w2 are its inputs."""
    assert config.experts is not None
    rows = piece.share(place.expert, config.experts.count)
    return rows.transposed() if place.role is Role.EXPERT_DOWN else rows
