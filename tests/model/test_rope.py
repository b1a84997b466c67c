"""Rotation against complex numbers, and the angles against the frequencies of herder/weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from herder.core.config import Rope as RopeConfig
from herder.model.rope import Rope, rotate
from herder.weights.rope import inv_freq
from tests.tiny import tiny_config

pytestmark = pytest.mark.oracle

YARN = RopeConfig(1e4, "yarn", factor=4.0, original_context=64)


def test_angles_are_positions_times_frequencies() -> None:
    config = tiny_config(rope=YARN)
    frequencies, factor = inv_freq(config, 256)
    assert factor != 1
    cos, sin = Rope(config, 256)(torch.tensor([0, 1, 255]))
    angles = np.outer([0, 1, 255], np.array(frequencies, np.float64))
    np.testing.assert_allclose(cos, np.cos(angles) * factor, atol=2e-5)
    np.testing.assert_allclose(sin, np.sin(angles) * factor, atol=2e-5)


def test_the_context_decides_the_frequencies_of_dynamic_scaling() -> None:
    config = tiny_config(rope=RopeConfig(1e4, "dynamic", factor=2.0, original_context=64))
    short, long = Rope(config, 64), Rope(config, 256)
    assert not torch.equal(short.inv_freq, long.inv_freq)


def test_frequencies_are_numbers_on_a_model_made_on_meta() -> None:
    with torch.device("meta"):
        assert not Rope(tiny_config(), 64).inv_freq.is_meta


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(20.0).reshape(5, 4)
    turned = rotate(x, angles.cos(), angles.sin())
    number = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(5, 1, 4), angles[:, None])
    torch.testing.assert_close(turned, torch.cat((number.real, number.imag), -1))


def test_rotation_is_computed_in_float32() -> None:
    x = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    angles = torch.rand(4, 8)
    turned = rotate(x, angles.cos(), angles.sin())
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), angles.cos(), angles.sin()).to(torch.bfloat16))
