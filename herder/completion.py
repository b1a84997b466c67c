"""What a generation gives: text as it comes, and everything about it at the end.

Tokens become text in one place, Assembly, which the two streams (for threads, for asyncio) feed with events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from herder.core.request import Event, Finished, FinishReason, NewToken, Timings, TokenLogprob, Usage

if TYPE_CHECKING:
    from herder.chat.message import Message
    from herder.engine.stream import AsyncStream, Stream
    from herder.text.stream import TextStream


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    text: without control tokens, and without the stop string that ended it. tokens: every generated token but the stop
    token; decoding them gives `text` and, after a stop string, that string too. logprobs: one per token when asked for.
    stop: the stop string, or the spelling of the stop token, that ended it. message: of a chat, the answer as parsed by
    the model's format (tool calls included). seed: the same request with it gives the same tokens.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    usage: Usage
    timings: Timings
    finish_reason: FinishReason
    seed: int
    stop: str | None = None
    message: Message | None = None


class Assembly:
    """Events in, text out. `stopped` says that a stop string was met and that the request should be aborted."""

    def __init__(
        self,
        text: TextStream,
        spelling: Callable[[int], str],
        parse: Callable[[Sequence[int] | str], Message] | None = None,
    ) -> None:
        self.completion: Completion | None = None
        self.stopped = False
        self._text = text
        self._spelling = spelling
        self._parse = parse
        self._pieces: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def feed(self, event: Event) -> str:
        """The text that this event completes, possibly none. Raises what ended the request, if an error did."""
        if isinstance(event, NewToken):
            if self.stopped:  # generated before the abort arrived
                return ""
            self._tokens.append(event.token)
            if event.logprob is not None:
                self._logprobs.append(event.logprob)
            piece = self._text.push(event.token)
            self.stopped = self._text.stopped is not None
        elif isinstance(event, Finished):
            if event.error is not None:
                raise event.error
            piece = "" if self.stopped else self._text.finish()
            self._pieces.append(piece)
            self._finish(event)
            return piece
        else:
            raise AssertionError("an evaluation has no text")
        self._pieces.append(piece)
        return piece

    def _finish(self, event: Finished) -> None:
        text, tokens = "".join(self._pieces), tuple(self._tokens)
        stop = self._text.stopped
        reason = event.reason
        if stop is not None:
            reason = FinishReason.STOP
        elif event.stop_token is not None:
            stop = self._spelling(event.stop_token)
        self.completion = Completion(
            text=text,
            tokens=tokens,
            logprobs=tuple(self._logprobs),
            usage=replace(event.usage, completion_tokens=len(tokens)),
            timings=event.timings,
            finish_reason=reason,
            seed=event.seed,
            stop=stop,
            # Tokens say more than text (a control token announces a tool call), but know nothing of stop strings.
            message=None if self._parse is None else self._parse(tokens if self._text.stopped is None else text),
        )


class CompletionStream:
    """Iterates over the pieces of text as they come; `completion` holds the whole once it has ended.

    Leaving early (abort(), the end of a `with` block, dropping it) stops the generation.
    """

    def __init__(self, events: Stream, assembly: Assembly) -> None:
        self._events = events
        self._assembly = assembly

    @property
    def completion(self) -> Completion | None:
        return self._assembly.completion

    def __iter__(self) -> CompletionStream:
        return self

    def __next__(self) -> str:
        for event in self._events:
            piece = self._assembly.feed(event)
            if self._assembly.stopped:
                self._events.abort()
            if piece:
                return piece
        raise StopIteration

    def result(self) -> Completion:
        """Waits for the end."""
        for _ in self:
            pass
        assert self._assembly.completion is not None
        return self._assembly.completion

    def abort(self) -> None:
        """Stops the generation; what came so far is in `completion` when the iteration has ended."""
        self._events.abort()

    def __enter__(self) -> CompletionStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.abort()


class AsyncCompletionStream:
    """CompletionStream for `async for`."""

    def __init__(self, events: AsyncStream, assembly: Assembly) -> None:
        self._events = events
        self._assembly = assembly

    @property
    def completion(self) -> Completion | None:
        return self._assembly.completion

    def __aiter__(self) -> AsyncCompletionStream:
        return self

    async def __anext__(self) -> str:
        async for event in self._events:
            piece = self._assembly.feed(event)
            if self._assembly.stopped:
                self._events.abort()
            if piece:
                return piece
        raise StopAsyncIteration

    async def result(self) -> Completion:
        """Waits for the end."""
        async for _ in self:
            pass
        assert self._assembly.completion is not None
        return self._assembly.completion

    def abort(self) -> None:
        """Stops the generation; what came so far is in `completion` when the iteration has ended."""
        self._events.abort()

    async def __aenter__(self) -> AsyncCompletionStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.abort()
