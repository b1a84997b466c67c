"""What no method can make sense of is refused in one line; and a whole model directory, quantized, opens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from herder.core.errors import HerderError, ModelFileError, UnsupportedModel
from herder.formats import reference
from herder.weights.source import open_model
from tests.tiny import write_tiny_hf
from tests.weights.quantized.checkpoint import Bits, read, write
from tests.weights.quantized.schemes import SCHEMES, plain

MODULE = "model.layers.0.self_attn.q_proj"
WEIGHTS = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def stored(scheme: str) -> dict[str, Any]:
    return SCHEMES[scheme].quantize(MODULE, WEIGHTS)[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_schemes_of_the_tests_are_read_as_they_are_meant(tmp_path: Path, scheme: str) -> None:
    config, quantize = SCHEMES[scheme]
    tensors, meant = quantize(MODULE, WEIGHTS)
    made, taken = read(tmp_path, config, tensors)
    np.testing.assert_array_equal(made[f"{MODULE}.weight"].values, meant)
    assert taken == frozenset(tensors)
    assert np.abs(meant - WEIGHTS).mean() < 0.5


Change = dict[str, Any]
GPTQ: list[tuple[str, Change, Change, type[HerderError], str]] = [
    ("method", {"quant_method": "hqq"}, {}, UnsupportedModel, "weights quantized with 'hqq' are not supported"),
    ("no method", {"quant_method": None}, {}, UnsupportedModel, "weights quantized with '' are not supported"),
    ("unknown key", {"turbo": True}, {}, UnsupportedModel, "quantization_config.turbo = True is not known here"),
    ("bits", {"bits": 5}, {}, UnsupportedModel, "GPTQ of 5 bits is not supported; supported are 2, 3, 4 and 8"),
    ("bits that are not the tensors'", {"bits": 8}, {}, ModelFileError, "scales has shape 2 x 64, but"),
    ("no bits", {"bits": None}, {}, ModelFileError, "quantization_config.bits is missing"),
    ("group size", {"group_size": 0}, {}, ModelFileError, "group_size is 0: expected a whole number between 1"),
    ("other group size", {"group_size": 64}, {}, ModelFileError, "scales has shape 2 x 64, but"),
    ("layout", {"checkpoint_format": "marlin"}, {}, UnsupportedModel, "checkpoint_format 'marlin' is not supported"),
    ("words", {"pack_dtype": "int8"}, {}, UnsupportedModel, "pack_dtype = 'int8'"),
    ("rules", {"dynamic": {"+:(": {}}}, {}, ModelFileError, "dynamic is '+:(': not a regular expression"),
    ("no scales", {}, {"scales": None}, ModelFileError, "q_proj.scales is missing beside the others of its module"),
    ("no zeros", {}, {"qzeros": None}, ModelFileError, "q_proj.qzeros is missing beside the others of its module"),
    ("no order", {"desc_act": True}, {"g_idx": None}, ModelFileError, "has no g_idx beside it, but"),
    ("scales of integers", {}, {"scales": np.zeros((2, 64), np.int32)}, ModelFileError, "is stored as I32"),
    ("NaN", {}, {"scales": np.full((2, 64), np.nan, np.float16)}, ModelFileError, "scales that are not finite"),
    ("infinity", {}, {"scales": np.full((2, 64), np.inf, np.float32)}, ModelFileError, "scales that are not finite"),
    ("group outside", {}, {"g_idx": np.full(64, 2, np.int32)}, ModelFileError, "names group 2, but there are 2"),
    ("group below", {}, {"g_idx": np.full(64, -1, np.int32)}, ModelFileError, "names group -1, but there are 2"),
    ("order of others", {}, {"g_idx": np.zeros(63, np.int32)}, ModelFileError, "g_idx has shape 63, but"),
    ("vector", {}, {"qweight": np.zeros(8, np.int32)}, ModelFileError, "qweight has shape 8: expected a matrix"),
    ("twice", {}, {"weight": np.zeros((64, 64), np.float16)}, ModelFileError, "is there twice, quantized and not"),
    ("nothing", {}, dict.fromkeys(("qweight", "qzeros", "scales", "g_idx")), ModelFileError, "no tensor is quantized"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "tensors", "kind", "message"), [case[1:] for case in GPTQ], ids=[c[0] for c in GPTQ]
)
def test_contradictions_are_refused(
    tmp_path: Path, config: Change, tensors: Change, kind: type[HerderError], message: str
) -> None:
    changed = {**stored("gptq"), **{f"{MODULE}.{name}": value for name, value in tensors.items()}}
    kept = {name: value for name, value in changed.items() if value is not None} or {"x": np.zeros(1, np.float32)}
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read(tmp_path, {**SCHEMES["gptq"].config, **config}, kept)
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_no_number_is_found_when_it_is_made(tmp_path: Path) -> None:
    tensors = stored("compressed-tensors float8")
    config = SCHEMES["compressed-tensors float8"].config
    tensors[f"{MODULE}.weight"].array[3, 5] = 0x7F
    with pytest.raises(ModelFileError, match="holds NaN: the file is damaged"):
        read(tmp_path, config, tensors)
    tensors = stored("compressed-tensors float8")
    tensors[f"{MODULE}.weight_scale"] = np.full((64, 1), 1e4, np.float32)
    with pytest.raises(ModelFileError, match="holds weights that F16 cannot hold"):
        read(tmp_path, config, tensors, dtype="float16")


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"dtype '{dtype}' is not supported"):
        read(tmp_path, SCHEMES["gptq"].config, stored("gptq"), dtype=dtype)


JUNK = st.none() | st.booleans() | st.integers(-3, 300) | st.text(max_size=8) | st.lists(st.integers(-1, 9), max_size=3)


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_ends_in_weights_or_in_one_line(tmp_path: Path, scheme: str, data: st.DataObject) -> None:
    """One tensor lost, of another shape, type or content; one value of the configuration replaced."""
    tensors = dict(stored(scheme))
    config = json.loads(json.dumps(SCHEMES[scheme].config))
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors[name]
    array = value.array if isinstance(value, Bits) else value
    what = data.draw(st.sampled_from(["lose", "shorten", "noise", "type", "key"]))
    if what == "lose":
        del tensors[name]
        tensors["x"] = np.zeros(1, np.float32)
    elif what == "shorten":
        shorter = array[:-1] if array.ndim else array.reshape(1, 1)
        tensors[name] = Bits(value.dtype, shorter) if isinstance(value, Bits) else shorter
    elif what == "noise":
        raw = np.random.default_rng(data.draw(st.integers(0, 99))).bytes(array.nbytes)
        noise = np.frombuffer(raw, array.dtype).reshape(array.shape)
        tensors[name] = Bits(value.dtype, noise) if isinstance(value, Bits) else noise
    elif what == "type":
        tensors[name] = np.zeros(array.shape, data.draw(st.sampled_from([np.int8, np.float16, np.int32, np.uint8])))
    else:
        config[data.draw(st.sampled_from(sorted(config)))] = data.draw(JUNK)
    try:
        read(tmp_path, config, tensors)
    except HerderError as error:
        assert "\n" not in str(error)


# A whole directory


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A tiny model whose feed-forward networks are quantized and whose attention is not."""
    directory = write_tiny_hf(tmp_path / "tiny", dtype="BF16").path
    weights = write_tiny_hf(tmp_path / "float", dtype="F32").path / "model.safetensors"
    tensors: dict[str, Any] = {}
    for name, values in load_file(weights).items():
        new = SCHEMES["gptq"].quantize(name.removesuffix(".weight"), values)[0] if ".mlp." in name else None
        tensors |= {name: plain(values)} if new is None else new
    write(directory / "model.safetensors", tensors)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEMES["gptq"].config}))
    return directory


def test_a_directory_opens_with_its_matrices_made_on_demand(quantized: Path) -> None:
    with open_model(quantized) as model:
        made = [tensor for tensor in model.load() if tensor.make is not None]
        assert {tensor.name.split(".")[3] for tensor in made} == {"mlp"}
        assert len(made) == 3 * model.config.layers
        assert {tensor.format.name for tensor in made} == {"Q4_0"}
        for tensor in made:
            raw = tensor.view()
            assert (len(raw), tensor.address) == (tensor.bytes, 0)
            assert np.isfinite(reference.unpack(tensor.format, raw, tensor.rows, tensor.cols)).all()


def test_a_file_of_its_own_says_how_the_weights_are_quantized(quantized: Path) -> None:
    """As AutoGPTQ's first releases wrote it: no quant_method, and config.json knows nothing."""
    with open_model(quantized) as model:
        expected = {tensor.name: bytes(tensor.view()) for tensor in model.load()}
    config = json.loads((quantized / "config.json").read_text())
    said = {key: value for key, value in config.pop("quantization_config").items() if key != "quant_method"}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(HerderError, match="is not known here"):
        open_model(quantized)
    (quantized / "quantize_config.json").write_text(json.dumps(said))
    with open_model(quantized) as model:
        assert {tensor.name: bytes(tensor.view()) for tensor in model.load()} == expected
    (quantized / "quantize_config.json").write_text(json.dumps(said | {"new": 1}))
    with pytest.raises(UnsupportedModel, match=r"quantize_config\.json: .*new = 1 is not known here"):
        open_model(quantized)


@pytest.mark.parametrize(("name", "message"), [
    ("model.layers.0.mlp.up_proj.scales", "is missing beside the others of its module"),
    ("model.layers.1.mlp.down_proj.qweight", "down_proj.g_idx' is not known here"),
])  # fmt: skip
def test_a_directory_that_lacks_a_part_does_not_open(quantized: Path, name: str, message: str) -> None:
    weights = quantized / "model.safetensors"
    shutil.copy(weights, quantized / "whole")
    tensors = bits_of(quantized / "whole")
    del tensors[name]
    write(weights, tensors)
    with pytest.raises(HerderError, match=message):
        open_model(quantized)


def bits_of(path: Path) -> dict[str, Any]:
    """Every tensor as its bits, BF16 ones marked."""
    from herder.weights.quantized.parts import Part
    from herder.weights.safetensors import SafeTensors

    with SafeTensors(path) as file:
        found: dict[str, Any] = {}
        for info in file.tensors:
            array = Part(file, info).array().copy()
            found[info.name] = Bits("BF16", array) if info.dtype == "BF16" else array
        return found
