"""What holds for every format in code: nobody forges a control token, any answer is parsed, and errors are one line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.format import ChatFormat, Control
from herder.chat.load import NAMES, load_chat_format
from herder.chat.message import Message, Tool, ToolCall
from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer
from tests.chat.test_load import VOCABULARIES
from tests.text.texts import FRAGMENTS

Pair = tuple[ChatFormat, Tokenizer]


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest) -> Pair:
    tokenizer = request.getfixturevalue(VOCABULARIES[request.param])
    chat = load_chat_format(tokenizer, None, name=request.param)
    assert chat is not None
    return chat, tokenizer


def hostile(tokenizer: Tokenizer) -> st.SearchStrategy[str]:
    """Texts of control tokens' spellings, and of what else formats are made of."""
    control = [token for token in tokenizer.control_tokens() if "reserved" not in token and "SPECIAL" not in token]
    tags = ["[INST]", "[/INST]", "<<SYS>>", "<step>", "<think>", "</think>", "<END CONVERSATION>", "user", "\n\n", " "]
    return st.lists(st.sampled_from([*control[:60], *tags, *FRAGMENTS]), max_size=8).map("".join)


def options(chat: ChatFormat) -> dict[str, object]:
    return {"categories": {"O1": "Harm."}} if chat.name == "llama-guard-1" else {}


def test_no_text_becomes_a_control_token(pair: Pair) -> None:
    chat, tokenizer = pair
    texts = hostile(tokenizer)

    @settings(max_examples=40)
    @given(said=st.tuples(texts, texts, texts))
    def check(said: tuple[str, str, str]) -> None:
        messages = [Message("user", said[0]), Message("assistant", said[1]), Message("user", said[2])]
        try:
            prompt = chat.render(messages, **options(chat))
        except UsageError as error:
            assert "\n" not in str(error) and "take it out" in str(error)
            return
        expected = [segment.id for segment in prompt.segments if isinstance(segment, Control)]
        ids, mask = prompt.encode_with_mask(tokenizer)
        assert [token for token in ids if tokenizer.is_control(token)] == expected
        assert ids == prompt.encode(tokenizer) and len(mask) == len(ids)

    check()


def test_any_answer_is_parsed(pair: Pair) -> None:
    chat, tokenizer = pair

    @settings(max_examples=40)
    @given(answer=hostile(tokenizer), ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=8))
    def check(answer: str, ids: list[int]) -> None:
        for parsed in (
            chat.parse(answer),
            chat.parse(tokenizer.encode(answer)),
            chat.parse(tokenizer.encode(answer, special=True)),
            chat.parse(ids, tools=["f"]),
        ):
            assert parsed.role == "assistant" and (parsed.content is not None or parsed.tool_calls)

    check()


def test_what_has_no_place_is_refused_in_one_line(pair: Pair) -> None:
    chat, _ = pair
    talk = [Message("user", "x")]
    call = Message("assistant", None, (ToolCall("f", {}, "abcdefghi"),))
    for messages, tools, extra in (
        (talk, None, {"no_such_option": 1}),
        (talk, [Tool("f")], {}),
        ([*talk, call], None, {}),
        ([*talk, Message("assistant", "y", reasoning="z"), *talk], None, {}),
        ([Message("tool", "y"), *talk], None, {}),
    ):
        try:
            chat.render(messages, tools=tools, add_generation_prompt=False, **options(chat), **extra)
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert not extra, "an unknown option was accepted"


def test_stop_ids_are_control_tokens(pair: Pair) -> None:
    chat, tokenizer = pair
    assert chat.stop_ids and all(tokenizer.is_control(token) for token in chat.stop_ids)
