"""The tables of Ollama's dialect against the request types of the installed client."""

from __future__ import annotations

import pytest
from ollama import _types as types  # DeleteRequest and others are not exported

from herder.serve.dialects import ollama_fields as fields
from herder.serve.fields import Status, Table
from tests.serve.dialects.sdk_fields import assert_complete

# What Ollama's server has (ChatRequest, Options and others of its api/types.go) and the client's types have not.
OPTIONS = {"options.min_p", "options.draft_num_predict"}
SERVERS = {"truncate", "shift", *OPTIONS}
CALLS = {
    "messages[].tool_call_id", "messages[].tool_calls[].id", "messages[].tool_calls[].function.index",
}  # fmt: skip


def test_chat() -> None:
    assert_complete(
        fields.CHAT,
        types.ChatRequest,
        unsent=("messages[].images[].value",),  # an image is its base64 on the wire
        added=SERVERS | CALLS,
        whole=("tools[].function.parameters",),
    )


def test_generate() -> None:
    assert_complete(fields.GENERATE, types.GenerateRequest, unsent=("images[].value",), added=SERVERS)


def test_embeddings() -> None:
    assert_complete(fields.EMBED, types.EmbedRequest, added=OPTIONS)
    assert_complete(fields.EMBEDDINGS, types.EmbeddingsRequest, added=OPTIONS)


def test_models() -> None:
    assert_complete(fields.SHOW, types.ShowRequest, added=("name", "verbose", "system", "template", "options"))
    assert_complete(fields.PULL, types.PullRequest, added=("name", "username", "password"))
    assert_complete(fields.DELETE, types.DeleteRequest, added=("name",))


def test_what_is_not_served() -> None:
    create, copy, push, _ = fields.NOT_SERVED
    assert_complete(create, types.CreateRequest, names={"from_": "from"})
    assert_complete(copy, types.CopyRequest)
    assert_complete(push, types.PushRequest)


def test_an_option_that_the_client_adds_is_noticed() -> None:
    kept = tuple(field for field in fields.GENERATE.fields if field.name != "options.mirostat_eta")
    with pytest.raises(AssertionError, match=r"lacks fields of .*options\.mirostat_eta"):
        assert_complete(
            Table("POST /api/generate", "the client", kept),
            types.GenerateRequest,
            unsent=("images[].value",),
            added=SERVERS,
        )


def test_options_of_an_embedding_are_those_of_a_chat() -> None:
    def options(table: Table) -> dict[str, bool]:
        named = [field for field in table.fields if field.name.startswith("options.")]
        return {field.name: field.status is Status.REFUSED for field in named}

    assert options(fields.EMBED) == options(fields.CHAT) == options(fields.GENERATE) == options(fields.EMBEDDINGS)
