from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from herder.core.batch import Limits
from herder.core.request import NewToken, Request
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.speculate import NGRAM, Speculator, agreement
from herder.runtime.fake import FakeExecutor


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_the_proposal_continues_the_latest_occurrence(pieces: list[list[int]], most: int) -> None:
    speculator = Speculator(most)
    tokens = array("i")
    for piece in pieces:
        tokens.extend(piece)
        text = list(tokens)
        at = [i for i in range(len(text) - NGRAM) if text[i : i + NGRAM] == text[-NGRAM:]]
        expected = text[at[-1] + NGRAM :][:most] if at else []
        assert list(speculator.draft(tokens, most) or []) == expected


def test_proposals_shrink_after_a_miss_and_grow_after_a_hit() -> None:
    speculator = Speculator(4)
    tokens = array("i", [1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert list(speculator.draft(tokens, 9) or []) == [4, 5, 6, 7]
    speculator.verified(4, 0)
    assert list(speculator.draft(tokens, 9) or []) == [4]
    speculator.verified(1, 1)
    assert list(speculator.draft(tokens, 9) or []) == [4, 5]


def test_agreement_is_the_longest_common_prefix() -> None:
    assert agreement(array("i", [1, 2, 3]), (1, 2, 4, 9)) == 2
    assert agreement(array("i", [1]), (1, 5)) == 1
    assert agreement(array("i", [1]), (2, 5)) == 0


def test_accepted_drafts_save_steps_and_change_nothing() -> None:
    def run(speculate: int) -> tuple[list[int], Loop]:
        limits = Limits(pages=16, context=400, batch_tokens=64, batch_chunks=4, vocab=2)
        loop = Loop(FakeExecutor(limits), Policy(speculate=speculate))
        tokens: list[int] = []

        def sink(event: object) -> None:
            if isinstance(event, NewToken):
                tokens.append(event.token)

        loop.add(Request((0, 1) * 20, max_tokens=300), sink, 0)
        while loop.step():
            pass
        return tokens, loop

    plain, slow = run(0)
    fast_tokens, fast = run(4)
    assert fast_tokens == plain
    counters = fast.stats().counters
    assert 0 < counters.accepted_tokens < counters.drafted_tokens
    assert counters.generated_tokens == len(plain)
    assert counters.steps == slow.stats().counters.steps - counters.accepted_tokens
