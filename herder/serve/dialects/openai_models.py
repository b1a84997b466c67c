"""OpenAI's list of models: GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from herder.serve.dialect import Other
from herder.serve.dialects import openai_error
from herder.serve.fields import Table, supported

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from herder.serve.catalogue import Card
    from herder.serve.server import Server

NAME = "openai_models"
TABLES = (
    Table("GET /v1/models", "openai.resources.Models.list", ()),
    Table(
        "GET /v1/models/{model}",
        "openai.resources.Models.retrieve",
        (supported("model", "in the path: a served name or an alias"),),
    ),
)
error = openai_error.error


def model(card: Card, name: str) -> dict[str, Any]:
    """One entry, by its served name or an alias. root, max_model_len: vLLM's; what the name stands for, and the context
    in tokens (0 until the files are here). herder: that again and what the model takes, for the chat page."""
    unread = not card.loaded and card.summary is None  # it may well chat once its files are here
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "herder",
        "root": card.name,
        "max_model_len": card.context,
        "herder": {"context": card.context, "images": card.sees, "chat": card.chats or unread},
    }


async def list_models(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    found = [model(card, name) for card, name in await server.cards(request)]
    return JSONResponse({"object": "list", "data": found})


async def retrieve_model(request: Request, server: Server) -> Response:
    from starlette.responses import JSONResponse

    name = request.path_params["model"]
    return JSONResponse(model(await server.card(request, name), name))


ROUTES = (
    Other("GET", "/v1/models", list_models),
    Other("GET", "/v1/models/{model:path}", retrieve_model),
)
