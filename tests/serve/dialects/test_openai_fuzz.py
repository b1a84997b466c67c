"""Bodies that nobody meant: a dialect takes them or names what is wrong, and does nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herder.core.errors import UsageError
from herder.serve.dialect import Call
from herder.serve.dialects import native, openai_chat, openai_completions, openai_embeddings
from herder.serve.fields import Field, Status, Table
from tests.serve.dialects.calling import calling_llm
from tests.serve.live import live
from tests.tiny_vocabulary import VOCAB

PARSERS: list[tuple[Callable[[Call], Any], Table]] = [
    (openai_chat.parse, openai_chat.TABLE),
    (openai_completions.parse, openai_completions.TABLE),
    (openai_embeddings.parse, openai_embeddings.TABLE),
    (native.parse_tokenize, native.TOKENIZE),
    (native.parse_detokenize, native.DETOKENIZE),
    (native.parse_score, native.SCORE),
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
words = st.sampled_from(
    ["user", "assistant", "tool", "system", "function", "text", "image_url", "json_schema", "auto", "required", "m", ""]
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    words,
    st.text(max_size=5),
    st.sampled_from([10**400, -1, 0, 1]),
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def objects(table: Table, path: str, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the fields that the table has there: their inner objects where they have some, or anything."""
    names = sorted(table.level(path))

    def value(name: str) -> st.SearchStrategy[Any]:
        options = [leaves, values]
        if depth < 4 and table.level(f"{path}{name}."):
            options += [objects(table, f"{path}{name}.", depth + 1)] * 2
        if depth < 4 and table.level(f"{path}{name}[]."):
            options += [st.lists(objects(table, f"{path}{name}[].", depth + 1), max_size=2)] * 2
        return st.one_of(options)

    chosen = st.lists(st.sampled_from(names), unique=True, max_size=6)
    fields = chosen.flatmap(lambda some: st.fixed_dictionaries({name: value(name) for name in some}))
    return st.deferred(lambda: fields)


@pytest.mark.parametrize(("parse", "table"), PARSERS, ids=[table.request for _, table in PARSERS])
@settings(max_examples=50)
@given(data=st.data(), lenient=st.booleans())
def test_any_object(parse: Callable[[Call], Any], table: Table, data: st.DataObject, lenient: bool) -> None:
    good = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "tokens": [1]}
    base = {name: value for name, value in good.items() if name in table.level("")}
    if "messages" in base:
        base.pop("prompt", None)
    body = base | data.draw(objects(table, "") | st.dictionaries(st.text(max_size=8), values, max_size=3))
    dropped: list[str] | None = [] if lenient else None
    try:
        parse(Call(body, dropped=dropped))
    except UsageError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) < 1000
        message.encode()
        (getattr(error, "field", "") or "").encode("latin-1")
    assert all(name.isascii() and name.isprintable() for name in dropped or ())


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with live(calling_llm(), names=("m",)) as served, httpx.Client(base_url=served.url, timeout=60) as made:
        yield made


@pytest.mark.parametrize("table", [table for _, table in PARSERS], ids=[table.request for _, table in PARSERS])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_is_a_failure_of_ours(client: httpx.Client, table: Table, data: st.DataObject) -> None:
    good = {"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x", "tokens": [1]}
    base = {name: value for name, value in good.items() if name in table.level("")}
    if "messages" in base:
        base.pop("prompt", None)
    honoured = [name for name, field in table.level("").items() if field.status is not Status.REFUSED]
    body = base | {name: value for name, value in data.draw(objects(table, "")).items() if name in honoured}
    body |= {"max_tokens": 3} if "max_tokens" in honoured else {}
    response = client.post(table.request.split()[1], content=json.dumps(body), headers={"x-herder-deadline": "20"})
    assert response.status_code in (200, 400, 404), response.text


tokens = st.integers(0, VOCAB + 3)
SAMPLING = st.fixed_dictionaries(
    {"model": st.just("m"), "max_tokens": st.integers(1, 4)},
    optional={
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 2**31 - 1),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0, 1e308, exclude_min=True),
        "presence_penalty": st.floats(-1e308, 1e308),
        "frequency_penalty": st.floats(-1e308, 1e308),
        "logit_bias": st.dictionaries(tokens.map(str), st.floats(-100, 100), max_size=4),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "stop": st.lists(st.text(min_size=1, max_size=3), max_size=3),
        "stop_token_ids": st.lists(tokens, max_size=3),
        "ignore_eos": st.booleans(),
        "n": st.integers(1, 3),
        "stream": st.booleans(),
        "structured_outputs": st.sampled_from(
            [
                {"regex": "[a-c]+"},
                {"choice": ["a", "bc"]},
                {"json_object": True},
                {"regex": "("},
                {"grammar": "start: x"},
            ]
        ),
    },
)
PROMPTS = st.fixed_dictionaries(
    {"prompt": st.text(max_size=5) | st.lists(tokens, max_size=4) | st.lists(st.text(max_size=3), max_size=3)},
    optional={"logprobs": st.integers(0, 64), "echo": st.booleans(), "suffix": st.text(max_size=3)},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]), "content": st.text(max_size=5)}
)
CHATS = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, min_size=1, max_size=3)},
    optional={"logprobs": st.booleans(), "tools": st.just([TOOL]), "tool_choice": st.sampled_from(["auto", "none"])},
)


@pytest.mark.parametrize(("path", "inputs"), [("/v1/completions", PROMPTS), ("/v1/chat/completions", CHATS)])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sampling(
    client: httpx.Client, path: str, inputs: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    body = data.draw(SAMPLING) | data.draw(inputs)
    response = client.post(path, json=body)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["type"] == "invalid_request_error"
    elif body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n") and '"error"' not in response.text
    else:
        assert len(response.json()["choices"]) >= body.get("n", 1)


@pytest.mark.parametrize(("parse", "table"), PARSERS, ids=[table.request for _, table in PARSERS])
def test_every_refused_field_is_refused(parse: Callable[[Call], Any], table: Table) -> None:
    """At the top, where a value that asks for something can be made up without knowing the field."""

    def refused(field: Field) -> bool:
        return field.status is Status.REFUSED and "." not in field.name and "[" not in field.name

    for field in filter(refused, (*table.fields, *table.extensions)):
        with pytest.raises(UsageError, match=field.name):
            parse(Call({"model": "m", field.name: {"a": "value"}}))
        for neutral in field.neutral:
            try:
                parse(Call({"model": "m", field.name: neutral}))
            except UsageError as error:  # of what is missing, not of this
                assert not str(error).startswith(field.name)
