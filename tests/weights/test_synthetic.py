"""Shapes of published models and random weights in them."""

from __future__ import annotations

import numpy as np
import pytest

from herder.core.errors import UnsupportedModel, UsageError
from herder.formats import reference, table
from herder.weights import synthetic
from herder.weights.shapes import SHAPES, shape_config

# Parameters as the models' makers count them.
PUBLISHED = {
    "llama-7b": 6.738e9,
    "llama-13b": 13.016e9,
    "llama-33b": 32.53e9,
    "llama-65b": 65.29e9,
    "llama-2-70b": 68.98e9,
    "code-llama-34b": 33.74e9,
    "llama-3-8b": 8.030e9,
    "llama-3-70b": 70.554e9,
    "llama-3.1-405b": 405.853e9,
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "mistral-7b-v0.1": 7.24e9,
    "mistral-7b-v0.3": 7.25e9,
    "smollm2-135m": 134.5e6,
    "smollm2-360m": 361.8e6,
    "smollm2-1.7b": 1.711e9,
}
# Bytes of 16-bit KV cache per token.
KV = {"llama-2-7b": 524_288, "llama-2-70b": 327_680, "llama-3.1-8b": 131_072, "llama-3.1-405b": 516_096,
      "llama-3.2-1b": 32_768, "llama-3.2-3b": 114_688, "smollm2-135m": 23_040}  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_parameters(name: str, parameters: float) -> None:
    assert shape_config(name).parameters == pytest.approx(parameters, rel=6e-4)


@pytest.mark.parametrize(("name", "kv_bytes"), KV.items())
def test_kv_cache(name: str, kv_bytes: int) -> None:
    assert shape_config(name).kv_bytes(1) == kv_bytes


def test_every_shape_is_one() -> None:
    for name in SHAPES:
        config = shape_config(name)
        assert config.dim % config.heads == 0 and config.heads % config.kv_heads == 0
        assert len(config.plan) == config.layers


def test_an_unknown_shape_or_format() -> None:
    with pytest.raises(UsageError, match=r"there is no shape 'llama-9b': known are llama-7b"):
        synthetic.synthetic("llama-9b@q4_0")
    for name in ("smollm2-135m", "smollm2-135m@", "smollm2-135m@q9"):
        with pytest.raises(UsageError, match=r"write smollm2-135m@FORMAT with one of f32, f16"):
            synthetic.synthetic(name)
    with pytest.raises(UnsupportedModel, match="rows of 576 weights"):
        synthetic.synthetic("smollm2-135m@q4_k")


def test_the_tensors_of_a_tied_and_an_untied_model() -> None:
    tied = synthetic.synthetic("smollm2-135m@q4_1")
    assert len(tied.tensors) == 2 + 30 * 9
    assert {tensor.format.name for tensor in tied.tensors} == {"Q4_1", "Q8_0", "F32"}
    untied = synthetic.synthetic("llama-3.1-8b@q4_0")
    assert len(untied.tensors) == 3 + 32 * 9
    assert {tensor.format.name for tensor in untied.tensors} == {"Q4_0", "Q6_K", "F32"}
    assert sum(tensor.rows * tensor.cols for tensor in untied.tensors) == untied.config.parameters


def test_tensors_are_made_one_at_a_time_and_hold_what_they_say() -> None:
    files = synthetic.synthetic("smollm2-135m@q8_0")
    seen = 0
    for tensor in files.load():
        assert len(tensor.view()) == tensor.bytes
        seen += tensor.bytes
        if tensor.layer > 0:
            break
        values = reference.unpack(tensor.format, tensor.view(), tensor.rows, tensor.cols)
        if tensor.rows == 1:
            assert (values == 1).all()
        else:
            assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(0.02, rel=0.05)
    assert seen < files.bytes


@pytest.mark.parametrize("form", [f for f in table.FORMATS if not f.quantized or f in synthetic._SCALES])
def test_random_blocks_of_every_format_are_sane(form: table.Format) -> None:
    pool = synthetic._pool(form, np.random.default_rng(0))
    values = reference.unpack(form, pool.reshape(-1), 1, len(pool) * form.block)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 1e-3 and values.std() == pytest.approx(0.02, rel=0.05)
