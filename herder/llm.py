"""The Python API: a loaded model that generates, chats, embeds and scores.

Threads may share an LLM: requests made at the same time run in one batch. Every method that generates has an async twin
with the same arguments (agenerate, achat).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack, overload

from herder.completion import Assembly, AsyncCompletionStream, Completion, CompletionStream
from herder.core.errors import ContextOverflow, HerderError, UnsupportedModel, UsageError
from herder.core.request import Constraint, Evaluated, Evaluation, Finished, Image, Request, Sampling, TokenLogprob
from herder.options import Options as Options
from herder.options import check_names, constraint, refuse_chat_options, sampling, stop_strings
from herder.text.stream import TextStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from herder.chat.format import ChatFormat
    from herder.chat.message import Message, Tool
    from herder.core.config import ModelConfig
    from herder.engine.engine import Engine
    from herder.engine.stream import Stream
    from herder.images.prepare import Preparer
    from herder.text.grammar import Composite, Grammars
    from herder.text.tokenizer import Tokenizer

    Messages: TypeAlias = str | Sequence[Message | Mapping[str, Any]]
    Tools: TypeAlias = Sequence[Tool | Mapping[str, Any]]

Prompt: TypeAlias = str | Sequence[int]


class LLM:
    """A model, ready to run; herder.load() makes one. Use it as a context manager, or close() it.

    engine, tokenizer, chat_format, config: the parts, for those who want them; chat_format is None for a model without
    one. stop_ids: the tokens that end an answer.
    chat_sampling: what chat() samples with where a call does not say otherwise (see assemble.recommended_sampling).
    """

    def __init__(
        self,
        *,
        engine: Engine,
        tokenizer: Tokenizer,
        config: ModelConfig,
        chat_format: ChatFormat | None,
        chat_sampling: Sampling,
        chat_refusal: HerderError | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = config
        self.chat_format = chat_format
        self.chat_sampling = chat_sampling
        self._preparer: Preparer | None = None
        if config.vision is not None:
            from herder.images.prepare import Preparer

            self._preparer = Preparer(config.vision)
        self._chat_refusal = chat_refusal  # why there is no chat format, if the files have one that cannot be used
        self.stop_ids = tokenizer.stop_ids | stop_ids
        if chat_format is not None:
            self.stop_ids |= chat_format.stop_ids
        self._grammars: Grammars | None = None

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def context(self) -> int:
        """The longest prompt plus answer, in tokens."""
        return self.engine.limits.context

    @property
    def sees(self) -> bool:
        """Whether chat() takes images: a vision model, on a runtime that runs its encoder."""
        return self.config.vision is not None and self.engine.limits.images

    def close(self) -> None:
        """Stops what runs and frees the memory."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # Generation ----------------------------------------------------------------------------------------------------
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[Options]) -> CompletionStream: ...
    def generate(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[Options]
    ) -> Completion | CompletionStream:
        """Continues a prompt: text (no chat format; BOS first where the model wants it; the spelling of a control token
        is plain text) or token ids, taken as they are. Greedy unless the options say otherwise.

        stream: an iterator over the pieces of text instead of the whole. Raises UsageError for an option it does not
        know, ContextOverflow when the prompt and max_tokens do not fit.
        """
        request, assembly = self._generation(prompt, options)
        answer = CompletionStream(self.engine.submit(request), assembly)
        return answer if stream else answer.result()

    @overload
    async def agenerate(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> Completion: ...
    @overload
    async def agenerate(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[Options]
    ) -> AsyncCompletionStream: ...
    async def agenerate(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[Options]
    ) -> Completion | AsyncCompletionStream:
        """generate() for asyncio: `await` it, then, with stream=True, `async for` over what it gave."""
        request, assembly = self._generation(prompt, options)
        answer = AsyncCompletionStream(self.engine.submit_async(request), assembly)
        return answer if stream else await answer.result()

    def infill(
        self, prefix: str, suffix: str, *, suffix_first: bool = False, **options: Unpack[Options]
    ) -> CompletionStream:
        """What belongs between two pieces of code, as Code Llama fills it in: a stream, whose result() waits for the
        whole. suffix_first: the suffix stands first in the prompt (SPM), and not the prefix (PSM). Greedy unless the
        options say otherwise. Raises UnsupportedModel when the model's vocabulary has no tokens for it.
        """
        request, assembly = self._generation(self.infill_tokens(prefix, suffix, suffix_first), options)
        return CompletionStream(self.engine.submit(request), assembly)

    async def ainfill(
        self, prefix: str, suffix: str, *, suffix_first: bool = False, **options: Unpack[Options]
    ) -> AsyncCompletionStream:
        """infill() for asyncio: `await` it, then `async for` over what it gave, or `await` its result()."""
        request, assembly = self._generation(self.infill_tokens(prefix, suffix, suffix_first), options)
        return AsyncCompletionStream(self.engine.submit_async(request), assembly)

    @overload
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Completion: ...
    @overload
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> CompletionStream: ...
    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: bool = False,
        **options: Unpack[Options],
    ) -> Completion | CompletionStream:
        """Answers a conversation in the model's own chat format: one user's message as a string, or a list of messages
        ({"role": ..., "content": ...}, as OpenAI's API has them). A vision model also takes images: a list of parts as
        the content, {"type": "text", "text": ...} and {"type": "image", "image": a path, bytes or a Pillow image} or
        {"type": "image_url", "image_url": {"url": "data:..."}}. Samples with chat_sampling unless the options say
        otherwise. tools: functions the model may call; the calls are in the completion's message, while a stream shows
        them as the model spells them.

        Raises UnsupportedModel when the model has no chat format or takes no images, TemplateError when its template is
        broken.
        """
        request, assembly = self._conversation(messages, tools, options)
        answer = CompletionStream(self.engine.submit(request), assembly)
        return answer if stream else answer.result()

    @overload
    async def achat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> Completion: ...
    @overload
    async def achat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> AsyncCompletionStream: ...
    async def achat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        stream: bool = False,
        **options: Unpack[Options],
    ) -> Completion | AsyncCompletionStream:
        """chat() for asyncio: `await` it, then, with stream=True, `async for` over what it gave."""
        import asyncio

        # Off the event loop: decoding an image takes long enough to be noticed.
        request, assembly = await asyncio.to_thread(self._conversation, messages, tools, options)
        answer = AsyncCompletionStream(self.engine.submit_async(request), assembly)
        return answer if stream else await answer.result()

    # Evaluation ----------------------------------------------------------------------------------------------------
    def score(self, text: Prompt) -> list[TokenLogprob]:
        """The natural log-probability of each token of a text (or of given ids) after those before it.

        The first token has none, so the list begins with the second; a text gets BOS first where the model wants it,
        and then each of its own tokens has one.
        """
        tokens = self.tokens(text)
        scores: list[float] = []
        for event in self._evaluate(Evaluation(tokens, "scores")):
            scores.extend(event.scores)
        return [TokenLogprob(token, score) for token, score in zip(tokens[1:], scores, strict=True)]

    def logits(self, tokens: Prompt) -> NDArray[np.float32]:
        """The logits after each token: float32, shape (tokens, vocabulary)."""
        import numpy as np

        ids = self.tokens(tokens)
        rows = np.empty((len(ids), self.config.vocab), np.float32)
        for event in self._evaluate(Evaluation(ids, "logits")):
            piece = np.frombuffer(event.logits, np.float32).reshape(-1, self.config.vocab)
            rows[event.first : event.first + len(piece)] = piece
        return rows

    @overload
    def embed(self, texts: str, *, normalize: bool = True) -> NDArray[np.float32]: ...
    @overload
    def embed(self, texts: Sequence[Prompt], *, normalize: bool = True) -> NDArray[np.float32]: ...
    def embed(self, texts: str | Sequence[Prompt], *, normalize: bool = True) -> NDArray[np.float32]:
        """The mean over a text's tokens of the final norm's output: float32, shape (dim,) for one string, (texts, dim)
        for several. normalize: divide by the L2 norm, so that a dot product is the cosine similarity.

        The tokens are those of score(): BOS counts where the model wants one.
        """
        import numpy as np

        many = [texts] if isinstance(texts, str) else texts
        requests = [Evaluation(self.tokens(text), "hidden") for text in many]
        streams = [self.engine.submit(request) for request in requests]  # all of them, so that they share batches
        rows = np.zeros((len(requests), self.config.dim), np.float32)
        for row, stream, request in zip(rows, streams, requests, strict=True):
            total = np.zeros(self.config.dim, np.float64)
            for event in _results(stream):
                total += np.frombuffer(event.hidden, np.float32).reshape(-1, self.config.dim).sum(0, dtype=np.float64)
            total /= len(request.tokens)
            norm = math.sqrt(float(total @ total)) if normalize else 1.0
            row[:] = total / (norm or 1.0)
        return rows[0] if isinstance(texts, str) else rows

    # -----------------------------------------------------------------------------------------------------------------
    def _evaluate(self, request: Evaluation) -> Iterator[Evaluated]:
        return _results(self.engine.submit(request))

    def tokens(self, text: Prompt, *, fitting: bool = False) -> tuple[int, ...]:
        """Token ids as given, or those of a plain text, BOS first where the model wants it. fitting: raise
        ContextOverflow at once for a text that no tokens make fit, and do not encode megabytes to know by how much."""
        if isinstance(text, str):
            if fitting:
                self._refuse(self.tokenizer.least(text))
            return tuple(self.tokenizer.encode(text, bos=self.tokenizer.add_bos))
        return tuple(int(token) for token in text)

    def _refuse(self, least: int) -> None:
        if least > self.context:
            message = f"the text has at least {least} tokens, and the context holds {self.context}: shorten it"
            raise ContextOverflow(message, prompt_tokens=least, limit=self.context)

    def infill_tokens(self, prefix: str, suffix: str, suffix_first: bool = False, *, fitting: bool = True) -> list[int]:
        """The prompt of infill(); fitting: as for tokens(). Raises UnsupportedModel for a model without its tokens."""
        from herder.chat.codellama import infill_prompt

        prompt = infill_prompt(self.tokenizer, prefix, suffix, suffix_first=suffix_first)
        if fitting:
            self._refuse(prompt.least(self.tokenizer))
        return prompt.encode(self.tokenizer)

    def _generation(self, prompt: Prompt, options: Options) -> tuple[Request, Assembly]:
        refuse_chat_options(options)
        request, stops = self.request(self.tokens(prompt, fitting=True), options, Sampling())
        request = self.constrained(request, constraint(options), start=False)
        text = TextStream(self.tokenizer, stop=stops, start=False)
        return request, Assembly(text, self.tokenizer.token)

    def render(
        self,
        messages: Messages,
        tools: Tools = (),
        format_options: Mapping[str, Any] | None = None,
        *,
        fitting: bool = False,
    ) -> tuple[tuple[int, ...], tuple[Image, ...]]:
        """A conversation's prompt as chat() makes it: the token ids, up to where the assistant begins to speak, and the
        images at their places. fitting: as for tokens(). Raises what chat() raises."""
        chat_format = self.chat_format
        if chat_format is None:
            raise self._chat_refusal or UnsupportedModel(
                f"{self.name or 'this model'} has no chat format: use generate(), or load it with template= or "
                "chat_format="
            )
        from herder.chat.message import read_messages, read_tools
        from herder.prompt_images import PromptImages

        pictures = PromptImages(read_messages(messages), self.config, self.engine.limits.images, self._preparer)
        given = dict(format_options or {})
        if taken := given.keys() & {"messages", "tools", "add_generation_prompt", "learn"}:
            raise UsageError(f"format_options has {min(taken)!r}, which is no option of a chat format")
        prompt = chat_format.render(pictures.messages, tools=read_tools(tools) or None, **given)
        if fitting and not prompt.images:  # with images the engine's own refusal tells what they take
            self._refuse(prompt.least(self.tokenizer))
        tokens = tuple(prompt.encode(self.tokenizer))
        return tokens, pictures.placed(tokens, prompt.images)

    def _conversation(self, messages: Messages, tools: Tools, options: Options) -> tuple[Request, Assembly]:
        from herder.chat.message import read_tools

        functions = read_tools(tools)
        tokens, images = self.render(messages, functions, options.get("format_options"), fitting=True)
        request, stops = self.request(tokens, options, self.chat_sampling, images)
        request = self.constrained(request, self._form(functions, options))
        names = [function.name for function in functions] if options.get("tool_choice") != "none" else []
        text = TextStream(self.tokenizer, stop=stops)
        chat_format = self.chat_format
        assert chat_format is not None  # render() would have refused
        return request, Assembly(text, self.tokenizer.token, lambda answer: chat_format.parse(answer, tools=names))

    def _form(self, tools: Sequence[Tool], options: Options) -> Constraint | Composite | None:
        """What the options of a chat say that its answer must be."""
        from herder.chat.tool_grammar import answer_form, chosen

        callable_, choice = chosen(tools, options.get("tool_choice"))
        return answer_form(
            self.chat_format,
            callable_,
            choice=choice,
            parallel=options.get("parallel_tool_calls", True),
            content=constraint(options),
            options=options.get("format_options"),
        )

    def constrained(self, request: Request, form: Constraint | Composite | None, *, start: bool = True) -> Request:
        """The request, held to `form` (None: to nothing). start: the answer is a text of its own, as in a chat, and
        does not continue one. Raises UsageError, one line, for what cannot be enforced; nothing is left out."""
        if form is None:
            return request
        if self._grammars is None:
            from herder.text.grammar import Grammars

            self._grammars = Grammars(self.tokenizer, self.engine.limits.vocab, self.stop_ids)
        return replace(request, grammar=self._grammars.compile(form, start=start))

    def request(
        self, prompt: tuple[int, ...], options: Options, defaults: Sampling, images: tuple[Image, ...] = ()
    ) -> tuple[Request, tuple[str, ...]]:
        """The engine's request and the stop strings, from what the caller said and the defaults."""
        check_names(options)
        stop_tokens = frozenset(options.get("stop_tokens") or ())
        if not options.get("ignore_eos", False):
            stop_tokens |= self.stop_ids
        request = Request(
            prompt,
            max_tokens=options.get("max_tokens"),
            sampling=sampling(options, defaults),
            stop_tokens=stop_tokens,
            priority=options.get("priority", 0),
            images=images,
        )
        return request, stop_strings(options)


def _results(stream: Stream) -> Iterator[Evaluated]:
    """The results of an evaluation; raises what ended it, if an error did."""
    for event in stream:
        if isinstance(event, Evaluated):
            yield event
        elif isinstance(event, Finished) and event.error is not None:
            raise event.error
