"""The native executor through the engine, on tiny models with random weights: marshalling, results, errors, and the
guarantee that a request's tokens depend on nothing but the request. Whether the numbers are right is asked in
tests/native and tests/oracle."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Want
from herder.core.errors import ModelFileError, NumericError, UsageError
from herder.core.request import Evaluated, Evaluation, Finished, FinishReason, NewToken, Request, Sampling
from herder.engine.engine import Engine
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.runtime import abi
from herder.runtime.native import NativeExecutor, batch_tokens, load_model
from herder.runtime.prompts import choose
from herder.weights.source import open_model
from tests.tiny import tiny_config, write_tiny_gguf

PROMPT = tuple(range(3, 80))


def load(path: Path, **settings: object) -> NativeExecutor:
    with open_model(path) as files:
        return load_model(files, **{"context": 256, "kv_pages": 32, "threads": 2, **settings})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", ffn_dim=128).path


@pytest.fixture(scope="module")
def executor(path: Path) -> Iterator[NativeExecutor]:
    executor = load(path)
    yield executor
    executor.close()


@pytest.fixture(scope="module", params=["int8", "bfloat16"])
def either(path: Path, request: pytest.FixtureRequest) -> Iterator[NativeExecutor]:
    """With each arithmetic of prompts."""
    executor = load(path, prompt_dtype=request.param)
    yield executor
    executor.close()


class Within:
    """An executor that says it holds less, so that the scheduler has to be inventive."""

    def __init__(self, executor: NativeExecutor, limits: Limits) -> None:
        self.limits = limits
        self.launch, self.result, self.close = executor.launch, executor.result, executor.close


def run(loop: Loop, request: Request, seed: int = 0) -> tuple[list[NewToken], Finished]:
    events: list[object] = []
    loop.add(request, events.append, seed)
    while loop.step():
        pass
    *tokens, finished = events
    assert isinstance(finished, Finished)
    return [event for event in tokens if isinstance(event, NewToken)], finished


def generate(executor: NativeExecutor, request: Request, seed: int = 0) -> list[int]:
    return [event.token for event in run(Loop(executor), request, seed)[0]]


def evaluate(executor: NativeExecutor, request: Evaluation) -> Evaluated:
    events: list[object] = []
    loop = Loop(executor)
    loop.add(request, events.append, 0)
    while loop.step():
        pass
    (event, _) = events
    assert isinstance(event, Evaluated)
    return event


def log_softmax(logits: array[float]) -> list[float]:
    most = max(logits)
    total = most + math.log(sum(math.exp(value - most) for value in logits))
    return [value - total for value in logits]


def test_the_limits_are_what_was_asked_for(executor: NativeExecutor) -> None:
    apart = executor.prompt_dtype == "bfloat16"
    assert executor.limits == Limits(
        pages=32, context=256, batch_tokens=512, batch_chunks=64, vocab=288, prompts_apart=apart
    )
    memory = executor.memory()
    assert memory.weights > 0 and memory.kv >= tiny_config(ffn_dim=128).kv_bytes(32 * PAGE_TOKENS)


def test_greedy_is_the_largest_logit(executor: NativeExecutor) -> None:
    (event,) = (evaluate(executor, Evaluation(PROMPT, "logits", first=len(PROMPT) - 1)),)
    assert len(event.logits) == 288
    assert generate(executor, Request(PROMPT, max_tokens=1)) == [event.logits.index(max(event.logits))]


def test_scores_and_logprobs_come_from_the_logits(executor: NativeExecutor) -> None:
    logits = evaluate(executor, Evaluation(PROMPT, "logits")).logits
    rows = [log_softmax(logits[i * 288 : (i + 1) * 288]) for i in range(len(PROMPT))]
    scores = evaluate(executor, Evaluation(PROMPT, "scores"))
    assert scores.first == 1
    assert list(scores.scores) == pytest.approx([rows[i][t] for i, t in enumerate(PROMPT[1:])], abs=1e-5)
    (event,), _ = run(Loop(executor), Request(PROMPT, max_tokens=1, sampling=Sampling(1.0, logprobs=5)), seed=3)
    assert event.logprob is not None and event.logprob.token == event.token
    assert event.logprob.logprob == pytest.approx(rows[-1][event.token], abs=1e-5)
    best = sorted(range(288), key=lambda token: -rows[-1][token])[:5]
    assert [token for token, _ in event.logprob.top] == best
    assert [value for _, value in event.logprob.top] == pytest.approx([rows[-1][token] for token in best], abs=1e-5)


def test_logprobs_of_zero_alternatives(executor: NativeExecutor) -> None:
    (event,), _ = run(Loop(executor), Request(PROMPT, max_tokens=1, sampling=Sampling(logprobs=0)))
    assert event.logprob is not None and event.logprob.top == () and event.logprob.logprob < 0


def test_hidden_states_have_the_models_width(executor: NativeExecutor) -> None:
    hidden = evaluate(executor, Evaluation(PROMPT[:5], "hidden", first=2)).hidden
    assert isinstance(hidden, array) and len(hidden) == 3 * 64
    assert any(hidden)


def test_mixed_wants_in_one_batch_keep_their_places(executor: NativeExecutor) -> None:
    def chunk(seq: int, page: int, want: Want, outputs: int, sampling: Sampling | None = None) -> Chunk:
        targets = array("i", [5] * outputs) if want & Want.SCORE else ()
        tokens, pages = array("i", PROMPT[:20]), array("i", [page])
        return Chunk(seq, tokens, 0, pages, outputs, want, sampling, targets=targets, prompt=True)

    plain, bare = Sampling(), Sampling(logprobs=2)
    chunks = (
        chunk(10, 0, Want.TOKEN, 1, plain),
        chunk(11, 1, Want.NOTHING, 0),
        chunk(12, 2, Want.SCORE, 3),
        chunk(13, 3, Want.TOKEN | Want.LOGITS, 2, bare),
        chunk(14, 4, Want.TOKEN, 3, plain),
        chunk(15, 5, Want.HIDDEN, 1),
        chunk(16, 6, Want.TOKEN, 1, bare),
    )
    together = executor.result(executor.launch(Batch(chunks)))
    alone = [executor.result(executor.launch(Batch((chunk,))))[0] for chunk in chunks]
    assert together == alone
    assert [output.seq for output in together] == [10, 11, 12, 13, 14, 15, 16]
    assert [len(output.tokens) for output in together] == [1, 0, 0, 2, 3, 0, 1]
    assert [len(output.logprobs) for output in together] == [0, 0, 0, 2, 0, 0, 1]
    assert len(together[3].logits) == 2 * 288 and len(together[2].scores) == 3 and len(together[5].hidden) == 64


def test_bias_mask_and_penalties_reach_the_sampler(executor: NativeExecutor) -> None:
    assert generate(executor, Request(PROMPT, 3, Sampling(logit_bias=((77, 1e9), (5, -1e9))))) == [77] * 3
    mask = array("I", [0] * 9)
    mask[123 // 32] = 1 << 123 % 32
    chunk = Chunk(0, array("i", PROMPT), 0, array("i", range(3)), 1, Want.TOKEN, Sampling(), mask=mask.tobytes())
    assert executor.result(executor.launch(Batch((chunk,))))[0].tokens == (123,)
    # A penalty that outweighs every logit forbids repetition, of the prompt too.
    never_twice = Request(PROMPT, 100, Sampling(repetition_penalty=1e9, presence_penalty=1e9))
    tokens = generate(executor, never_twice)
    assert len({*tokens}) == 100
    assert not {*tokens} & {*PROMPT}


@st.composite
def crowds(draw: st.DrawFn) -> list[Request]:
    def request() -> Request:
        start, length = draw(st.sampled_from([3, 3, 50])), draw(st.integers(1, 100))
        sampling = Sampling(
            temperature=draw(st.sampled_from([0.0, 1.5])),
            top_p=draw(st.sampled_from([1.0, 0.9])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
            seed=draw(st.integers(0, 2)),
        )
        return Request(tuple(range(start, start + length)), draw(st.integers(1, 40)), sampling)

    return [request() for _ in range(draw(st.integers(2, 6)))]


@settings(max_examples=15)
@given(data=st.data())
def test_the_same_request_gives_the_same_tokens_in_any_company(either: NativeExecutor, data: st.DataObject) -> None:
    """Batching, chunked prefill, prefix hits, preemption and speculation change no bit, on the real core."""
    requests = data.draw(crowds())
    limits = replace(
        either.limits,
        pages=data.draw(st.integers(5, 12)),
        batch_tokens=data.draw(st.integers(3, 80)),
        batch_chunks=data.draw(st.integers(1, 6)),
    )
    policy = Policy(prefill_tokens=data.draw(st.integers(1, 50)), speculate=data.draw(st.sampled_from([0, 3])))
    loop = Loop(Within(either, limits), policy)
    crowd: list[list[int]] = []
    for request in requests:
        tokens: list[int] = []
        crowd.append(tokens)

        def sink(event: object, tokens: list[int] = tokens) -> None:
            if isinstance(event, NewToken):
                tokens.append(event.token)

        loop.add(request, sink, request.sampling.seed or 0)
        for _ in range(data.draw(st.integers(0, 10))):
            loop.step() or loop.reread()
    while loop.step():
        pass
    assert crowd == [generate(either, request, request.sampling.seed or 0) for request in requests]


def test_the_same_request_gives_the_same_tokens_after_a_restart(executor: NativeExecutor, path: Path) -> None:
    request = Request(PROMPT, 50, Sampling(1.0, top_k=50))
    again = load(path, threads=1, kv_pages=8)
    assert generate(again, request, 7) == generate(executor, request, 7)
    assert generate(again, request, 8) != generate(executor, request, 7)
    again.close()


def test_float32_and_auto_are_different_arithmetic(path: Path, executor: NativeExecutor) -> None:
    exact = load(path, compute="float32")
    asked = Evaluation(PROMPT, "logits")
    fast_logits, exact_logits = evaluate(executor, asked).logits, evaluate(exact, asked).logits
    assert fast_logits != exact_logits
    assert max(abs(a - b) for a, b in zip(fast_logits, exact_logits, strict=True)) < 0.5
    exact.close()


def test_activations_are_reported_by_name(executor: NativeExecutor) -> None:
    seen: dict[str, tuple[int, int, int]] = {}
    executor.tap(lambda name, rows, cols, values: seen.__setitem__(name, (rows, cols, len(values))))
    evaluate(executor, Evaluation(PROMPT[:7], "logits"))
    executor.tap(None)
    assert any(name.startswith("layers.1.") for name in seen)
    assert all(rows * cols == count for rows, cols, count in seen.values())
    count = len(seen)
    seen.clear()
    evaluate(executor, Evaluation(PROMPT[:7], "logits"))
    assert count and not seen


def test_prompts_in_bfloat16_where_the_cpu_has_tiles_for_it(path: Path, tmp_path: Path) -> None:
    def chosen(path: Path, *given: Any, **more: Any) -> str | None:
        with open_model(path) as files:
            return choose(files, *given, **more)

    assert chosen(path, "auto", isa="amx") == "bfloat16"
    assert chosen(path, "auto", isa="avx2") == "int8"
    assert chosen(path, "auto") == ("bfloat16" if abi.cpu_info()["isa"] == "amx" else "int8")
    assert chosen(path, "bfloat16", isa="avx2") == "bfloat16"
    assert chosen(path, "int8", isa="amx") == "int8"
    assert chosen(path, "auto", isa="amx", float32=True) is None
    floats = write_tiny_gguf(tmp_path / "floats.gguf", formats={"": "BF16", "token_embd": "Q8_0"}, tied=True).path
    assert chosen(floats, "bfloat16", isa="amx") is None  # the head alone is quantized


def test_chunks_of_prompt_say_that_they_take_bfloat16(either: NativeExecutor) -> None:
    def bf16(**more: Any) -> int:
        either.launch(Batch((Chunk(0, array("i", PROMPT[:5]), 0, array("i", [0]), **more),)))
        return int(either._chunks[0].bf16)

    apart = either.prompt_dtype == "bfloat16"
    assert either.limits.prompts_apart == apart
    for more in ({}, {"outputs": 1, "want": Want.TOKEN, "sampling": Sampling()}):
        assert bf16(prompt=True, **more) == apart
        assert bf16(prompt=False, **more) == 0


def test_progress_ends_at_the_total(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(path, progress=lambda done, total: calls.append((done, total))).close()
    assert len(calls) > 10
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_what_is_refused_at_loading(path: Path) -> None:
    with pytest.raises(UsageError, match="isa is mmx"):
        load(path, isa="mmx")
    with pytest.raises(UsageError, match="threads"):
        load(path, threads=-3)
    with pytest.raises(UsageError, match="prompt_dtype is 'int4': must be one of 'auto', 'int8', 'bfloat16'"):
        load(path, prompt_dtype="int4")
    with pytest.raises(UsageError, match="prompt_dtype is 'int8': float32 computes prompts in float32"):
        load(path, compute="float32", prompt_dtype="int8")


def test_a_damaged_weight_ends_only_the_requests_that_meet_it(tmp_path: Path) -> None:
    damaged = write_tiny_gguf(tmp_path / "nan.gguf", tied=False).path
    with open_model(damaged) as files:
        (embedding,) = (tensor for tensor in files.tensors if tensor.name == "model.embed_tokens.weight")
        offset = embedding.offset + 4 * 64 * 250
    with open(damaged, "r+b") as file:
        file.seek(offset)
        file.write(struct.pack("<f", math.nan))
    with Engine(load(damaged)) as engine:
        fine = engine.submit(Request(PROMPT, 5, Sampling(logit_bias=((250, -1e9),)))).result()[1]
        assert fine.reason is FinishReason.LENGTH
        broken = engine.submit(Request((1, 250, 3), 5)).result()[1]
        assert broken.reason is FinishReason.ERROR and isinstance(broken.error, NumericError)
        again = engine.submit(Request(PROMPT, 5, Sampling(logit_bias=((250, -1e9),)))).result()[1]
        assert again.reason is FinishReason.LENGTH


def test_a_file_that_changes_while_it_is_loaded_is_noticed(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf").path

    def grow(done: int, total: int) -> None:
        with open(path, "ab") as file:
            file.write(b"more")

    with pytest.raises(ModelFileError, match="changed while it was being read"):
        load(path, progress=grow)


def test_a_closed_executor_refuses(path: Path) -> None:
    executor = load(path)
    executor.close()
    executor.close()
    executor.interrupt()
    chunk = Chunk(0, array("i", [1]), 0, array("i", [0]))
    with pytest.raises(RuntimeError, match="closed"):
        executor.result(executor.launch(Batch((chunk,))))


@pytest.mark.parametrize(("dim", "ffn", "expected"), [(576, 1536, 512), (4096, 14336, 224), (8192, 28672, 128)])
def test_batches_are_smaller_for_wide_models(dim: int, ffn: int, expected: int) -> None:
    config = tiny_config(dim=dim, ffn_dim=ffn, heads=dim // 64, kv_heads=8, head_dim=64)
    assert batch_tokens(config) == expected
