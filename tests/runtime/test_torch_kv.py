"""Attention over pages, whatever the company, the chunks and the pages, against attention over the whole sequence."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herder.core.batch import PAGE_TOKENS, Chunk
from herder.core.config import LayerPlan
from herder.model.attention import attention, visible
from herder.runtime.torch_kv import BatchCache, PageStore
from tests.tiny import tiny_config

pytestmark = pytest.mark.oracle

CPU = torch.device("cpu")
PAGES = 40
LOCAL = [LayerPlan(window=20), LayerPlan(chunk=24), LayerPlan(window=1), LayerPlan(chunk=64)]


@dataclass
class Held:
    """A sequence: what it will compute, how much of it is computed, and its pages in both stores."""

    q: Tensor
    k: Tensor
    v: Tensor
    done: int = 0
    pages: list[int] = field(default_factory=list)
    local_pages: list[int] = field(default_factory=list)
    out: list[list[Tensor]] = field(default_factory=lambda: [[], []])  # per layer


def whole(plan: LayerPlan, held: Held) -> Tensor:
    positions = torch.arange(len(held.q))
    return attention(held.q[None], held.k[None], held.v[None], visible(plan, positions, positions))[0]


@settings(max_examples=40)
@given(data=st.data())
def test_pages_give_what_the_whole_sequence_gives(data: st.DataObject) -> None:
    local = data.draw(st.sampled_from(LOCAL))
    plans = (LayerPlan(), local)
    config = tiny_config(heads=4, kv_heads=2, head_dim=4, layers=2, plan=plans)
    split = data.draw(st.booleans())
    store = PageStore(config, PAGES, PAGES if split else 0, torch.float32, CPU)
    free, free_local = (data.draw(st.permutations(range(PAGES))) for _ in range(2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def sequence(length: int) -> Held:
        q = torch.randn(length, 4, 4, generator=generator)
        return Held(q, *(torch.randn(length, 2, 4, generator=generator) for _ in range(2)))

    sequences = [sequence(data.draw(st.integers(1, 100))) for _ in range(data.draw(st.integers(1, 4)))]
    for _ in range(400):
        waiting = [held for held in sequences if held.done < len(held.q)]
        if not waiting:
            break
        running = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique_by=id))
        counts = [min(data.draw(st.sampled_from([1, 1, 2, 7, 30])), len(held.q) - held.done) for held in running]
        chunks = []
        for held, count in zip(running, counts, strict=True):
            end = held.done + count
            while len(held.pages) * PAGE_TOKENS < end:
                held.pages.append(free.pop())
                held.local_pages.append(free_local.pop())
            for page in range(local.first_visible(held.done) // PAGE_TOKENS):  # nobody will ever see it again
                if held.local_pages[page] >= 0:
                    free_local.append(held.local_pages[page])
                    held.local_pages[page] = -1
            chunks.append(Chunk(0, [0] * count, held.done, held.pages, local_pages=held.local_pages if split else ()))
        cache = BatchCache(store, chunks, CPU)
        now = [slice(held.done, held.done + count) for held, count in zip(running, counts, strict=True)]
        for layer, plan in enumerate(plans):
            q, k, v = (torch.cat([getattr(h, x)[at] for h, at in zip(running, now, strict=True)]) for x in "qkv")
            rows = cache.attend(layer, plan, q, k, v).split(counts)
            for held, out in zip(running, rows, strict=True):
                held.out[layer].append(out)
        for held, count in zip(running, counts, strict=True):
            held.done += count
    for held in sequences:
        assert held.done == len(held.q)
        for layer, plan in enumerate(plans):
            torch.testing.assert_close(torch.cat(held.out[layer]), whole(plan, held), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads this process's memory from Linux's /proc")
def test_pages_that_nobody_wrote_to_take_no_memory() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    store = PageStore(tiny_config(layers=1), 1 << 19, 0, torch.bfloat16, CPU)
    assert store.bytes == 2 << 30
    assert resident() - before < 64 << 20
