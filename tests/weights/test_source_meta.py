"""Meta's consolidated files as named tensors: the same model on any number of ranks; what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.config import ModelConfig, Rope
from herder.core.errors import HerderError, ModelFileError, ModelNotFound, UnsupportedModel
from herder.weights.source import ModelFiles, TensorSource, open_model
from herder.weights.source_meta import open_meta
from tests.oracle import ours
from tests.tiny import random_weights, tiny_config, write_tiny_gguf, write_tiny_hf
from tests.weights.meta_files import (
    contiguous,
    dense_state,
    params,
    split,
    tensor,
    write_archive,
    write_meta,
    write_torch,
)
from tests.weights.meta_files import state as pickled

Weights = dict[str, np.ndarray]


def canonical(source: TensorSource) -> bytes:
    """A tensor's bytes in canonical row order."""
    rows = np.frombuffer(source.view(), np.uint8).reshape(source.rows, -1)
    return (rows if source.row_map is None else rows[np.asarray(source.row_map)]).tobytes()


def contents(model: ModelFiles) -> dict[str, tuple[int, int, int, bytes]]:
    return {t.name: (t.format_id, t.rows, t.cols, canonical(t)) for t in model.load()}


def tiny(**shape: Any) -> tuple[ModelConfig, Weights]:
    config = tiny_config(tied=False, **shape)
    return config, random_weights(config, "F32", 1)[0]


def assert_holds(directory: Path, weights: Weights) -> None:
    with open_model(directory) as model:
        found = {name: data for name, (_, _, _, data) in contents(model).items()}
        assert found == {name: values.tobytes() for name, values in weights.items()}
        assert (model.kind, len(model.paths)) == ("meta", len(list(directory.glob("*.pth"))))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_on_any_number_of_ranks(tmp_path: Path, data: st.DataObject) -> None:
    """Also more ranks than KV heads, and the embedding split either way."""
    ranks = data.draw(st.sampled_from([1, 2, 4, 8]))
    kv_heads = data.draw(st.sampled_from([1, 2, 4, 8]))
    heads = 8 * data.draw(st.integers(1, 2))
    head_dim = 2 * data.draw(st.integers(1, 4))
    config, weights = tiny(
        layers=data.draw(st.integers(1, 2)), dim=heads * head_dim, heads=heads, kv_heads=kv_heads,
        ffn_dim=8 * data.draw(st.integers(1, 5)), vocab=288 + 8 * data.draw(st.integers(0, 2)),
    )  # fmt: skip
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    axis = data.draw(st.integers(0, 1))
    pieces = split(dense_state(config, weights), ranks, axis, kv_heads)
    directory = write_meta(
        tmp_path / "model", pieces, params(config, vocab_size=data.draw(st.sampled_from([-1, config.vocab])))
    )
    assert_holds(directory, weights)
    with open_model(directory) as model:
        config_ = model.config
        assert (config_.vocab, config_.kv_heads, config_.ffn_dim, config_.tied) == (
            config.vocab,
            kv_heads,
            config.ffn_dim,
            False,
        )
        assert ranks > 1 or all(t.make is None for t in model.tensors)


def test_meta_hugging_face_and_gguf_files_hold_the_same_model(tmp_path: Path) -> None:
    """Bit for bit after the gather, and so are the logits, on one rank and on two."""
    shape: dict[str, Any] = {"tied": False, "heads": 8, "kv_heads": 4, "rope": Rope(5e5), "context": 8192}
    hf = write_tiny_hf(tmp_path / "hf", seed=3, **shape)
    gguf = write_tiny_gguf(tmp_path / "model.gguf", seed=3, **shape)
    full = dense_state(hf.config, hf.weights)
    written = [write_meta(tmp_path / f"meta{n}", split(full, n), params(hf.config)) for n in (1, 2)]
    found, logits = [], []
    ids = [int(i) for i in np.random.default_rng(0).integers(0, hf.config.vocab, 40)]
    for path in (hf.path, gguf.path, *written):
        with open_model(path) as model:
            found.append(contents(model))
        with ours.executor(path, "float32", context=64) as native:
            logits.append(ours.logits(native, ids).tobytes())
    assert found[1:] == found[:1] * 3
    assert logits[1:] == logits[:1] * 3


def test_the_output_matrix_may_be_the_embedding(tmp_path: Path) -> None:
    """Absent, or a second name of the same storage (Llama 3.2 1B and 3B); equal bytes elsewhere stay a matrix."""
    config, weights = tiny()
    state = dense_state(config, weights)
    state["output.weight"] = state["tok_embeddings.weight"]
    separate = write_meta(tmp_path / "separate", [state], params(config))
    del state["output.weight"]
    absent = write_meta(tmp_path / "absent", [state], params(config))
    names = {"output.weight": "tok_embeddings.weight"}
    shared = write_meta(tmp_path / "shared", [state], params(config), shared=names)
    for directory, tied in ((separate, False), (absent, True), (shared, True)):
        with open_model(directory) as model:
            assert model.config.tied == tied
            assert ("lm_head.weight" in {t.name for t in model.tensors}) != tied


def test_half_precision_and_stored_transposes(tmp_path: Path) -> None:
    """A transpose is handed on as it lies, unless its rows are gathered."""
    config, weights = tiny(heads=4, kv_heads=2)
    state = dense_state(config, weights)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "params.json").write_text(json.dumps(params(config)))
    turned = ("layers.0.feed_forward.w1.weight", "layers.1.attention.wq.weight", "layers.1.attention.wo.weight")
    entries, members = {}, {}
    for key, (name, values) in enumerate(state.items()):
        strides = (1, values.shape[0]) if name in turned else (*values.shape[1:], 1)
        stored = values.T if name in turned else values
        entries[name] = tensor("HalfStorage", str(key), values.size, 0, values.shape, strides)
        members[f"data/{key}"] = np.ascontiguousarray(stored).astype(np.float16).tobytes()
    write_archive(tmp_path / "m" / "consolidated.00.pth", {"data.pkl": pickled(entries), **members})
    with open_model(tmp_path / "m") as model:
        for found in model.load():
            assert canonical(found) == weights[found.name].astype(np.float16).tobytes()
        by_name = {found.name: found for found in model.tensors}
    assert by_name["model.layers.0.mlp.gate_proj.weight"].turned == config.ffn_dim
    assert by_name["model.layers.1.self_attn.q_proj.weight"].make is not None


def test_what_carries_no_weight_is_left_out(tmp_path: Path) -> None:
    config, weights = tiny()
    state = dense_state(config, weights)
    state["rope.freqs"] = np.ones(8, np.float32)
    state["layers.0.attention.inner_attention.rope.freqs"] = np.ones(8, np.float32)
    state["layers.1.attention.wo._extra_state"] = np.ones(8, np.float32)
    assert_holds(write_meta(tmp_path / "m", [state], params(config)), weights)


def test_small_files(tmp_path: Path) -> None:
    config, weights = tiny()
    directory = write_meta(tmp_path / "Llama-x" / "original", [dense_state(config, weights)], params(config))
    (directory / "consolidated.00.pth").rename(directory / "consolidated.pth")
    with open_model(directory) as model:
        assert (model.name, model.bos, model.eos, model.stop_token_ids) == ("Llama-x", None, None, frozenset())
        assert model.metadata == {"params.json": params(config)}
        assert [path.name for path in model.paths] == ["consolidated.pth"]
        assert model.licence == model.config.licence == ""
    (directory / "LICENSE").write_text("\nLLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nRelease date\n")
    with open_model(directory) as model:
        assert model.licence == "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT"
    large = {"vocab": 128256, "dim": 16, "ffn_dim": 16, "layers": 1}
    config, weights = tiny(**large)
    directory = write_meta(tmp_path / "m", [dense_state(config, weights)], params(config))
    with open_model(directory) as model:
        assert (model.bos, model.eos, model.stop_token_ids) == (128000, 128001, frozenset({128001, 128008, 128009}))


def test_the_tokenizer_may_lie_in_the_folder_above(tmp_path: Path) -> None:
    """As Meta's download of Llama 1 and 2 leaves it."""
    import mistral_common

    from herder.text.load import load_tokenizer

    published = Path(mistral_common.__file__).parent / "data"
    config, weights = tiny(layers=1)
    directory = write_meta(tmp_path / "llama-2-7b", [dense_state(config, weights)], params(config))
    with pytest.raises(ModelNotFound, match="holds no tokenizer"):
        load_tokenizer(directory)
    shutil.copy(published / "tokenizer.model.v1", tmp_path / "tokenizer.model")
    assert load_tokenizer(directory).vocab_size == 32000


# Refusals


def refused(directory: Path, kind: type[HerderError], message: str, read: bool = False) -> None:
    with pytest.raises(kind, match=message) as caught, open_model(directory) as model:
        assert read, "opened"
        contents(model)
    assert "\n" not in str(caught.value)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, list[dict[str, np.ndarray]], dict[str, Any]]:
    config, weights = tiny()
    pieces = split(dense_state(config, weights), 2)
    return tmp_path / "model", pieces, params(config)


def test_missing_files_are_named(two: Any) -> None:
    directory, pieces, values = two
    write_meta(directory, pieces, values)
    (directory / "consolidated.00.pth").rename(directory / "consolidated.02.pth")
    refused(directory, ModelNotFound, r"consolidated\.00\.pth is missing, although consolidated\.02\.pth is there")
    (directory / "consolidated.01.pth").unlink()
    (directory / "consolidated.02.pth").rename(directory / "consolidated.00.pth")
    refused(directory, ModelNotFound, r"has 1 of 2 files consolidated\.NN\.pth: download the others too")
    shutil.copy(directory / "consolidated.00.pth", directory / "consolidated.pth")
    refused(directory, ModelFileError, r"has both consolidated\.pth and consolidated\.00\.pth")
    for path in directory.glob("*.pth"):
        path.unlink()
    with pytest.raises(ModelNotFound, match=r"has params\.json but no consolidated\.00\.pth"):
        open_meta(directory)
    write_meta(directory, pieces, values)
    (directory / "params.json").unlink()
    refused(directory, ModelNotFound, r"params\.json is missing: download it beside the weights")


def test_ranks_that_disagree_are_named(two: Any) -> None:
    directory, pieces, values = two
    cases = [
        ("layers.1.ffn_norm.weight", pieces[1]["layers.1.ffn_norm.weight"] + 1, r"01\.pth: tensor .* differs from"),
        ("layers.1.ffn_norm.weight", None, r"layers\.1\.ffn_norm\.weight' is missing on rank 1 of 2"),
        ("norm.weight", np.ones(63, np.float32), r"norm\.weight has shape 1 x 64 on the first of 2 ranks"),
        ("layers.0.attention.wq.weight", np.ones((32, 63), np.float32), r"wq\.weight has shape 32 x 64 on the first"),
        ("layers.0.attention.wo.weight", np.ones((64, 31), np.float32), r"wo\.weight has shape 64 x 32 on the first"),
        ("more.weight", np.ones(2, np.float32), r"tensor 'more\.weight' is not known here"),
    ]  # fmt: skip
    for name, changed, message in cases:
        other = dict(pieces[1])
        other.pop(name, None)
        if changed is not None:
            other[name] = changed
        write_meta(directory, [pieces[0], other], values)
        kind = UnsupportedModel if "known" in message else ModelFileError
        refused(directory, kind, message, read="differs" in message)
    write_meta(directory, pieces, values)
    halves = {name: ("F16", part.astype(np.float16)) for name, part in pieces[1].items()}
    write_torch(directory / "consolidated.01.pth", halves)
    refused(directory, ModelFileError, "is stored as F16, but as F32 on the first rank")


def test_configurations_that_contradict_the_tensors_are_named(two: Any) -> None:
    directory, pieces, values = two
    for changes, message in (
        ({"dim": 96, "n_heads": 4}, "dim is 96, but the embedding has 64 columns"),
        ({"n_layers": 1}, r"tensor 'layers\.1\..*' is not known here"),
        ({"n_layers": 3}, r"layers\.2\.attention_norm\.weight' is missing"),
        ({"ffn_dim_multiplier": 1.0}, r"w1\.weight has shape 48 x 64 on the first of 2 ranks, but params.json asks"),
        ({"n_kv_heads": 4}, r"wk\.weight has shape"),
        ({"n_heads": 3}, "not a multiple of n_heads 3"),
    ):
        write_meta(directory, pieces, {**values, **changes})
        refused(directory, HerderError, message)  # type: ignore[type-abstract]
    (directory / "params.json").write_text("[]")
    refused(directory, ModelFileError, "not a JSON object")


def test_integers_without_scales_are_refused(two: Any) -> None:
    directory, pieces, values = two
    write_meta(directory, pieces, values)
    integers = {name: ("I8", part.astype(np.int8)) for name, part in pieces[0].items()}
    write_torch(directory / "consolidated.00.pth", integers)
    write_torch(directory / "consolidated.01.pth", {n: ("I8", p.astype(np.int8)) for n, p in pieces[1].items()})
    refused(directory, UnsupportedModel, "is stored as I8; supported here are F32, F16 and BF16")


def test_a_model_of_405b_opens_from_its_headers(tmp_path: Path) -> None:
    """Eight files of the real shape whose storages are holes: nothing but headers is read."""
    dim, layers, ranks, vocab, ffn = 16384, 126, 8, 128256, 53248
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (vocab // 8, dim), "norm.weight": (dim,)}
    shapes["output.weight"] = (vocab // 8, dim)
    for layer in range(layers):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.w{p}.weight": (16384 // 8 if p == "q" else 128, dim) for p in "qkv"}
        shapes |= {at + "attention.wo.weight": (dim, 2048), at + "feed_forward.w2.weight": (dim, ffn // 8)}
        shapes |= {f"{at}feed_forward.w{p}.weight": (ffn // 8, dim) for p in "13"}
        shapes |= {at + "attention_norm.weight": (dim,), at + "ffn_norm.weight": (dim,)}
    largest = max(int(np.prod(shape)) for shape in shapes.values())
    entries = {
        name: tensor("BFloat16Storage", "0", largest + 1, int(name == "output.weight"), shape, contiguous(shape))
        for name, shape in shapes.items()
    }
    members = {"data.pkl": pickled(entries)}
    for rank in range(ranks):
        path = tmp_path / f"consolidated.{rank:02d}.pth"
        write_archive(path, {**members, "data/0": b""})
        grow(path, 2 * (largest + 1))
    values = {"dim": dim, "n_layers": layers, "n_heads": 128, "n_kv_heads": 8, "multiple_of": 4096, "norm_eps": 1e-5}
    values |= {"ffn_dim_multiplier": 1.2, "vocab_size": vocab, "rope_theta": 5e5, "use_scaled_rope": True}
    (tmp_path / "params.json").write_text(json.dumps(values))
    with open_model(tmp_path) as model:
        assert round(model.config.parameters / 1e9, 1) == 405.9
        assert len(model.tensors) == 9 * layers + 3
        assert sum(t.bytes for t in model.tensors) == 2 * model.config.parameters


def grow(path: Path, size: int) -> None:
    """Makes the archive's last, empty file `size` zero bytes: a hole."""
    raw = bytearray(path.read_bytes())
    directory = raw.index(b"PK\x01\x02")
    entry = raw.rindex(b"PK\x01\x02")
    local = int.from_bytes(raw[entry + 42 : entry + 46], "little")
    for at in (entry + 20, entry + 24, local + 18, local + 22):
        raw[at : at + 4] = size.to_bytes(4, "little")
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 16 : end + 20] = (directory + size).to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(raw[:directory])
        file.seek(directory + size)
        file.write(raw[directory:])


# Damage


def read_or_refused(directory: Path) -> None:
    """A model whose tensors can be read, or one line."""
    try:
        with open_model(directory) as model:
            contents(model)
    except HerderError as error:
        assert "\n" not in str(error) and str(directory) in str(error)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(two: Any, data: st.DataObject) -> None:
    """Bytes of one rank's headers changed or the file cut short: a model, if of other numbers, or one line."""
    directory, pieces, values = two
    if not directory.exists():
        write_meta(directory, pieces, values)
        shutil.copy(directory / "consolidated.01.pth", directory / "whole")
    raw = bytearray((directory / "whole").read_bytes())
    headers = [*range(raw.index(b"PK\x03\x04", 1)), *range(raw.index(b"PK\x01\x02"), len(raw))]
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.sampled_from(headers))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(raw), data.draw(st.integers(0, len(raw)))]))
    (directory / "consolidated.01.pth").write_bytes(raw[:end])
    read_or_refused(directory)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
KEYS = [
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps",
    "ffn_exp", "rope_theta", "use_scaled_rope", "head_dim", "moe_args", "vision_args", "nope_layer_interval",
    "floor_scale", "attention_chunk_size", "vision_chunk_size", "vision_num_cross_attention_layers", "model",
    "lora_args", "moe", "quantization_args", "hidden_dim", "rope_scaling_factor", "sliding_window",
]  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON | st.sampled_from([1, 2, 4, 8, 32, 64, 1.0]), max_size=3))
def test_any_params_are_read_or_refused(two: Any, changes: dict[str, Any]) -> None:
    directory, pieces, values = two
    if not directory.exists():
        write_meta(directory, pieces, values)
    (directory / "params.json").write_text(json.dumps({**values, **changes}))
    read_or_refused(directory)
