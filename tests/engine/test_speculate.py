from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from herder.core.batch import Limits
from herder.core.request import NewToken, Request
from herder.engine.loop import Loop
from herder.engine.scheduler import Policy
from herder.engine.speculate import LONGEST, LOOK_BACK, Speculator, agreement
from herder.runtime.fake import FakeExecutor


def agreement_before(text: list[int], after: int) -> int:
    """How many tokens before `after` are the last ones of the text, as far as they are counted."""
    for length in range(min(after, LONGEST), 0, -1):
        if text[after - length : after] == text[-length:]:
            return length
    return 0


@given(st.lists(st.lists(st.integers(0, 2), max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_the_proposal_continues_the_latest_of_the_longest_agreements(pieces: list[list[int]], most: int) -> None:
    speculator = Speculator(most)
    tokens = array("i")
    for piece in pieces:
        tokens.extend(piece)
        text = list(tokens)
        pairs = [i for i in range(2, len(text)) if text[i - 2 : i] == text[-2:]][-LOOK_BACK:]
        best = max(((agreement_before(text, i), i) for i in pairs), default=None)
        expected = text[best[1] :][: min(most, 2 * (best[0] - 1))] if best else []
        assert list(speculator.draft(tokens, most) or []) == expected


def test_after_a_miss_one_more_token_must_agree() -> None:
    speculator = Speculator(8)
    tokens = array("i", [1, 2, 3, 4, 5, 6, 7, 9, 2, 3])
    assert list(speculator.draft(tokens, 9) or []) == [4, 5]
    speculator.verified(2, 0)
    assert speculator.draft(tokens, 9) is None
    tokens.extend([4])
    assert list(speculator.draft(tokens, 9) or []) == [5, 6]
    speculator.verified(2, 1)
    assert list(speculator.draft(tokens, 9) or []) == [5, 6]
    speculator.verified(2, 2)
    assert list(speculator.draft(tokens, 9) or []) == [5, 6, 7, 9]


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
