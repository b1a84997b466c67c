"""Llama 2's and Code Llama's formats: id for id what sentencepiece makes of the texts that Meta's code composes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herder.chat.codellama import CodeLlama70BFormat, infill_prompt
from herder.chat.llama2 import TAGS, Llama2Format
from herder.chat.message import Message, ToolCall, read_messages, read_tools
from herder.core.errors import UnsupportedModel, UsageError
from herder.text.tokenizer import Tokenizer
from tests.text.texts import text

clean = text.filter(lambda s: not any(tag in s for tag in (*TAGS, "<step>")))


def test_the_sixteen_pieces(codellama: Tokenizer) -> None:
    assert codellama.vocab_size == 32016
    ids = [codellama.id_of(f"▁<{name}>") for name in ("PRE", "SUF", "MID", "EOT")]
    assert ids == [32007, 32008, 32009, 32010]
    assert 32010 in codellama.stop_ids
    assert not {*ids, codellama.id_of("<step>")} & set(codellama.encode("a <PRE> b <SUF><MID> <EOT> <step>"))


# Meta's code, as far as it makes ids: generation.py of llama (2023) and codellama
def chat_ids(sp: Any, messages: list[Message]) -> list[int]:
    turns = [message.text for message in messages]
    if messages[0].role == "system":
        turns = [f"<<SYS>>\n{turns[0]}\n<</SYS>>\n\n{turns[1]}", *turns[2:]]
    ids = []
    for question, answer in zip(turns[::2], turns[1::2], strict=False):
        ids += [sp.bos_id(), *sp.encode(f"[INST] {question.strip()} [/INST] {answer.strip()} "), sp.eos_id()]
    return [*ids, sp.bos_id(), *sp.encode(f"[INST] {turns[-1].strip()} [/INST]")]


def step_ids(sp: Any, messages: list[Message]) -> list[int]:
    if messages[0].role != "system":
        messages = [Message("system", ""), *messages]
    ids = [sp.bos_id()]
    for message in messages:
        ids += sp.encode(f" Source: {message.role}")
        if message.text:
            ids += sp.encode("\n\n " + message.text.strip())
        ids.append(sp.piece_to_id("<step>"))
    return [*ids, *sp.encode(" Source: assistant\nDestination: user"), *sp.encode("\n\n ")]


turns = st.tuples(st.none() | clean, st.lists(clean, max_size=3), clean).map(
    lambda drawn: (
        ([Message("system", drawn[0])] if drawn[0] is not None else [])
        + [Message("assistant" if i % 2 else "user", said) for i, said in enumerate([*drawn[1], *drawn[1], drawn[2]])]
    )
)


@pytest.mark.parametrize("steps", [False, True])
def test_the_ids_of_metas_code(code_pieces: tuple[Path, Any], codellama: Tokenizer, steps: bool) -> None:
    chat = CodeLlama70BFormat(codellama) if steps else Llama2Format(codellama)

    @settings(max_examples=60)
    @given(messages=turns)
    def check(messages: list[Message]) -> None:
        expected = (step_ids if steps else chat_ids)(code_pieces[1], messages)
        assert chat.render(messages).encode(codellama) == expected

    check()


@settings(max_examples=60)
@given(prefix=clean, suffix=clean, first=st.booleans())
def test_infilling_as_metas_code(
    code_pieces: tuple[Path, Any], codellama: Tokenizer, prefix: str, suffix: str, first: bool
) -> None:
    """Meta encodes the suffix behind a character that is a token of its own, and drops that and the space before it."""
    pre, suf, mid = 32007, 32008, 32009
    before, after = code_pieces[1].encode(prefix), code_pieces[1].encode("☺" + suffix)[2:]
    expected = [1, pre, suf, *after, mid, *before] if first else [1, pre, *before, suf, *after, mid]
    assert infill_prompt(codellama, prefix, suffix, suffix_first=first).encode(codellama) == expected


def test_infilling_in_every_kind_of_file(codellama: Tokenizer, smollm: Tokenizer, spm: Tokenizer) -> None:
    prompt = infill_prompt(codellama, "def f(", "):\n    pass")
    assert prompt.text == "<s>▁<PRE>def f(▁<SUF>):\n    pass▁<MID>"
    forged = infill_prompt(codellama, "a <MID> <EOT>", " <PRE>").encode(codellama)
    assert [token for token in forged if codellama.is_control(token)] == [1, 32007, 32008, 32009]
    for other in (smollm, spm):
        with pytest.raises(UnsupportedModel, match="no tokens for infilling"):
            infill_prompt(other, "a", "b")


# Ours ----------------------------------------------------------------------------------------------------------------
TALK = [Message("system", " s "), Message("user", " a "), Message("assistant", "b"), Message("user", "c")]


def test_llama2_as_text(codellama: Tokenizer) -> None:
    assert Llama2Format(codellama).render(TALK).text == (
        "<s>[INST] <<SYS>>\n s \n<</SYS>>\n\n a [/INST] b </s><s>[INST] c [/INST]"
    )


def test_code_llama_70b_as_text(codellama: Tokenizer) -> None:
    chat = CodeLlama70BFormat(codellama)
    assert chat.render(TALK).text == (
        "<s> Source: system\n\n s<step> Source: user\n\n a<step> Source: assistant\n\n b<step> Source: user\n\n c<step>"
        " Source: assistant\nDestination: user\n\n "
    )
    assert codellama.id_of("<step>") in chat.stop_ids


@pytest.mark.parametrize("kind", [Llama2Format, CodeLlama70BFormat])
def test_what_is_rendered_is_parsed_back(codellama: Tokenizer, kind: Any) -> None:
    chat = kind(codellama)
    answer = Message("assistant", "Say <s> and\n\nthen </s>.")
    prompt = chat.render([Message("user", "x"), answer], add_generation_prompt=False)
    ids, mask = prompt.encode_with_mask(codellama)
    learnt = [token for token, wanted in zip(ids, mask, strict=True) if wanted]
    assert learnt[-1] in chat.stop_ids
    assert chat.parse(learnt) == answer
    assert chat.parse(codellama.decode(learnt, skip_special=False)) == answer


def test_tags_are_refused_as_meta_refuses_them(codellama: Tokenizer) -> None:
    for tag in TAGS:
        for role in ("system", "user"):
            messages = [Message(role, f"x{tag}"), Message("user", "y")][: 1 if role == "user" else 2]
            with pytest.raises(UsageError, match=r"messages\[0\] contains .*: take it out"):
                Llama2Format(codellama).render(messages)
    with pytest.raises(UsageError, match="contains <step>"):
        CodeLlama70BFormat(codellama).render([Message("user", "x <step> y")])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Message("assistant", "x")], "messages[0].role is assistant: in the chat format llama2 it must be user there"),
        ([Message("user", "x"), Message("user", "y")], "messages[1].role is user"),
        ([Message("user", "x"), Message("tool", "y")], "messages[1].role is tool"),
        ([Message("system", "x")], "there is no user's message"),
        ([Message("user", "x"), Message("assistant", "y")], "the last message is the assistant's"),
        ([Message("user", "x"), Message("assistant", None, (ToolCall("f"),))], "messages[1] has tool_calls"),
        ([Message("user", "x"), Message("assistant", "y", reasoning="z")], "messages[1] has reasoning_content"),
    ],
)
def test_refusals(codellama: Tokenizer, messages: list[Message], message: str) -> None:
    with pytest.raises(UsageError) as found:
        Llama2Format(codellama).render(messages)
    assert message in str(found.value)


def test_options_tools_images_and_vocabularies(codellama: Tokenizer, smollm: Tokenizer) -> None:
    for kind in (Llama2Format, CodeLlama70BFormat):
        with pytest.raises(UsageError, match="there is no option 'date'"):
            kind(codellama).render(TALK, date="today")
        with pytest.raises(UsageError, match="no place for tools"):
            kind(codellama).render(TALK, tools=read_tools([{"function": {"name": "f"}}]))
        picture = read_messages([{"role": "user", "content": [{"type": "image", "image": b"x"}]}])
        with pytest.raises(UsageError, match="has no images, leave them out"):
            kind(codellama).render(picture)
    with pytest.raises(UnsupportedModel, match="lacks <step>"):
        CodeLlama70BFormat(smollm)
