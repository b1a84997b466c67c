"""Prompts in the native executor: with each arithmetic they may take, the same bits on every instruction set, and
generated tokens that take the one they always do."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Want
from herder.core.request import NewToken, Request
from herder.engine.loop import Loop
from herder.runtime import abi
from herder.runtime.native import NativeExecutor, load_model
from herder.weights.source import open_model
from tests import tiny_moe
from tests.tiny import write_tiny_gguf

IDS = array("i", np.random.default_rng(11).integers(0, 288, 70).tolist())
PROMPT = 45  # of them: more than a page, and not whole ones
ISAS = [isa for isa in abi.cpu_info()["isas"] if isa != "portable"]


@contextmanager
def loaded(path: Path, **settings: Any) -> Iterator[NativeExecutor]:
    with open_model(path) as files:
        executor = load_model(files, **{"context": 128, "kv_pages": 8, "threads": 2, **settings})
    yield executor
    executor.close()


def logits(
    executor: NativeExecutor, prompt: int = PROMPT, step: int = len(IDS), want: Want = Want.LOGITS
) -> NDArray[np.float32]:
    """[token][vocabulary] of all tokens, the first `prompt` of them a prompt; or their hidden states."""
    rows, start = [], 0
    while start < len(IDS):
        n = min(step, (prompt if start < prompt else len(IDS)) - start)
        chunk = Chunk(
            0,
            IDS[start : start + n],
            start,
            array("i", range(-(-(start + n) // PAGE_TOKENS))),
            outputs=n,
            want=want,
            prompt=start < prompt,
        )
        [output] = executor.result(executor.launch(Batch((chunk,))))
        rows.append(np.frombuffer(output.logits or output.hidden or b"", np.float32).reshape(n, -1))
        start += n
    return np.concatenate(rows)


def generated(executor: NativeExecutor) -> list[int]:
    events: list[object] = []
    loop = Loop(executor)
    loop.add(Request(tuple(IDS[:PROMPT]), max_tokens=40), events.append, 0)
    while loop.step():
        pass
    return [event.token for event in events if isinstance(event, NewToken)]


@pytest.fixture(scope="module", params=["dense", "mixture"])
def path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    shape = tiny_moe.mixtral(experts=4, dim=256, ffn_dim=256) if request.param == "mixture" else {"ffn_dim": 96}
    formats = {"": "Q8_0", "exp": "Q4_K"} if request.param == "mixture" else {"": "Q8_0", "ffn_down": "Q4_0"}
    return write_tiny_gguf(tmp_path_factory.mktemp("prompts") / "tiny.gguf", formats=formats, **shape).path


@pytest.mark.parametrize("prompt_dtype", ["int8", "bfloat16"])
def test_the_same_bits_on_every_instruction_set(path: Path, prompt_dtype: str) -> None:
    with loaded(path, prompt_dtype=prompt_dtype, isa="portable", threads=1) as twin:
        assert twin.prompt_dtype == prompt_dtype
        expected, tokens = logits(twin), generated(twin)
    assert len(tokens) == 40
    for isa in ISAS:
        with loaded(path, prompt_dtype=prompt_dtype, isa=isa) as executor:
            for step in (len(IDS), 7):
                np.testing.assert_array_equal(logits(executor, step=step), expected, err_msg=f"{isa}, {step}")
            assert generated(executor) == tokens


def test_prompts_differ_and_generated_tokens_do_not(path: Path) -> None:
    with loaded(path, prompt_dtype="int8") as int8, loaded(path, prompt_dtype="bfloat16") as bfloat16:
        plain = logits(int8)
        np.testing.assert_array_equal(logits(int8, prompt=0), plain)  # nothing is told apart
        np.testing.assert_array_equal(logits(bfloat16, prompt=0), plain)  # what generated tokens take
        rounded = logits(bfloat16)
        assert (rounded[:PROMPT] != plain[:PROMPT]).any(axis=1).all()
        assert np.median(np.abs(rounded - plain)) < 0.1  # at a router's near tie a token may go elsewhere
        whole = logits(bfloat16, prompt=len(IDS))
        np.testing.assert_array_equal(whole[:PROMPT], rounded[:PROMPT])
        assert (whole[PROMPT:] != rounded[PROMPT:]).any(axis=1).all()


def test_prompts_are_nearer_to_float32_in_bfloat16(path: Path) -> None:
    """Weights of 8 bits or fewer lose little as bfloat16; activations lose less than as int8 of a shared scale."""
    with loaded(path, compute="float32") as exact:
        assert exact.prompt_dtype is None
        truth = logits(exact, want=Want.HIDDEN)
        np.testing.assert_array_equal(logits(exact, prompt=0, want=Want.HIDDEN), truth)
    distance = {}
    for prompt_dtype in ("int8", "bfloat16"):
        with loaded(path, prompt_dtype=prompt_dtype) as executor:
            distance[prompt_dtype] = np.median(np.abs(logits(executor, prompt=len(IDS), want=Want.HIDDEN) - truth))
    assert 0 < distance["bfloat16"] < distance["int8"]


def test_a_model_without_quantized_matrices_has_no_choice(tmp_path: Path) -> None:
    floats = write_tiny_gguf(tmp_path / "floats.gguf", formats={"": "BF16", "token_embd": "Q8_0"}, tied=True).path
    with loaded(floats, prompt_dtype="bfloat16") as executor:
        assert executor.prompt_dtype is None and not executor.limits.prompts_apart
        np.testing.assert_array_equal(logits(executor), logits(executor, prompt=0))
