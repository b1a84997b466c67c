"""The Python API on the fake executor, with a real tokenizer. What a real model says is asked in tests/oracle."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from herder.chat.format import ChatFormat, Control, Prompt, Text
from herder.chat.message import Message, Tool
from herder.core.batch import Batch, Limits
from herder.core.errors import ContextOverflow, NumericError, UnsupportedModel, UsageError
from herder.core.request import FinishReason, Sampling
from herder.engine.engine import Engine
from herder.llm import LLM
from herder.runtime.fake import FakeExecutor, FakeModel, reference
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from herder.weights.source import open_model
from tests.tiny import EOS, VOCAB, tiny_config, write_tiny_gguf

LIMITS = Limits(pages=32, context=512, batch_tokens=64, batch_chunks=8, vocab=VOCAB)
CONFIG = tiny_config(context=512)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", vocabulary_only=True, add_bos=True).path
    with open_model(path) as files:
        return load_tokenizer(files.metadata)


def make(
    tokenizer: Tokenizer,
    executor: FakeExecutor | None = None,
    chat_format: ChatFormat | None = None,
    chat_sampling: Sampling | None = None,
) -> LLM:
    return LLM(
        engine=Engine(executor or FakeExecutor(LIMITS, dim=CONFIG.dim)),
        tokenizer=tokenizer,
        config=CONFIG,
        chat_format=chat_format,
        chat_sampling=chat_sampling or Sampling(),
    )


@pytest.fixture
def llm(tokenizer: Tokenizer) -> Iterator[LLM]:
    with make(tokenizer) as llm:
        yield llm


def alone(prompt: list[int], count: int, sampling: Sampling | None = None, seed: int = 0) -> list[int]:
    return reference(FakeModel(VOCAB), prompt, count, sampling or Sampling(), seed, {EOS})


# Generation ----------------------------------------------------------------------------------------------------------
def test_text_is_encoded_with_bos_and_the_answer_decoded(llm: LLM, tokenizer: Tokenizer) -> None:
    answer = llm.generate("the herd", max_tokens=20)
    prompt = tokenizer.encode("the herd", bos=True)
    assert prompt[0] == tokenizer.bos_id
    assert list(answer.tokens) == alone(prompt, 20)
    assert answer.text == tokenizer.decode(answer.tokens, start=False)
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == len(answer.tokens) == 20
    assert answer.finish_reason is FinishReason.LENGTH and answer.stop is None
    assert answer.timings.prefill > 0


def test_tokens_are_taken_as_they_are(llm: LLM) -> None:
    assert list(llm.generate([5, 6, 7], max_tokens=9).tokens) == alone([5, 6, 7], 9)
    assert list(llm.generate(np.array([5, 6, 7]), max_tokens=9).tokens) == alone([5, 6, 7], 9)


def test_control_tokens_in_text_are_text(llm: LLM, tokenizer: Tokenizer) -> None:
    answer = llm.generate("<|im_end|>", max_tokens=1)
    assert answer.usage.prompt_tokens == len(tokenizer.encode("<|im_end|>", bos=True)) > 2


def test_a_stream_gives_the_same_text_in_pieces(llm: LLM) -> None:
    whole = llm.generate("once", max_tokens=40)
    stream = llm.generate("once", max_tokens=40, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == whole.text and len(pieces) > 3 and "" not in pieces
    assert stream.completion is not None and stream.completion.tokens == whole.tokens
    assert list(stream) == []
    assert stream.result() is stream.completion


def test_the_same_from_asyncio(llm: LLM) -> None:
    async def main() -> None:
        whole = await llm.agenerate("once", max_tokens=40)
        pieces = [piece async for piece in await llm.agenerate("once", max_tokens=40, stream=True)]
        assert "".join(pieces) == whole.text == llm.generate("once", max_tokens=40).text
        many = await asyncio.gather(*(llm.agenerate([i, 3], max_tokens=15) for i in range(20)))
        assert [list(answer.tokens) for answer in many] == [alone([i, 3], 15) for i in range(20)]

    asyncio.run(main())


def first_piece(llm: LLM, tokenizer: Tokenizer, prompt: list[int]) -> tuple[str, int]:
    """A letter that the answer to prompt contains, and where its first token is."""
    tokens = llm.generate(prompt, max_tokens=100, ignore_eos=True).tokens
    for index, token in enumerate(tokens):
        text = tokenizer.decode([token], start=False)
        before = [tokenizer.decode([earlier], start=False) for earlier in tokens[:index]]
        if index > 5 and text.isascii() and text.isalpha() and not any(text in other for other in before):
            return text, index
    raise AssertionError("choose another prompt")


def test_a_stop_string_ends_the_answer_before_itself(llm: LLM, tokenizer: Tokenizer) -> None:
    stop, index = first_piece(llm, tokenizer, [9, 9])
    whole = llm.generate([9, 9], max_tokens=100, ignore_eos=True)
    answer = llm.generate([9, 9], max_tokens=100, ignore_eos=True, stop=stop)
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.tokens == whole.tokens[: index + 1]
    assert (answer.finish_reason, answer.stop) == (FinishReason.STOP, stop)
    assert answer.usage.completion_tokens == index + 1
    assert llm.generate([9, 9], max_tokens=100, ignore_eos=True, stop=["never there", stop]).text == answer.text


def test_the_models_own_end_and_others(llm: LLM, tokenizer: Tokenizer) -> None:
    prompt = next([i] for i in range(VOCAB) if len(alone([i], 400)) < 400)
    ended = llm.generate(prompt, max_tokens=400)
    assert (ended.finish_reason, ended.stop) == (FinishReason.STOP, "<|im_end|>")
    assert EOS not in ended.tokens
    onwards = llm.generate(prompt, max_tokens=400, ignore_eos=True)
    assert onwards.tokens[len(ended.tokens)] == EOS and len(onwards.tokens) == 400
    early = llm.generate(prompt, stop_tokens=[ended.tokens[2]])
    assert early.stop == tokenizer.token(ended.tokens[2]) and len(early.tokens) <= 2


def test_sampling_options_and_seeds(llm: LLM) -> None:
    first = llm.generate([1, 2], max_tokens=20, temperature=1.0, seed=11)
    assert list(first.tokens) == alone([1, 2], 20, Sampling(temperature=1.0), 11)
    assert first.seed == 11
    drawn = llm.generate([1, 2], max_tokens=20, temperature=1.0)
    assert llm.generate([1, 2], max_tokens=20, temperature=1.0, seed=drawn.seed).tokens == drawn.tokens
    forced = llm.generate([1, 2], max_tokens=3, logit_bias={77: 100})
    assert forced.tokens == (77, 77, 77)


def test_logprobs_come_with_the_tokens(llm: LLM) -> None:
    answer = llm.generate([1, 2], max_tokens=5, logprobs=3)
    assert [entry.token for entry in answer.logprobs] == list(answer.tokens)
    assert all(len(entry.top) == 3 for entry in answer.logprobs)
    assert llm.generate([1, 2], max_tokens=5).logprobs == ()


def test_wrong_options_are_refused_by_name(llm: LLM) -> None:
    with pytest.raises(UsageError, match=r"no option 'temprature'.*temperature"):
        llm.generate("x", temprature=1)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="temperature is -1"):
        llm.generate("x", temperature=-1)
    with pytest.raises(UsageError, match="stop string is empty"):
        llm.generate("x", stop="")
    with pytest.raises(ContextOverflow):
        llm.generate("x", max_tokens=5000)


def test_aborting_keeps_what_came(llm: LLM) -> None:
    stream = llm.generate([3], stream=True, ignore_eos=True)
    came = list(itertools.islice(stream, 3))
    stream.abort()
    rest = list(stream)
    assert stream.completion is not None
    assert stream.completion.finish_reason is FinishReason.ABORT
    assert stream.completion.text == "".join(came + rest)


def test_an_executors_error_reaches_the_caller(tokenizer: Tokenizer) -> None:
    def fail(number: int, batch: Batch) -> Exception:
        return NumericError("the weights are damaged")

    with make(tokenizer, FakeExecutor(LIMITS, fail=fail)) as llm:
        with pytest.raises(NumericError, match="damaged"):
            llm.generate("x")
        with pytest.raises(NumericError, match="damaged"):
            llm.score("x y z")


# Chat ----------------------------------------------------------------------------------------------------------------
class Spoken:
    """A chat format of a few lines: the tools' names, then each message after <|im_start|>."""

    name = "spoken"
    stop_ids = frozenset({0})

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.parsed: list[object] = []

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        **options: object,
    ) -> Prompt:
        segments: list[Control | Text] = [Text(tool.name) for tool in tools or ()]
        for message in messages:
            segments += [Control(1, "<|im_start|>"), Text(f"{message.role} {message.text}")]
        return Prompt((*segments, Control(1, "<|im_start|>")) if add_generation_prompt else tuple(segments))

    def parse(self, answer: Sequence[int] | str, *, tools: Iterable[str] | None = None) -> Message:
        self.parsed.append((answer, list(tools or ())))
        return Message("assistant", answer if isinstance(answer, str) else self.tokenizer.decode(answer))


@pytest.fixture
def talker(tokenizer: Tokenizer) -> Iterator[LLM]:
    with make(tokenizer, chat_format=Spoken(tokenizer), chat_sampling=Sampling(temperature=1.0, seed=5)) as llm:
        yield llm


def rendered(tokenizer: Tokenizer, *texts: str) -> list[int]:
    return [*(token for text in texts for token in [1, *tokenizer.encode(text)]), 1]


def test_a_chat_renders_samples_and_parses(talker: LLM, tokenizer: Tokenizer) -> None:
    answer = talker.chat("hello", max_tokens=30, ignore_eos=True)
    prompt = rendered(tokenizer, "user hello")
    assert list(answer.tokens) == reference(FakeModel(VOCAB), prompt, 30, Sampling(temperature=1.0), 5)
    assert answer.message == Message("assistant", answer.text)
    assert isinstance(talker.chat_format, Spoken)
    assert talker.chat_format.parsed == [(answer.tokens, [])]
    messages = [{"role": "system", "content": "be"}, Message("user", "hello")]
    again = talker.chat(messages, temperature=0, max_tokens=30, ignore_eos=True)
    assert list(again.tokens) == reference(
        FakeModel(VOCAB), rendered(tokenizer, "system be", "user hello"), 30, Sampling(), 0
    )


def test_tools_are_rendered_and_their_names_allowed(talker: LLM, tokenizer: Tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "milk"}}]
    answer = talker.chat("hello", tools=tools, max_tokens=3, ignore_eos=True)
    assert answer.usage.prompt_tokens == len(tokenizer.encode("milk") + rendered(tokenizer, "user hello"))
    assert isinstance(talker.chat_format, Spoken)
    assert talker.chat_format.parsed == [(answer.tokens, ["milk"])]
    with pytest.raises(UsageError, match="tools"):
        talker.chat("hello", tools=[{"name": "milk"}])


def test_after_a_stop_string_the_text_is_parsed(talker: LLM, tokenizer: Tokenizer) -> None:
    prompt = rendered(tokenizer, "user hello")
    stop, _ = first_piece(talker, tokenizer, prompt)
    answer = talker.chat("hello", temperature=0, stop=[stop], ignore_eos=True)
    assert answer.stop == stop and answer.message == Message("assistant", answer.text)
    assert isinstance(talker.chat_format, Spoken)
    assert talker.chat_format.parsed == [(answer.text, [])]


def test_chats_stream_and_await(talker: LLM) -> None:
    whole = talker.chat("hello", max_tokens=30)
    assert "".join(talker.chat("hello", max_tokens=30, stream=True)) == whole.text

    async def main() -> None:
        assert (await talker.achat("hello", max_tokens=30)).text == whole.text
        stream = await talker.achat("hello", max_tokens=30, stream=True)
        assert "".join([piece async for piece in stream]) == whole.text
        assert stream.completion is not None and stream.completion.message == whole.message

    asyncio.run(main())


def test_the_formats_own_ends_count(talker: LLM) -> None:
    assert talker.stop_ids == {0, EOS}


def test_without_a_chat_format_a_chat_is_refused(llm: LLM) -> None:
    with pytest.raises(UnsupportedModel, match="Tiny has no chat format: use generate"):
        llm.chat("hello")


# Evaluation ----------------------------------------------------------------------------------------------------------
def states(tokens: list[int]) -> Iterator[int]:
    from zlib import crc32

    entries = b""
    for token in tokens:
        entries += FakeModel(VOCAB).entry(crc32(entries), token, generated=False)
        yield crc32(entries)


def test_scores_of_text_and_tokens(llm: LLM, tokenizer: Tokenizer) -> None:
    text = "the herd is on the move and it is a long way to the river " * 3
    tokens = tokenizer.encode(text, bos=True)
    scores = llm.score(text)
    assert [score.token for score in scores] == tokens[1:]
    model = FakeModel(VOCAB)
    expected = [model.logprobs(state)[token] for state, token in zip(states(tokens), tokens[1:], strict=False)]
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-6)
    assert llm.score(tokens) == scores
    with pytest.raises(UsageError, match="at least 2"):
        llm.score([1])


def test_logits_of_every_token(llm: LLM) -> None:
    tokens = [(7 * i) % VOCAB for i in range(150)]
    logits = llm.logits(tokens)
    assert logits.shape == (150, VOCAB) and logits.dtype == np.float32
    model = FakeModel(VOCAB)
    expected = np.array([model.logits(state) for state in states(tokens)], np.float32)
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_array_equal(llm.logits(tokens), expected)  # the pages are cached now; the results are not
    scores = llm.score(tokens)
    shifted = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    assert [s.logprob for s in scores] == pytest.approx([shifted[i, t] for i, t in enumerate(tokens[1:])], abs=1e-6)


def test_embeddings_are_means_of_unit_length(llm: LLM, tokenizer: Tokenizer) -> None:
    texts = ["the river", "a long way " * 40]
    rows = llm.embed(texts)
    assert rows.shape == (2, CONFIG.dim) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(llm.embed(texts[1]), rows[1])
    model = FakeModel(VOCAB, CONFIG.dim)
    hidden = np.array([array("f", model.hidden(s)) for s in states(tokenizer.encode(texts[1], bos=True))])
    mean = hidden.mean(0)
    np.testing.assert_allclose(llm.embed(texts, normalize=False)[1], mean, atol=1e-6)
    np.testing.assert_allclose(rows[1], mean / np.linalg.norm(mean), atol=1e-6)
    assert llm.embed([]).shape == (0, CONFIG.dim)


# The package ---------------------------------------------------------------------------------------------------------
def test_importing_herder_imports_nothing_of_it() -> None:
    code = "import sys, herder; print(*(name for name in sys.modules if name.startswith('herder')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["herder"]


def test_public_names_are_there() -> None:
    import herder

    assert herder.LLM is LLM and herder.Sampling is Sampling
    for name in herder.__all__:
        assert getattr(herder, name) is not None
    assert set(herder.__all__) < set(dir(herder))
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        herder.loda  # noqa: B018
