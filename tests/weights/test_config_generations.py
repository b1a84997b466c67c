"""config.json of Mixtral, Llama 4, Llama Guard 4 and Llama 3.2 Vision, old and new spellings, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herder.core.config import Experts, LayerPlan, Llama4Vision, MllamaVision, ModelConfig, Rope, Temperature
from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.weights.config_hf import config_from_hf
from herder.weights.source import check_shape_sanity

MIXTRAL: dict[str, Any] = {  # mistralai/Mixtral-8x7B-Instruct-v0.1
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
_LLAMA4_VISION: dict[str, Any] = {
    "_attn_implementation_autoset": True, "attention_dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1408,
    "image_size": 336, "initializer_range": 0.02, "intermediate_size": 5632, "model_type": "llama4_vision_model",
    "multi_modal_projector_bias": False, "norm_eps": 1e-05, "num_attention_heads": 16, "num_channels": 3,
    "num_hidden_layers": 34, "patch_size": 14, "pixel_shuffle_ratio": 0.5, "projector_dropout": 0.0,
    "projector_input_dim": 4096, "projector_output_dim": 4096, "rope_theta": 10000, "torch_dtype": "bfloat16",
    "vision_feature_layer": -1, "vision_feature_select_strategy": "default", "vision_output_dim": 4096,
}  # fmt: skip
SCOUT: dict[str, Any] = {  # meta-llama/Llama-4-Scout-17B-16E-Instruct
    "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 200080, "eoi_token_index": 200081,
    "image_token_index": 200092, "model_type": "llama4", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0.dev0", "vision_config": _LLAMA4_VISION,
    "text_config": {
        "_attn_implementation_autoset": True, "attention_bias": False, "attention_chunk_size": 8192,
        "attention_dropout": 0.0, "attn_scale": 0.1, "attn_temperature_tuning": 4, "bos_token_id": 200000,
        "eos_token_id": [200001, 200007, 200008], "floor_scale": 8192, "for_llm_compressor": False, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02, "interleave_moe_layer_step": 1,
        "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760,
        "model_type": "llama4_text", "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False,
        "pad_token_id": 200018, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "router_aux_loss_coef": 0.001,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "router_jitter_noise": 0.0, "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": True,
        "vocab_size": 202048,
    },
}  # fmt: skip
MLLAMA_11B: dict[str, Any] = {  # meta-llama/Llama-3.2-11B-Vision-Instruct
    "architectures": ["MllamaForConditionalGeneration"], "image_token_index": 128256, "model_type": "mllama",
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0",
    "text_config": {
        "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
        "begin_suppress_tokens": None, "bos_token_id": 128000, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None, "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False, "dropout": 0,
        "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "eos_token_id": [128001, 128008, 128009],
        "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
        "forced_eos_token_id": None, "hidden_act": "silu", "hidden_size": 4096, "id2label": {"0": "A", "1": "B"},
        "initializer_range": 0.02, "intermediate_size": 14336, "is_decoder": False, "is_encoder_decoder": False,
        "label2id": {"A": 0, "B": 1}, "length_penalty": 1.0, "max_length": 20, "max_position_embeddings": 131072,
        "min_length": 0, "model_type": "mllama_text_model", "no_repeat_ngram_size": 0, "num_attention_heads": 32,
        "num_beam_groups": 1, "num_beams": 1, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
        "pad_token_id": 128004, "prefix": None, "problem_type": None, "pruned_heads": {},
        "remove_invalid_values": False, "repetition_penalty": 1.0, "return_dict": True,
        "return_dict_in_generate": False, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0,
        "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": False, "tokenizer_class": None,
        "top_k": 50, "top_p": 1.0, "torch_dtype": "bfloat16", "torchscript": False, "typical_p": 1.0,
        "use_bfloat16": False, "use_cache": True, "vocab_size": 128256,
    },
    "vision_config": {
        "attention_heads": 16, "hidden_act": "gelu", "hidden_size": 1280, "image_size": 560,
        "intermediate_layers_indices": [3, 7, 15, 23, 30], "intermediate_size": 5120, "max_num_tiles": 4,
        "model_type": "mllama_vision_model", "norm_eps": 1e-05, "num_channels": 3, "num_global_layers": 8,
        "num_hidden_layers": 32, "patch_size": 14, "torch_dtype": "bfloat16", "vision_output_dim": 7680,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    },
}  # fmt: skip
PUBLISHED = {"mixtral": MIXTRAL, "scout": SCOUT, "mllama": MLLAMA_11B}


def changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values; "text_config.head_dim" names a nested key."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *outer, key = path.split(".")
        target = result
        for part in outer:
            target = target[part]
        target[key] = value
    return result


def text(**changes: Any) -> ModelConfig:
    """Scout's text model with other keys."""
    return config_from_hf("c", changed(SCOUT, {f"text_config.{key}": value for key, value in changes.items()}))


def test_mixtral_8x7b() -> None:
    config = config_from_hf("c", MIXTRAL)
    assert config == ModelConfig(
        architecture="mixtral", layers=32, dim=4096, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336, vocab=32000,
        context=32768, norm_eps=1e-5, rope=Rope(1e6), plan=(LayerPlan(experts=True),) * 32,
        experts=Experts(8, 2, 14336, "softmax"),
    )  # fmt: skip
    assert round(config.parameters / 1e9, 2) == 46.70 and round(config.active_parameters / 1e9, 2) == 12.88
    sliding = config_from_hf("c", {**MIXTRAL, "sliding_window": 4096})
    assert sliding.plan == (LayerPlan(window=4096, experts=True),) * 32


def test_scout() -> None:
    config = config_from_hf("c", SCOUT)
    roped = LayerPlan(chunk=8192, qk_norm=True, experts=True)
    everywhere = LayerPlan(rope=False, temperature=True, experts=True)
    assert config == ModelConfig(
        architecture="llama4", layers=48, dim=5120, heads=40, kv_heads=8, head_dim=128, ffn_dim=16384, vocab=202048,
        context=10485760, norm_eps=1e-5, plan=(roped, roped, roped, everywhere) * 12, image_token=200092,
        rope=Rope(5e5, "llama3", 16.0, 8192, low_freq_factor=1.0, high_freq_factor=1.0),
        experts=Experts(16, 1, 8192, "sigmoid", 8192), temperature=Temperature(8192, 0.1),
        vision=Llama4Vision(
            dim=1408, layers=34, heads=16, ffn_dim=5632, patch=14, tile=336, projector_dim=4096, output_dim=4096,
        ),
    )  # fmt: skip
    assert config.vision is not None and config.vision.tokens_per_tile == 144
    assert round(config.parameters / 1e9, 1) == 107.8 and round(config.active_parameters / 1e9, 2) == 17.17


def test_maverick() -> None:
    config = text(interleave_moe_layer_step=2, num_local_experts=128, use_qk_norm=False, rope_scaling=None)
    assert [i for i, plan in enumerate(config.plan) if plan.experts] == list(range(1, 48, 2))
    assert not any(plan.qk_norm for plan in config.plan) and config.rope == Rope(5e5)
    assert round(config.parameters / 1e9, 1) == 400.7
    assert text(moe_layers=list(range(1, 48, 2))).plan == text(interleave_moe_layer_step=2).plan


def test_llama_guard_4_is_dense_and_sees_everything() -> None:
    config = text(
        moe_layers=[], interleave_moe_layer_step=0, attention_chunk_size=None, no_rope_layers=[1] * 48,
        intermediate_size_mlp=8192, attn_temperature_tuning=False, max_position_embeddings=131072,
    )  # fmt: skip
    assert config.plan == (LayerPlan(qk_norm=True),) * 48
    assert (config.experts, config.temperature, config.local) == (None, None, None)
    assert round(config.parameters / 1e9, 1) == 11.1
    assert text(no_rope_layer_interval=49, attention_chunk_size=None, moe_layers=[]).plan == config.plan


def test_keys_of_llama4_that_shape_the_plan() -> None:
    tuned = {value: text(attn_temperature_tuning=value).temperature for value in (True, 4, False, 0)}
    assert tuned[True] == tuned[4] == Temperature() and tuned[False] is tuned[0] is None
    assert text(attn_temperature_tuning=None, floor_scale=16, attn_scale=0.2).temperature == Temperature(16, 0.2)
    assert text(no_rope_layers=[1, 0] * 24).plan[:2] == (
        LayerPlan(chunk=8192, qk_norm=True, experts=True),
        LayerPlan(rope=False, temperature=True, experts=True),
    )
    assert text(no_rope_layer_interval=2).plan == text(no_rope_layers=[1, 0] * 24).plan
    types = ["full_attention", "chunked_attention"] * 24
    assert [plan.chunk for plan in text(layer_types=types).plan[:2]] == [None, 8192]
    assert text(attention_chunk_size=64).plan[0].chunk == 64
    absent = {key: value for key, value in SCOUT["text_config"].items() if not key.startswith(("attn_", "floor_"))}
    assert config_from_hf("c", {**SCOUT, "text_config": absent}).temperature == Temperature()


def test_the_text_model_of_llama4_alone() -> None:
    alone = config_from_hf("c", {**SCOUT["text_config"], "architectures": ["Llama4ForCausalLM"]})
    whole = config_from_hf("c", SCOUT)
    assert alone == replace(whole, architecture="llama4_text", vision=None, image_token=None)


def test_llama_32_11b_vision() -> None:
    config = config_from_hf("c", MLLAMA_11B)
    crossing = LayerPlan(rope=False, cross=True)
    assert config == ModelConfig(
        architecture="mllama", layers=40, dim=4096, heads=32, kv_heads=8, head_dim=128, ffn_dim=14336, vocab=128256,
        context=131072, norm_eps=1e-5, rope=Rope(5e5, "llama3", 8.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0),
        plan=tuple(crossing if i % 5 == 3 else LayerPlan() for i in range(40)), embedding_rows=128264,
        image_token=128256,
        vision=MllamaVision(
            dim=1280, layers=32, global_layers=8, heads=16, ffn_dim=5120, patch=14, tile=560, max_tiles=4,
            taps=(3, 7, 15, 23, 30),
        ),
    )  # fmt: skip
    assert round(config.parameters / 1e9, 2) == 9.78  # 10.63 with the image encoder
    alone = {**MLLAMA_11B["text_config"], "architectures": ["MllamaForCausalLM"]}
    assert config_from_hf("c", alone).plan == config.plan and config_from_hf("c", alone).embedding_rows == 128264


def test_newer_spellings() -> None:
    rope = SCOUT["text_config"]["rope_scaling"] | {"rope_theta": 5e5}
    newer = changed(SCOUT, {
        "text_config.rope_scaling": None, "text_config.rope_theta": None, "text_config.rope_parameters": rope,
        "image_token_index": None, "image_token_id": 200092, "vision_config.rope_theta": None,
        "vision_config.rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vision_config.image_size": [336, 336], "dtype": "bfloat16",
    })  # fmt: skip
    assert config_from_hf("c", newer) == config_from_hf("c", SCOUT)
    without = changed(MLLAMA_11B, {"text_config.rope_theta": None, "text_config.rope_scaling": None})
    assert config_from_hf("c", without).rope == Rope(5e5)  # transformers' default for Mllama


REFUSED: dict[str, tuple[str, dict[str, Any], type[HerderError], str]] = {
    "experts": ("mixtral", {"num_local_experts": None}, ModelFileError, "num_local_experts is missing"),
    "active": ("mixtral", {"num_experts_per_tok": 0}, ModelFileError, "num_experts_per_tok is 0"),
    "more active": (
        "mixtral", {"num_experts_per_tok": 9}, ModelFileError, "9 experts for each token are more than all 8",
    ),
    "many experts": ("mixtral", {"num_local_experts": 10**6}, ModelFileError, "num_local_experts is 1000000"),
    "bias": ("mixtral", {"attention_bias": True}, UnsupportedModel, "Mixtral has no biases"),
    "layer types": ("mixtral", {"layer_types": ["sliding_attention"] * 32}, UnsupportedModel, "layer_types is"),
    "no text": ("scout", {"text_config": None}, ModelFileError, "text_config is None: expected an object"),
    "text of another": (
        "scout", {"text_config.model_type": "llama"}, UnsupportedModel, "text_config.model_type = 'llama'",
    ),
    "unknown in text": ("scout", {"text_config.new": 1}, UnsupportedModel, "'text_config.new' = 1 is not known here"),
    "unknown in vision": ("scout", {"vision_config.new": 1}, UnsupportedModel, "'vision_config.new' = 1 is not known"),
    "unknown outside": ("scout", {"new": 1}, UnsupportedModel, "'new' = 1 is not known here"),
    "step": ("scout", {"text_config.interleave_moe_layer_step": 0}, ModelFileError, "interleave_moe_layer_step is 0"),
    "moe layers": (
        "scout", {"text_config.moe_layers": [1, 48]}, ModelFileError, "moe_layers is .1, 48.: expected a list",
    ),
    "moe order": ("scout", {"text_config.moe_layers": [3, 1]}, ModelFileError, "expected each number once, in rising"),
    "no experts": ("scout", {"text_config.num_local_experts": 0}, ModelFileError, "num_local_experts is 0 and"),
    "rope layers": ("scout", {"text_config.no_rope_layers": [1] * 47}, ModelFileError, "for each of 48 layers"),
    "rope values": ("scout", {"text_config.no_rope_layers": [2] * 48}, ModelFileError, "expected 0 or 1"),
    "attention": ("scout", {"text_config.layer_types": ["sliding_attention"] * 48}, UnsupportedModel, "layer_types is"),
    "tuning": ("scout", {"text_config.attn_temperature_tuning": "yes"}, ModelFileError, "attn_temperature_tuning is"),
    "chunk": ("scout", {"text_config.attention_chunk_size": 0}, ModelFileError, "attention_chunk_size is 0"),
    "image token": ("scout", {"image_token_index": 202048}, ModelFileError, "image_token_index is 202048"),
    "no image token": ("scout", {"image_token_index": None}, ModelFileError, "image_token_index is missing"),
    "two image tokens": ("scout", {"image_token_id": 5}, ModelFileError, "image_token_id is 5: image_token_index says"),
    "tied outside": ("scout", {"tie_word_embeddings": True}, UnsupportedModel, "tie_word_embeddings = True"),
    "eps": ("scout", {"vision_config.norm_eps": 1e-6}, UnsupportedModel, "transformers ignores it and takes 1e-05"),
    "projector": (
        "scout", {"vision_config.projector_input_dim": 512}, ModelFileError, "vision_output_dim 4096: no such",
    ),
    "shuffle": ("scout", {"vision_config.pixel_shuffle_ratio": 0.25}, ModelFileError, "do not fit together"),
    "tiny shuffle": ("scout", {"vision_config.pixel_shuffle_ratio": 1e-300}, ModelFileError, "do not fit together"),
    "patches": ("scout", {"vision_config.patch_size": 13}, ModelFileError, "do not fit together"),
    "oblong": ("scout", {"vision_config.image_size": [336, 448]}, ModelFileError, r"image_size is \[336, 448\]"),
    "vision rope": (
        "scout", {"vision_config.rope_scaling": {"type": "linear", "factor": 2.0}}, UnsupportedModel, "of type linear",
    ),
    "feature layer": (
        "scout", {"vision_config.vision_feature_layer": -2}, UnsupportedModel, "vision_feature_layer = -2",
    ),
    "grey": ("mllama", {"vision_config.num_channels": 1}, UnsupportedModel, "num_channels = 1"),
    "cross": (
        "mllama", {"text_config.cross_attention_layers": None}, ModelFileError, "cross_attention_layers is missing",
    ),
    "cross outside": ("mllama", {"text_config.cross_attention_layers": [40]}, ModelFileError, "numbers from 0 to 39"),
    "tied": ("mllama", {"text_config.tie_word_embeddings": True}, UnsupportedModel, "fewer rows than the embedding"),
    "wide heads": ("mllama", {"text_config.head_dim": 64}, UnsupportedModel, "text_config.head_dim = 64"),
    "output": ("mllama", {"vision_config.vision_output_dim": 1280}, ModelFileError, "5 intermediate layers make 7680"),
    "no taps": ("mllama", {"vision_config.intermediate_layers_indices": None}, ModelFileError, "indices is missing"),
    "ratios": (
        "mllama", {"vision_config.supported_aspect_ratios": [[1, 1]]}, UnsupportedModel, "all canvases of up to 4",
    ),
    "tiles": ("mllama", {"vision_config.max_num_tiles": 10**6}, ModelFileError, "max_num_tiles is 1000000"),
    "vision activation": ("mllama", {"vision_config.hidden_act": "quick_gelu"}, UnsupportedModel, "only exact GELU"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_key(case: str) -> None:
    base, changes, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message) as caught:
        check_shape_sanity("dir/config.json", config_from_hf("dir/config.json", changed(PUBLISHED[base], changes)))
    assert str(caught.value).startswith("dir/config.json: ") and "\n" not in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "kind", ["MixtralConfig", "Llama4Config", "Llama4TextConfig", "MllamaConfig", "MllamaTextConfig"]
)
def test_every_key_that_transformers_writes_is_known(tmp_path: Path, kind: str) -> None:
    import transformers

    theirs = getattr(transformers, kind)()
    theirs.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    if kind == "Llama4Config":  # whose own defaults are no encoder that can run
        raw["vision_config"] = {
            **raw["vision_config"],
            "vision_output_dim": 4096,
            "hidden_size": 1408,
            "image_size": 336,
        }
    config = config_from_hf("c", raw)
    inner = theirs.get_text_config()
    assert (config.dim, config.layers, config.vocab) == (inner.hidden_size, inner.num_hidden_layers, inner.vocab_size)
