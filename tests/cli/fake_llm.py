"""A model that answers at once and remembers what it was asked: as much of herder.LLM as the command line uses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from herder.completion import Completion
from herder.core.config import ModelConfig
from herder.core.errors import ContextOverflow, UnsupportedModel
from herder.core.request import FinishReason, Sampling, Timings, TokenLogprob, Usage
from herder.weights.catalogue import published


class FakeTokenizer:
    """A token is a character."""

    add_bos = False
    bos_id = 1

    def encode(self, text: str, *, bos: bool = False, special: bool = False) -> list[int]:
        return [self.bos_id] * bos + [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(token) for token in ids)


class FakeStream:
    """Pieces of text, and a Completion at the end. interrupt_after: as if Ctrl-C was pressed after so many pieces."""

    def __init__(self, pieces: list[str], finish: Callable[[str, FinishReason], Completion]) -> None:
        self.pieces, self.finish = pieces, finish
        self.reason = FinishReason.STOP
        self.said: list[str] = []
        self.completion: Completion | None = None
        self.interrupt_after: int | None = None

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces:
            if self.reason is FinishReason.ABORT:
                return
            if self.interrupt_after is not None and len(self.said) >= self.interrupt_after:
                self.interrupt_after = None
                raise KeyboardInterrupt
            self.said.append(piece)
            yield piece

    def abort(self) -> None:
        if self.completion is None:
            self.reason = FinishReason.ABORT

    def result(self) -> Completion:
        if self.completion is None:
            if not self.said and self.reason is not FinishReason.ABORT:
                self.said = list(self.pieces)
            self.completion = self.finish("".join(self.said), self.reason)
        return self.completion

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


class FakeLLM:
    """answer: what a prompt (the last user message, or the raw prompt) is answered with."""

    def __init__(self, name: str = "fake", answer: Callable[[str], str] = "You said: {}".format) -> None:
        self.name = name
        self.answer = answer
        self.tokenizer = FakeTokenizer()
        self.config: ModelConfig = published("smollm2-135m").config
        self.context = 200
        self.chat_format: object = "fake"
        self.sees = True
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.interrupt_after: int | None = None
        self.closed = False

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def infill(self, prefix: str, suffix: str, **options: Any) -> FakeStream:
        return self._start([{"content": prefix}, {"content": suffix}], f"{prefix}...{suffix}", options)

    def chat(self, messages: list[dict[str, Any]], *, stream: bool, **options: Any) -> FakeStream:
        assert stream
        if self.chat_format is None:
            raise UnsupportedModel("no chat format")
        return self._start(messages, _text(messages[-1]["content"]), options)

    def generate(self, prompt: str, *, stream: bool, **options: Any) -> FakeStream:
        assert stream
        return self._start(prompt, prompt, options)

    def score(self, tokens: Sequence[int]) -> list[TokenLogprob]:
        """Every token is as likely as not."""
        return [TokenLogprob(token, math.log(0.5)) for token in tokens[1:]]

    def _start(self, prompt: Any, text: str, options: dict[str, Any]) -> FakeStream:
        self.asked.append(([dict(one) for one in prompt] if isinstance(prompt, list) else prompt, options))
        length = sum(len(_text(one["content"])) for one in prompt) if isinstance(prompt, list) else len(prompt)
        if length > self.context:
            raise ContextOverflow(f"the prompt has {length} tokens", prompt_tokens=length, limit=self.context)
        limit = options.pop("max_tokens", None)
        for name in ("stop", "schema", "regex", "choice", "grammar"):
            options.pop(name, None)
        sampling = Sampling(**options)
        pieces = re.findall(r"\S+\s*|\s+", self.answer(text))

        def finish(said: str, reason: FinishReason) -> Completion:
            tokens = tuple(self.tokenizer.encode(said))
            top = ((tokens[0], -0.5), (65, -1.5))[: sampling.logprobs] if tokens and sampling.logprobs else ()
            return Completion(
                text=said,
                tokens=tokens,
                logprobs=tuple(TokenLogprob(t, -0.5, top) for t in tokens) if sampling.logprobs is not None else (),
                usage=Usage(length, len(tokens)),
                timings=Timings(0.001, 0.01, 0.1),
                finish_reason=FinishReason.LENGTH if limit is not None and reason is FinishReason.STOP else reason,
                seed=7 if sampling.seed is None else sampling.seed,
            )

        stream = FakeStream(pieces[:limit], finish)
        stream.interrupt_after, self.interrupt_after = self.interrupt_after, None
        return stream


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
