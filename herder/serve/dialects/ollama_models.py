"""Ollama's API about models: /api/tags, /api/show, /api/ps and /api/version."""

from __future__ import annotations

import hashlib
import re
from time import time
from typing import TYPE_CHECKING, Any

from herder.chat.format import Calling, Thinking
from herder.core.errors import HerderError
from herder.core.sizes import count_text
from herder.serve.dialect import Call, Other
from herder.serve.dialects import ollama_encoding, ollama_options, ollama_request
from herder.serve.dialects import ollama_fields as fields
from herder.serve.dialects.ollama_encoding import FOREVER, moment
from herder.serve.dialects.ollama_names import served_as
from herder.serve.fields import checked

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.llm import LLM
    from herder.serve.catalogue import Card
    from herder.serve.server import Server

NAME = "ollama_models"
TABLES = (fields.TAGS, fields.SHOW, fields.PS, fields.VERSION)
error = ollama_encoding.error

API = "0.13.0"  # of Ollama: the oldest that takes all the fields of ollama_fields.py
_TOOLS = re.compile(r"\b(custom_)?tools\b")


def details(card: Card) -> dict[str, Any]:
    summary = card.summary
    if summary is None:
        return {
            "parent_model": "",
            "format": "",
            "family": "",
            "families": None,
            "parameter_size": "",
            "quantization_level": "",
        }
    family = summary.config.architecture
    return {
        "parent_model": "",
        "format": summary.kind,
        "family": family,
        "families": [family],
        "parameter_size": count_text(summary.parameters),
        "quantization_level": summary.formats[0].name,
    }


def digest(card: Card) -> str:
    """64 hexadecimal digits that change when the model's files do. No hash of their bytes: many gigabytes are not read
    for a list."""
    summary = card.summary
    state = [card.name, card.created] if summary is None else [card.created, summary.file_bytes, *summary.paths]
    return hashlib.sha256(repr(state).encode()).hexdigest()


def entry(card: Card, name: str) -> dict[str, Any]:
    """A model in a list, by its served name or an alias."""
    return {
        "name": name,
        "model": name,
        "modified_at": moment(card.created),
        "size": 0 if card.summary is None else card.summary.file_bytes,
        "digest": digest(card),
        "details": details(card),
    }


def running(card: Card, now: float, on_gpu: bool) -> dict[str, Any]:
    """A loaded model. size: bytes of memory. now: seconds since the epoch."""
    known = entry(card, card.name)
    del known["modified_at"]
    return known | {
        "size": card.bytes,
        "size_vram": card.bytes if on_gpu else 0,
        "expires_at": FOREVER if card.expires is None else moment(now + card.expires),
        "context_length": card.context,
    }


def shown(card: Card, llm: LLM | None) -> dict[str, Any]:
    """What is known of one model. modelfile: its name and parameters, in Ollama's notation."""
    summary = card.summary
    document = {
        "license": "" if summary is None else summary.licence,
        "modelfile": f"# served by Herder\nFROM {card.name}\nPARAMETER num_ctx {card.context}\n",
        "parameters": f"num_ctx {card.context}",
        "template": card.template or "",
        "details": details(card),
        "model_info": _info(card),
        "capabilities": capabilities(card, llm),
        "modified_at": moment(card.created),
    }
    return document


def capabilities(card: Card, llm: LLM | None) -> list[str]:
    """Of a model that is not loaded, as far as its files tell."""
    found = ["completion", "embedding"]
    template = card.template or ""
    chat_format: object = None if llm is None else llm.chat_format  # protocols that it may follow besides
    if llm is None:
        tools, thinks = bool(_TOOLS.search(template)), "</think>" in template
    else:
        tools = isinstance(chat_format, Calling) and chat_format.call_style() is not None
        thinks = isinstance(chat_format, Thinking)
    known = {"tools": tools, "thinking": thinks, "vision": card.sees, "insert": llm is not None and _fills(llm)}
    return found + [word for word, is_so in known.items() if is_so]


def _fills(llm: LLM) -> bool:
    try:
        llm.infill_tokens("", "")
    except HerderError:
        return False
    return True


def _info(card: Card) -> dict[str, Any]:
    """The keys of a GGUF file's metadata, whatever the format of the files."""
    if card.summary is None:
        return {}
    config = card.summary.config
    family = config.architecture
    found: dict[str, Any] = {
        "general.architecture": family,
        "general.parameter_count": card.summary.parameters,
        f"{family}.attention.head_count": config.heads,
        f"{family}.attention.head_count_kv": config.kv_heads,
        f"{family}.attention.key_length": config.head_dim,
        f"{family}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{family}.block_count": config.layers,
        f"{family}.context_length": config.context,
        f"{family}.embedding_length": config.dim,
        f"{family}.feed_forward_length": config.ffn_dim,
        f"{family}.rope.freq_base": config.rope.theta,
        f"{family}.vocab_size": config.vocab,
    }
    if config.name:
        found["general.basename"] = config.name
    if config.experts is not None:
        found[f"{family}.expert_count"] = config.experts.count
        found[f"{family}.expert_used_count"] = config.experts.active
    return found


async def tags(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"models": [entry(card, name) for card, name in await server.cards(request)]})


async def ps(request: Request, server: Server) -> Response:
    """The models in memory, and until when they stay there."""
    from starlette.responses import JSONResponse

    allowed = server.principal(request).models
    found = []
    for served in server.models:
        if served.llm is not None and (allowed is None or served.name in allowed):
            card = await server.catalogue.card(served.name)
            found.append(running(card, time(), served.spec.device.startswith("cuda")))
    return JSONResponse({"models": found})


async def show(request: Request, server: Server) -> Response:
    """What a model is: shape, format, licence, chat template, and what it can do."""
    from starlette.responses import JSONResponse

    name = parse_show(await server.call(request))
    served = served_as(request, server, name)
    return JSONResponse(shown(await server.catalogue.card(served.name), served.llm))


def parse_show(call: Call) -> str:
    """The model's name. Raises FieldError."""
    return ollama_request.model(ollama_options.given(checked(call.body, fields.SHOW, call.dropped)))


async def version(request: Request, server: Server) -> Response:
    """The version of Ollama whose API this is, which clients ask for before they use what is new in it."""
    from starlette.responses import JSONResponse

    return JSONResponse({"version": API, "server": "herder"})


ROUTES = (
    Other("GET", "/api/tags", tags),
    Other("GET", "/api/ps", ps),
    Other("POST", "/api/show", show),
    Other("GET", "/api/version", version),
)
