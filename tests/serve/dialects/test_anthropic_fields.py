"""Anthropic's tables against the request types of its own client."""

from __future__ import annotations

from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_count_tokens_params as beta_count_params
from anthropic.types.beta import message_create_params as beta_create_params

from herder.serve.dialects.anthropic_fields import COUNT_TOKENS, MESSAGES
from tests.serve.dialects.sdk_fields import assert_complete

# The client sends these as headers.
HEADERS = ("betas", "user_profile_id", "workspace_id")


def test_messages() -> None:
    assert_complete(
        MESSAGES,
        message_create_params.MessageCreateParamsNonStreaming,
        message_create_params.MessageCreateParamsStreaming,
        beta_create_params.MessageCreateParamsNonStreaming,
        beta_create_params.MessageCreateParamsStreaming,
        unsent=HEADERS,
        whole=("tools[].input_schema", "output_config.format.schema"),
    )


def test_count_tokens() -> None:
    assert_complete(
        COUNT_TOKENS,
        message_count_tokens_params.MessageCountTokensParams,
        beta_count_params.MessageCountTokensParams,
        unsent=HEADERS,
        whole=("tools[].input_schema", "output_config.format.schema"),
    )
