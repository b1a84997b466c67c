"""RoPE frequencies: from a configuration to the angular frequency of each rotation, scaling applied.

Formulas: RoFormer (default); position interpolation (linear); dynamic NTK, YaRN, LongRoPE as in transformers'
`modeling_rope_utils.py`; llama3 as Meta's `llama3/model.py` apply_scaling; GGUF's frequency divisors as in ggml's
`ggml_rope_ext`. Computed in float64 and rounded once to float32.

Policy: transformers lets `dynamic` and `longrope` follow the length of the sequence at hand. Here both are fixed by the
context the runtime is configured with, because keys are cached already rotated, and because a token must not depend on
how long its sequence becomes later. With a context no longer than the original one both are exactly the unscaled RoPE
of transformers; beyond it they equal transformers on a sequence of the configured length.
"""

from __future__ import annotations

import math
from array import array

from herder.core.config import ModelConfig, Rope
from herder.core.errors import ModelFileError


def inv_freq(config: ModelConfig, context: int) -> tuple[array[float], float]:
    """(frequencies, attention factor) for a runtime of `context` positions.

    frequencies: head_dim / 2 float32, radians per position; rotation i of a head pairs rows i and i + head_dim / 2.
    attention factor: multiplies cos and sin (YaRN, LongRoPE); 1 otherwise.
    Raises ModelFileError when the scaling's parameters give a frequency that is not a finite number above 0.
    """
    rope, dim = config.rope, config.head_dim
    factor = 1.0
    if rope.kind == "dynamic":
        frequencies = _powers(_dynamic_theta(rope, dim, context, rope.original_context or config.context), dim)
    else:
        frequencies = _powers(rope.theta, dim)
    if rope.kind == "longrope":
        divisors = rope.long_factors if context > _original(rope, config) else rope.factors
        assert divisors is not None
        frequencies = [f / d for f, d in zip(frequencies, divisors, strict=True)]
        factor = _longrope_attention(rope, _original(rope, config))
    elif rope.factors is not None:
        frequencies = [f / d for f, d in zip(frequencies, rope.factors, strict=True)]
    if rope.kind == "linear":
        frequencies = [f / rope.factor for f in frequencies]
    elif rope.kind == "llama3" and rope.factors is None:
        frequencies = [_llama3(f, rope, _original(rope, config)) for f in frequencies]
    elif rope.kind == "yarn":
        frequencies = _yarn(frequencies, rope, dim, _original(rope, config))
        factor = _yarn_attention(rope)
    result = array("f", frequencies)
    if not all(math.isfinite(f) and f > 0 for f in result) or not math.isfinite(factor):
        raise ModelFileError(
            f"RoPE scaling {rope.kind} with factor {rope.factor:g} gives frequencies that are no numbers"
        )
    return result, factor


def _powers(theta: float, dim: int) -> list[float]:
    """theta ** (-2 i / dim) for each rotation i."""
    return [theta ** (-i / dim) for i in range(0, dim, 2)]


def _original(rope: Rope, config: ModelConfig) -> int:
    return rope.original_context or config.context


def _dynamic_theta(rope: Rope, dim: int, context: int, original: int) -> float:
    if dim <= 2:  # a single rotation, of frequency theta ** 0
        return rope.theta
    stretch = rope.factor * max(context, original) / original - (rope.factor - 1)
    return float(rope.theta * stretch ** (dim / (dim - 2)))


def _llama3(frequency: float, rope: Rope, original: int) -> float:
    """Kept above a high frequency, divided below a low one, interpolated between. Equal bounds make it a step."""
    wavelength = 2 * math.pi / frequency
    if wavelength > original / rope.low_freq_factor:
        return frequency / rope.factor
    if wavelength < original / rope.high_freq_factor or rope.high_freq_factor == rope.low_freq_factor:
        return frequency
    smooth = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    return (1 - smooth) * frequency / rope.factor + smooth * frequency


def _yarn(frequencies: list[float], rope: Rope, dim: int, original: int) -> list[float]:
    """Interpolates rotations that turn less than beta_slow times over the original context, keeps those that turn more
    than beta_fast times, and ramps linearly over the rotations between."""

    def rotation(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = rotation(rope.beta_fast), rotation(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    result = []
    for i, frequency in enumerate(frequencies):
        interpolated = min(max((i - low) / width, 0.0), 1.0)
        result.append(frequency / rope.factor * interpolated + frequency * (1 - interpolated))
    return result


def _yarn_attention(rope: Rope) -> float:
    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _longrope_attention(rope: Rope, original: int) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    return math.sqrt(1 + math.log(rope.factor) / math.log(original)) if rope.factor > 1 else 1.0
