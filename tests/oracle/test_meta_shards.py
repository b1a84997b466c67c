"""Checkpoints that Meta's own resharding code split load as the whole one does, bit for bit, for every generation."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from herder.core.errors import ModelFileError
from herder.weights.source import open_model
from tests.oracle import test_meta_llama4 as llama4
from tests.oracle.meta_modules import one_rank, randomize

pytestmark = pytest.mark.oracle


def dense() -> tuple[dict[str, Any], dict[str, Any], int | None]:
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    params = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 96, "multiple_of": 32}
    params |= {"norm_eps": 1e-5, "rope_theta": 5e5}
    model = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=8))
    randomize(model, seed=1)
    return params, model.state_dict(), None


def experts() -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """With vision; layers with experts and dense ones, in the released files' fused layouts."""
    from llama_models.llama4.args import ModelArgs
    from llama_models.llama4.model import Transformer

    moe = {**llama4.MOE, "interleave_moe_layer_step": 2}
    params = {**llama4.PARAMS, "n_kv_heads": 4, "moe_args": moe, "vision_args": llama4.VISION}
    model = Transformer(ModelArgs(**params, max_batch_size=1, max_seq_len=8)).float()
    randomize(model, seed=2)
    state = llama4.released(model.state_dict(), params["n_layers"])
    return params, {k: v for k, v in state.items() if not isinstance(v, io.BytesIO)}, moe["num_experts"]


def contents(directory: Path) -> dict[str, tuple[int, bytes]]:
    with open_model(directory) as files:
        return {tensor.name: (tensor.format_id, bytes(tensor.view())) for tensor in files.load()}


@pytest.mark.parametrize("make", [dense, experts], ids=["Llama 3", "Llama 4"])
def test_shards_load_as_the_whole(tmp_path: Path, make: Callable[..., Any]) -> None:
    import torch
    from llama_models.checkpoint import convert_moe_weights, reshard_mp

    with one_rank(tmp_path):
        params, state, count = make()
    state = {name: value.to(torch.bfloat16) for name, value in state.items()}

    def write(directory: Path, shards: list[dict[str, Any]]) -> None:
        directory.mkdir()
        (directory / "params.json").write_text(json.dumps(params))
        for rank, shard in enumerate(shards):
            saved = {n: v.flatten(0, 1) if ".experts." in n and v.dim() == 3 else v for n, v in shard.items()}
            torch.save(saved, directory / f"consolidated.{rank:02d}.pth")

    write(tmp_path / "whole", [state])
    expected = contents(tmp_path / "whole")
    for ranks in (2, 4):
        stacked = dict(state) if count is None else convert_moe_weights(dict(state), count)
        shards = [reshard_mp([stacked], ranks, rank) for rank in range(ranks)]
        write(tmp_path / str(ranks), shards)
        with open_model(tmp_path / str(ranks)) as files:
            assert len(files.paths) == ranks
            assert any(tensor.make is not None for tensor in files.tensors)
        assert contents(tmp_path / str(ranks)) == expected


def test_kv_heads_on_more_ranks_than_there_are(tmp_path: Path) -> None:
    """As in 405B MP16: Meta's code splits one rank with one KV head into two that both have it."""
    import torch
    from llama_models.checkpoint import reshard_mp

    with one_rank(tmp_path):
        params, state, _ = dense()
    first = [reshard_mp([state], 4, rank) for rank in range(4)]
    second = [reshard_mp([shard], 2, half, repeat_qk_qv=2) for shard in first for half in range(2)]
    for name, shards in (("4", first), ("8", second)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "params.json").write_text(json.dumps(params))
        for rank, shard in enumerate(shards):
            torch.save(shard, tmp_path / name / f"consolidated.{rank:02d}.pth")
    assert contents(tmp_path / "8") == contents(tmp_path / "4")
    damaged = dict(second[5])
    damaged["layers.1.attention.wk.weight"] = damaged["layers.1.attention.wk.weight"] + 1
    torch.save(damaged, tmp_path / "8" / "consolidated.05.pth")
    with pytest.raises(
        ModelFileError, match=r"05\.pth: tensor layers\.1\.attention\.wk\.weight differs from that of another"
    ):
        contents(tmp_path / "8")
