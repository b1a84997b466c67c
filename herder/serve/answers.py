"""Runs a request on a model: engine requests in, the events of wire.py out, as they come.

The choices of one request run as engine requests of their own. They share the pages of their prompt: the first one is
alone until its first token, and then the prompt is in the prefix cache for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from herder.chat.streaming import AnswerPiece, AnswerStream, ArgumentsPiece, CallBegan, ReasoningPiece, TextPiece
from herder.core.batch import PAGE_TOKENS
from herder.core.request import Finished, FinishReason, NewToken, Request, Timings, TokenLogprob
from herder.engine.stream import AsyncStream, ready
from herder.serve.dialect import Problem
from herder.serve.evaluations import prompt_logprobs
from herder.serve.fields import FieldError
from herder.serve.problems import Refusal
from herder.serve.prompts import Prepared, choices, prepare
from herder.serve.wire import (
    AnswerEvent,
    CallArguments,
    CallStarted,
    ChatRequest,
    Done,
    Ended,
    Reason,
    ReasoningDelta,
    Started,
    TextDelta,
    TextRequest,
)
from herder.text.stream import TextStream

if TYPE_CHECKING:
    from herder.llm import LLM

MAX_CHOICES = 128


async def answer(
    llm: LLM, request: ChatRequest | TextRequest, *, max_choices: int = MAX_CHOICES
) -> AsyncGenerator[AnswerEvent]:
    """The events of an answer: Started, deltas of all choices as they come, an Ended for each, Done.

    Closing the iterator (or cancelling its task) aborts what runs. Raises HerderError for a request that cannot run,
    Refusal (timeout) when its deadline passes before the first token, and what the engine failed with.
    """
    async with contextlib.aclosing(batches(llm, request, max_choices=max_choices)) as lists:
        async for events in lists:
            for event in events:
                yield event


async def batches(
    llm: LLM, request: ChatRequest | TextRequest, *, max_choices: int = MAX_CHOICES
) -> AsyncGenerator[list[AnswerEvent]]:
    """answer() in lists, never empty: what came at one wake-up of the event loop, to be written at once. The first
    list comes with the first token, so that whatever goes wrong before it can still be an HTTP status."""
    run = Run(llm, request, max_choices=max_choices)
    async with contextlib.aclosing(run.batches()) as lists:
        async for events in lists:
            yield events


class _Reader(Protocol):
    """AnswerStream, or the same for plain text."""

    @property
    def stopped(self) -> str | None: ...
    def push(self, token: int) -> list[AnswerPiece]: ...
    def finish(self) -> list[AnswerPiece]: ...


class _Continuation:
    """Reads plain text."""

    def __init__(self, text: TextStream) -> None:
        self._text = text

    @property
    def stopped(self) -> str | None:
        return self._text.stopped

    def push(self, token: int) -> list[AnswerPiece]:
        text = self._text.push(token)
        return [TextPiece(text)] if text else []

    def finish(self) -> list[AnswerPiece]:
        text = self._text.finish()
        return [TextPiece(text)] if text else []


class _Choice:
    """One answer: the events of its engine request become its events here."""

    def __init__(self, index: int, reader: _Reader, *, reasoning: bool, parallel: bool) -> None:
        self.index = index
        self.reader = reader
        self.stream: AsyncStream | None = None
        self.tokens = 0
        self.finished: Finished | None = None
        self._reasoning = reasoning  # whether it is shown
        self._parallel = parallel
        self._calls = 0
        self._whole = False  # nothing more is wanted: a stop string, or the one call that was allowed
        self._logprobs: list[TokenLogprob] = []

    @property
    def reasoning_tokens(self) -> int:
        return self.reader.reasoning_tokens if isinstance(self.reader, AnswerStream) else 0

    def token(self, event: NewToken, out: list[AnswerEvent]) -> None:
        if self._whole:  # generated before the abort arrived
            return
        self.tokens += 1
        if event.logprob is not None:
            self._logprobs.append(event.logprob)
        pieces = self.reader.push(event.token)
        if pieces:
            self._add(pieces, out)
        if self.reader.stopped is not None:
            self._end()

    def end(self, event: Finished, expired: bool, spelling: Callable[[int], str], out: list[AnswerEvent]) -> None:
        self.finished = event
        if not self._whole or self.reader.stopped is not None:
            self._add(self.reader.finish(), out)
        stop = self.reader.stopped
        if self._logprobs and stop is None:
            out.append(TextDelta(self.index, "", tuple(self._logprobs)))
        reason: Reason = "length"
        if self._whole or event.reason is FinishReason.STOP:
            reason = "tool_calls" if self._calls else "stop"
        elif event.reason is FinishReason.ABORT and not expired:
            raise Refusal(Problem("unavailable", "the model was unloaded while it answered", retry_after=1.0))
        if stop is None and not self._whole and event.stop_token is not None:
            stop = spelling(event.stop_token)
        out.append(Ended(self.index, reason, stop, self.tokens, event.seed))

    def _add(self, pieces: list[AnswerPiece], out: list[AnswerEvent]) -> None:
        index = self.index
        for piece in pieces:
            if isinstance(piece, TextPiece):
                logprobs = ()
                if self._logprobs:
                    logprobs, self._logprobs = tuple(self._logprobs), []  # type: ignore[assignment]
                out.append(TextDelta(index, piece.text, logprobs))
            elif isinstance(piece, ReasoningPiece):
                if self._reasoning:
                    out.append(ReasoningDelta(index, piece.text))
            elif isinstance(piece, CallBegan):
                if self._calls and not self._parallel:
                    self._end()
                    return
                self._calls += 1
                out.append(CallStarted(index, piece.call, f"call_{os.urandom(12).hex()}", piece.name))
            elif isinstance(piece, ArgumentsPiece):
                out.append(CallArguments(index, piece.call, piece.json))

    def _end(self) -> None:
        self._whole = True
        if self.stream is not None:
            self.stream.abort()


class Run:
    """A request under way: batches() once. group: whose it is (see core.request.Request).

    Raises FieldError for more answers than max_choices."""

    def __init__(
        self, llm: LLM, request: ChatRequest | TextRequest, *, max_choices: int = MAX_CHOICES, group: str = ""
    ) -> None:
        asked = request.n * (len(request.prompts) if isinstance(request, TextRequest) else 1)
        if not 1 <= asked <= max_choices:
            raise FieldError(f"n asks for {asked} answers in all: must be between 1 and {max_choices}", "n")
        self._llm = llm
        self._request = request
        self._group = group
        self._running: list[_Choice] = []
        self._waiting: dict[int, list[tuple[_Choice, Request]]] = {}  # by the index of the choice that they follow
        self._choices: list[_Choice] = []
        self._expired = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def tokens(self) -> int:
        """Generated so far, by all choices."""
        return sum(choice.tokens for choice in self._choices)

    def abort(self) -> None:
        """Gives everything back at once; nothing more is read."""
        if self._timer is not None:
            self._timer.cancel()
        for choice in self._running:
            assert choice.stream is not None
            choice.stream.abort()

    async def batches(self) -> AsyncGenerator[list[AnswerEvent]]:
        """As the function of this name. Leaving early aborts."""
        try:
            async with contextlib.aclosing(self._events()) as lists:
                async for events in lists:
                    yield events
        finally:
            self.abort()

    async def _events(self) -> AsyncGenerator[list[AnswerEvent]]:
        request, llm = self._request, self._llm
        if request.deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(request.deadline, self._expire)
        prompts = await prepare(llm, request)
        out: list[AnswerEvent] = []
        for number, prepared in enumerate(prompts):
            await self._start(number, prepared, out)
        firsts = [self._choices[i * request.n] for i in range(len(prompts))]
        begun = False
        while self._running:
            await ready([choice.stream for choice in self._running if choice.stream is not None])
            for choice in list(self._running):
                self._read(choice, out)
            if self._expired and not any(choice.tokens for choice in self._choices):
                message = f"the deadline of {request.deadline:g} s passed before the first token"
                raise Refusal(Problem("timeout", message))
            if not begun:
                begun = True
                out.insert(0, self._started(prompts, firsts))
            if out:
                yield out
                out = []
        if not begun:  # nothing was to be generated
            out.insert(0, self._started(prompts, firsts))
        for rest in self._waiting.values():  # the deadline came before they could begin
            out += [Ended(choice.index, "length", None, 0, one.sampling.seed or 0) for choice, one in rest]
        out.append(self._done(prompts, firsts))
        yield out

    async def _start(self, number: int, prepared: Prepared, out: list[AnswerEvent]) -> None:
        """Submits a prompt's first choice and keeps the others back until it has been computed."""
        n, base = self._request.n, number * self._request.n
        made = [self._choice(base + i, prepared) for i in range(n)]
        self._choices += made
        if prepared.echo is not None:
            logprobs: tuple[TokenLogprob, ...] = ()
            if prepared.score is not None:
                logprobs = await prompt_logprobs(self._llm, prepared.request.prompt, prepared.score, self._group)
            out += [TextDelta(choice.index, prepared.echo, logprobs) for choice in made]
        if not prepared.generate:
            seed = prepared.request.sampling.seed or 0
            out += [Ended(choice.index, "length", None, 0, seed) for choice in made]
            return
        requests = choices(prepared, n)
        self._submit(made[0], requests[0])
        rest = list(zip(made[1:], requests[1:], strict=True))
        if len(prepared.request.prompt) > PAGE_TOKENS:
            self._waiting[base] = rest
        else:
            for choice, request in rest:
                self._submit(choice, request)

    def _choice(self, index: int, prepared: Prepared) -> _Choice:
        llm, request = self._llm, self._request
        if isinstance(request, TextRequest):
            text = TextStream(llm.tokenizer, stop=prepared.stops, start=False)
            return _Choice(index, _Continuation(text), reasoning=False, parallel=True)
        assert llm.chat_format is not None  # prepare() would have refused
        reader = AnswerStream(
            llm.chat_format,
            llm.tokenizer,
            tools=[tool.name for tool in request.tools],
            stop=prepared.stops,
            calls=bool(request.tools) and request.tool_choice != "none",
            enforced=prepared.enforced,
            options=request.format_options,
        )
        return _Choice(index, reader, reasoning=request.reasoning, parallel=request.parallel_tool_calls)

    def _submit(self, choice: _Choice, request: Request) -> None:
        choice.stream = self._llm.engine.submit_async(replace(request, group=self._group))
        self._running.append(choice)

    def _read(self, choice: _Choice, out: list[AnswerEvent]) -> None:
        assert choice.stream is not None
        events = choice.stream.take()
        for event in events:
            if isinstance(event, NewToken):
                choice.token(event, out)
            elif isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                choice.end(event, self._expired, self._llm.tokenizer.token, out)
                self._running.remove(choice)
        if events and (rest := self._waiting.pop(choice.index, None)) and not self._expired:
            for other, request in rest:
                self._submit(other, request)

    def _expire(self) -> None:
        self._expired = True
        for choice in self._running:
            assert choice.stream is not None
            choice.stream.abort()
            choice.stream.wake()  # without a token nobody waits for the end of the engine's step

    def _started(self, prompts: Collection[Prepared], firsts: list[_Choice]) -> Started:
        return Started(
            sum(len(prepared.request.prompt) for prepared in prompts),
            sum(choice.stream.cached_tokens for choice in firsts if choice.stream is not None),
            sum(prepared.truncated for prepared in prompts),
            tuple(name for prepared in prompts for name in prepared.unenforced),
        )

    def _done(self, prompts: Collection[Prepared], firsts: list[_Choice]) -> Done:
        ended = [choice.finished for choice in self._choices if choice.finished is not None]
        slowest = max((one.timings for one in ended), key=_seconds, default=Timings(0.0, 0.0, 0.0))
        return Done(
            prompt_tokens=sum(len(prepared.request.prompt) for prepared in prompts),
            completion_tokens=sum(choice.tokens for choice in self._choices),
            cached_tokens=sum(c.finished.usage.cached_tokens for c in firsts if c.finished is not None),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self._choices),
            queue=slowest.queue,
            prefill=slowest.prefill,
            decode=slowest.decode,
        )


def _seconds(timings: Timings) -> float:
    return timings.queue + timings.prefill + timings.decode
