"""What no vendor has: POST /tokenize and /detokenize in vLLM's shapes, and POST /v1/score."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from herder.core.request import TokenLogprob
from herder.serve import exchange as exchanges
from herder.serve import values
from herder.serve.dialect import Call, Other
from herder.serve.dialects import openai_chat_request, openai_error, openai_options
from herder.serve.dialects.openai_prompts import prompts
from herder.serve.dialects.openai_stream import logprob
from herder.serve.fields import FieldError, Table, checked, refused, supported

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.llm import LLM
    from herder.serve.server import Server
    from herder.serve.wire import ChatRequest

NAME = "native"
MAX_INPUTS = 128

_MODEL = supported("model", "a served name or an alias")
_STRINGS = supported("return_token_strs", "the tokens' spellings, too")
_CHAT = ("messages", "tools", "chat_template_kwargs")

TOKENIZE = Table(
    "POST /tokenize",
    "vLLM's TokenizeRequest",
    (
        _MODEL,
        supported("prompt", "a text, as /v1/completions takes it"),
        supported("messages", "a conversation instead, as /v1/chat/completions takes it"),
        supported("tools", "with messages"),
        supported("chat_template_kwargs", "with messages"),
        supported("add_special_tokens", "with prompt: false leaves BOS out"),
        _STRINGS,
        refused("add_generation_prompt", "the prompt of an answer is what is tokenized", True),
        refused("continue_final_message", "give the text as prompt", False),
        refused("chat_template", "the model's own format is used"),
        refused("mm_processor_kwargs", "images are cut as the model was trained"),
    ),
)
DETOKENIZE = Table(
    "POST /detokenize",
    "vLLM's DetokenizeRequest",
    (_MODEL, supported("tokens", "ids"), supported("skip_special_tokens", "false, the default, spells control tokens")),
)
SCORE = Table(
    "POST /v1/score",
    "ours: the log-probability of each token of a text after those before it",
    (_MODEL, supported("input", f"text, token ids, or a list of either; at most {MAX_INPUTS}"), _STRINGS),
    (
        refused("text_1", "this is no similarity of two texts: compare their /v1/embeddings"),
        refused("text_2", "this is no similarity of two texts: compare their /v1/embeddings"),
        refused("queries", "this is no similarity of texts: compare their /v1/embeddings"),
        refused("documents", "this is no similarity of texts: compare their /v1/embeddings"),
    ),
)
TABLES = (TOKENIZE, DETOKENIZE, SCORE)
error = openai_error.error


def parse_tokenize(call: Call) -> tuple[str, str | ChatRequest, bool, bool]:
    """(model, text or conversation, whether BOS is wanted, whether spellings are). Raises FieldError."""
    body = openai_options.given(checked(call.body, TOKENIZE, call.dropped))
    if ("prompt" in body) == ("messages" in body):
        raise FieldError("give either prompt or messages", "prompt")
    special = values.boolean(body.get("add_special_tokens", "prompt" in body), "add_special_tokens")
    strings = values.boolean(body.get("return_token_strs", False), "return_token_strs")
    name = openai_options.model(body)
    if "prompt" in body:
        if extra := [field for field in _CHAT if field in body]:
            raise FieldError(f"{extra[0]} goes with messages, not with prompt", extra[0])
        return name, values.text(body["prompt"], "prompt"), special, strings
    if special:
        raise FieldError("add_special_tokens is true: the chat format writes them, leave it out", "add_special_tokens")
    chat = {"model": name} | {field: body[field] for field in _CHAT if field in body}
    return name, openai_chat_request.parse(Call(chat, dropped=call.dropped)), special, strings


def parse_detokenize(call: Call) -> tuple[str, Sequence[int], bool]:
    """(model, ids, whether control tokens are left out). Raises FieldError."""
    body = openai_options.given(checked(call.body, DETOKENIZE, call.dropped))
    skip = values.boolean(body.get("skip_special_tokens", False), "skip_special_tokens")
    ids = body.get("tokens")
    if ids == []:
        return openai_options.model(body), (), skip
    if isinstance(ids, list) and not isinstance(ids[0], int):
        raise FieldError("tokens has something that is no token id: expected a list of ids", "tokens")
    [found] = prompts({"tokens": values.listed(ids, "tokens")}, "tokens", 1)
    assert not isinstance(found, str)
    return openai_options.model(body), found, skip


def parse_score(call: Call) -> tuple[str, tuple[str | tuple[int, ...], ...], bool]:
    """(model, inputs, whether spellings are wanted). Raises FieldError."""
    body = openai_options.given(checked(call.body, SCORE, call.dropped))
    strings = values.boolean(body.get("return_token_strs", False), "return_token_strs")
    return openai_options.model(body), prompts(body, "input", MAX_INPUTS), strings


def tokens_of(llm: LLM, given: str | ChatRequest, special: bool) -> Sequence[int]:
    if isinstance(given, str):
        return llm.tokenizer.encode(given, bos=special and llm.tokenizer.add_bos)
    return llm.render(given.messages, given.tools, given.format_options)[0]


def scored(index: int, found: Sequence[TokenLogprob], spell: Any) -> dict[str, Any]:
    """One text's entry. The first token has nothing before it, so its log-probability is null."""
    numbers = [None if math.isnan(one.logprob) else logprob(one.logprob) for one in found]
    entry = {
        "object": "score",
        "index": index,
        "tokens": [one.token for one in found],
        "logprobs": numbers,
        "sum": math.fsum(number for number in numbers if number is not None),
    }
    return entry if spell is None else entry | {"token_strs": [spell(one.token) for one in found]}


async def tokenize(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    name, given, special, strings = parse_tokenize(await server.call(request))
    async with server.use_for(request, name, given) as (llm, given):
        ids = await asyncio.to_thread(tokens_of, llm, given, special)
        spelled = [llm.tokenizer.token(token) for token in ids] if strings else None
        document = {"count": len(ids), "max_model_len": llm.context, "tokens": list(ids), "token_strs": spelled}
    return JSONResponse(document)


async def detokenize(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    name, ids, skip = parse_detokenize(await server.call(request))
    async with server.use(request, name) as llm:
        text = await asyncio.to_thread(llm.tokenizer.decode, ids, skip_special=skip)
    return JSONResponse({"prompt": text})


async def score(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    from herder.serve.evaluations import prompt_logprobs

    call = await server.call(request)
    name, inputs, strings = parse_score(call)
    exchange = exchanges.of(request.scope)
    async with server.use(request, name) as llm:
        entries, total = [], 0
        for i, given in enumerate(inputs):
            ids = await asyncio.to_thread(partial(llm.tokens, given, fitting=True))
            found = await prompt_logprobs(llm, ids, 0, exchange.principal.key) if ids else ()
            entries.append(scored(i, found, llm.tokenizer.token if strings else None))
            total += len(ids)
        exchange.prompt_tokens = total
    usage = {"prompt_tokens": total, "total_tokens": total}
    return JSONResponse({"object": "list", "model": name, "data": entries, "usage": usage})


ROUTES = (
    Other("POST", "/tokenize", tokenize),
    Other("POST", "/detokenize", detokenize),
    Other("POST", "/v1/score", score),
)
