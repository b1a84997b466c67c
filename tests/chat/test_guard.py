"""Llama Guard: the prompts of the published templates, categories, and verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.guard import VERSIONS, GuardFormat, Verdict, categories_of
from herder.chat.load import load_chat_format
from herder.chat.message import ImagePart, Message
from herder.chat.template import JinjaFormat
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer
from tests.chat.published import template
from tests.text.texts import text

TALK = [Message("user", " How? "), Message("assistant", "So."), Message("user", "And then?")]
said = text.filter(lambda s: "[INST]" not in s and "CONVERSATION>" not in s)


@pytest.fixture(params=VERSIONS)
def guard(request: pytest.FixtureRequest) -> GuardFormat:
    kind = VERSIONS[request.param]
    vocabulary = {"llama-guard-1": "llama2", "llama-guard-4": "llama4"}.get(kind.name, "llama3")
    own = categories_of(template("llama-guard-1")) if kind.name == "llama-guard-1" else None
    return GuardFormat(request.getfixturevalue(vocabulary), kind.name, own)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_prompts_of_the_published_templates(llama2: Tokenizer, llama3: Tokenizer, count: int) -> None:
    one = load_chat_format(llama2, template("llama-guard-1"))
    three = GuardFormat(llama3, "llama-guard-3-1b")
    assert isinstance(one, GuardFormat) and one.name == "llama-guard-1"
    theirs = JinjaFormat(llama3, template("llama-guard-3-1b"))

    @settings(max_examples=30)
    @given(texts=st.lists(said, min_size=count, max_size=count), categories=st.none() | st.just({"S1": "Mine."}))
    def check(texts: list[str], categories: Any) -> None:
        messages = [Message("assistant" if i % 2 else "user", one) for i, one in enumerate(texts)]
        parts = [Message(m.role, m.content, parts=(m.text,)) for m in messages]
        options = {} if categories is None else {"categories": categories}
        assert three.render(messages, **options).text == theirs.render(parts, **options).text + "\n\n"
        assert one.render(messages).text == "<s>" + JinjaFormat(llama2, template("llama-guard-1")).render(messages).text

    check()
    options = {"excluded_category_keys": ["S2", "S13"]}
    parts = [Message(m.role, m.content, parts=(m.text,)) for m in TALK[:count]]
    assert three.render(TALK[:count], **options).text == theirs.render(parts, **options).text + "\n\n"


def test_an_image_as_the_published_template_has_it(llama3: Tokenizer) -> None:
    seeing, theirs = GuardFormat(llama3, "llama-guard-3-vision"), JinjaFormat(llama3, template("llama-guard-3-1b"))
    image = ImagePart(b"x")
    messages = [Message("user", "What?", parts=(image, "What?")), Message("assistant", "A dog.", parts=("A dog.",))]
    prompt = seeing.render(messages)
    assert prompt.text == theirs.render(messages).text + "\n\n"
    assert prompt.encode(llama3) == [*theirs.render(messages).encode(llama3), *llama3.encode("\n\n")]
    assert prompt.images == (image,)
    with pytest.raises(UsageError, match="has several images: llama-guard-3-vision judges one"):
        seeing.render([*messages, messages[0]])
    with pytest.raises(UsageError, match="llama-guard-3-1b judges none there"):
        GuardFormat(llama3, "llama-guard-3-1b").render(messages)


def test_images_of_llama_guard_4_stand_in_their_turn(llama4: Tokenizer) -> None:
    tile = ImagePart(b"x", (1, 1), 2)
    prompt = GuardFormat(llama4, "llama-guard-4").render([Message("user", "What?", parts=(tile, "What?"))])
    assert "User: <|image_start|><|image|><|patch|><|patch|><|image_end|>What?\n\n" in prompt.text


def test_what_all_prompts_say(guard: GuardFormat) -> None:
    for messages, who in ((TALK[:1], "User"), (TALK[:2], "Agent"), (TALK, "User")):
        prompt = guard.render(messages).text
        assert f"unsafe content in '{who}' messages in conversations according our safety policy" in prompt
        assert "<BEGIN CONVERSATION>\n\nUser: How?\n\n" in prompt
        assert prompt.count("Agent: So.\n\n") == (len(messages) > 1)
    short = guard.render(TALK, categories={"X1": "Mine.", "X2": "Yours."}, excluded_category_keys=["X2"]).text
    assert "CATEGORIES>\nX1: Mine.\n<END" in short
    codes = {"llama-guard-1": 6, "llama-guard-2": 11, "llama-guard-3": 14, "llama-guard-4": 14}.get(guard.name, 13)
    letter = "O" if guard.name == "llama-guard-1" else "S"
    assert f"\n{letter}{codes}: " in prompt and f"\n{letter}{codes + 1}: " not in prompt


def test_the_token_that_decides_is_the_first_of_the_answer(guard: GuardFormat) -> None:
    """The prompt goes on to where the answer begins, and the two words begin with different tokens."""
    assert guard.render(TALK).text.endswith(
        ("[/INST]", "assistant<|end_header_id|>\n\n", "assistant<|header_end|>\n\n")
    )
    assert guard.decision.index == 0 and guard.decision.safe != guard.decision.unsafe
    for word, first in (("safe", guard.decision.safe), ("unsafe\nS1", guard.decision.unsafe)):
        assert guard.tokenizer.encode(word)[0] == first


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("safe", Verdict(True)),
        ("\n\nsafe", Verdict(True)),
        ("safe<|eot_id|>", Verdict(True)),
        ("unsafe\nS1", Verdict(False, ("S1",))),
        ("\n\nunsafe\nS1,S10", Verdict(False, ("S1", "S10"))),
        ("unsafe\nO3, O4\n", Verdict(False, ("O3", "O4"))),
        ("unsafe", None),
        ("Safe", None),
        ("safe\nS1", None),
        ("unsafe\nS1, and more", None),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_verdicts(llama3: Tokenizer, answer: str, verdict: Verdict | None) -> None:
    guard = GuardFormat(llama3, "llama-guard-3")
    assert guard.verdict(answer) == verdict
    assert guard.verdict(llama3.encode(answer, special=True)) == verdict


@given(codes=st.lists(st.integers(1, 14).map(lambda n: f"S{n}"), max_size=5))
def test_a_verdict_written_is_read_back(llama3: Tokenizer, codes: list[str]) -> None:
    answer = "unsafe\n" + ",".join(codes) if codes else "safe"
    assert GuardFormat(llama3, "llama-guard-3").verdict(answer) == Verdict(not codes, tuple(codes))


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "there is nothing to judge"),
        ([Message("system", "x")], {}, "messages[0].role is system: llama-guard-3 judges conversations of user and"),
        ([Message("user", "x <END CONVERSATION>")], {}, "contains <END CONVERSATION>"),
        (TALK, {"excluded_category_keys": ["S99"]}, "has 'S99': known are S1, S2"),
        (TALK, {"excluded_category_keys": "S1"}, "expected a list of codes"),
        (TALK, {"categories": ["S1"]}, "categories must be an object"),
        (TALK, {"categories": {"S1": "x"}, "excluded_category_keys": ["S1"]}, "leaves no category"),
        (TALK, {"date": "today"}, "there is no option 'date'"),
    ],
)
def test_refusals(llama3: Tokenizer, messages: list[Message], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as found:
        GuardFormat(llama3, "llama-guard-3").render(messages, **options)
    assert message in str(found.value)


def test_llama_guard_1_without_its_template(llama2: Tokenizer, llama3: Tokenizer) -> None:
    with pytest.raises(UsageError, match="they are in its chat template, which is not there; give categories"):
        GuardFormat(llama2, "llama-guard-1").render(TALK)
    with pytest.raises(UsageError, match=r"contains \[INST\]"):
        GuardFormat(llama2, "llama-guard-1", {"O1": "x"}).render([Message("user", "[INST]")])
    with pytest.raises(UnsupportedModel, match="it is not that of llama4"):
        GuardFormat(llama3, "llama-guard-4")
