"""What a model says of given texts: embeddings, and the log-probabilities of their tokens."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from herder.core.errors import ContextOverflow
from herder.core.request import Evaluated, Evaluation, Finished, TokenLogprob
from herder.serve.fields import FieldError
from herder.serve.wire import EmbedRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from herder.llm import LLM


async def embed(llm: LLM, request: EmbedRequest, group: str = "") -> tuple[list[list[float]], int]:
    """A vector for each input, in their order, and the prompt tokens in all. As LLM.embed: the mean over the tokens of
    the final norm's output. group: whose it is (see core.request.Request). Raises HerderError; leaving early aborts
    what runs."""
    import numpy as np

    dim = llm.config.dim
    if request.dimensions is not None and not 1 <= request.dimensions <= dim:
        raise FieldError(f"dimensions is {request.dimensions}: this model has {dim}", "dimensions")
    texts = await asyncio.to_thread(_tokens, llm, request)
    streams = [llm.engine.submit_async(Evaluation(tokens, "hidden", group=group)) for tokens in texts]
    vectors = []
    try:
        for tokens, stream in zip(texts, streams, strict=True):
            total = np.zeros(dim, np.float64)
            async for event in stream:
                if isinstance(event, Evaluated):
                    hidden = np.frombuffer(event.hidden, np.float32).reshape(-1, dim)
                    total += hidden.sum(0, dtype=np.float64)
                elif isinstance(event, Finished) and event.error is not None:
                    raise event.error
            total /= len(tokens)
            total = total[: request.dimensions]
            norm = math.sqrt(float(total @ total)) if request.normalize else 1.0
            vectors.append((total / (norm or 1.0)).astype(np.float32).tolist())
    finally:
        for stream in streams:
            stream.abort()
    return vectors, sum(map(len, texts))


async def score(llm: LLM, tokens: tuple[int, ...], group: str = "") -> list[TokenLogprob]:
    """The log-probability of each token after those before it; as LLM.score, the list begins with the second token."""
    _fits(llm, tokens)
    scores: list[float] = []
    async for event in _evaluated(llm, Evaluation(tokens, "scores", group=group)):
        scores += event.scores
    return [TokenLogprob(token, value) for token, value in zip(tokens[1:], scores, strict=True)]


async def prompt_logprobs(llm: LLM, tokens: tuple[int, ...], top: int, group: str = "") -> tuple[TokenLogprob, ...]:
    """Of every token of a prompt, with `top` alternatives. The first one has none: its logprob is nan."""
    first = TokenLogprob(tokens[0], math.nan)
    if len(tokens) == 1:
        return (first,)
    if not top:
        return (first, *await score(llm, tokens, group))
    import numpy as np

    vocab = llm.config.vocab
    found = [first]
    async for event in _evaluated(llm, Evaluation(tokens[:-1], "logits", group=group)):
        rows = np.frombuffer(event.logits, np.float32).reshape(-1, vocab).astype(np.float64)
        rows -= rows.max(1, keepdims=True)
        rows -= np.log(np.exp(rows).sum(1, keepdims=True))
        for row, token in zip(rows, tokens[event.first + 1 :], strict=False):
            best = np.lexsort((np.arange(vocab), -row))[:top]
            alternatives = tuple((int(i), float(row[i])) for i in best)
            found.append(TokenLogprob(token, float(row[token]), alternatives))
    return tuple(found)


async def _evaluated(llm: LLM, request: Evaluation) -> AsyncIterator[Evaluated]:
    async with llm.engine.submit_async(request) as stream:
        async for event in stream:
            if isinstance(event, Evaluated):
                yield event
            elif isinstance(event, Finished) and event.error is not None:
                raise event.error


def _tokens(llm: LLM, request: EmbedRequest) -> list[tuple[int, ...]]:
    texts = [input_tokens(llm, i, text, request.truncate) for i, text in enumerate(request.inputs)]
    if request.truncate:
        return [tokens[: llm.context] for tokens in texts]
    for tokens in texts:
        _fits(llm, tokens)
    return texts


def input_tokens(llm: LLM, index: int, text: str | tuple[int, ...], truncate: bool) -> tuple[int, ...]:
    """The tokens of one input of several. Raises ContextOverflow, naming it, where they cannot fit and must."""
    try:
        return llm.tokens(text, fitting=not truncate)
    except ContextOverflow as error:
        said = f"input[{index}]: {error}"
        raise ContextOverflow(said, prompt_tokens=error.prompt_tokens, limit=error.limit) from None


def _fits(llm: LLM, tokens: tuple[int, ...]) -> None:
    if len(tokens) > llm.context:
        raise ContextOverflow(
            f"the input has {len(tokens)} tokens and the context holds {llm.context}: shorten it, or let it be cut",
            prompt_tokens=len(tokens),
            limit=llm.context,
        )
