"""Tiny random Llama models in real files, written by other people's code (`gguf`, `safetensors`, `tokenizers`).

`write_tiny_gguf` and `write_tiny_hf` return a TinyModel: the path, the configuration a reader must find, and the
weights as float32 under canonical names and in canonical row order, exactly as the file's numbers say. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray

from herder.core.config import Experts, LayerPlan, ModelConfig, Rope, Temperature
from tests.tiny_moe import expert_matrices, gguf_stacked, hf_keys, hf_layout, interleaved
from tests.tiny_vocabulary import CHATML, EOS, VOCAB, add_to_gguf, write_tokenizer

# Where the float16 scales of a block lie, for the formats the gguf package cannot pack.
_SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}


@dataclass(frozen=True)
class TinyModel:
    path: Path
    config: ModelConfig
    weights: dict[str, NDArray[np.float32]]
    stored: dict[str, NDArray[np.uint8]]  # canonical name -> the stored bytes of each row, in canonical row order


def tiny_config(
    *,
    layers: int = 2,
    dim: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int | None = None,
    ffn_dim: int = 96,
    vocab: int = VOCAB,
    context: int = 256,
    norm_eps: float = 1e-5,
    rope: Rope | None = None,
    tied: bool = True,
    attention_bias: bool = False,
    mlp_bias: bool = False,
    window: int | None = None,
    architecture: str = "llama",
    name: str = "Tiny",
    licence: str = "apache-2.0",
    experts: Experts | None = None,
    plan: tuple[LayerPlan, ...] | None = None,
    temperature: Temperature | None = None,
) -> ModelConfig:
    return ModelConfig(
        architecture=architecture, layers=layers, dim=dim, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim or dim // heads, ffn_dim=ffn_dim, vocab=vocab, context=context, norm_eps=norm_eps,
        rope=rope or Rope(), plan=plan or (LayerPlan(window=window),) * layers, tied=tied,
        attention_bias=attention_bias, mlp_bias=mlp_bias, name=name, licence=licence, experts=experts,
        temperature=temperature,
    )  # fmt: skip


def random_blocks(name: str, rows: int, cols: int, rng: np.random.Generator, std: float) -> NDArray[np.uint8]:
    """Stored rows of a format the gguf package cannot pack: random bits, scales that give weights of about `std`."""
    block, size = gguf.GGML_QUANT_SIZES[Quant[name]]
    blocks = rng.integers(0, 256, (rows * cols // block, size), dtype=np.uint8)

    def scaled(scale: float) -> NDArray[np.uint8]:
        for offset in _SCALES[name]:
            values = scale * rng.uniform(0.5, 1.5, (len(blocks), 1))
            blocks[:, offset : offset + 2] = values.astype(np.float16).view(np.uint8)
        return blocks.reshape(rows, -1)

    spread = float(gguf.dequantize(scaled(1.0), Quant[name]).std())
    return scaled(std / spread)


def store(name: str, values: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """values in a storage format, as rows of bytes. A format without a packer gets other random weights like them."""
    if name in _SCALES:
        return random_blocks(name, *values.shape, rng, float(values.std()))
    packed = np.ascontiguousarray(gguf.quantize(values, Quant[name]))
    return packed.view(np.uint8).reshape(values.shape[0], -1)


def random_weights(
    config: ModelConfig, formats: str | Mapping[str, str], seed: int
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.uint8]], dict[str, str]]:
    """canonical name -> float32 values, stored rows, format name. Vectors have one row here and are F32 unless named.

    formats: one format for every matrix, or {part of the name: format} where the longest part that fits wins, with ""
    for the rest.
    """
    rng = np.random.default_rng(seed)
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {"model.embed_tokens.weight": (config.vocab, config.dim), "model.norm.weight": (1, config.dim)}
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab, config.dim)
    attention = {"self_attn.q_proj": (q, config.dim), "self_attn.k_proj": (kv, config.dim)}
    attention |= {"self_attn.v_proj": (kv, config.dim), "self_attn.o_proj": (config.dim, q)}
    dense = {"mlp.gate_proj": (config.ffn_dim, config.dim), "mlp.up_proj": (config.ffn_dim, config.dim)}
    dense |= {"mlp.down_proj": (config.dim, config.ffn_dim)}
    for layer, plan in enumerate(config.plan):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (1, config.dim),
            at + "post_attention_layernorm.weight": (1, config.dim),
        }
        for name, shape in {**attention, **(expert_matrices(config) if plan.experts else dense)}.items():
            shapes[f"{at}{name}.weight"] = shape
            if config.attention_bias if name.startswith("self_attn") else config.mlp_bias:
                shapes[f"{at}{name}.bias"] = (1, shape[0])

    chosen = {"": formats} if isinstance(formats, str) else dict(formats)
    values, stored, names = {}, {}, {}
    for name, shape in shapes.items():
        vector = shape[0] == 1
        fitting = [part for part in chosen if part in name and not (vector and part == "")]
        fmt = chosen[max(fitting, key=len)] if fitting else "F32"
        if vector and "norm" in name:
            wanted = 1 + 0.1 * rng.standard_normal(shape)
        elif vector:
            wanted = 0.2 * rng.standard_normal(shape)
        else:
            wanted = rng.standard_normal(shape) * (0.5 if name.startswith("model.embed") else shape[1] ** -0.5)
        stored[name], names[name] = store(fmt, wanted.astype(np.float32), rng), fmt
        values[name] = gguf.dequantize(stored[name], Quant[fmt]).reshape(shape)
    return values, stored, names


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
}
_GGUF_ARCHITECTURES = {"mixtral": "llama", "llama4_text": "llama4"}


def _gguf_name(name: str, stacked: bool) -> str:
    name = name.replace("model.layers.", "blk.")
    for canonical, short in _GGUF_NAMES.items():
        name = name.replace(canonical, short)
    place = r".ffn_\2_exps." if stacked else r".ffn_\2.\1."
    return re.sub(r"\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.", place, name)


def write_tiny_gguf(
    path: Path,
    *,
    formats: str | Mapping[str, str] = "F32",
    seed: int = 0,
    chat_template: str | None = CHATML,
    add_bos: bool = False,
    vocabulary_only: bool = False,
    stacked: bool = True,
    metadata: Mapping[str, Any] | None = None,
    **shape: Any,
) -> TinyModel:
    """A llama GGUF with a byte-level BPE vocabulary (pre `smollm`). shape: arguments of tiny_config.

    rope: kinds default, linear, yarn and longrope become metadata; Rope.factors becomes rope_freqs (or rope_factors_*).
    metadata: further keys of GGUF's scalar types, or lists. stacked: the experts of a layer in one tensor, or (as
    older files have them) in one tensor each.
    """
    config = _as_float32(tiny_config(**shape))
    config = replace(config, architecture=_GGUF_ARCHITECTURES.get(config.architecture, config.architecture))
    writer = gguf.GGUFWriter(path, config.architecture)
    writer.add_name(config.name)
    writer.add_license(config.licence)
    writer.add_quantization_version(2)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab)
    if config.head_dim != config.dim // config.heads:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.plan[0].window is not None:
        writer.add_sliding_window(config.plan[0].window)
    if config.experts is not None:
        writer.add_expert_count(config.experts.count)
        writer.add_expert_used_count(config.experts.active)
    if config.architecture == "llama4":
        _add_llama4(writer, config)
    _add_rope(writer, config)
    add_to_gguf(writer, config.vocab, chat_template, add_bos)
    for key, value in (metadata or {}).items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, value, kind)
    chosen = {"": formats, "router": "F32"} if isinstance(formats, str) else formats  # as llama.cpp's quantizer does
    values, stored, names = ({}, {}, {}) if vocabulary_only else random_weights(config, chosen, seed)
    for name, rows in gguf_stacked(stored) if stacked else stored.items():
        dtype, item = Quant[names[name]], rows
        if name.endswith(".bias"):  # one row: the order is that of its elements
            item = rows.reshape(values[name].size, -1)
        item = interleaved(name, item, config)
        if values[name].shape[0] == 1:
            item = item.reshape(-1)
        writer.add_tensor(_gguf_name(name, stacked), _typed(item, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyModel(path, config, values, stored)


def _add_llama4(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    step = next((i + 1 for i, plan in enumerate(config.plan) if plan.experts), 1)
    writer.add_interleave_moe_layer_step(step)
    writer.add_expert_feed_forward_length(config.experts.ffn_dim if config.experts is not None else config.ffn_dim)
    if config.local is None:
        writer.add_sliding_window(0)


def _as_float32(config: ModelConfig) -> ModelConfig:
    """The configuration as GGUF can say it: its floats are float32."""

    def rounded(values: Any) -> Any:
        return None if values is None else tuple(float(np.float32(v)) for v in values)

    rope = config.rope
    rope = replace(rope, factors=rounded(rope.factors), long_factors=rounded(rope.long_factors))
    return replace(config, norm_eps=float(np.float32(config.norm_eps)), rope=rope)


def _typed(rows: NDArray[np.uint8], dtype: Quant) -> NDArray[Any]:
    """F32 and F16 as NumPy numbers, as the writer takes them; everything else as bytes."""
    plain = {Quant.F32: np.float32, Quant.F16: np.float16}.get(dtype)
    return rows if plain is None else np.ascontiguousarray(rows).view(plain)


def _add_rope(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    rope = config.rope
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope.kind.upper()])
        writer.add_rope_scaling_factor(rope.factor)
    else:
        assert rope.kind == "default", f"GGUF has no key for RoPE scaling {rope.kind}: give its factors"
    if rope.original_context is not None:
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
    if rope.kind == "longrope":
        writer.add_rope_scaling_attn_factors(1.0 if rope.attention_factor is None else rope.attention_factor)
        writer.add_tensor("rope_factors_short.weight", np.array(rope.factors, np.float32))
        writer.add_tensor("rope_factors_long.weight", np.array(rope.long_factors, np.float32))
    elif rope.factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(rope.factors, np.float32))


def write_tiny_hf(
    directory: Path,
    *,
    dtype: str = "F32",
    seed: int = 0,
    shards: int = 1,
    chat_template: str | None = CHATML,
    generation_config: Mapping[str, Any] | None = None,
    extra_config: Mapping[str, Any] | None = None,
    **shape: Any,
) -> TinyModel:
    """A Hugging Face directory: config.json, safetensors (dtype F32, F16, BF16), tokenizer.json, tokenizer_config.json.

    shape: arguments of tiny_config; architecture may be `mistral`; tiny_moe.py has those with experts.
    extra_config: more keys of config.json, which win.
    """
    from safetensors import TensorSpec, serialize_file

    config = replace(tiny_config(**shape), name=directory.resolve().name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text(f"---\nlicense: {config.licence}\n---\n# Tiny\n", encoding="utf-8")
    norms_too = {"": dtype, "norm": dtype, "bias": dtype}
    values, stored, _ = random_weights(config, norms_too, seed)
    word = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    laid_out = hf_layout(config, stored, 4 if dtype == "F32" else 2)
    tensors = {
        name: TensorSpec(dtype=word, shape=extent, data_ptr=data.ctypes.data, data_len=data.nbytes)
        for name, (data, extent) in laid_out.items()
    }
    names = sorted(tensors)
    files = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(1, shards + 1)]
    )
    for i, file in enumerate(files):
        serialize_file({name: tensors[name] for name in names[i::shards]}, directory / file, {"format": "pt"})
    if shards > 1:
        weight_map = {name: files[i % shards] for i, name in enumerate(names)}
        total = sum(rows.nbytes for rows in stored.values())
        _dump(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    _dump(directory / "config.json", {**hf_config(config), "dtype": word, **(extra_config or {})})
    _dump(directory / "generation_config.json", generation_config or {"bos_token_id": 1, "eos_token_id": EOS})
    write_tokenizer(directory, config.vocab, chat_template)
    return TinyModel(directory, config, values, stored)


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
}


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """config.json as transformers writes it."""
    rope: dict[str, Any] = {"rope_type": config.rope.kind, "rope_theta": config.rope.theta}
    if config.rope.kind != "default":
        rope["factor"] = config.rope.factor
    if config.rope.kind == "llama3":
        rope |= {"low_freq_factor": config.rope.low_freq_factor, "high_freq_factor": config.rope.high_freq_factor}
    if config.rope.kind in ("llama3", "yarn", "longrope"):
        rope["original_max_position_embeddings"] = config.rope.original_context
    if config.rope.kind == "longrope":
        rope |= {"short_factor": list(config.rope.factors or ()), "long_factor": list(config.rope.long_factors or ())}
    result = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "vocab_size": config.vocab,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "transformers_version": "5.0.0",
    }
    if config.architecture == "mistral":
        return {**result, "sliding_window": config.plan[0].window}
    if config.architecture != "llama":
        return {**result, **hf_keys(config)}
    return {**result, "attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
