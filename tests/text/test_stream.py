"""What a TextStream shows, joined, is what decoding everything at once gives, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.text.stream import TextStream, overlap
from herder.text.tokenizer import Tokenizer
from tests.text.texts import text


def reference(whole: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The first stop string that is complete when the text is read from left to right ends it."""
    for end in range(len(whole) + 1):
        matches = [stop for stop in stops if whole[:end].endswith(stop)]
        if matches:
            longest = max(matches, key=len)
            return whole[: end - len(longest)], longest
    return whole, None


@pytest.fixture(scope="module", params=["smollm", "llama3", "spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


stops = st.lists(
    st.one_of(st.text("ab \n<|", min_size=1, max_size=4), st.sampled_from(["é", "🦙", "</s>", "\ufffd"])), max_size=3
)


@settings(max_examples=300)
@given(data=st.data(), stop=stops, start=st.booleans(), skip=st.booleans())
def test_any_tokens(tokenizer: Tokenizer, data: st.DataObject, stop: list[str], start: bool, skip: bool) -> None:
    """Any ids at all: halves of characters, invalid bytes, control tokens."""
    some = st.one_of(
        st.integers(0, tokenizer.vocab_size - 1),
        st.integers(0, 400),
        st.sampled_from(sorted(tokenizer.special_ids)[:20]),
    )
    ids = data.draw(st.lists(some, max_size=30))
    check(tokenizer, ids, stop, start, skip)


@settings(max_examples=300)
@given(s=text, stop=stops, start=st.booleans())
@example(s="ab🦙", stop=["🦙"], start=True)
@example(s="xabcd", stop=["abcd", "bc"], start=True)
@example(s="aab", stop=["ab"], start=False)
@example(s="<|<|im", stop=["<|im"], start=True)
def test_any_text(tokenizer: Tokenizer, s: str, stop: list[str], start: bool) -> None:
    check(tokenizer, tokenizer.encode(s), stop, start, True)


def check(tokenizer: Tokenizer, ids: list[int], stop: list[str], start: bool, skip: bool) -> None:
    whole = tokenizer.decode(ids, skip_special=skip, start=start)
    expected, ended_by = reference(whole, stop)
    stream = TextStream(tokenizer, stop=stop, start=start, skip_special=skip)
    shown = ""
    for i, token in enumerate(ids):
        piece = stream.push(token)
        shown += piece
        assert expected.startswith(shown), (i, shown)
        if stream.stopped is None:  # held back: a character, and a stop string, that may still be completed
            so_far = tokenizer.decode(ids[: i + 1], skip_special=skip, start=start)
            assert len(so_far) - len(shown) <= 1 + max((len(s) - 1 for s in stop), default=0)
    shown += stream.finish()
    assert (shown, stream.stopped) == (expected, ended_by)


def test_never_half_a_character(smollm: Tokenizer) -> None:
    stream = TextStream(smollm)
    pieces = [stream.push(token) for token in smollm.encode("a🦙b")]
    assert [piece for piece in pieces if piece] == ["a", "🦙", "b"]


def test_an_unfinished_character_is_a_replacement_character(smollm: Tokenizer) -> None:
    half = [smollm.encode("🦙")[0]]
    stream = TextStream(smollm)
    assert stream.extend(half) == ""
    assert stream.finish() == "\ufffd" == smollm.decode(half)


def test_a_held_beginning_of_a_stop_string_is_shown_when_it_does_not_come(smollm: Tokenizer) -> None:
    stream = TextStream(smollm, stop=["###"])
    assert stream.extend(smollm.encode("a#")) == "a"
    assert stream.extend(smollm.encode("b")) == "#b"
    assert stream.extend(smollm.encode("##")) == ""
    assert stream.finish() == "##"


def test_nothing_comes_after_a_stop_string(smollm: Tokenizer) -> None:
    stream = TextStream(smollm, stop=["END", "STOP"])
    assert stream.extend(smollm.encode("one STOP two END")) == "one "
    assert stream.stopped == "STOP"
    assert (stream.push(0), stream.finish()) == ("", "")


def test_sentencepiece_space_at_the_beginning(spm: Tokenizer) -> None:
    """An answer loses the space that encoding a text puts first; a continuation keeps it, for there it is a space."""
    ids = spm.encode("word")
    assert TextStream(spm).extend(ids) == "word"
    assert TextStream(spm, start=False).extend(ids) == " word"
    before = spm.encode("One")
    assert spm.decode(before + ids) == "One" + TextStream(spm, start=False).extend(ids)
    assert TextStream(spm).extend([1, *ids]) == "word"
    assert TextStream(spm, skip_special=False).extend([1, *ids]) == "<s>word"


def test_an_empty_stop_string(smollm: Tokenizer) -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        TextStream(smollm, stop=["a", ""])


@given(s=st.text("ab", max_size=8), stop=st.text("ab", min_size=1, max_size=5))
def test_overlap(s: str, stop: str) -> None:
    expected = max((n for n in range(min(len(s), len(stop) - 1) + 1) if s[len(s) - n :] == stop[:n]), default=0)
    assert overlap(s, stop) == expected
