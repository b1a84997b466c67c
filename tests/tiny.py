"""Tiny random Llama models in real files, written by other people's code (`gguf`, `safetensors`, `tokenizers`).

`write_tiny_gguf` and `write_tiny_hf` return a TinyModel: the path, the configuration a reader must find, and the
weights as float32 under canonical names and in canonical row order, exactly as the file's numbers say. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quant
from numpy.typing import NDArray

from herder.core.config import LayerPlan, ModelConfig, Rope
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
) -> ModelConfig:
    return ModelConfig(
        architecture=architecture, layers=layers, dim=dim, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim or dim // heads, ffn_dim=ffn_dim, vocab=vocab, context=context, norm_eps=norm_eps,
        rope=rope or Rope(), plan=(LayerPlan(window=window),) * layers, tied=tied, attention_bias=attention_bias,
        mlp_bias=mlp_bias, name=name, licence=licence,
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
    matrices = {"self_attn.q_proj": (q, config.dim), "self_attn.k_proj": (kv, config.dim)}
    matrices |= {"self_attn.v_proj": (kv, config.dim), "self_attn.o_proj": (config.dim, q)}
    matrices |= {"mlp.gate_proj": (config.ffn_dim, config.dim), "mlp.up_proj": (config.ffn_dim, config.dim)}
    matrices |= {"mlp.down_proj": (config.dim, config.ffn_dim)}
    for layer in range(config.layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (1, config.dim),
            at + "post_attention_layernorm.weight": (1, config.dim),
        }
        for name, shape in matrices.items():
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
}


def _gguf_name(name: str) -> str:
    name = name.replace("model.layers.", "blk.")
    for canonical, short in _GGUF_NAMES.items():
        name = name.replace(canonical, short)
    return name


def interleave(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows from Hugging Face's half-split order to the interleaved one of Meta and GGUF."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_tiny_gguf(
    path: Path,
    *,
    formats: str | Mapping[str, str] = "F32",
    seed: int = 0,
    chat_template: str | None = CHATML,
    add_bos: bool = False,
    vocabulary_only: bool = False,
    metadata: Mapping[str, Any] | None = None,
    **shape: Any,
) -> TinyModel:
    """A llama GGUF with a byte-level BPE vocabulary (pre `smollm`). shape: arguments of tiny_config.

    rope: kinds default, linear, yarn and longrope become metadata; Rope.factors becomes rope_freqs (or rope_factors_*).
    metadata: further keys of GGUF's scalar types, or lists.
    """
    config = _as_float32(tiny_config(**shape))
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
    _add_rope(writer, config)
    add_to_gguf(writer, config.vocab, chat_template, add_bos)
    for key, value in (metadata or {}).items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_array(key, value) if isinstance(value, list) else writer.add_key_value(key, value, kind)
    values, stored, names = ({}, {}, {}) if vocabulary_only else random_weights(config, formats, seed)
    for name, rows in stored.items():
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        item = rows
        if name.endswith(".bias"):  # one row: the order is that of its elements
            item = rows.reshape(values[name].size, -1)
        if heads is not None:
            item = interleave(item, heads)
        dtype = Quant[names[name]]
        if values[name].shape[0] == 1:
            item = item.reshape(-1)
        writer.add_tensor(_gguf_name(name), _typed(item, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return TinyModel(path, config, values, stored)


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

    shape: arguments of tiny_config; architecture may be `mistral`. extra_config: more keys of config.json, which win.
    """
    from safetensors import TensorSpec, serialize_file

    config = replace(tiny_config(**shape), name=directory.resolve().name)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text(f"---\nlicense: {config.licence}\n---\n# Tiny\n", encoding="utf-8")
    norms_too = {"": dtype, "norm": dtype, "bias": dtype}
    values, stored, _ = random_weights(config, norms_too, seed)
    word = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    tensors = {}
    for name, rows in values.items():
        shape_ = rows.shape if rows.shape[0] > 1 else rows.shape[1:]
        data = stored[name] = np.ascontiguousarray(stored[name])
        tensors[name] = TensorSpec(dtype=word, shape=shape_, data_ptr=data.ctypes.data, data_len=data.nbytes)
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
        "architectures": [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[config.architecture]],
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
    return {**result, "attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}


def _dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
