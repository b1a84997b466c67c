"""Files of models with experts and images, mutated: a model or one line that says what is wrong (see test_fuzz.py)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import HerderError
from herder.weights.config_hf import config_from_hf
from herder.weights.rope import inv_freq
from herder.weights.source import check_shape_sanity
from herder.weights.vision_tensors import vision_shapes
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral
from tests.weights.test_config_generations import PUBLISHED
from tests.weights.test_fuzz import json_values, mutations, survive

SMALL: dict[str, Any] = {"dim": 32, "heads": 2, "kv_heads": 1}
GGUF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(experts=2, layers=1, ffn_dim=32, formats="Q4_0", **SMALL),
    "mixtral, experts alone": mixtral(experts=2, layers=1, ffn_dim=32, stacked=False, **SMALL),
    "llama4": llama4(experts=2, layers=4, chunk=8192, floor=8192, formats="Q8_0", ffn_dim=32, **SMALL),
}
HF: dict[str, dict[str, Any]] = {
    "mixtral": mixtral(experts=2, layers=1, ffn_dim=16, dtype="BF16", **SMALL),
    "llama4": llama4(experts=2, layers=2, ffn_dim=16, dtype="BF16", **SMALL),
}


@pytest.mark.parametrize("kind", GGUF)
def test_a_mutated_gguf(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.gguf"
    write_tiny_gguf(path, **GGUF[kind])
    raw, header = path.read_bytes(), gguf.GGUFReader(path).data_offset
    assert survive(path)
    # The vocabulary, which is most of the header, has its own tests: the keys before it and the tensors after it.
    at = raw.index(b"tokenizer.ggml.model")
    accepted = 0
    for seed, window in ((3, at), (4, header)):
        for changed in mutations(raw, window, seed, 250):
            path.write_bytes(changed)
            accepted += survive(path)
    assert 0 < accepted < 450


@pytest.mark.parametrize("kind", HF)
def test_a_mutated_safetensors_file(tmp_path: Path, kind: str) -> None:
    directory = write_tiny_hf(tmp_path / "m", **HF[kind]).path
    file = directory / "model.safetensors"
    raw = file.read_bytes()
    accepted = 0
    for changed in mutations(raw, 8 + int.from_bytes(raw[:8], "little"), seed=5, count=250):
        file.write_bytes(changed)
        accepted += survive(directory)
    file.write_bytes(raw)
    assert survive(directory) and accepted < 200


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_tiny_hf(tmp_path_factory.mktemp("fuzz") / "m", **shape).path for kind, shape in HF.items()}


@given(st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_config_of_experts_with_any_value_anywhere(directories: dict[str, Path], data: st.DataObject) -> None:
    directory = directories[data.draw(st.sampled_from(sorted(directories)))]
    file = directory / "config.json"
    before = file.read_text()
    changed = json.loads(before)
    names = st.sampled_from([*changed, "moe_layers", "layer_types", "num_experts", "quantization_config"])
    for key in data.draw(st.lists(names, max_size=3)):
        changed[key] = data.draw(json_values | st.integers(-1, 9) | st.lists(st.integers(0, 3), max_size=5))
    try:
        file.write_text(json.dumps(changed))
        survive(directory)
    finally:
        file.write_text(before)


numbers = st.integers(-1, 2**17) | st.floats(0, 8) | st.sampled_from([1e-300, 1e300, 0.5, 0.25, 10**400])


@given(st.data())
@settings(max_examples=300)
def test_a_published_config_with_any_value_anywhere(data: st.DataObject) -> None:
    """Also inside text_config and vision_config: a shape whose tensors can be listed, or a refusal."""
    raw = copy.deepcopy(PUBLISHED[data.draw(st.sampled_from(sorted(PUBLISHED)))])
    for _ in range(data.draw(st.integers(1, 3))):
        inner = [raw, *(value for value in raw.values() if isinstance(value, dict))]
        target = data.draw(st.sampled_from(inner))
        target[data.draw(st.sampled_from([*target, "new"]))] = data.draw(json_values | numbers)
    try:
        config = config_from_hf("config.json", raw)
        check_shape_sanity("config.json", config)
        inv_freq(config, config.context)
    except HerderError as error:
        assert "\n" not in str(error)
        return
    assert all(min(shape) > 0 for shape in vision_shapes(config).values())
    assert len(config.plan) == config.layers and config.parameters >= config.active_parameters > 0
