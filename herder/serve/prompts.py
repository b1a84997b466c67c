"""From a request for text to engine requests: rendering, tokens, the window, options, constraints."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from herder.chat.format import Calling, Remembering
from herder.core.errors import ContextOverflow, UsageError
from herder.core.request import Constraint, Image, Request, Sampling
from herder.serve.fields import FieldError
from herder.serve.wire import ChatRequest, EmbedRequest, Named, TextRequest

if TYPE_CHECKING:
    from herder.chat.message import Message, Tool
    from herder.llm import LLM, Options
    from herder.text.grammar import Composite

INLINE = 4096  # characters of a prompt that is tokenized on the event loop; longer ones go to a thread
ANSWER_ROOM = 1024  # tokens kept free for the answer when a prompt is cut and the request sets no maximum


@dataclass(frozen=True, slots=True)
class Prepared:
    """One prompt, ready to run. request: of its first choice. stops: strings that end an answer. echo: the prompt's
    text, when it is to come back. score: the prompt's log-probabilities too, and of so many alternatives; generate:
    False where max_tokens is 0 and only the prompt is asked for. truncated: tokens that were left out. enforced: a
    grammar holds the answer to tool calls. unenforced: what of the tools' schemas it leaves out."""

    request: Request
    stops: tuple[str, ...]
    echo: str | None = None
    score: int | None = None
    generate: bool = True
    truncated: int = 0
    enforced: bool = False
    unenforced: tuple[str, ...] = ()


async def prepare(llm: LLM, request: ChatRequest | TextRequest) -> list[Prepared]:
    """Everything that can be refused before the engine sees it. Raises HerderError; nothing runs yet. Long prompts and
    images are prepared on a thread."""
    if isinstance(request, ChatRequest):
        long = any(m.parts is not None for m in request.messages) or request.tools or request.constraint is not None
        if long or sum(len(m.text) for m in request.messages) > INLINE:
            return [await asyncio.to_thread(_chat, llm, request)]
        return [_chat(llm, request)]
    if request.constraint is not None or sum(map(len, request.prompts)) > INLINE:
        return await asyncio.to_thread(_texts, llm, request)
    return _texts(llm, request)


async def count_tokens(llm: LLM, request: ChatRequest | TextRequest | EmbedRequest) -> int:
    """The prompt tokens that the request would have. Raises what prepare() raises, but for the window."""

    def count() -> int:
        if isinstance(request, ChatRequest):
            return len(_rendered(llm, request, request.messages)[0])
        given = request.inputs if isinstance(request, EmbedRequest) else request.prompts
        return sum(len(llm.tokens(one)) for one in given)

    return await asyncio.to_thread(count)


# Chat ----------------------------------------------------------------------------------------------------------------
def _chat(llm: LLM, request: ChatRequest) -> Prepared:
    form, enforced, unenforced = _form(llm, request)
    tokens, images = _rendered(llm, request, request.messages, fitting=not request.truncate)
    truncated = 0
    if request.truncate and len(tokens) > _window(llm, request):
        tokens, images, truncated = _shortened(llm, request, len(tokens))
    built, stops = _request(llm, request, tokens, llm.chat_sampling, images)
    return Prepared(llm.constrained(built, form), stops, truncated=truncated, enforced=enforced, unenforced=unenforced)


def _form(llm: LLM, request: ChatRequest) -> tuple[Constraint | Composite | None, bool, tuple[str, ...]]:
    """What the answer must be by its constraint and its tools, whether that holds calls to their form, and what of the
    tools' schemas it leaves out."""
    tools, choice = request.tools, request.tool_choice
    if isinstance(choice, Named):
        tools = tuple(tool for tool in tools if tool.name == choice.function)
        if not tools:
            message = f"tool_choice names {choice.function[:100]!r}, which is not among the tools"
            raise FieldError(message, "tool_choice")
        choice = "required"
    free = not tools and choice != "required"
    if free and request.constraint is None:
        return None, False, ()
    from herder.chat.tool_grammar import answer_form

    chat_format = llm.chat_format
    calling: object = chat_format
    style = calling.call_style(**request.format_options) if isinstance(calling, Calling) else None
    enforced = not free and choice != "none" and style is not None
    held, unenforced = _held(tools, style.notation == "python") if enforced and style is not None else (tools, ())
    form = answer_form(
        chat_format,
        held,
        choice=None if free else choice,
        parallel=request.parallel_tool_calls,
        content=request.constraint,
        options=request.format_options,
    )
    return form, enforced, unenforced


def _held(tools: Sequence[Tool], keywords: bool) -> tuple[tuple[Tool, ...], tuple[str, ...]]:
    """The tools with as much of their schemas as calls can be held to, and what that leaves out. The vendors promise
    nothing of a tool that is not strict, and take any schema of it; one that is strict is held to the whole or refused.
    keywords: calls write their arguments as a list of them.
    """
    from herder.chat.keywords import as_keywords
    from herder.text.relaxed import relaxed

    held, left = [], []
    for tool in tools:
        if tool.parameters is not None and tool.extra.get("strict") is None:
            parameters, names = relaxed(tool.parameters)
            if keywords:
                parameters, more = as_keywords(parameters)
                names += more
            left += [f"{tool.name}.{name}" for name in names]
            tool = replace(tool, parameters=parameters)
        held.append(tool)
    return tuple(held), tuple(left)


def _rendered(
    llm: LLM, request: ChatRequest, messages: Sequence[Message], *, fitting: bool = False
) -> tuple[tuple[int, ...], tuple[Image, ...]]:
    tools = () if request.tool_choice == "none" else request.tools
    chat_format: object = llm.chat_format
    if request.spare_reasoning and not (isinstance(chat_format, Remembering) and chat_format.takes_reasoning):
        messages = [message if message.reasoning is None else replace(message, reasoning=None) for message in messages]
    return llm.render(messages, tools, request.format_options, fitting=fitting)


def _shortened(llm: LLM, request: ChatRequest, whole: int) -> tuple[tuple[int, ...], tuple[Image, ...], int]:
    """The conversation without its oldest turns: the system message stays, and what is left begins with a user."""
    messages = request.messages
    first = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    starts = [i for i, m in enumerate(messages) if m.role == "user" and i > first]
    window = _window(llm, request)

    def rendered(start: int) -> tuple[tuple[int, ...], tuple[Image, ...]]:
        return _rendered(llm, request, (*messages[:first], *messages[start:]))

    # A few renderings, however many turns there are: each may decode images.
    start = bisect_left(starts, True, key=lambda start: len(rendered(start)[0]) <= window)
    if start < len(starts):
        tokens, images = rendered(starts[start])
        return tokens, images, whole - len(tokens)
    raise ContextOverflow(
        f"the prompt has {whole} tokens and the window {window} beside the answer; its last turn alone does not fit: "
        "shorten it",
        prompt_tokens=whole,
        limit=window,
    )


# Text ----------------------------------------------------------------------------------------------------------------
def _texts(llm: LLM, request: TextRequest) -> list[Prepared]:
    return [_text(llm, request, prompt) for prompt in request.prompts]


def _text(llm: LLM, request: TextRequest, prompt: str | tuple[int, ...]) -> Prepared:
    if request.suffix is not None:
        if not isinstance(prompt, str):
            raise FieldError("suffix needs a prompt of text, not of token ids", "suffix")
        if request.echo:
            raise FieldError("echo has no meaning with suffix: the answer stands between the two", "echo")
        tokens = tuple(llm.infill_tokens(prompt, request.suffix, fitting=not request.truncate))
    else:
        tokens = llm.tokens(prompt, fitting=not request.truncate)
    truncated = 0
    if request.truncate and len(tokens) > (window := _window(llm, request)):
        bos = tokens[:1] if tokens[0] == llm.tokenizer.bos_id else ()
        truncated = len(tokens) - window
        tokens = bos + tokens[len(tokens) - window + len(bos) :]
        prompt = tokens
    generate = request.options.get("max_tokens") != 0
    if not generate and not request.echo:
        raise FieldError("max_tokens is 0: must be 1 or more, or 0 with echo", "max_tokens")
    built, stops = _request(llm, request, tokens, Sampling(), ())
    built = llm.constrained(built, request.constraint, start=False)
    echo = score = None
    if request.echo:
        echo = prompt if isinstance(prompt, str) else llm.tokenizer.decode(prompt)
        score = built.sampling.logprobs
    return Prepared(built, stops, echo, score, generate, truncated)


# Both ----------------------------------------------------------------------------------------------------------------
def _window(llm: LLM, request: ChatRequest | TextRequest) -> int:
    """The longest prompt that leaves room for the answer."""
    wanted = request.options.get("max_tokens")
    most = llm.context // 4
    return llm.context - max(1, min(ANSWER_ROOM if wanted is None else wanted, most))


def _request(
    llm: LLM, request: ChatRequest | TextRequest, tokens: tuple[int, ...], defaults: Sampling, images: tuple[Image, ...]
) -> tuple[Request, tuple[str, ...]]:
    """max_tokens is the most that a client wants, so one beyond the window is no error: the answer then ends, for
    reason "length", where the window does. The prompt must fit."""
    options: dict[str, Any] = {k: v for k, v in request.options.items() if k != "format_options"}
    wanted = options.get("max_tokens")
    room = llm.context - len(tokens)
    if room < 1:
        raise ContextOverflow(
            f"the prompt has {len(tokens)} tokens, and the context of {llm.context} must hold it and the answer: "
            "shorten it",
            prompt_tokens=len(tokens),
            limit=llm.context,
        )
    if isinstance(wanted, int):
        if wanted < 0:
            raise FieldError(f"max_tokens is {wanted}: must be 1 or more", "max_tokens")
        options["max_tokens"] = min(max(wanted, 1), room)
    if "seed" in options and isinstance(options["seed"], int) and options["seed"] < 0:
        options["seed"] %= 2**64  # the vendors' clients send signed numbers
    for token in options.get("logit_bias") or ():
        if not 0 <= token < llm.engine.limits.vocab:
            raise FieldError(f"logit_bias names token {token}: this model has 0 to {llm.engine.limits.vocab - 1}")
    try:
        return llm.request(tokens, cast("Options", options), defaults, images)
    except TypeError as error:  # a value of the wrong kind that a dialect let through
        raise UsageError(f"an option has a value of the wrong type: {error}") from None


def choices(prepared: Prepared, n: int) -> list[Request]:
    """The requests of n answers to one prompt: the same but for the seed and, with a grammar, an object of its own."""
    request = prepared.request
    seed = request.sampling.seed
    requests = [request]
    for i in range(1, n):
        sampling = request.sampling if seed is None else replace(request.sampling, seed=(seed + i) % 2**64)
        grammar = None if request.grammar is None else request.grammar.copy()
        requests.append(replace(request, sampling=sampling, grammar=grammar))
    return requests
