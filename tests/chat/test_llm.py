"""LLM with real formats, on the fake executor: Code Llama's infilling, and the options of a chat format."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from herder.chat.codellama import infill_prompt
from herder.chat.format import ChatFormat
from herder.chat.llama3 import Llama3Format
from herder.chat.message import Message
from herder.core.batch import Limits
from herder.core.errors import UnsupportedModel, UsageError
from herder.core.request import Sampling
from herder.engine.engine import Engine
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor, FakeModel, reference
from herder.text.tokenizer import Tokenizer
from tests.tiny import tiny_config

CONFIG = replace(tiny_config(context=512), vocab=32016)
PREFIX, SUFFIX = "def f(", "):\n    pass"


def make(tokenizer: Tokenizer, chat_format: ChatFormat | None = None) -> LLM:
    limits = Limits(pages=32, context=512, batch_tokens=64, batch_chunks=8, vocab=tokenizer.vocab_size)
    engine = Engine(FakeExecutor(limits, dim=CONFIG.dim))
    return LLM(engine=engine, tokenizer=tokenizer, config=CONFIG, chat_format=chat_format, chat_sampling=Sampling())


@pytest.fixture
def llm(codellama: Tokenizer) -> Iterator[LLM]:
    with make(codellama) as llm:
        yield llm


@pytest.mark.parametrize("suffix_first", [False, True])
def test_a_gap_is_filled(llm: LLM, codellama: Tokenizer, suffix_first: bool) -> None:
    prompt = infill_prompt(codellama, PREFIX, SUFFIX, suffix_first=suffix_first).encode(codellama)
    expected = reference(FakeModel(codellama.vocab_size), prompt, 5, Sampling(), 0, llm.stop_ids)
    stream = llm.infill(PREFIX, SUFFIX, suffix_first=suffix_first, max_tokens=5)
    text = "".join(stream)
    assert stream.result().tokens == tuple(expected)
    assert text == codellama.decode(expected, start=False)  # the code goes on: its first space stays

    async def same() -> None:
        assert (
            await (await llm.ainfill(PREFIX, SUFFIX, suffix_first=suffix_first, max_tokens=5)).result()
        ).text == text

    asyncio.run(same())


def test_the_token_that_ends_it(llm: LLM, codellama: Tokenizer) -> None:
    assert codellama.id_of("▁<EOT>") in llm.stop_ids


def test_a_formats_own_options(llama3: Tokenizer) -> None:
    chat = Llama3Format(llama3)
    with make(llama3, chat) as llm:
        for options in ({}, {"date": "1 May 2025"}):
            expected = len(chat.render([Message("user", "hi")], **options).encode(llama3))
            assert llm.chat("hi", max_tokens=1, format_options=options).usage.prompt_tokens == expected
        with pytest.raises(UsageError, match="there is no option 'dates': the chat format llama3 takes date"):
            llm.chat("hi", format_options={"dates": "today"})
        with pytest.raises(UsageError, match="format_options has 'learn', which is no option"):
            llm.chat("hi", format_options={"learn": True})
        with pytest.raises(UsageError, match="a plain text has no format"):
            llm.generate("hi", format_options={"date": "today"})


def test_other_models_fill_no_gaps(spm: Tokenizer) -> None:
    with make(spm) as llm, pytest.raises(UnsupportedModel, match="no tokens for infilling: only Code Llama"):
        llm.infill(PREFIX, SUFFIX)
