"""Small random models of every architecture, in directories that transformers itself has written.

Each function makes a transformers model in float32 with eager attention, gives it weights of a visible size (norms near
1, gates that are not 0, biases that are not 0), saves it with a tokenizer beside it, and returns it in eval mode: the
witness for whatever our readers and runtimes make of `path`. Keyword arguments change the configuration: of the text
model, or of the image encoder where they begin with `vision_`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_vocabulary import CHATML, EOS, VOCAB, write_tokenizer

LLAMA4_VOCAB = VOCAB + 8
IMAGE_START, IMAGE_END, PATCH = VOCAB, VOCAB + 1, VOCAB + 2  # of the Llama 4 models
MLLAMA_IMAGE = VOCAB  # the first of the eight rows of the embedding beyond the vocabulary
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
}  # fmt: skip


def mixtral(path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Any:
    """Two layers of four experts, two of them active."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"num_hidden_layers": 2, "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = MixtralConfig(**{**_TEXT, **shape, "rope_parameters": rope, **changes})
    return _saved(MixtralForCausalLM(config), path, seed, dtype, shard)


def llama4_text(path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Any:
    """Four layers, so that the last one has no RoPE; chunks and temperature steps of 8 tokens; every second layer has
    four experts and a shared one."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config = Llama4TextConfig(**_llama4_text(changes))
    return _saved(Llama4ForCausalLM(config), path, seed, dtype, shard)


def llama4(path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Any:
    """llama4_text with an image encoder: two layers, tiles of 8 x 8 pixels, 16 patches of them make 4 tokens."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text, vision = _split(changes)
    encoder: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "patch_size": 2,
        "image_size": 8, "projector_input_dim": 48, "projector_output_dim": 48, "vision_output_dim": 48,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **vision,
    }  # fmt: skip
    config = Llama4Config(
        text_config=_llama4_text(text), vision_config=encoder, boi_token_index=IMAGE_START, eoi_token_index=IMAGE_END,
        image_token_index=PATCH,
    )  # fmt: skip
    return _saved(Llama4ForConditionalGeneration(config), path, seed, dtype, shard)


def mllama(path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Any:
    """Four text layers, the second and the fourth of cross-attention; an image encoder of four layers (the inputs of
    the second and the third are kept) and two global ones; tiles of 8 x 8 pixels: 16 patches and the class token."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    text, vision = _split(changes)
    encoder: dict[str, Any] = {
        "hidden_size": 32, "num_hidden_layers": 4, "num_global_layers": 2, "attention_heads": 2,
        "intermediate_size": 48, "patch_size": 2, "image_size": 8, "max_num_tiles": 4,
        "intermediate_layers_indices": [1, 2], "vision_output_dim": 96, **vision,
    }  # fmt: skip
    config = MllamaConfig(text_config=_mllama_text(text), vision_config=encoder, image_token_index=MLLAMA_IMAGE)
    return _saved(MllamaForConditionalGeneration(config), path, seed, dtype, shard)


def mllama_text(path: Path, *, seed: int = 0, dtype: str = "float32", shard: str = "1GB", **changes: Any) -> Any:
    """The text model of mllama by itself."""
    from transformers import MllamaForCausalLM, MllamaTextConfig

    return _saved(MllamaForCausalLM(MllamaTextConfig(**_mllama_text(changes))), path, seed, dtype, shard)


def _llama4_text(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **_TEXT, "vocab_size": LLAMA4_VOCAB, "num_hidden_layers": 4, "intermediate_size": 48, "head_dim": 16,
        "intermediate_size_mlp": 96, "num_local_experts": 4, "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8, "floor_scale": 8, "rope_parameters": LLAMA3_ROPE, **changes,
    }  # fmt: skip


def _mllama_text(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **_TEXT, "num_hidden_layers": 4, "intermediate_size": 96, "cross_attention_layers": [1, 3],
        "rope_parameters": LLAMA3_ROPE, **changes,
    }  # fmt: skip


def _split(changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of the text model, and those of the image encoder without their prefix."""
    vision = {key.removeprefix("vision_"): value for key, value in changes.items() if key.startswith("vision_")}
    return {key: value for key, value in changes.items() if not key.startswith("vision_")}, vision


def _saved(model: Any, path: Path, seed: int, dtype: str, shard: str) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.numel() == 1:
                value = 0.5 + 0.1 * noise  # a gate, under tanh
            elif weight.ndim == 1 and name.endswith("weight"):
                value = 1 + 0.1 * noise  # a norm
            elif weight.ndim == 1:
                value = 0.2 * noise
            elif "embed" in name:
                value = 0.5 * noise
            else:  # (rows, cols); (dim, channels, height, width); experts of Llama 4 are (experts, cols, rows)
                value = noise * _inputs(name, model.config.model_type, tuple(weight.shape)) ** -0.5
            weight.data = value.to(getattr(torch, dtype))  # not model.to: it would make complex buffers real
    model.eval()
    model.set_attn_implementation("eager")
    model.save_pretrained(path, max_shard_size=shard)
    write_tokenizer(Path(path), max(VOCAB, model.config.get_text_config().vocab_size), CHATML)
    return model


def _inputs(name: str, model_type: str, shape: tuple[int, ...]) -> int:
    if len(shape) == 4:
        return shape[1] * shape[2] * shape[3]
    return shape[1] if "experts" in name and model_type.startswith("llama4") else shape[-1]
