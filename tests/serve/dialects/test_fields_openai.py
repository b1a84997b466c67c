"""The tables of OpenAI's dialects against the request types of the installed client."""

from __future__ import annotations

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from herder.serve.dialects import openai_chat, openai_completions, openai_embeddings
from herder.serve.fields import Field, Status, Table, refused
from tests.serve.dialects.sdk_fields import assert_complete, paths


def test_chat() -> None:
    assert_complete(
        openai_chat.TABLE,
        chat_create_params.CompletionCreateParamsNonStreaming,
        chat_create_params.CompletionCreateParamsStreaming,
    )


def test_completions() -> None:
    assert_complete(
        openai_completions.TABLE,
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    )


def test_embeddings() -> None:
    assert_complete(openai_embeddings.TABLE, embedding_create_params.EmbeddingCreateParams)


def test_a_field_that_the_vendor_adds_is_noticed() -> None:
    fields = tuple(field for field in openai_chat.TABLE.fields if field.name != "tools[].function.strict")
    with pytest.raises(AssertionError, match=r"lacks fields of .*tools\[\]\.function\.strict"):
        assert_complete(
            Table("POST /v1/chat/completions", "the client", fields),
            chat_create_params.CompletionCreateParamsStreaming,
        )


def test_a_field_that_the_vendor_does_not_have_is_noticed() -> None:
    fields = (*openai_embeddings.TABLE.fields, Field("top_k", Status.SUPPORTED))
    with pytest.raises(AssertionError, match="top_k"):
        assert_complete(Table("POST", "the client", fields), embedding_create_params.EmbeddingCreateParams)


def test_what_is_inside_a_refused_field_need_not_be_listed() -> None:
    kind = chat_create_params.WebSearchOptions
    names = paths(kind, "web_search_options")
    assert "web_search_options.user_location.approximate.city" in names
    assert_complete(
        Table("POST", "the client", (refused("search_context_size", ""), refused("user_location", ""))), kind
    )
