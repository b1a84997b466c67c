from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import herder
from herder.assemble import CHAT_SAMPLING, DEFAULT_CONTEXT, Background, load, plan_kv, recommended_sampling
from herder.core.batch import PAGE_TOKENS
from herder.core.errors import (
    HerderError,
    ModelFileError,
    ModelNotFound,
    OutOfMemory,
    TemplateError,
    UnsupportedModel,
    UsageError,
)
from herder.core.request import Sampling
from herder.runtime.native import NativeExecutor
from tests.tiny import tiny_config, write_tiny_gguf, write_tiny_hf

PAGE = tiny_config().kv_bytes(PAGE_TOKENS)


def test_by_default_one_sequence_of_the_models_context() -> None:
    assert plan_kv(tiny_config(context=1000), 0) == (1000, 32, 32 * PAGE)
    assert plan_kv(tiny_config(context=1 << 20), 0).context == DEFAULT_CONTEXT


def test_the_default_gives_way_to_memory_and_an_explicit_context_does_not() -> None:
    config = tiny_config(context=1024)
    weights = 1000
    assert plan_kv(config, weights, available=weights + 16 * PAGE) == (256, 8, 8 * PAGE)
    assert plan_kv(config, weights, available=weights + 16 * PAGE, context=512) == (512, 16, 16 * PAGE)
    with pytest.raises(OutOfMemory, match="513 tokens of KV cache"):
        plan_kv(config, weights, available=weights + 16 * PAGE, context=513)
    with pytest.raises(OutOfMemory, match="smaller context, model or quantization"):
        plan_kv(config, weights, available=weights)


def test_kv_memory_sets_the_pages_and_may_cut_the_default_context() -> None:
    config = tiny_config(context=1024)
    assert plan_kv(config, 0, kv_memory=100 * PAGE + 5) == (1024, 100, 100 * PAGE)
    assert plan_kv(config, 0, kv_memory=3 * PAGE) == (96, 3, 3 * PAGE)
    with pytest.raises(UsageError, match="holds 96 tokens, less than the context of 97"):
        plan_kv(config, 0, kv_memory=3 * PAGE, context=97)
    with pytest.raises(UsageError, match="at least one page"):
        plan_kv(config, 0, kv_memory=PAGE - 1)


@pytest.mark.parametrize("context", [0, -1, 1025])
def test_a_context_the_model_cannot_do_is_refused(context: int) -> None:
    with pytest.raises(UsageError, match=f"context is {context}.*1024"):
        plan_kv(tiny_config(context=1024), 0, context=context)


@given(
    st.integers(1, 5000), st.none() | st.integers(1, 5000), st.none() | st.integers(0, 200 * PAGE),
    st.none() | st.integers(0, 200 * PAGE),
)  # fmt: skip
def test_a_plan_always_holds_what_it_promises(
    model: int, context: int | None, kv_memory: int | None, available: int | None
) -> None:
    try:
        plan = plan_kv(tiny_config(context=model), 0, context=context, kv_memory=kv_memory, available=available)
    except HerderError as error:
        assert "\n" not in str(error)
        return
    assert plan.pages >= 1 and plan.bytes == plan.pages * PAGE
    assert 1 <= plan.context <= min(model, plan.pages * PAGE_TOKENS)
    assert context is None or plan.context == context
    assert kv_memory is None or plan.bytes <= kv_memory
    assert available is None or plan.bytes <= available


def test_wrong_arguments_are_refused_before_anything_is_opened() -> None:
    with pytest.raises(UnsupportedModel, match=r"runtime 'torch'.*runtime='native'"):
        load("nowhere", runtime="torch")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="runtime is 'jax'"):
        load("nowhere", runtime="jax")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dtype is 'float8'"):
        load("nowhere", dtype="float8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="threads is -1"):
        load("nowhere", threads=-1)
    with pytest.raises(UsageError, match="speculate is -1"):
        load("nowhere", speculate=-1)
    with pytest.raises(ModelNotFound):
        load("./nowhere.gguf")


# A model from files to answers, on the native core --------------------------------------------------------------------
@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", formats="Q8_0", ffn_dim=128).path


def test_load_joins_everything(path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with herder.load(path, threads=1, progress=lambda *event: seen.append(event)) as llm:
        assert (llm.context, llm.name, llm.config.layers) == (256, "Tiny", 2)
        answer = llm.chat("hello", max_tokens=20, seed=3, ignore_eos=True)
        assert answer.usage.completion_tokens == 20
        assert answer.message is not None and answer.message.role == "assistant"
        prompt = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
        ids = llm.tokenizer.encode(prompt, special=True)
        assert answer.usage.prompt_tokens == len(ids)
        same = llm.generate(ids, max_tokens=20, seed=3, temperature=0.6, top_p=0.9, ignore_eos=True)
        assert same.tokens == answer.tokens
        assert llm.logits([1, 2, 3]).shape == (3, llm.config.vocab)
        assert len(llm.score("hello you")) == len(llm.tokenizer.encode("hello you")) - 1
        assert llm.embed(["hello", "you"]).shape == (2, llm.config.dim)
    assert seen[-1][0] == "Loading" and seen[-1][1] == seen[-1][2]
    with pytest.raises(UsageError, match="the engine is closed"):
        llm.generate("x")


def test_the_same_answer_with_speculation_and_another_context(path: Path) -> None:
    with herder.load(path) as plain, herder.load(path, speculate=4, context=200) as fast:
        for seed in range(3):
            one, other = (llm.generate("the " * 20, max_tokens=100, temperature=0.3, seed=seed, ignore_eos=True)
                          for llm in (plain, fast))  # fmt: skip
            assert one.tokens == other.tokens


def test_a_template_of_ones_own(path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}!"
    with herder.load(path, template=template) as llm:
        assert llm.chat("hello", max_tokens=1).usage.prompt_tokens == len(llm.tokenizer.encode("hello!"))
    with pytest.raises(TemplateError):
        herder.load(path, template="{% for %}")


def test_a_broken_template_in_the_file_refuses_chats_and_nothing_else(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template="{% for %}").path
    with herder.load(path) as llm:
        assert llm.generate("hello", max_tokens=1, ignore_eos=True).tokens
        with pytest.raises(TemplateError):
            llm.chat("hello")


def test_a_directory_of_safetensors(tmp_path: Path) -> None:
    made = write_tiny_hf(tmp_path / "tiny", dtype="BF16", generation_config={"do_sample": True, "top_k": 7})
    with herder.load(made.path, dtype="float32") as llm:
        assert llm.chat_sampling == Sampling(top_k=7)
        assert len(llm.chat("hello", max_tokens=5, ignore_eos=True).tokens) == 5


def test_a_failure_beside_the_packing_frees_the_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[NativeExecutor] = []
    monkeypatch.setattr("herder.text.load.load_tokenizer", lambda source: 1 / 0)
    monkeypatch.setattr(NativeExecutor, "close", lambda self: closed.append(self))
    with pytest.raises(ZeroDivisionError):
        herder.load(path)
    assert len(closed) == 1


def test_a_vocabulary_has_nothing_to_run(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", vocabulary_only=True).path
    with pytest.raises(UnsupportedModel, match="holds only a vocabulary"):
        herder.load(path)


def test_background_gives_what_the_function_gives() -> None:
    assert Background(lambda: threading.current_thread().name, "elsewhere").result() == "elsewhere"
    with pytest.raises(ZeroDivisionError):
        Background(lambda: 1 / 0, "elsewhere").result()


def test_an_abandoned_background_discards_its_value() -> None:
    discarded: list[int] = []
    Background(lambda: 5, "elsewhere").abandon(discarded.append)
    assert discarded == [5]
    Background(lambda: 1 / 0, "elsewhere").abandon(lambda value: discarded.append(6))
    assert discarded == [5]


class Files:
    """As much of ModelFiles as recommended_sampling looks at."""

    path = "here"

    def __init__(self, **metadata: object) -> None:
        self.metadata = {key.replace("__", "."): value for key, value in metadata.items()}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, CHAT_SAMPLING),
        ({"generation_config__json": {"temperature": 0.2}}, CHAT_SAMPLING),  # without do_sample it means nothing
        ({"generation_config__json": {"do_sample": True}}, CHAT_SAMPLING),
        (
            {"generation_config__json": {"do_sample": True, "temperature": 0.2, "top_k": 50, "top_p": None}},
            Sampling(temperature=0.2, top_k=50),
        ),
        (
            {"general__sampling__temp": 0.5, "general__sampling__min_p": 0.1, "general__sampling__mirostat": 2},
            Sampling(temperature=0.5, min_p=0.1),
        ),
    ],
)
def test_the_makers_recommendation_is_the_default_of_chats(metadata: dict[str, object], expected: Sampling) -> None:
    assert recommended_sampling(Files(**metadata)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1.0, "hot", [0.6]])
def test_a_recommendation_that_is_none_is_refused(value: object) -> None:
    files = Files(generation_config__json={"do_sample": True, "temperature": value})
    with pytest.raises(ModelFileError, match="here recommends a sampling that is none"):
        recommended_sampling(files)  # type: ignore[arg-type]
