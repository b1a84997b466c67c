"""Meta's own Llama 4, loaded by its load hooks from files in the layout of the released ones, agrees with us.

Whole prompts only: in decode Meta's code leaves the chunked mask out, which training never did.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from herder.core.config import Experts, LayerPlan, Temperature
from herder.weights.names import Role
from herder.weights.source import open_model
from tests.oracle import ours, vision
from tests.oracle.meta_modules import one_rank, randomize

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
LENGTH = 40  # five chunks, and five steps of the temperature's floor
VOCAB = 96

PARAMS: dict[str, Any] = {
    "dim": 64, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "multiple_of": 16,
    "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "norm_eps": 1e-5, "rope_theta": 500000.0, "nope_layer_interval": 4,
    "attention_chunk_size": 8, "attn_temperature_tuning": True, "floor_scale": 8.0, "attn_scale": 0.1,
}  # fmt: skip
MOE = {"num_experts": 4, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": 1}
SIDE = {"height": 8, "width": 8}
VISION = {
    "image_size": {"height": 32, "width": 32}, "patch_size": SIDE, "dim": 32, "n_layers": 2, "n_heads": 4,
    "mlp_ratio": 4.0, "output_dim": 48, "pixel_shuffle_ratio": 0.5,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "Scout": {"use_scaled_rope": True, "use_qk_norm": True, "moe_args": MOE, "vision_args": VISION},
    "Maverick": {"use_qk_norm": False, "moe_args": {**MOE, "num_experts": 8, "interleave_moe_layer_step": 2}},
    "Guard": {"nope_layer_interval": None, "attention_chunk_size": None, "attn_temperature_tuning": False},
}


class Witness(NamedTuple):
    """states: of the tiles, None without an image encoder: (tiles, tokens, dim)."""

    path: Path
    ids: list[int]
    logits: Any
    tiles: Any
    states: Any


def released(state: dict[str, Any], layers: int) -> dict[str, Any]:
    """A module's state_dict in the names and fused layouts of the released files, which its load hooks undo."""
    import torch

    result = dict(state)
    for layer in range(layers):
        at = f"layers.{layer}."
        result[at + "attention.wqkv.weight"] = torch.cat(
            [result.pop(f"{at}attention.w{part}.weight") for part in "qkv"]
        )
        result[at + "attention.wqkv.layer_norm_weight"] = result.pop(at + "attention_norm.weight")
        result[at + "attention.wqkv._extra_state"] = io.BytesIO(b"\x80 not read")
        ffn = at + "feed_forward."
        if ffn + "router_DE" in result:
            result[ffn + "norm.weight"] = result.pop(at + "ffn_norm.weight")
            for old, new in (("w1", "moe_w_in_eD_F"), ("w2", "moe_w_out_eF_D"), ("w3", "moe_w_swiglu_eD_F")):
                result[f"{ffn}experts.{new}"] = result.pop(f"{ffn}experts.{old}").flatten(0, 1)
            for old, new in (("w1", "w_in_shared_FD"), ("w2", "w_out_shared_DF"), ("w3", "w_swiglu_FD")):
                result[f"{ffn}{new}.weight"] = result.pop(f"{ffn}shared_expert.{old}.weight")
        else:
            result[ffn + "mlp.layer_norm_weight"] = result.pop(at + "ffn_norm.weight")
            result[ffn + "mlp.fc1_weight"] = torch.cat([result.pop(f"{ffn}w{part}.weight") for part in "13"])
            result[ffn + "mlp.fc2_weight"] = result.pop(ffn + "w2.weight")
    result["rope.freqs"] = torch.zeros(4)
    return result


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Witness:
    """A directory in Meta's layout, a prompt and tiles, and what Meta's module gives for them."""
    import torch
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.datatypes import TransformerInput
    from llama_models.llama4.model import Transformer

    folder = tmp_path_factory.mktemp(request.param)
    params = {**PARAMS, **CASES[request.param]}
    ids = [int(i) for i in np.random.default_rng(2).integers(0, VOCAB, LENGTH)]
    with one_rank(folder):
        args = ModelArgs(**params, max_batch_size=1, max_seq_len=LENGTH)
        first = Transformer(args).float()  # the encoder is made in bfloat16
        randomize(first, seed=4)
        state = released(first.state_dict(), args.n_layers)
        torch.save(state, folder / "consolidated.00.pth")
        theirs = Transformer(args).float()
        loaded = {name: value for name, value in state.items() if not isinstance(value, io.BytesIO)}
        theirs.load_state_dict(loaded, strict=True)
        tokens = TransformerInput(tokens=torch.tensor([ids]), tokens_position=0)
        logits = theirs(tokens).logits[0].numpy()
        tiles, states = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), None
        if "vision_args" in params:
            with torch.inference_mode():
                embeddings = theirs.vision_embeddings
                encoded = embeddings.vision_adapter(embeddings.vision_encoder(tiles[:, None]))
                states = theirs.vision_projection(encoded).numpy()
    (folder / "params.json").write_text(json.dumps(params))
    return Witness(folder, ids, logits, tiles, states)


def test_the_configuration_is_that_of_params_json(model: Witness) -> None:
    with open_model(model.path) as files:
        config = files.config
        raw = json.loads((model.path / "params.json").read_text())
    guard = "moe_args" not in raw
    assert config.experts == (None if guard else Experts(raw["moe_args"]["num_experts"], 1, 112, "sigmoid", 112))
    assert config.temperature == (None if guard else Temperature(8, 0.1))
    assert config.ffn_dim == 208
    if guard:
        assert config.plan == (LayerPlan(),) * 4
    else:
        step, norm = raw["moe_args"]["interleave_moe_layer_step"], raw["use_qk_norm"]
        local = LayerPlan(chunk=8, qk_norm=norm)
        assert config.plan[0] == LayerPlan(chunk=8, qk_norm=norm, experts=step == 1)
        assert [layer.experts for layer in config.plan] == [step == 1 or i % 2 == 1 for i in range(4)]
        assert [layer.rope for layer in config.plan] == [True, True, True, False]
        assert config.plan[3] == LayerPlan(rope=False, temperature=True, experts=True)
        assert local.local
    assert (config.rope.factor, config.rope.high_freq_factor) == (
        (16.0, 1.0) if raw.get("use_scaled_rope") else (1.0, 4.0)
    )


def test_experts_of_one_file_are_not_copied(model: Witness) -> None:
    with open_model(model.path) as files:
        assert not [tensor.name for tensor in files.tensors if tensor.make is not None]
        for tensor in files.tensors:
            expert = tensor.role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN, Role.ROUTER)
            assert (tensor.turned > 0) == expert


def test_native_logits_are_those_of_metas_module(model: Witness) -> None:
    folder, ids, expected, *_ = model
    with ours.executor(folder, "float32") as native:
        np.testing.assert_allclose(ours.logits(native, ids), expected, rtol=0, atol=TOLERANCE)


def test_torch_logits_are_those_of_metas_module(model: Witness) -> None:
    folder, ids, expected, *_ = model
    with ours.torch_executor(folder, "float32", context=64) as torch_runtime:
        np.testing.assert_allclose(ours.logits(torch_runtime, ids), expected, rtol=0, atol=TOLERANCE)


def test_the_image_encoder_is_metas(model: Witness) -> None:
    import torch

    if model.states is None:
        with open_model(model.path) as files:
            assert files.config.vision is None
        return
    with vision.executor(model.path) as executor, torch.inference_mode():
        assert executor._model.config.vision.tokens_per_tile == model.states.shape[1] == 4
        for tile, states in zip(model.tiles, model.states, strict=True):
            ours_ = executor._model.see(tile[None], (1, 1))
            np.testing.assert_allclose(ours_.numpy(), states, rtol=0, atol=TOLERANCE)
