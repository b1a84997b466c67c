"""A model as Hugging Face's files: config.json, generation_config.json and tensors under the names of its architecture.

config.json is that of transformers' LlamaConfig, MistralConfig, MixtralConfig or Llama4TextConfig. It is read back with
our own reader and compared with the model's configuration: what it cannot say is refused instead of lost.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

from herder.convert.tensors import FLOATS, Casts, Interleaved, fits, in_order, output, turned
from herder.convert.tokenizer_files import stops_of
from herder.core.config import ModelConfig, Rope
from herder.core.errors import UnsupportedModel
from herder.formats import table
from herder.formats.table import Format
from herder.text.tokenizer import Special
from herder.weights.config_hf import config_from_hf
from herder.weights.names import BIASES, EXPERTS, Role
from herder.weights.output import Output
from herder.weights.rope import inv_freq
from herder.weights.source import ModelFiles, TensorSource
from herder.weights.vision_tensors import PREFIXES, vision_shapes

_CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
}  # fmt: skip
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_VECTORS = BIASES | {Role.ATTN_GATE, Role.FFN_GATE}
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

# (factor, high_freq_factor) of Meta's models: rope_freqs.weight holds only what the formula made of them.
_LLAMA3 = ((8.0, 4.0), (32.0, 4.0), (16.0, 1.0), (8.0, 1.0))


def kind_of(config: ModelConfig) -> str:
    """The model_type that computes this. Raises UnsupportedModel when none does."""
    if config.vision is not None or any(plan.cross for plan in config.plan):
        raise UnsupportedModel(
            "a model with an image encoder is converted from Hugging Face's files to the same only: get those"
        )
    if config.architecture.startswith("llama4"):
        return "llama4_text"
    if config.experts is not None:
        return "mixtral"
    if config.architecture == "mistral" or any(plan.window is not None for plan in config.plan):
        return "mistral"
    return "llama"


def float_format(files: ModelFiles, wanted: Format | None) -> Format:
    """The format of the tensors: `wanted`, or that of most of the matrices' weights.

    Raises UnsupportedModel for quantized weights with nothing wanted.
    """
    if wanted is not None:
        return wanted
    counts: Counter[str] = Counter()
    for tensor in files.tensors:
        if tensor.format not in FLOATS:
            raise UnsupportedModel(
                f"{files.path} has {tensor.name} in {tensor.format.name}, which only GGUF holds: give --type bf16 (or "
                "f16, f32) to expand the weights"
            )
        if tensor.rows > 1:
            counts[tensor.format.name] += tensor.rows * tensor.cols
    return table.BY_NAME[counts.most_common(1)[0][0]]


def chosen_format(tensor: TensorSource, base: Format, wanted: Format | None) -> Format:
    """`wanted`; else the tensor's own, but that vectors and routers that GGUF widened to F32 go back where they fit."""
    if wanted is not None:
        return wanted
    widened = tensor.format is table.F32 and base is not table.F32 and (tensor.rows == 1 or tensor.role is Role.ROUTER)
    return base if widened and fits(tensor, base) else tensor.format


def hf_config(files: ModelFiles, fmt: Format, special: Special) -> dict[str, Any]:
    """config.json of the model in this format."""
    config = files.config
    kind = kind_of(config)
    rope = _rope(files, config)
    values: dict[str, Any] = {
        "architectures": [_CLASSES[kind]], "model_type": kind, "vocab_size": config.vocab, "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "hidden_act": "silu",
        "max_position_embeddings": config.context, "rms_norm_eps": _shortest(config.norm_eps),
        "rope_parameters": rope, "rope_theta": rope["rope_theta"], "tie_word_embeddings": config.tied,
        "bos_token_id": special.bos, "eos_token_id": special.eos, "torch_dtype": DTYPES[fmt.name],
    }  # fmt: skip
    if kind in ("mistral", "mixtral"):
        values["sliding_window"] = config.plan[0].window
    else:
        values["attention_bias"] = config.attention_bias
    if kind == "llama":
        values["mlp_bias"] = config.mlp_bias
    if config.experts is not None:
        values |= {"num_local_experts": config.experts.count, "num_experts_per_tok": config.experts.active}
    if kind == "mixtral" and config.experts is not None:
        values["intermediate_size"] = config.experts.ffn_dim
    if kind == "llama4_text":
        values |= _llama4(config)
    _compare(str(files.path), config, values)
    return values


def generation_config(special: Special) -> dict[str, Any]:
    stops = stops_of(special)
    values: dict[str, Any] = {"bos_token_id": special.bos, "eos_token_id": stops if len(stops) != 1 else stops[0]}
    return {key: value for key, value in values.items() if value not in (None, [])}


def _llama4(config: ModelConfig) -> dict[str, Any]:
    moe, local, tuned = config.experts, config.local, config.temperature
    return {
        "intermediate_size": moe.ffn_dim if moe else config.ffn_dim,
        "intermediate_size_mlp": config.ffn_dim,
        "num_local_experts": moe.count if moe else 0,
        "num_experts_per_tok": moe.active if moe else 0,
        "moe_layers": [i for i, plan in enumerate(config.plan) if plan.experts],
        "no_rope_layers": [int(plan.rope) for plan in config.plan],
        "attention_chunk_size": local.chunk if local else None,
        "use_qk_norm": any(plan.qk_norm for plan in config.plan),
        "attn_temperature_tuning": tuned is not None,
        "floor_scale": tuned.floor if tuned else 8192,
        "attn_scale": tuned.scale if tuned else 0.1,
    }


def _rope(files: ModelFiles, config: ModelConfig) -> dict[str, Any]:
    """rope_parameters, and in them rope_theta."""
    rope = config.rope
    if rope.factors is not None and rope.kind == "default":
        rope = _from_factors(files, config)
    values: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        values["factor"] = rope.factor
    if rope.kind == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.kind in ("llama3", "yarn", "longrope"):
        values["original_max_position_embeddings"] = rope.original_context or config.context
    if rope.kind == "yarn":
        values |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        values |= {key: getattr(rope, key) for key in ("mscale", "mscale_all_dim") if getattr(rope, key)}
    if rope.kind == "longrope":
        values |= {"short_factor": list(rope.factors or ()), "long_factor": list(rope.long_factors or ())}
    if rope.attention_factor is not None:
        values["attention_factor"] = rope.attention_factor
    return values


def _from_factors(files: ModelFiles, config: ModelConfig) -> Rope:
    """The llama3 scaling that made these divisors. Its original context is a power of two, Meta's 8192 tried first."""
    wanted, _ = inv_freq(config, config.context)
    for factor, high in _LLAMA3:
        for exponent in (13, *range(4, 13), *range(14, 18)):
            rope = Rope(config.rope.theta, "llama3", factor, 1 << exponent, low_freq_factor=1.0, high_freq_factor=high)
            found, _ = inv_freq(replace(config, rope=rope), config.context)
            if all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(wanted, found, strict=True)):
                return rope
    raise UnsupportedModel(
        f"{files.path} has rope_freqs.weight of no scaling that config.json can say: it cannot be converted"
    )


def _shortest(value: float) -> float:
    """A number that came from float32 (GGUF's 1e-05) as the shortest decimal that gives the same float32."""
    import numpy as np

    return float(str(np.float32(value))) if np.float32(value) == value else value


def _compare(where: str, config: ModelConfig, values: dict[str, Any]) -> None:
    """Raises UnsupportedModel unless our reader finds the same model in config.json."""
    found = config_from_hf(where, values, config.name, config.licence)
    ours, theirs = inv_freq(config, config.context), inv_freq(found, config.context)
    close = all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(ours[0], theirs[0], strict=True))
    same = replace(config, architecture=found.architecture, rope=found.rope, norm_eps=found.norm_eps)
    if config.experts is not None and found.architecture == "mixtral":
        same = replace(same, ffn_dim=found.ffn_dim)  # of dense layers, which there are none
    if found != same or not close or not math.isclose(ours[1], theirs[1], rel_tol=1e-5):
        raise UnsupportedModel(f"{where} is a model that config.json of {found.architecture} cannot describe exactly")


def hf_tensors(files: ModelFiles, kind: str, base: Format, wanted: Format | None, casts: Casts) -> list[Output]:
    """The tensors under the names of model_type `kind`, in the order of the layers."""
    config = files.config
    four = kind in ("llama4_text", "llama4")
    order = Interleaved(config) if four else None
    shapes = vision_shapes(config)
    experts: dict[int, list[TensorSource]] = defaultdict(list)
    if four:
        for tensor in files.tensors:
            if tensor.role in EXPERTS:
                experts[tensor.layer].append(tensor)
    outputs = []
    for tensor in in_order(files.tensors):
        if tensor.role in EXPERTS and four:
            if group := experts.pop(tensor.layer, None):
                outputs += _stacks(group, kind, base, casts)
            continue
        fmt = chosen_format(tensor, base, wanted)
        vector = tensor.rows == 1 and (tensor.role in _VECTORS or "norm" in tensor.name)
        shape = shapes.get(tensor.name) or ((tensor.cols,) if vector else (tensor.rows, tensor.cols))
        rows = order.of(tensor.role) if order is not None else None
        outputs.append(output(tensor, _name(tensor.name, kind), fmt, shape, casts, rows))
    return outputs


def _stacks(group: list[TensorSource], kind: str, base: Format, casts: Casts) -> list[Output]:
    by_place = {(tensor.expert, tensor.role): tensor for tensor in group}
    count = range(1 + max(expert for expert, _ in by_place))
    both = [[by_place[e, Role.EXPERT_GATE], by_place[e, Role.EXPERT_UP]] for e in count]
    down = [[by_place[e, Role.EXPERT_DOWN]] for e in count]
    at = _name(f"model.layers.{group[0].layer}.mlp.experts.", kind)
    return [turned(both, at + "gate_up_proj", base, casts), turned(down, at + "down_proj", base, casts)]


def _name(name: str, kind: str) -> str:
    if name.startswith(PREFIXES):
        return name
    if kind in ("llama4_text", "llama4"):
        name = name.replace(".mlp.", ".feed_forward.")
    if kind in ("llama4", "mllama"):
        return "language_model." + name
    if kind == "mixtral":
        name = name.replace(".mlp.router.", ".mlp.gate.").replace(".mlp.", ".block_sparse_moe.")
        return re.sub(r"(\.experts\.\d+)\.(\w+)\.", lambda m: f"{m[1]}.{_MIXTRAL[m[2]]}.", name)
    return name
