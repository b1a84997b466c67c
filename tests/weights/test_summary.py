"""What `herder show` prints, computed from the files."""

from __future__ import annotations

from pathlib import Path

import pytest

from herder.core.config import LayerPlan
from herder.core.errors import UnsupportedModel
from herder.weights.source import open_model
from herder.weights.summary import FormatShare, describe, summarize
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4


def test_the_default_model(smollm2: Path) -> None:
    """Figures of the file's published description: 210 Q4_1, 61 F32 and one Q8_0 tensor, 134.5 M weights."""
    with open_model(smollm2) as model:
        summary = summarize(model, contexts=(1, 8192))
    assert summary.formats == (
        FormatShare("Q4_1", 210, 106_168_320, 66_355_200),
        FormatShare("Q8_0", 1, 28_311_552, 30_081_024),
        FormatShare("F32", 61, 35_136, 140_544),
    )
    assert summary.parameters == summary.config.parameters == 134_515_008
    assert summary.file_bytes == 98_362_432
    assert summary.kv_bytes == ((1, 23_040), (8192, 8192 * 23_040))
    assert 5.7 < summary.bits_per_weight < 5.8
    assert summary.template is not None and summary.template.startswith("{% for message in messages %}")
    assert (summary.licence, summary.kind, summary.templates) == ("apache-2.0", "gguf", ("default",))


def test_a_directory(tmp_path: Path) -> None:
    directory = write_tiny_hf(tmp_path / "tiny", tied=False, dtype="BF16", chat_template=None, shards=2).path
    with open_model(directory) as model:
        summary = summarize(model)
    assert [share.name for share in summary.formats] == ["BF16"]
    assert (summary.name, summary.template, summary.bits_per_weight) == ("tiny", None, 16.0)
    assert summary.kv_bytes == ((256, 256 * 2 * 2 * 2 * 16 * 2),)
    assert len(summary.paths) == 2


def test_kinds_of_layers_and_experts(tmp_path: Path) -> None:
    with open_model(write_tiny_hf(tmp_path / "m", **llama4()).path) as model:
        summary = summarize(model)
    assert summary.parameters == summary.config.parameters > summary.active_parameters
    assert summary.parameters - summary.active_parameters == 2 * 3 * (3 * 64 * 64)  # layers, idle experts, matrices
    assert summary.vision_parameters == 0
    assert [(describe(plan), count) for plan, count in summary.layers] == [
        ("chunks of 8, QK norm", 2),
        ("chunks of 8, QK norm, experts", 1),
        ("full attention, no RoPE, temperature, experts", 1),
    ]
    assert describe(LayerPlan(window=4096)) == "window of 4096"
    assert describe(LayerPlan(rope=False, cross=True)) == "attention to images"


@pytest.mark.oracle
def test_weights_of_an_image_encoder(tmp_path: Path) -> None:
    from tests.oracle import checkpoints

    theirs = checkpoints.mllama(tmp_path)
    with open_model(tmp_path) as model:
        summary = summarize(model)
    assert summary.parameters == sum(p.numel() for p in theirs.parameters())
    assert summary.vision_parameters == summary.parameters - summary.config.parameters > 0


def test_a_vocabulary_has_no_summary(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "v.gguf", vocabulary_only=True).path
    with open_model(path) as model, pytest.raises(UnsupportedModel, match="only a vocabulary"):
        summarize(model)
