from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.assemble import CHAT_SAMPLING, DEFAULT_CONTEXT, Background, load, plan_kv, recommended_sampling
from herder.core.batch import PAGE_TOKENS
from herder.core.errors import HerderError, ModelFileError, ModelNotFound, OutOfMemory, UnsupportedModel, UsageError
from herder.core.request import Sampling
from tests.tiny import tiny_config

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
