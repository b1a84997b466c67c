"""The store of the layers of bounded reach: the native core under the engine's bookkeeping gives the tokens it gives
without, whatever the company; and what the executor refuses."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.core.batch import Batch, Chunk
from herder.core.errors import UnsupportedModel, UsageError
from herder.core.request import Finished, FinishReason, Image, NewToken, Request
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.runtime.native import NativeExecutor, load_model
from herder.weights.source import open_model
from tests import tiny_moe
from tests.tiny import write_tiny_gguf, write_tiny_hf

CHUNK = 40  # not whole pages


def load(path: Path, **settings: Any) -> NativeExecutor:
    with open_model(path) as files:
        return load_model(files, **{"context": 256, "kv_pages": 24, "threads": 2, **settings})


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 4: three layers of four see their chunk only, and every second has experts."""
    return write_tiny_hf(tmp_path_factory.mktemp("llama4") / "tiny", **tiny_moe.llama4(chunk=CHUNK)).path


@pytest.fixture(scope="module")
def executors(path: Path) -> Iterator[tuple[NativeExecutor, NativeExecutor]]:
    shared, apart = load(path), load(path, kv_local_pages=9)
    yield shared, apart
    shared.close()
    apart.close()


def tokens_of(loop: Loop, request: Request) -> list[int]:
    events: list[Any] = []
    loop.add(request, events.append, 0)
    while loop.step():
        pass
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.reason is FinishReason.LENGTH
    return [event.token for event in events if isinstance(event, NewToken)]


def test_the_limits_say_what_lies_apart(executors: tuple[NativeExecutor, NativeExecutor]) -> None:
    shared, apart = executors
    assert (shared.limits.local_pages, shared.limits.local) == (0, None)
    assert apart.limits.local_pages == 9
    assert apart.limits.local is not None and apart.limits.local.chunk == CHUNK
    assert apart.memory().kv * 24 * 4 == shared.memory().kv * (24 * 1 + 9 * 3)


@settings(max_examples=30)
@given(data=st.data())
def test_the_same_tokens_in_any_company(executors: tuple[NativeExecutor, NativeExecutor], data: st.DataObject) -> None:
    shared, apart = executors
    lengths = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=4)
    )
    requests = [Request(tuple(range(start, start + prompt)), new) for start, prompt, new in lengths]
    policy = Policy(prefill_tokens=data.draw(st.integers(1, 60)), speculate=data.draw(st.sampled_from([0, 3])))
    loop = Loop(apart, policy)
    crowd: list[list[int]] = []
    for request in requests:
        tokens: list[int] = []
        crowd.append(tokens)

        def sink(event: object, tokens: list[int] = tokens) -> None:
            if isinstance(event, NewToken):
                tokens.append(event.token)

        loop.add(request, sink, 0)
        for _ in range(data.draw(st.integers(0, 5))):
            loop.step()
    while loop.step():
        pass
    assert crowd == [tokens_of(Loop(shared), request) for request in requests]


def test_a_window_lies_apart_as_well(tmp_path: Path) -> None:
    path = write_tiny_hf(tmp_path / "tiny", architecture="mistral", window=33).path
    request = Request(tuple(range(3, 150)), 60)
    shared, apart = load(path), load(path, kv_local_pages=4)
    assert tokens_of(Loop(apart, Policy(prefill_tokens=32)), request) == tokens_of(Loop(shared), request)
    shared.close()
    apart.close()


def test_local_pages_of_a_model_that_sees_everything_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf").path
    with pytest.raises(UsageError, match="kv_local_pages is 4: no layer of this model has a bounded reach"):
        load(path, kv_local_pages=4)


def test_images_are_refused_with_the_runtime_that_takes_them(executors: tuple[NativeExecutor, NativeExecutor]) -> None:
    executor = executors[0]
    assert not executor.limits.images
    image = Image(array("f"), (1, 1), (0,), b"")
    chunk = Chunk(0, array("i", [1, 2]), 0, array("i", [0]), images=(image,))
    with pytest.raises(UnsupportedModel, match="runtime='torch'"):
        executor.launch(Batch((chunk,)))
