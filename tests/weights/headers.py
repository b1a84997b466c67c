"""A Hugging Face directory of a published size that takes almost no disk: headers, and holes for the weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from herder.core.config import ModelConfig
from herder.weights.names import canonical_name
from herder.weights.source import required, shape_of

SHARD_BYTES = 5_000_000_000  # what transformers cut these checkpoints at


def write_headers(directory: Path, config: ModelConfig) -> int:
    """Writes config.json, model.safetensors.index.json and the shards in bfloat16; returns the bytes of all weights.

    Only models of dense self-attention with llama3 RoPE scaling.
    """
    assert config.rope.kind == "llama3" and config.experts is None and config.vision is None
    directory.mkdir()
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for place in required(config):
        rows, cols = shape_of(place.role, config)
        size = 2 * rows * cols
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][canonical_name(*place)] = (cols,) if rows == 1 else (rows, cols)
        room -= size
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for tensor, shape in shapes.items():
            start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
            weight_map[tensor] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(directory / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(hf_config(config)))
    return total


def hf_config(config: ModelConfig) -> dict[str, object]:
    rope = config.rope
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": rope.theta,
        "rope_scaling": {
            "rope_type": rope.kind,
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_context,
        },
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
