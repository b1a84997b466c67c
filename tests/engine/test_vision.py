"""The engine on the torch executor with images: chunked prompts, prefix hits, preemption and local pages give the
tokens and the logits that transformers gives for the whole text at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.batch import Limits
from herder.core.request import Evaluated, Evaluation, Event, Image, NewToken, Request, Sampling
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from tests.oracle import checkpoints, test_vision_llama4, test_vision_mllama
from tests.oracle.activations import Floats

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
CONTEXT = 512


class Small:
    """A torch executor whose batches are small, so that prompts come in pieces."""

    def __init__(self, path: Path, pages: int, local_pages: int) -> None:
        from herder.runtime.torch import load_model
        from herder.weights.source import open_model

        with open_model(path) as files:
            self.config = files.config
            self.inner = load_model(
                files, context=CONTEXT, kv_pages=pages, kv_local_pages=local_pages, dtype="float32", device="cpu"
            )
        self.limits: Limits = replace(self.inner.limits, batch_tokens=24, batch_chunks=4)
        self.launch, self.result, self.close = self.inner.launch, self.inner.result, self.inner.close


@pytest.fixture(scope="module", params=["llama4", "mllama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Small]]:
    """transformers' model, and our executor of its files."""
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "llama4":
        theirs = checkpoints.llama4(path, attention_chunk_size=40, max_position_embeddings=CONTEXT)
    else:
        theirs = checkpoints.mllama(path, max_position_embeddings=CONTEXT)
        tower = theirs.model.vision_model  # transformers keeps the states after these layers, Meta those before them
        tower.intermediate_layers_indices = [layer - 1 for layer in tower.intermediate_layers_indices]
    # Pages for one and a half of the texts below: the others wait, and some lose their pages.
    executor = Small(path, 9, 6 if request.param == "llama4" else 0)
    yield theirs, executor
    executor.close()


def texts(executor: Small) -> list[tuple[list[int], tuple[Image, ...]]]:
    """Prompts that begin alike: with the same image, then with another one in the same place."""
    vision = executor.config.vision
    first, second = (16, 16), (8, 8)
    if executor.limits.local is not None:
        made = [
            test_vision_llama4.prompt(vision, sizes)
            for sizes in ((first, first), (first, first, second), (second, first))
        ]
    else:
        tail = [i % 50 + 3 for i in range(70)]
        made = [
            test_vision_mllama.prompt(vision, *parts)
            for parts in ((first, *tail), (first, *tail, second, 9, 8), (second, *tail))
        ]
    return [(ids + [5, 6] * 8, images) for ids, images in made]


def expected(theirs: Any, executor: Small, ids: Sequence[int], images: tuple[Image, ...]) -> Floats:
    module = test_vision_llama4 if executor.limits.local is not None else test_vision_mllama
    return module.expected(theirs, ids, images)


def run(loop: Loop, requests: Sequence[Request | Evaluation]) -> list[list[Event]]:
    events: list[list[Event]] = [[] for _ in requests]
    for request, sink in zip(requests, events, strict=True):
        loop.add(request, sink.append, 0)
    while loop.step():
        pass
    return events


def test_texts_with_images_together_and_from_the_cache(pair: tuple[Any, Small]) -> None:
    theirs, executor = pair
    loop = Loop(executor, Policy(speculate=3))
    # An id that stands for an image must not be generated: transformers would look for the image.
    forbidden = [checkpoints.PATCH] if executor.limits.local is not None else []
    sampling = Sampling(logit_bias=tuple((token, -100.0) for token in forbidden))
    requests = [Request(tuple(ids), 60, sampling, images=images) for ids, images in texts(executor)]
    assert executor.limits.images and (executor.limits.local is not None) == (executor.limits.local_pages == 6)
    for cached in (False, True):
        hits = loop.stats().counters.cached_tokens
        for request, events in zip(requests, run(loop, requests), strict=True):
            tokens = [event.token for event in events if isinstance(event, NewToken)]
            assert len(tokens) == 60
            whole = [*request.prompt, *tokens]
            want = expected(theirs, executor, whole, request.images)[len(request.prompt) - 1 : -1]
            want[:, forbidden] = -100
            # Greedy: each token is the best by transformers' logits, or as good as the best.
            best, chosen = want.max(axis=1), want[range(60), tokens]
            np.testing.assert_allclose(chosen, best, atol=TOLERANCE)
        assert loop.stats().counters.cached_tokens > hits or not cached
    stats = loop.stats()
    assert stats.preemptions > 0 or stats.evictions > 0
    assert (stats.pages_used, stats.local_pages_used) == (0, 0)


def test_logits_of_texts_with_images(pair: tuple[Any, Small]) -> None:
    theirs, executor = pair
    ids, images = texts(executor)[1]
    (events,) = run(Loop(executor), [Evaluation(tuple(ids), "logits", images=images)])
    pieces = [np.frombuffer(event.logits, np.float32) for event in events if isinstance(event, Evaluated)]
    got = np.concatenate(pieces).reshape(len(ids), -1)
    np.testing.assert_allclose(got, expected(theirs, executor, ids, images), atol=TOLERANCE)
