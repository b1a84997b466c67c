"""Files -> model: every parameter is exactly what the file says, whatever its format and row order."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from herder.core.errors import ModelFileError
from herder.model import build as building
from herder.model.build import build
from herder.model.llama import Llama
from herder.weights.mapping import OwnedBytes
from herder.weights.names import Role
from herder.weights.source import TensorSource, open_model
from tests.tiny import TinyModel, write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral

pytestmark = pytest.mark.oracle

CPU = torch.device("cpu")


def built(path: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Llama:
    with open_model(path) as files:
        return build(files, dtype=dtype, device=CPU, **settings)


def check(model: Llama, tiny: TinyModel) -> None:
    """Row for row, bit for bit."""
    found = dict(model.named_parameters())
    assert set(found) == set(tiny.weights)
    for name, expected in tiny.weights.items():
        assert found[name].dtype == torch.float32 and found[name].device == CPU
        np.testing.assert_array_equal(found[name].detach().reshape(expected.shape), expected, name)


@pytest.mark.parametrize(
    "formats",
    ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q4_K", "Q6_K"],
)
def test_gguf_formats_are_expanded_exactly(tmp_path: Path, formats: str) -> None:
    wide = {"dim": 256, "ffn_dim": 256, "layers": 1} if formats.endswith("_K") else {}
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", formats=formats, tied=False, seed=1, **wide)
    check(built(tiny.path), tiny)


@pytest.mark.parametrize("shape", [{"tied": True}, {"attention_bias": True, "mlp_bias": True, "tied": False}])
def test_hugging_face_directories(tmp_path: Path, shape: dict[str, Any]) -> None:
    tiny = write_tiny_hf(tmp_path / "model", shards=2, **shape)
    model = built(tiny.path)
    check(model, tiny)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == shape["tied"]


@pytest.mark.parametrize("write", [write_tiny_hf, write_tiny_gguf])
@pytest.mark.parametrize("shape", [mixtral(), llama4()], ids=["mixtral", "llama 4"])
def test_experts_whether_stacked_or_turned(tmp_path: Path, write: Any, shape: dict[str, Any]) -> None:
    if shape["architecture"] != "mixtral" and write is write_tiny_gguf:
        shape = llama4(chunk=8192, floor=8192)  # all that GGUF can say
    tiny = write(tmp_path / ("model" if write is write_tiny_hf else "tiny.gguf"), **shape)
    check(built(tiny.path), tiny)


def test_rows_in_pieces_are_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "SLICE_VALUES", 1000)  # some fifteen rows of 64
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", formats="Q4_0")
    check(built(tiny.path), tiny)


def test_another_type_is_a_rounding(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", formats="Q8_0")
    model = built(tiny.path, torch.bfloat16)
    for name, parameter in model.named_parameters():
        expected = torch.from_numpy(tiny.weights[name]).to(torch.bfloat16).view(parameter.shape)
        assert torch.equal(parameter.detach(), expected), name


def test_a_model_outlives_its_files(tmp_path: Path) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    model = built(tiny.path)
    for file in tiny.path.glob("*.safetensors"):
        file.write_bytes(bytes(file.stat().st_size))
    check(model, tiny)


def test_made_tensors_are_made_once(tmp_path: Path) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    made: list[str] = []

    def maker(source: TensorSource) -> Callable[[], OwnedBytes]:
        def make() -> OwnedBytes:
            made.append(source.name)
            return OwnedBytes(bytes(source.view()))

        return make

    with open_model(tiny.path) as stored, open_model(tiny.path) as files:
        files.tensors = [replace(source, make=maker(source), file=None, address=0) for source in stored.tensors]
        check(build(files, dtype=torch.float32, device=CPU), tiny)
        assert made == [source.name for source in stored.tensors]


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "tiny.gguf", formats="Q8_0")
    calls: list[tuple[int, int]] = []
    built(tiny.path, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls) and calls[-1][0] == calls[-1][1] > 0


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    with open_model(tiny.path) as files:
        stored = files.tensors
        for rows, cols in ((128, 96), (96, 64)):
            files.tensors = [replace(s, rows=rows, cols=cols) if "down_proj" in s.name else s for s in stored]
            with pytest.raises(ModelFileError, match=f"down_proj.weight is {rows} x {cols}, but the configuration"):
                build(files, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("name", ["model.layers.7.mlp.up_proj.weight", "model.layers.0.mlp.extra"])
def test_a_tensor_without_a_place_is_refused(tmp_path: Path, name: str) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    with open_model(tiny.path) as files:
        files.tensors[3] = replace(files.tensors[3], name=name)
        with pytest.raises(ModelFileError, match=name.replace(".", r"\.")):
            build(files, dtype=torch.float32, device=CPU)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tiny = write_tiny_hf(tmp_path / "model")
    with open_model(tiny.path) as files:
        files.tensors = [s for s in files.tensors if s.name != "model.layers.1.mlp.up_proj.weight"]
        with pytest.raises(ModelFileError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
            build(files, dtype=torch.float32, device=CPU)


def test_a_model_without_a_bias_on_o_has_none(tmp_path: Path) -> None:
    """attention_bias promises one on q, k and v only."""
    tiny = write_tiny_hf(tmp_path / "model", attention_bias=True)
    with open_model(tiny.path) as files:
        files.tensors = [s for s in files.tensors if not s.name.endswith("o_proj.bias")]
        model = build(files, dtype=torch.float32, device=CPU)
    assert model.model.layers[0].self_attn.o_proj.bias is None
    assert model.model.layers[0].self_attn.q_proj.bias is not None


def test_row_maps_gather_stored_rows() -> None:
    stored = np.arange(12, dtype=np.float32).reshape(4, 3)
    data = OwnedBytes(stored.tobytes())
    source = TensorSource("x", Role.WQ, 0, 0, 4, 3, 0, 48, array("I", [2, 0, 3, 1]), data)
    (piece,) = building.pieces(source)
    np.testing.assert_array_equal(piece, stored[[2, 0, 3, 1]])
