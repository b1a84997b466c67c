"""The decoder without a cache: batches, positions, and what its parameters are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from herder.core.config import LayerPlan, Temperature
from herder.model.images import Images
from herder.model.llama import Llama
from herder.weights.names import parse_name
from tests.tiny import tiny_config
from tests.tiny_moe import llama4, mixtral

pytestmark = pytest.mark.oracle

SHAPES: dict[str, dict[str, Any]] = {
    "dense": {"attention_bias": True, "tied": False},
    "window": {"plan": (LayerPlan(window=5), LayerPlan())},
    "mixtral": mixtral(),
    "llama 4": llama4(),
}


def model(shape: dict[str, Any]) -> Llama:
    torch.manual_seed(0)
    return Llama(tiny_config(**shape)).eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 288, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_batch_is_its_sequences(shape: dict[str, Any]) -> None:
    llama, tokens = model(shape), ids(3, 21)
    with torch.inference_mode():
        together = llama(tokens)
        assert together.dtype == torch.float32 and together.shape == (3, 21, 288)
        for row, alone in zip(together, tokens, strict=True):
            torch.testing.assert_close(row, llama(alone[None])[0])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_positions_count_from_0_if_not_given(shape: dict[str, Any]) -> None:
    llama, tokens = model(shape), ids(2, 21)
    with torch.inference_mode():
        expected = llama(tokens)
        torch.testing.assert_close(llama(tokens, torch.arange(21)), expected)
        torch.testing.assert_close(llama(tokens, torch.arange(21).expand(2, -1)), expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parameters_have_their_canonical_names(shape: dict[str, Any]) -> None:
    assert all(parse_name(name) is not None for name, _ in model(shape).named_parameters())


def test_a_token_sees_none_after_it() -> None:
    llama, tokens = model(SHAPES["llama 4"]), ids(1, 21)
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % 288
    with torch.inference_mode():
        one, other = llama(tokens)[0], llama(changed)[0]
    torch.testing.assert_close(one[:15], other[:15])
    assert not torch.allclose(one[15], other[15])


def test_temperature_is_1_up_to_the_floor() -> None:
    llama = model({**llama4(), "temperature": Temperature(4, 0.5)})
    factors = llama.model.temperature(torch.arange(8))
    assert factors is not None and factors.shape == (8, 1, 1)
    second, third = 1 + 0.5 * torch.log(torch.tensor([2.0, 3.0]))
    expected = torch.tensor([1.0, 1, 1, second, second, second, second, third])
    torch.testing.assert_close(factors.flatten(), expected)


def test_rows_of_images_take_the_places_of_embeddings() -> None:
    llama, tokens = model(SHAPES["dense"]), ids(2, 5)
    x = llama.model.embed_tokens(tokens)
    rows = torch.ones(2, x.shape[-1])
    replaced = Images(rows=rows, at=torch.tensor([1, 7])).replace(x)
    assert torch.equal(replaced[0, 1], rows[0]) and torch.equal(replaced[1, 2], rows[1])
    kept = torch.ones(2, 5, dtype=torch.bool)
    kept[0, 1] = kept[1, 2] = False
    assert torch.equal(replaced[kept], x[kept]) and not torch.equal(replaced, x)
