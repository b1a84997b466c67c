"""Writers of Meta's files without torch: zip archives of a hand-made pickle, and a model's weights split over ranks.

The names, the split of each tensor and the fused layouts are written down here a second time, from llama_models'
modules and `checkpoint.py`; tests/oracle/test_meta_*.py load the same files into those modules.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herder.core.config import ModelConfig
from tests.tiny_moe import interleave

Array = NDArray[Any]

_STORAGE = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage", "I8": "CharStorage"}


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str, key: str, count: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(kind: str, key: str, count: int, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """The call of _rebuild_tensor_v2, as torch.save spells it (without its memo)."""
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = storage(kind, key, count) + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(entries: Mapping[str, bytes]) -> bytes:
    """A pickle of {name: what the opcodes make}."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in entries.items()) + b"u."


def contiguous(shape: Sequence[int]) -> list[int]:
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


def write_archive(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)


def write_torch(path: Path, tensors: Mapping[str, tuple[str, Array]], shared: Mapping[str, str] | None = None) -> None:
    """tensors: name -> (dtype, numbers or, of BF16, the bits). shared: name -> the tensor whose storage it is."""
    entries, members = {}, {}
    for key, (name, (dtype, values)) in enumerate(tensors.items()):
        entries[name] = tensor(_STORAGE[dtype], str(key), values.size, 0, values.shape, contiguous(values.shape))
        members[f"data/{key}"] = np.ascontiguousarray(values).tobytes()
    for name, other in (shared or {}).items():
        entries[name] = entries[other]
    write_archive(path, {"data.pkl": state(entries), "byteorder": b"little", **members, "version": b"3\n"})


# A model's weights as Meta splits them

_COLUMNS = ("wo.weight", "w2.weight", "mlp.fc2_weight", "w_out_shared_DF.weight")
_SAME = ("norm.weight", "layer_norm_weight", "router_DE", "gate_attn", "gate_ffwd")


def params(config: ModelConfig, **changes: Any) -> dict[str, Any]:
    """params.json of a dense model; multiple_of 1 and a multiplier give any ffn_dim."""
    base = int(2 * 4 * config.dim / 3)
    multiplier = next(
        m for m in (config.ffn_dim / base, (config.ffn_dim + 0.5) / base) if int(m * base) == config.ffn_dim
    )
    return {
        "dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads,
        "vocab_size": config.vocab, "multiple_of": 1, "ffn_dim_multiplier": multiplier, "norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta, "use_scaled_rope": config.rope.kind == "llama3", **changes,
    }  # fmt: skip


_NAMES = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_OUTER = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}


def dense_state(config: ModelConfig, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Canonical names and row order -> Meta's, unsplit. Vectors lose their one row."""
    result = {}
    for name, values in weights.items():
        rows = values[0] if values.shape[0] == 1 else values
        kind = name.split(".", 3)[-1]
        if kind == "self_attn.q_proj.weight":
            rows = interleave(rows, config.heads)
        if kind == "self_attn.k_proj.weight":
            rows = interleave(rows, config.kv_heads)
        result[_OUTER.get(name) or f"layers.{name.split('.')[2]}.{_NAMES[kind]}"] = rows
    return result


def split(
    full: Mapping[str, Array], ranks: int, embedding_axis: int = 0, kv_heads: int | None = None
) -> list[dict[str, Array]]:
    """Each rank's pieces of the unsplit tensors. kv_heads: repeat those of k and v where there are more ranks."""
    pieces: list[dict[str, Array]] = [{} for _ in range(ranks)]
    for name, values in full.items():
        if name.endswith(_SAME):
            parts = [values] * ranks
        elif kv_heads is not None and kv_heads < ranks and name.endswith(("wk.weight", "wv.weight")):
            heads = np.split(values, kv_heads)
            parts = [heads[rank * kv_heads // ranks] for rank in range(ranks)]
        else:
            axis = embedding_axis if name.endswith("tok_embeddings.weight") else int(name.endswith(_COLUMNS))
            parts = np.split(values, ranks, axis)
        for rank, part in enumerate(parts):
            pieces[rank][name] = part
    return pieces


def write_meta(
    directory: Path,
    pieces: Sequence[Mapping[str, Array]],
    parameters: Mapping[str, Any],
    dtype: str = "F32",
    shared: Mapping[str, str] | None = None,
) -> Path:
    """One file a rank, and params.json."""
    directory.mkdir(parents=True, exist_ok=True)
    for rank, tensors in enumerate(pieces):
        typed = {name: (dtype, values) for name, values in tensors.items()}
        write_torch(directory / f"consolidated.{rank:02d}.pth", typed, shared)
    (directory / "params.json").write_text(json.dumps(parameters))
    return directory
