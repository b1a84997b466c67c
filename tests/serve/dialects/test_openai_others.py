"""OpenAI's plain completions, embeddings and models, and the native requests; errors of them all."""

from __future__ import annotations

import base64
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model

from herder.core.request import TokenLogprob
from herder.serve.catalogue import Card
from herder.serve.dialect import Call, Context, Kind, Problem
from herder.serve.dialects import native, openai_completions, openai_embeddings, openai_error, openai_models
from herder.serve.fields import FieldError
from herder.serve.wire import Answer, ChatRequest, Choice, Constraint, Done, EmbedRequest, Started, TextRequest

CONTEXT = Context("7", 1700000000, "m", {}, lambda token: bytes([token]))


# Completions ---------------------------------------------------------------------------------------------------------
def text(**body: Any) -> TextRequest:
    return openai_completions.parse(Call({"model": "m", **body}))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ("a",)),
        ("", ("",)),
        (None, ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2, 3], ((1, 2, 3),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_prompts(prompt: object, prompts: object) -> None:
    assert text(prompt=prompt).prompts == prompts


def test_defaults_are_the_vendors() -> None:
    assert text(prompt="a").options == {"temperature": 1.0, "max_tokens": 16}


def test_options_of_completions() -> None:
    request = text(
        prompt="a", suffix="z", echo=True, logprobs=2, max_tokens=0, temperature=0, n=2, best_of=1, seed=3, user="u",
        structured_outputs={"regex": "a+"},
    )  # fmt: skip
    assert request.options == {"temperature": 0.0, "max_tokens": 0, "logprobs": 2, "seed": 3}
    assert (request.suffix, request.echo, request.n) == ("z", True, 2)
    assert request.constraint == Constraint("regex", "a+")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": 65}, "logprobs"),
        ({"prompt": "a", "messages": []}, "messages"),
    ],
)
def test_refusals_of_completions(body: dict[str, Any], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        text(**body)
    assert caught.value.field == field


def test_a_completion() -> None:
    choice = Choice("ab", logprobs=[TokenLogprob(97, -1.0, ((98, -0.5),)), TokenLogprob(98, -2.0)], reason="length")
    found = Answer([choice], Started(3), Done(3, 2, 1, 0, 0.0, 0.0, 0.0))
    body = openai_completions.answer(text(prompt="x", logprobs=1), found, CONTEXT)
    Completion.model_validate(body, strict=True)
    assert body == {
        "id": "cmpl-7",
        "object": "text_completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "text": "ab",
                "finish_reason": "length",
                "logprobs": {
                    "tokens": ["a", "b"],
                    "token_logprobs": [-1.0, -2.0],
                    "top_logprobs": [{"b": -0.5, "a": -1.0}, {"b": -2.0}],
                    "text_offset": [0, 1],
                },
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


# Embeddings ----------------------------------------------------------------------------------------------------------
def embed(**body: Any) -> EmbedRequest:
    return openai_embeddings.parse(Call({"model": "m", **body}))


def test_embedding_requests() -> None:
    assert embed(input="a") == EmbedRequest("m", ("a",))
    full = embed(
        input=[[1], [2]], dimensions=8, normalize=False, truncate_prompt_tokens=-1, user="u", encoding_format="float"
    )
    assert full == EmbedRequest("m", ((1,), (2,)), 8, False, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": ""}, None),
        ({"input": []}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "temperature": 1}, "temperature"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
def test_refusals_of_embeddings(body: dict[str, Any], field: str | None) -> None:
    if field is None:  # OpenAI refuses an empty text; here it is BOS, where the model has one
        assert embed(**body).inputs == ("",)
        return
    with pytest.raises(FieldError) as caught:
        embed(**body)
    assert caught.value.field == field


def test_embeddings_as_floats_and_as_base64() -> None:
    vectors = [[0.5, -1.25], [0.0, 2.0]]
    body = openai_embeddings.answer(embed(input="a"), vectors, 7, CONTEXT)
    parsed = CreateEmbeddingResponse.model_validate(body, strict=True)
    assert [one.embedding for one in parsed.data] == vectors
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    context = replace(CONTEXT, body={"encoding_format": "base64"})
    body = openai_embeddings.answer(embed(input="a"), vectors, 7, context)
    assert [struct.unpack("<2f", base64.b64decode(one["embedding"])) for one in body["data"]] == [
        (0.5, -1.25),
        (0.0, 2.0),
    ]


# Models --------------------------------------------------------------------------------------------------------------
def test_models() -> None:
    card = Card(
        name="llama", aliases=("gpt-4o-mini",), created=5, path=Path("x"), summary=None, template=None, refusal=None,
        context=4096, chats=True, sees=False, loaded=False, bytes=0, expires=None,
    )  # fmt: skip
    other = replace(card, name="other", aliases=())
    for one, name in ((card, "llama"), (card, "gpt-4o-mini"), (other, "other")):
        found = openai_models.model(one, name)
        assert Model.model_validate(found, strict=True).id == name and found["root"] == one.name


# Native --------------------------------------------------------------------------------------------------------------
def test_tokenize_requests() -> None:
    assert native.parse_tokenize(Call({"model": "m", "prompt": "a"})) == ("m", "a", True, False)
    body = {"model": "m", "prompt": "a", "add_special_tokens": False, "return_token_strs": True}
    assert native.parse_tokenize(Call(body)) == ("m", "a", False, True)
    messages = [{"role": "user", "content": "a"}]
    name, chat, special, _ = native.parse_tokenize(Call({"model": "m", "messages": messages}))
    assert name == "m" and isinstance(chat, ChatRequest) and chat.messages[0].text == "a" and not special


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": "a", "messages": []},
        {"prompt": "a", "tools": []},
        {"prompt": 5},
        {"messages": []},
        {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
        {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False},
    ],
)
def test_refusals_of_tokenize(body: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        native.parse_tokenize(Call({"model": "m", **body}))


def test_detokenize_and_score_requests() -> None:
    assert native.parse_detokenize(Call({"model": "m", "tokens": [1, 2]})) == ("m", (1, 2), False)
    assert native.parse_detokenize(Call({"model": "m", "tokens": []})) == ("m", (), False)
    assert native.parse_score(Call({"model": "m", "input": ["a", [1]]})) == ("m", ("a", (1,)), False)
    for tokens in (None, "a", ["a"], [[1]], [True], [-1]):
        with pytest.raises(FieldError):
            native.parse_detokenize(Call({"model": "m", "tokens": tokens}))
    with pytest.raises(FieldError, match="embeddings"):
        native.parse_score(Call({"model": "m", "text_1": "a", "text_2": "b"}))


def test_scores() -> None:
    found = [TokenLogprob(1, float("nan")), TokenLogprob(2, -1.5), TokenLogprob(3, -0.5)]
    entry = {"object": "score", "index": 0, "tokens": [1, 2, 3], "logprobs": [None, -1.5, -0.5], "sum": -2.0}
    assert native.scored(0, found, None) == entry
    assert native.scored(0, found, str)["token_strs"] == ["1", "2", "3"]


# Errors --------------------------------------------------------------------------------------------------------------
def test_every_kind_of_problem_has_a_status() -> None:
    for kind in get_args(Kind):
        status, headers, body = openai_error.error(Problem(kind, "what", "field", "code", 1.2))
        assert 400 <= status < 600 and headers["retry-after"] == "2"
        assert body["error"] | {"message": "what", "param": "field", "code": "code"} == body["error"]
        assert isinstance(body["error"]["type"], str)
