"""The fake must notice what it is there to notice."""

from __future__ import annotations

from array import array
from dataclasses import replace

import pytest

from herder.core.batch import PAGE_TOKENS, Batch, Chunk, Limits, Want
from herder.core.config import LayerPlan
from herder.core.request import Image, Sampling
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


# Layers of bounded reach, images -------------------------------------------------------------------------------------

LOCAL = replace(LIMITS, local_pages=6, local=LayerPlan(window=PAGE_TOKENS), images=True)


def local_chunk(tokens: list[int], start: int, local_pages: list[int], images: tuple[Image, ...] = ()) -> Chunk:
    pages = array("i", [0, 1, 2])
    return Chunk(0, array("i", tokens), start, pages, 1, Want.TOKEN, Sampling(), local_pages=array("i", local_pages),
                 images=images)  # fmt: skip


def test_the_state_forgets_nothing_and_sees_its_window_twice() -> None:
    """All entries count for every position, those of the window once more: where a table is wrong, it shows."""
    model = FakeModel(1000, local=LOCAL.local)
    want = [tuple(reference(model, TEXT, 1, Sampling(), 0))]
    assert want != [tuple(reference(FakeModel(1000), TEXT, 1, Sampling(), 0))]
    executor = FakeExecutor(LOCAL)
    run(executor, local_chunk(TEXT[:50], 0, [5, 3, -1]))
    assert run(executor, local_chunk(TEXT[50:], 50, [5, 3, 4])) == want
    last = local_chunk(TEXT[-1:], len(TEXT) - 1, [-1, 3, 4])
    assert run(executor, last) == want
    wrong = local_chunk(TEXT[-1:], len(TEXT) - 1, [-1, 2, 4])
    assert run(executor, wrong) != want
    assert run(FakeExecutor(replace(LIMITS, local=LOCAL.local)), chunk(TEXT, 0, [0, 1, 2])) == want, "one pool for both"


@pytest.mark.parametrize(
    ("local_pages", "message"),
    [
        ([5, 3, 4], "a local page that no position can see"),
        ([-1, -1, 4], "a local page is missing"),
        ([-1, 3, -1], "a local page is missing"),
        ([-1, 3], "differ in length"),
    ],
)
def test_local_pages_that_are_kept_too_long_or_given_back_too_early(local_pages: list[int], message: str) -> None:
    executor = FakeExecutor(LOCAL)
    with pytest.raises(AssertionError, match=message):
        executor.launch(Batch((local_chunk(TEXT[-1:], len(TEXT) - 1, local_pages),)))


def test_an_image_counts_from_its_first_position_on() -> None:
    model = FakeModel(1000)
    answers = set()
    for key in (1, 2):
        for positions in ((0, 1), (40, 41), (40, 50), (len(TEXT) - 1,)):
            shown = (Image(None, (1, 1), positions, bytes([key]) * 32),)
            want = reference(model, TEXT, 1, Sampling(), 0, images=shown)
            executor = FakeExecutor(replace(LIMITS, images=True))
            for start, end in ((0, 41), (41, len(TEXT))):
                part = replace(chunk(TEXT[start:end], start, [0, 1, 2]), images=shown if positions[0] < end else ())
                got = run(executor, part)
            assert got == [tuple(want)]
            answers.add(tuple(want))
    assert len(answers) == 8
