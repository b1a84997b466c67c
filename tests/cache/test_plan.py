from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.cache.pages import pages_for, reach_pages
from herder.cache.plan import BATCH_TOKENS, DEFAULT_CONTEXT, SEQUENCES, plan_kv, sequence_bytes, stores
from herder.core.batch import PAGE_TOKENS
from herder.core.config import LayerPlan, ModelConfig
from herder.core.errors import HerderError, OutOfMemory, UsageError
from tests.tiny import tiny_config

PAGE = tiny_config().kv_bytes(PAGE_TOKENS)
GIB = 1 << 30


def llama4(context: int) -> ModelConfig:
    """The attention of Scout and Maverick: every fourth of 48 layers sees everything, the others a chunk of 8192."""
    plan = tuple(LayerPlan() if (i + 1) % 4 == 0 else LayerPlan(chunk=8192) for i in range(48))
    return replace(tiny_config(), layers=48, dim=5120, heads=40, kv_heads=8, head_dim=128, context=context, plan=plan)


def mixed(context: int, **bounds: int) -> ModelConfig:
    plan = (LayerPlan(**bounds), LayerPlan(), LayerPlan(**bounds))
    return replace(tiny_config(), layers=3, context=context, plan=plan)


def test_by_default_one_sequence_of_the_models_context() -> None:
    assert plan_kv(tiny_config(context=1000), 0) == (1000, 32, 0, 32 * PAGE)
    assert plan_kv(tiny_config(context=1 << 20), 0).context == DEFAULT_CONTEXT


def test_the_default_gives_way_to_memory_and_an_explicit_context_does_not() -> None:
    config = tiny_config(context=1024)
    weights = 1000
    assert plan_kv(config, weights, available=weights + 16 * PAGE) == (256, 8, 0, 8 * PAGE)
    assert plan_kv(config, weights, available=weights + 16 * PAGE, context=512) == (512, 16, 0, 16 * PAGE)
    with pytest.raises(OutOfMemory, match="513 tokens of KV cache"):
        plan_kv(config, weights, available=weights + 16 * PAGE, context=513)
    with pytest.raises(OutOfMemory, match="smaller context, model or quantization"):
        plan_kv(config, weights, available=weights)


def test_kv_memory_sets_the_pages_and_may_cut_the_default_context() -> None:
    config = tiny_config(context=1024)
    assert plan_kv(config, 0, kv_memory=100 * PAGE + 5) == (1024, 100, 0, 100 * PAGE)
    assert plan_kv(config, 0, kv_memory=3 * PAGE) == (96, 3, 0, 3 * PAGE)
    with pytest.raises(UsageError, match="holds 96 tokens, less than the context of 97"):
        plan_kv(config, 0, kv_memory=3 * PAGE, context=97)
    with pytest.raises(UsageError, match="at least one page"):
        plan_kv(config, 0, kv_memory=PAGE - 1)


@pytest.mark.parametrize("context", [0, -1, 1025])
def test_a_context_the_model_cannot_do_is_refused(context: int) -> None:
    with pytest.raises(UsageError, match=f"context is {context}.*1024"):
        plan_kv(tiny_config(context=1024), 0, context=context)


# Layers of bounded reach ---------------------------------------------------------------------------------------------


# The published arithmetic: 12 global layers, 36 of chunks, 4,096 bytes a token and layer in 16 bits.
@pytest.mark.parametrize(
    ("tokens", "gib"), [(4096, (0.1875, 0.5625)), (131_072, (6, 1.125)), (262_144, (12, 1.125)),
                        (1_048_576, (48, 1.125)), (10_485_760, (480, 1.125))]
)  # fmt: skip
def test_what_a_sequence_of_llama_4_takes(tokens: int, gib: tuple[float, float]) -> None:
    config = llama4(10_485_760)
    assert sequence_bytes(config, tokens) == tuple(part * GIB for part in gib)
    assert config.kv_bytes(tokens) == 196_608 * tokens
    assert sum(sequence_bytes(config, tokens, 1)) == sum(gib) * GIB / 2


def test_the_stores_of_llama_4() -> None:
    plan = plan_kv(llama4(1 << 20), 0, context=131_072)
    extra = BATCH_TOKENS // PAGE_TOKENS + SEQUENCES
    assert plan == (131_072, 4096, 256 + extra, (6 + 1.125 * (256 + extra) / 256) * GIB)
    # A chunk and less is held by one store: two would only cost the extra pages.
    assert plan_kv(llama4(1 << 20), 0, context=8192) == (8192, 256, 0, 1.5 * GIB)


def test_a_window_in_every_layer_costs_nothing_beyond_it() -> None:
    config = replace(tiny_config(context=1 << 20), plan=(LayerPlan(window=4096),) * 2)
    short, long = (plan_kv(config, 0, context=context) for context in (1 << 15, 1 << 20))
    assert short.bytes == long.bytes == short.local_pages * PAGE
    assert (short.pages, long.pages) == (1 << 10, 1 << 15)
    assert short.local_pages == reach_pages(LayerPlan(window=4096)) + BATCH_TOKENS // PAGE_TOKENS + SEQUENCES
    # With room for more, it holds several sequences of the whole context.
    more = plan_kv(config, 0, context=1 << 15, kv_memory=4 * short.bytes)
    assert more.bytes <= 4 * short.bytes and more.pages > 4 * short.pages
    assert more.local_pages >= more.pages // short.pages * 129


def test_without_memory_for_the_reach_there_is_one_store() -> None:
    config = mixed(4096, chunk=1024)
    kv = stores(config)
    plan = plan_kv(config, 0, kv_memory=20 * (kv.page + kv.local_page))
    assert plan == (640, 20, 0, 20 * (kv.page + kv.local_page))


@given(st.data())
def test_a_plan_always_holds_what_it_promises(data: st.DataObject) -> None:
    bounds = data.draw(st.sampled_from([{}, {"window": 1}, {"window": 700}, {"chunk": 64}, {"chunk": 1000}]))
    model = data.draw(st.integers(1, 20_000), label="the model's context")
    config = mixed(model, **bounds)
    if bounds and data.draw(st.booleans(), label="no global layer"):
        config = replace(config, layers=2, plan=(LayerPlan(**bounds),) * 2)
    context = data.draw(st.none() | st.integers(1, 20_000), label="context")
    kv_memory = data.draw(st.none() | st.integers(0, 900 * PAGE), label="kv_memory")
    available = data.draw(st.none() | st.integers(0, 900 * PAGE), label="available")
    batch = data.draw(st.sampled_from([32, 512]))
    try:
        plan = plan_kv(config, 0, context=context, kv_memory=kv_memory, available=available, batch_tokens=batch,
                       sequences=4)  # fmt: skip
    except HerderError as error:
        assert "\n" not in str(error)
        return
    kv = stores(config)
    assert plan.bytes == plan.pages * kv.page + (plan.local_pages or plan.pages) * kv.local_page
    assert plan.pages >= 1 and 1 <= plan.context <= min(model, plan.pages * PAGE_TOKENS)
    assert context is None or plan.context == context
    assert kv_memory is None or plan.bytes <= kv_memory
    assert available is None or plan.bytes <= available
    if plan.local_pages:
        assert config.local is not None and plan.local_pages < plan.pages
        assert plan.local_pages >= reach_pages(config.local) + pages_for(batch), "a batch beyond one sequence's reach"


@given(st.integers(1, 300), st.integers(0, 3000), st.booleans())
def test_the_reach_in_pages(length: int, position: int, chunked: bool) -> None:
    local = LayerPlan(chunk=length) if chunked else LayerPlan(window=length)
    seen = position // PAGE_TOKENS - local.first_visible(position) // PAGE_TOKENS + 1
    assert seen <= reach_pages(local) <= pages_for(length) + 1
