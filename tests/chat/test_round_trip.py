"""What a format renders of an assistant's message, it parses back: text, and calls in every notation it speaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.calls import BUILTIN_TOOLS
from herder.chat.llama3 import Llama3Format
from herder.chat.llama4 import Llama4Format
from herder.chat.message import Message, ToolCall
from tests.text.texts import text

names = st.from_regex(r"[a-z]{3,8}_x", fullmatch=True)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), text),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(text, inner, max_size=2)),
    max_leaves=4,
)
made = st.builds(ToolCall, names, st.dictionaries(names, values, max_size=2))
builtin = st.builds(ToolCall, st.sampled_from(BUILTIN_TOOLS), text.map(lambda query: {"query": query}))
several = st.lists(made, min_size=1, max_size=3) | st.lists(builtin, min_size=1, max_size=1)
options = st.fixed_dictionaries({"tool_notation": st.sampled_from(["json", "python", "tag"])})


@pytest.mark.parametrize("kind", [Llama3Format, Llama4Format])
def test_calls_in_every_notation(kind: Any, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind.name)
    chat = kind(tokenizer)
    ipython = st.sampled_from([{}, {"builtin_tools": []}] if kind is Llama3Format else [{}])

    @settings(max_examples=80)
    @given(
        found=st.lists(made, min_size=1, max_size=3) | st.lists(builtin, min_size=1, max_size=1), a=options, b=ipython
    )
    def check(found: list[ToolCall], a: dict[str, Any], b: dict[str, Any]) -> None:
        message = Message("assistant", None, tuple(found))
        prompt = chat.render([Message("user", "x"), message], add_generation_prompt=False, **a, **b)
        ids, mask = prompt.encode_with_mask(tokenizer)
        answer = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
        assert answer[-1] in chat.stop_ids
        assert chat.parse(answer) == message

    check()


@pytest.mark.parametrize("kind", [Llama3Format, Llama4Format])
def test_text(kind: Any, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind.name)
    chat = kind(tokenizer)

    @settings(max_examples=80)
    @given(said=text)
    def check(said: str) -> None:
        prompt = chat.render([Message("user", "x"), Message("assistant", said)], add_generation_prompt=False)
        ids, mask = prompt.encode_with_mask(tokenizer)
        answer = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
        assert chat.parse(answer) == Message("assistant", said)  # a call is in none of these texts

    check()
