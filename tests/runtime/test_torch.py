"""The torch executor through the engine, on tiny models with random weights, beside the native one in float32.

Its results depend on the company in a batch by rounding: logits are compared within 1e-4, and tokens must be the same:
their margins are wider.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Output, Want
from herder.core.config import LayerPlan
from herder.core.errors import NumericError, OutOfMemory, UsageError
from herder.core.request import Finished, FinishReason, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.runtime import abi, native
from herder.runtime.torch import TorchExecutor, choose_device, choose_dtype, load_model
from herder.weights.source import open_model
from tests.tiny import write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4

pytestmark = pytest.mark.oracle

PROMPT = tuple(range(3, 80))
TOLERANCE = 1e-4
CREATIVE = Sampling(0.9, top_k=40, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, logprobs=3)


def load(path: Path, **settings: Any) -> TorchExecutor:
    with open_model(path) as files:
        return load_model(files, **{"context": 256, "kv_pages": 32, "dtype": "float32", "device": "cpu", **settings})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", ffn_dim=128).path


@pytest.fixture(scope="module")
def executor(path: Path) -> Iterator[TorchExecutor]:
    executor = load(path)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def peer(path: Path) -> Iterator[native.NativeExecutor]:
    with open_model(path) as files:
        executor = native.load_model(files, context=256, kv_pages=32, compute="float32", threads=1)
    yield executor
    executor.close()


def run(executor: Any, chunk: Chunk) -> Output:
    [output] = executor.result(executor.launch(Batch((chunk,))))
    return output


def serve(loop: Loop, *requests: Request) -> list[tuple[list[NewToken], Finished]]:
    """All requests at once."""
    events: list[list[Any]] = []
    for request in requests:
        events.append([])
        loop.add(request, events[-1].append, request.sampling.seed or 0)
    while loop.step():
        pass
    return [(sent[:-1], sent[-1]) for sent in events]


def tokens(loop: Loop, *requests: Request) -> list[list[int]]:
    return [[event.token for event in sent] for sent, _ in serve(loop, *requests)]


def chunks_of_all_kinds() -> tuple[Chunk, ...]:
    """Prompts and continuations of several lengths and wants; the continuations' pages are filled by fill()."""
    plain, bare = Sampling(), Sampling(logprobs=2)

    def chunk(seq: int, start: int, count: int, want: Want, outputs: int, sampling: Sampling | None = None) -> Chunk:
        pages = array("i", range(3 * seq, 3 * seq + 3))
        ids = array("i", [(7 * seq + i) % 200 + 3 for i in range(start, start + count)])
        targets = array("i", [5] * outputs) if want & Want.SCORE else ()
        return Chunk(seq, ids, start, pages, outputs, want, sampling, targets=targets)

    return (
        chunk(0, 40, 1, Want.TOKEN, 1, plain),
        chunk(1, 0, 20, Want.NOTHING, 0),
        chunk(2, 0, 20, Want.SCORE, 3),
        chunk(3, 33, 1, Want.TOKEN | Want.LOGITS, 1, bare),
        chunk(4, 0, 70, Want.TOKEN, 3, plain),
        chunk(5, 31, 5, Want.HIDDEN | Want.LOGITS, 2),
        chunk(6, 64, 1, Want.TOKEN, 1, bare),
    )


def fill(executor: Any, chunk: Chunk) -> None:
    if chunk.start:
        ids = array("i", [(7 * chunk.seq + i) % 200 + 3 for i in range(chunk.start)])
        run(executor, Chunk(chunk.seq, ids, 0, chunk.pages))


def same(one: Output, other: Output) -> None:
    assert (one.seq, one.tokens, one.error) == (other.seq, other.tokens, None)
    assert [p.token for p in one.logprobs] == [p.token for p in other.logprobs]
    for name in ("logits", "scores", "hidden"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert type(mine) is type(theirs) and len(mine or ()) == len(theirs or ())
        np.testing.assert_allclose(mine or (), theirs or (), atol=TOLERANCE)
    for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=TOLERANCE)
        assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def test_the_limits_are_what_was_asked_for(executor: TorchExecutor) -> None:
    assert executor.limits == Limits(pages=32, context=256, batch_tokens=512, batch_chunks=64, vocab=288)
    memory = executor.memory()
    assert memory.kv == 2 * 2 * 32 * PAGE_TOKENS * 2 * 16 * 4
    assert memory.weights > 4 * 288 * 64


def test_a_mixed_batch_is_its_chunks_one_by_one_and_the_native_cores(
    executor: TorchExecutor, peer: native.NativeExecutor
) -> None:
    chunks = chunks_of_all_kinds()
    for which in (executor, peer):
        for chunk in chunks:
            fill(which, chunk)
    together = executor.result(executor.launch(Batch(chunks)))
    assert [len(output.tokens) for output in together] == [1, 0, 0, 1, 3, 0, 1]
    for output, chunk in zip(together, chunks, strict=True):
        same(output, run(executor, chunk))
        same(output, run(peer, chunk))


REQUESTS = (
    Request(PROMPT, 30),
    Request(PROMPT[:40], 30, CREATIVE),
    Request(PROMPT[5:], 40, Sampling(1.3, min_p=0.02, presence_penalty=0.5, seed=4, logit_bias=((9, 2.0), (7, -9.0)))),
    Request((5,), 60, Sampling(0.7, seed=1)),
)


def test_requests_give_the_native_cores_tokens_alone_and_together(
    executor: TorchExecutor, peer: native.NativeExecutor
) -> None:
    """Chunked prefill, prefix hits, preemption and speculation included."""
    expected = [tokens(Loop(peer), request)[0] for request in REQUESTS]
    assert [tokens(Loop(executor), request)[0] for request in REQUESTS] == expected
    executor_within = Within(executor, Limits(pages=9, context=256, batch_tokens=40, batch_chunks=3, vocab=288))
    assert tokens(Loop(executor_within, Policy(prefill_tokens=17, speculate=3)), *REQUESTS) == expected


def test_every_output_position_has_its_own_mask_draw_and_history(
    executor: TorchExecutor, peer: native.NativeExecutor
) -> None:
    allowed = [range(10, 200), [123], range(5, 280, 2)]
    bits = np.zeros((3, 9 * 32), bool)
    for row, ids in zip(bits, allowed, strict=True):
        row[list(ids)] = True
    mask = np.packbits(bits, axis=1, bitorder="little").tobytes()
    sampling = Sampling(1.2, top_k=50, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, logprobs=2)
    chosen = set()
    for seed in range(6):
        chunk = Chunk(
            0, array("i", PROMPT), 0, array("i", range(3)), 3, Want.TOKEN, sampling, seed, step=4,
            history=array("i", PROMPT[:-2]), prompt_tokens=60, mask=mask,
        )  # fmt: skip
        output = run(executor, chunk)
        same(output, run(peer, chunk))
        assert all(token in ids for token, ids in zip(output.tokens, allowed, strict=True))
        chosen.add(output.tokens)
    assert len(chosen) > 1


class Within:
    """An executor that says it holds less, so that the scheduler has to be inventive."""

    def __init__(self, executor: TorchExecutor, limits: Limits) -> None:
        self.limits = limits
        self.launch, self.result, self.close = executor.launch, executor.result, executor.close


@pytest.mark.parametrize("plan", [LayerPlan(window=40), LayerPlan(chunk=48)], ids=["window", "chunk"])
def test_a_store_of_their_own_for_layers_of_bounded_reach(tmp_path: Path, plan: LayerPlan) -> None:
    if plan.window is not None:
        write_tiny_hf(tmp_path / "model", architecture="mistral", window=plan.window, layers=2)
    else:
        write_tiny_hf(tmp_path / "model", **llama4(chunk=plan.chunk))
    requests = (Request(PROMPT, 90), Request(PROMPT[::-1], 100, CREATIVE))
    shared, split = load(tmp_path / "model"), load(tmp_path / "model", kv_local_pages=12)
    assert shared.limits.local_pages == 0 and shared.limits.local is None
    assert split.limits.local_pages == 12 and split.limits.local is not None
    assert split.limits.local.first_visible(100) == plan.first_visible(100)
    assert split.memory().kv < shared.memory().kv
    expected = tokens(Loop(shared), *requests)
    assert tokens(Loop(split), *requests) == expected
    assert tokens(Loop(split, Policy(prefill_tokens=11)), *requests) == expected


def test_local_pages_of_a_model_without_bounded_reach_are_ignored(path: Path) -> None:
    executor = load(path, kv_local_pages=4)
    assert executor.limits.local_pages == 0 and executor.limits.local is None


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A model whose embedding of token 250 holds NaN."""
    path = write_tiny_gguf(tmp_path / "nan.gguf", tied=False).path
    with open_model(path) as files:
        (embedding,) = (tensor for tensor in files.tensors if tensor.name == "model.embed_tokens.weight")
        offset = embedding.offset + 4 * 64 * 250
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<f", math.nan))
    return path


def test_a_damaged_weight_ends_only_the_requests_that_meet_it(damaged: Path) -> None:
    loop = Loop(load(damaged, kv_pages=6))
    fine = Request(PROMPT[:40], 20, Sampling(logit_bias=((250, -1e9),)))
    (expected,) = tokens(loop, fine)
    (_, broken), (sent, finished) = serve(loop, Request((*PROMPT[:33], 250, 3), 5), fine)
    assert broken.reason is FinishReason.ERROR
    assert isinstance(broken.error, NumericError) and "damaged" in str(broken.error)
    assert finished.reason is FinishReason.LENGTH and [event.token for event in sent] == expected


def test_nan_stays_in_its_sequence(damaged: Path) -> None:
    """What the mask hides is still multiplied by 0: it must be neither another sequence's NaN, nor one left behind."""
    executor = load(damaged)

    def chunk(seq: int, start: int, ids: tuple[int, ...], *pages: int) -> Chunk:
        return Chunk(seq, array("i", ids), start, array("i", pages), 1, Want.LOGITS)

    long, short = chunk(1, 40, (9,), 3, 4), chunk(2, 1, (8,), 5)
    run(executor, chunk(1, 0, PROMPT[:40], 3, 4))
    run(executor, chunk(2, 0, (7,), 5))
    expected = [executor.result(executor.launch(Batch((each,))))[0] for each in (long, short)]
    broken, *others = executor.result(executor.launch(Batch((chunk(0, 0, (250,), 0), long, short))))
    assert isinstance(broken.error, NumericError) and broken.logits is None
    assert run(executor, chunk(0, 0, (6, 250, 5, 5, 5), 0)).error is not None
    run(executor, chunk(2, 0, (7,), 0))
    others += executor.result(executor.launch(Batch((long, chunk(2, 1, (8,), 0)))))
    for output, wanted in zip(others, expected * 2, strict=True):
        same(output, wanted)


def test_no_token_left_ends_only_its_request(executor: TorchExecutor) -> None:
    mask = bytes(4 * 9)
    impossible = Chunk(0, array("i", PROMPT), 0, array("i", range(3)), 1, Want.TOKEN, Sampling(), mask=mask)
    fine = Chunk(1, array("i", PROMPT), 0, array("i", range(3, 6)), 1, Want.TOKEN, Sampling())
    first, second = executor.result(executor.launch(Batch((impossible, fine))))
    assert isinstance(first.error, NumericError) and "forbid every one" in str(first.error)
    assert second.error is None and len(second.tokens) == 1


def test_an_interrupted_batch_fails_and_the_next_one_runs(executor: TorchExecutor) -> None:
    chunk = Chunk(0, array("i", PROMPT), 0, array("i", range(3)), 1, Want.TOKEN, Sampling())
    before = run(executor, chunk)
    seen: list[str] = []

    def report(name: str, rows: int, cols: int, values: array[float]) -> None:
        seen.append(name)
        executor.interrupt()

    executor.tap(report)
    with pytest.raises(abi.Interrupted):
        run(executor, chunk)
    executor.tap(None)
    assert "logits" not in seen
    assert run(executor, chunk) == before


def test_a_closed_executor_refuses(path: Path) -> None:
    executor = load(path)
    executor.close()
    executor.close()
    executor.interrupt()
    with pytest.raises(RuntimeError, match="closed"):
        run(executor, Chunk(0, array("i", [1]), 0, array("i", [0])))


def test_more_pages_than_there_is_memory(path: Path) -> None:
    with pytest.raises(OutOfMemory, match="out of memory") as caught:
        load(path, kv_pages=1 << 50)
    assert "\n" not in str(caught.value)


def test_devices_and_types_that_are_refused(path: Path) -> None:
    import torch

    for name in ("tpu", "mps", "cpu:x", ""):
        with pytest.raises(UsageError, match=f"device is '{name}': must be"):
            choose_device(name)
    with open_model(path) as files, pytest.raises(UsageError, match="dtype is 'int8': must be"):
        choose_dtype("int8", torch.device("cpu"), files)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="finds no CUDA device"):
            choose_device("cuda")
        assert choose_device("auto") == torch.device("cpu")


def test_auto_is_bfloat16_only_for_files_of_it(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    half = write_tiny_hf(tmp_path / "model", dtype="BF16").path
    for features, expected in ((["avx2", "amx_bf16"], torch.bfloat16), (["avx2"], torch.float32)):
        monkeypatch.setattr(abi, "cpu_info", lambda features=features: {"features": features})
        with open_model(half) as files:
            assert choose_dtype("auto", torch.device("cpu"), files) is expected
            assert choose_dtype("auto", torch.device("cuda"), files) is torch.bfloat16
        with open_model(path) as files:
            assert choose_dtype("auto", torch.device("cpu"), files) is torch.float32
            assert choose_dtype("float16", torch.device("cpu"), files) is torch.float16
