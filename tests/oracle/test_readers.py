"""Whatever transformers saves, the readers find: the same numbers as in its own modules, in canonical order."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herder.core.errors import HerderError
from herder.weights.names import Role
from herder.weights.source import TensorSource, open_model
from tests.oracle import checkpoints
from tests.tiny_moe import interleave

pytestmark = pytest.mark.oracle

MODELS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "mixtral": (checkpoints.mixtral, {}),
    "mixtral in shards": (checkpoints.mixtral, {"shard": "200KB", "num_local_experts": 3}),
    "llama4 text": (checkpoints.llama4_text, {"attention_bias": True}),
    "llama4 text, every layer": (checkpoints.llama4_text, {"interleave_moe_layer_step": 1, "dtype": "bfloat16"}),
    "llama4 without experts": (
        checkpoints.llama4_text, {"moe_layers": [], "num_local_experts": 1, "no_rope_layers": [1, 1, 1, 1]},
    ),
    "llama4 tied": (checkpoints.llama4_text, {"tie_word_embeddings": True}),
    "llama4 with images": (checkpoints.llama4, {"shard": "300KB"}),
    "mllama": (checkpoints.mllama, {"shard": "300KB"}),
    "mllama text": (checkpoints.mllama_text, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_every_tensor_is_found_with_the_same_numbers(tmp_path: Path, case: str) -> None:
    make, changes = MODELS[case]
    theirs = make(tmp_path, **changes)
    state = {name: value.detach().float().numpy() for name, value in theirs.state_dict().items()}
    with open_model(tmp_path) as model:
        if model.config.tied:
            del state["lm_head.weight"]
        found = {tensor.name: (tensor, numbers(tensor)) for tensor in model.load()}
        assert len(found) == len(model.tensors)
        half_split = "llama4" not in theirs.config.model_type
        for name, expected in canonical(state, half_split, model.config.heads, model.config.kv_heads).items():
            tensor, ours = found.pop(name)
            np.testing.assert_array_equal(ours, expected.reshape(tensor.rows, tensor.cols), err_msg=name)
        assert not found, "a tensor that transformers does not have"


def numbers(tensor: TensorSource) -> NDArray[np.float32]:
    """(rows, cols) in canonical row order."""
    raw = np.frombuffer(tensor.view(), {"F32": "<f4", "BF16": "<u2"}[tensor.format.name])
    values = raw if raw.dtype == np.float32 else (raw.astype(np.uint32) << 16).view(np.float32)
    rows = values.reshape(tensor.rows, tensor.cols)
    return rows if tensor.row_map is None else rows[np.array(tensor.row_map)]


def canonical(state: dict[str, NDArray[Any]], half_split: bool, heads: int, kv_heads: int) -> dict[str, NDArray[Any]]:
    """transformers' parameters, by their names in memory, as canonical tensors."""
    result = {}
    for name, value in state.items():
        name = re.sub(r"^(model\.)?language_model\.(model\.)?", "model.", name).replace("model.lm_head", "lm_head")
        name = re.sub(r"^model\.(vision_model|multi_modal_projector)", r"\1", name)
        if name.startswith(("vision_model", "multi_modal_projector")):
            result[name] = value
            continue
        name = name.replace(".feed_forward.", ".mlp.").replace(".mlp.gate.", ".mlp.router.")
        if not half_split and re.search(r"self_attn\.[qk]_proj", name):
            value = undone(value, heads if ".q_proj" in name else kv_heads)
        if name.endswith(".experts.gate_up_proj") or name.endswith(".experts.down_proj"):
            at = name.rpartition(".")[0]
            for expert, matrix in enumerate(value):
                matrix = matrix if half_split else matrix.T
                if name.endswith("down_proj"):
                    result[f"{at}.{expert}.down_proj.weight"] = matrix
                else:
                    gate, up = np.split(matrix, 2)
                    result |= {f"{at}.{expert}.gate_proj.weight": gate, f"{at}.{expert}.up_proj.weight": up}
        else:
            result[name] = value
    return result


def undone(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of interleave."""
    order = interleave(np.arange(len(rows)), heads)
    back = np.empty_like(rows)
    back[order] = rows
    return back


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "missing": ("llama4", lambda t: t.pop("vision_model.class_embedding"), r"vision_model\.class_embedding is missing"),
    "block": ("llama4", lambda t: t.pop("vision_model.model.layers.1.mlp.fc2.bias"), r"mlp\.fc2\.bias is missing"),
    "extra": (
        "llama4", lambda t: t.update({"vision_model.new.weight": t["vision_model.class_embedding"].clone()}),
        "'vision_model.new.weight' belongs to no image encoder",
    ),
    "shape": (
        "mllama", lambda t: t.update({"multi_modal_projector.bias": t["multi_modal_projector.bias"][:32].clone()}),
        r"multi_modal_projector\.bias has shape 32, but config\.json asks for 64",
    ),
    "gate": ("mllama", lambda t: t.pop("language_model.model.layers.1.cross_attn_attn_gate"), "attn_gate is missing"),
    "self attention": (
        "mllama", lambda t: t.update({
            name.replace("cross_attn.", "self_attn."): t.pop(name) for name in list(t) if "1.cross_attn.q_proj" in name
        }), r"1\.cross_attn\.q_proj\.weight is missing",
    ),
    "embedding": (
        "mllama", lambda t: t.update({EMBED: t[EMBED][:288].clone()}), "288 x 64, but config.json asks for 296 x 64",
    ),
}  # fmt: skip
EMBED = "language_model.model.embed_tokens.weight"


@pytest.mark.parametrize("case", WRONG)
def test_image_encoders_and_cross_attention_that_do_not_fit_are_named(tmp_path: Path, case: str) -> None:
    from safetensors.torch import load_file, save_file

    kind, change, message = WRONG[case]
    getattr(checkpoints, kind)(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(HerderError, match=message):
        open_model(tmp_path)


def test_the_row_order_of_llama4_is_the_interleaved_one(tmp_path: Path) -> None:
    """Half-split rotation of our q rows is transformers' complex rotation of its own, element for element."""
    import torch
    from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

    theirs = checkpoints.llama4_text(tmp_path)
    attention = theirs.model.layers[0].self_attn
    x, position = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([[37]])
    with torch.no_grad():
        q = attention.q_proj(x).view(1, 1, 4, 16)
        rotated, _ = apply_rotary_emb(q, q, theirs.model.rotary_emb(x, position))
        frequencies = theirs.model.rotary_emb.inv_freq.numpy()
    with open_model(tmp_path) as model:
        tensor = next(t for t in model.tensors if t.role is Role.WQ)
        first, second = np.split((numbers(tensor) @ x.numpy().reshape(-1)).reshape(4, 16), 2, axis=1)
    cos, sin = np.cos(37 * frequencies), np.sin(37 * frequencies)
    ours = np.stack([first * cos - second * sin, second * cos + first * sin], axis=2)
    np.testing.assert_allclose(ours.reshape(4, 16), rotated.reshape(4, 16).numpy(), atol=1e-4)
