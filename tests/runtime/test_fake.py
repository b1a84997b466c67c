"""The fake must notice what it is there to notice."""

from __future__ import annotations

from array import array

import pytest

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Want
from herder.core.request import Sampling
from herder.runtime.fake import FakeExecutor, FakeModel, reference

LIMITS = Limits(pages=8, context=256, batch_tokens=256, batch_chunks=4, vocab=1000)


def run(executor: FakeExecutor, *chunks: Chunk) -> list[tuple[int, ...]]:
    return [output.tokens for output in executor.result(executor.launch(Batch(chunks)))]


def chunk(tokens: list[int], start: int, pages: list[int], **more: int) -> Chunk:
    return Chunk(0, array("i", tokens), start, array("i", pages), 1, Want.TOKEN, Sampling(), **more)


TEXT = list(range(40, 40 + 2 * PAGE_TOKENS + 5))


def test_a_state_depends_on_every_token_before_it() -> None:
    model = FakeModel(1 << 30)
    seen = set()
    for changed in range(len(TEXT)):
        text = TEXT.copy()
        text[changed] += 1
        seen.add(tuple(reference(model, text, 1, Sampling(), 0)))
    assert len(seen) == len(TEXT)


def test_chunking_and_page_numbers_do_not_matter() -> None:
    want = tuple(reference(FakeModel(1000), TEXT, 1, Sampling(), 0))
    assert run(FakeExecutor(LIMITS), chunk(TEXT, 0, [0, 1, 2])) == [want]
    executor = FakeExecutor(LIMITS)
    pages = [7, 3, 5]
    run(executor, chunk(TEXT[:11], 0, pages))
    run(executor, chunk(TEXT[11:50], 11, pages))
    assert run(executor, chunk(TEXT[50:], 50, pages)) == [want]


@pytest.mark.parametrize("pages", [[1, 0, 2], [0, 3, 2], [3, 1, 2]])
def test_a_wrong_block_table_shows(pages: list[int]) -> None:
    executor = FakeExecutor(LIMITS)
    run(executor, chunk(TEXT[:-1], 0, [0, 1, 2]))
    right = run(executor, chunk(TEXT[-1:], len(TEXT) - 1, [0, 1, 2]))
    assert run(executor, chunk(TEXT[-1:], len(TEXT) - 1, pages)) != right


def test_a_wrong_start_shows() -> None:
    executor = FakeExecutor(LIMITS)
    run(executor, chunk(TEXT[:-1], 0, [0, 1, 2]))
    wrong = run(executor, chunk(TEXT[-1:], len(TEXT) - 2, [0, 1, 2]))
    assert wrong != [tuple(reference(FakeModel(1000), TEXT, 1, Sampling(), 0))]


def test_a_stale_page_shows() -> None:
    executor = FakeExecutor(LIMITS)
    run(executor, chunk(TEXT[:-1], 0, [0, 1, 2]))
    run(executor, chunk([9] * PAGE_TOKENS, 0, [1]))  # somebody else got page 1
    wrong = run(executor, chunk(TEXT[-1:], len(TEXT) - 1, [0, 1, 2]))
    assert wrong != [tuple(reference(FakeModel(1000), TEXT, 1, Sampling(), 0))]


def test_a_page_written_by_one_and_held_by_another_is_refused() -> None:
    executor = FakeExecutor(LIMITS)
    with pytest.raises(AssertionError, match="page 1 is written by one sequence and held by another"):
        executor.launch(Batch((chunk([1], 0, [1]), chunk([2], 33, [1, 2]))))


def test_seed_and_step_choose_the_token() -> None:
    hot = Sampling(temperature=1.0)
    results = {
        (seed, step): run(
            FakeExecutor(LIMITS),
            Chunk(0, array("i", TEXT), 0, array("i", [0, 1, 2]), 1, Want.TOKEN, hot, seed, step),
        )[0]
        for seed in range(3)
        for step in range(3)
    }
    assert len(set(results.values())) == 9


def test_a_mask_is_obeyed() -> None:
    for token in (0, 31, 32, 777, 999):
        mask = bytearray(4 * (-(-LIMITS.vocab // 32)))
        mask[token // 8] = 1 << token % 8
        masked = Chunk(0, array("i", TEXT), 0, array("i", [0, 1, 2]), 1, Want.TOKEN, Sampling(), mask=bytes(mask))
        assert run(FakeExecutor(LIMITS), masked) == [(token,)]
