"""Experts in the native executor: packed when a token is first routed to them, forgotten when memory for them is
limited, read from files that stay open; and quantized ones against float32."""

from __future__ import annotations

import dataclasses
import os
import weakref
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Want
from herder.core.errors import ModelFileError
from herder.runtime.native import NativeExecutor, batch_tokens, load_model
from herder.runtime.packing import lazy, packed_bytes
from herder.weights.mapping import OwnedBytes
from herder.weights.names import EXPERTS
from herder.weights.source import TensorSource, open_model
from tests import tiny_moe
from tests.tiny import tiny_config, write_tiny_gguf, write_tiny_hf

IDS = array("i", np.random.default_rng(7).integers(0, 288, 60).tolist())


def load(path: Path, **settings: Any) -> NativeExecutor:
    with open_model(path) as files:
        return load_model(files, **{"context": 64, "kv_pages": 2, "threads": 2, **settings})


def logits(executor: NativeExecutor, step: int = 60) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = []
    for start in range(0, len(IDS), step):
        tokens = IDS[start : start + step]
        pages = array("i", range(-(-(start + len(tokens)) // PAGE_TOKENS)))
        [output] = executor.result(
            executor.launch(
                Batch((Chunk(0, tokens, start, pages, outputs=len(tokens), want=Want.LOGITS, prompt=True),))
            )
        )
        rows.append(np.frombuffer(output.logits, np.float32).reshape(len(tokens), -1))
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = tiny_moe.mixtral(experts=6, dim=256, ffn_dim=256)
    return write_tiny_gguf(
        tmp_path_factory.mktemp("moe") / "tiny.gguf", formats={"": "Q8_0", "exp": "Q4_K"}, **shape
    ).path


def test_experts_are_packed_when_a_token_goes_to_them(path: Path) -> None:
    executor = load(path)
    assert executor.experts() == (0, 0, 0)
    before = executor.memory().weights
    logits(executor, 1)
    held, size, packings = executor.experts()
    assert 2 <= held == packings <= 12  # two layers of six
    assert executor.memory().weights == before + size
    logits(executor)
    assert executor.experts() == (held, size, packings)
    executor.close()


def test_a_limit_changes_the_memory_and_no_bit(path: Path) -> None:
    roomy = load(path)
    expected = logits(roomy)
    held, size, _ = roomy.experts()
    roomy.close()
    for threads, limit in ((1, 1), (2, 2 * size // held), (3, size // 2)):
        frugal = load(path, threads=threads, expert_memory=limit)
        np.testing.assert_array_equal(logits(frugal), expected)
        np.testing.assert_array_equal(logits(frugal, 7), expected)
        fewer, bytes_, packings = frugal.experts()
        assert fewer < held < packings
        assert bytes_ <= max(limit, size // held)
        frugal.close()


@pytest.mark.parametrize("formats", ["Q4_0", "Q4_K"])
def test_quantized_experts_are_near_their_float32_values(tmp_path: Path, formats: str) -> None:
    """What is left is the int8 rounding of the activations: with the weights alone expanded, nothing is."""
    shape = tiny_moe.mixtral(experts=6, dim=256, ffn_dim=256)
    tiny = write_tiny_gguf(tmp_path / "q.gguf", formats=formats, seed=3, **shape)
    fast, exact = load(tiny.path), load(tiny.path, compute="float32")
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (logits(exact), logits(fast)))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    divergence = (p * np.log(p / q)).sum(-1)
    assert 0 < np.median(divergence) < 5e-4  # a token at a router's near tie may go elsewhere: no bound on the largest
    fast.close()
    exact.close()


def test_llama4_in_a_file_of_its_own_layout(tmp_path: Path) -> None:
    """Transposed matrices of all experts in one tensor, in half precision, packed as they lie."""
    shape = tiny_moe.llama4(step=1)
    turned = write_tiny_hf(tmp_path / "hf", dtype="BF16", seed=5, **shape).path
    executor = load(turned)
    whole = logits(executor)
    np.testing.assert_array_equal(logits(executor, 1), whole)
    assert executor.experts().held > 0
    executor.close()
    frugal = load(turned, expert_memory=1)
    np.testing.assert_array_equal(logits(frugal), whole)
    frugal.close()


def test_made_experts_are_packed_at_once_and_held_one_at_a_time(path: Path) -> None:
    """Those that no file holds as they are: shards joined, checkpoints repacked."""
    mapped = load(path)
    expected = logits(mapped)
    mapped.close()
    alive: weakref.WeakSet[OwnedBytes] = weakref.WeakSet()
    most = 0

    def assembled(tensor: TensorSource) -> TensorSource:
        def make() -> OwnedBytes:
            nonlocal most
            assert tensor.file is not None
            made = OwnedBytes(tensor.file.read(tensor.offset, tensor.bytes))
            alive.add(made)
            most = max(most, len(alive))
            return made

        return dataclasses.replace(tensor, address=0, make=make, file=None)

    with open_model(path) as files:
        files.tensors = [assembled(tensor) if tensor.role in EXPERTS else tensor for tensor in files.tensors]
        executor = load_model(files, context=64, kv_pages=2, threads=2)
    assert most == 1 and not alive
    assert executor.experts() == (0, 0, 0)
    np.testing.assert_array_equal(logits(executor), expected)
    executor.close()


def test_a_file_that_changes_under_its_experts_is_noticed(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **tiny_moe.mixtral()).path
    executor = load(path)
    logits(executor)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="changed while it was being read"):
        logits(executor)
    executor.close()


def test_the_files_are_closed_with_the_executor(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **tiny_moe.mixtral()).path

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(path))

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs Linux's list of mappings")
    executor = load(path)
    assert mapped() == 1
    executor.close()
    executor.close()
    assert mapped() == 0
    dense = load(write_tiny_gguf(path).path)
    assert mapped() == 0  # nothing of a dense model is read later
    dense.close()


@pytest.mark.parametrize("formats", ["F32", "F16", "Q4_0", "Q4_1", "Q5_1", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "MXFP4"])
@pytest.mark.parametrize("compute", ["auto", "float32"])
def test_the_bytes_of_packed_tensors_are_known_before(tmp_path: Path, formats: str, compute: str) -> None:
    path = write_tiny_gguf(tmp_path / "f.gguf", formats=formats, **tiny_moe.mixtral(dim=256, ffn_dim=256)).path
    with open_model(path) as files:
        sizes = [(lazy(tensor), packed_bytes(tensor, compute == "float32")) for tensor in files.tensors]
    executor = load(path, compute=compute, threads=1)
    assert executor.memory().weights == sum(size for later, size in sizes if not later)
    logits(executor)
    held, size, _ = executor.experts()
    total = sum(size for later, size in sizes if later)
    assert total * held == size * 8  # of two layers of four experts
    executor.close()


def test_batches_are_smaller_where_a_token_has_several_experts() -> None:
    sizes = {"dim": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128}
    assert batch_tokens(tiny_config(**tiny_moe.mixtral(8, 2, ffn_dim=14336), **sizes)) == 128
    assert batch_tokens(tiny_config(ffn_dim=14336, **sizes)) == 224
