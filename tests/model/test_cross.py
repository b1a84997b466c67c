"""Cross-attention layers by themselves: who sees nothing is left alone, and keys and values are made once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from herder.core.config import LayerPlan
from herder.model.cross import CrossLayer
from herder.model.images import Images, Sight
from herder.model.state import Pass
from tests.tiny import tiny_config

pytestmark = pytest.mark.oracle


def test_rows_that_see_no_image_pass_unchanged_and_others_see_only_theirs() -> None:
    config = tiny_config()
    config = replace(config, plan=(LayerPlan(cross=True),) * config.layers)
    torch.manual_seed(0)
    layer = CrossLayer(config, 0)
    with torch.no_grad():
        layer.cross_attn_attn_gate.fill_(0.7)
        layer.cross_attn_mlp_gate.fill_(0.7)
        x, states = torch.randn(5, config.dim), torch.randn(6, config.dim)
        visible = torch.zeros(3, 6, dtype=torch.bool)
        visible[1, :2] = visible[2, 2:] = True

        def step(*sights: Sight) -> Pass:
            return Pass(torch.arange(5), True, (x, x), None, None, Images(sights=sights))

        sight = Sight(slice(1, 4), states, visible)
        out = layer(x, step(sight))
        assert out.isfinite().all()
        assert torch.equal(out[[0, 1, 4]], x[[0, 1, 4]])
        alone = layer(x, step(Sight(slice(2, 3), states[:2], torch.ones(1, 2, dtype=torch.bool))))
        assert torch.allclose(out[2], alone[2], atol=1e-6) and not torch.allclose(out[2], x[2], atol=1e-2)
        sight.kv[0] = tuple(torch.zeros_like(part) for part in sight.kv[0])  # they are used, not made again
        assert not torch.allclose(layer(x, step(sight))[2], out[2], atol=1e-2)
        assert torch.equal(layer(x, step()), x)
