"""Gemini's API: what a body means."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat.message import Message, Tool, ToolCall
from herder.core.request import Constraint
from herder.serve.dialect import Call, Problem
from herder.serve.dialects import gemini
from herder.serve.dialects.gemini_fields import COUNT_TOKENS, EMBED, GENERATE
from herder.serve.dialects.gemini_stream import Generation
from herder.serve.fields import FieldError
from herder.serve.wire import Named
from tests.serve.dialects.bodies import bodies, refusing

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PATH = {"model": "m"}
USER = {"role": "user", "parts": [{"text": "hello"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "of a city", "parametersJsonSchema": SCHEMA}


def parsed(*, dropped: list[str] | None = None, **body: Any) -> Generation:
    return gemini.parse(Call({"contents": [USER], **body}, PATH, dropped=dropped))


def configured(**config: Any) -> Generation:
    return parsed(generationConfig=config)


def refusal(**body: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        parsed(**body)
    assert "\n" not in str(caught.value)
    return caught.value


def said(*contents: dict[str, Any], **body: Any) -> list[Message]:
    return list(parsed(contents=list(contents), **body).messages)


def test_the_least_request() -> None:
    request = parsed()
    assert (request.model, request.n, request.stream, request.options) == ("m", 1, False, {})
    assert request.messages == (Message("user", "hello"),) and request.tools == () and request.tool_choice == "auto"
    assert request.constraint is None and not request.reasoning


def test_every_option() -> None:
    request = configured(
        temperature=2, topP=0.9, topK=40.0, candidateCount=2, maxOutputTokens=9, stopSequences=["a"], seed=-1,
        presencePenalty=0.5, frequencyPenalty=-0.5, responseLogprobs=True, logprobs=3, responseModalities=["TEXT"],
        thinkingConfig={"includeThoughts": True, "thinkingBudget": -1},
    )  # fmt: skip
    assert request.options == {
        "temperature": 2.0, "top_p": 0.9, "top_k": 40, "max_tokens": 9, "stop": ("a",), "seed": 2**64 - 1,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "logprobs": 3,
    }  # fmt: skip
    assert request.n == 2 and request.reasoning


def test_both_spellings_of_names() -> None:
    snake = {
        "contents": {"parts": {"text": "hello"}},
        "system_instruction": {"parts": {"text": "be brief"}},
        "generation_config": {"max_output_tokens": 5, "thinking_config": {"include_thoughts": True}},
        "tools": {"function_declarations": {"name": "f", "parameters_json_schema": SCHEMA}},
        "tool_config": {"function_calling_config": {"mode": "any", "allowed_function_names": "f"}},
        "safety_settings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
        "service_tier": "standard",
        "truncate_prompt_tokens": -1,
        "deadline": 2,
    }
    request = parsed(**snake)
    assert request.messages == (Message("system", "be brief"), Message("user", "hello"))
    assert request.options == {"max_tokens": 5} and request.reasoning and request.tool_choice == Named("f")
    assert request.truncate and request.deadline == 2
    assert refusal(generationConfig={}, generation_config={}).field == "generationConfig"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"contents": []}, "contents"),
        ({"contents": "hello"}, "contents"),
        ({"contents": [{"role": "system", "parts": [{"text": "x"}]}]}, "contents[0].role"),
        ({"contents": [{"role": "user"}]}, "contents[0].parts"),
        ({"contents": [{"parts": [{}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"text": "a", "inlineData": {}}]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"text": "a", "thought": True}]}]}, "contents[0].parts[0].thought"),
        ({"contents": [{"parts": [{"fileData": {"mimeType": "image/png"}}]}]}, "contents[0].parts[0].fileData.fileUri"),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "https://a.example/b", "mimeType": "video/mp4"}}]}]},
         "contents[0].parts[0].fileData.mimeType"),
        ({"contents": [{"parts": [{"functionCall": {"name": "f"}}]}]}, "contents[0].parts[0].functionCall"),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "text/plain", "data": "eA=="}}]}]},
         "contents[0].parts[0].inlineData"),
        ({"contents": [USER, {"role": "model", "parts": [{"text": "x"}]}]}, "contents[1]"),
        ({"systemInstruction": {"parts": [{"inlineData": {}}]}}, "systemInstruction.parts[0].inlineData"),
        ({"cachedContent": "cachedContents/1"}, "cachedContent"),
        ({"safetySettings": [{"category": "x", "threshold": "BLOCK_ONLY_HIGH"}]}, "safetySettings[0].threshold"),
        ({"serviceTier": "flex"}, "serviceTier"),
        ({"store": True}, "store"),
        ({"n": 1}, "n"),
        ({"tools": [{"googleSearch": {}}]}, "tools[0].googleSearch"),
        ({"tools": [{"codeExecution": {}}]}, "tools[0].codeExecution"),
        ({"tools": [{"functionDeclarations": [WEATHER, WEATHER]}]}, "tools[0].functionDeclarations[1].name"),
        ({"tools": [{"functionDeclarations": [{}]}]}, "tools[0].functionDeclarations[0].name"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "toolConfig.functionCallingConfig.mode"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["g"]}}},
         "toolConfig.functionCallingConfig.allowedFunctionNames[0]"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "AUTO", "allowedFunctionNames": ["g"]}}},
         "toolConfig.functionCallingConfig.allowedFunctionNames"),
        ({"generationConfig": {"temperature": 2.5}}, "generationConfig.temperature"),
        ({"generationConfig": {"topP": 0}}, "generationConfig.topP"),
        ({"generationConfig": {"candidateCount": 9}}, "generationConfig.candidateCount"),
        ({"generationConfig": {"maxOutputTokens": 0}}, "generationConfig.maxOutputTokens"),
        ({"generationConfig": {"stopSequences": [""]}}, "generationConfig.stopSequences"),
        ({"generationConfig": {"logprobs": 2}}, "generationConfig.logprobs"),
        ({"generationConfig": {"responseModalities": ["AUDIO"]}}, "generationConfig.responseModalities"),
        ({"generationConfig": {"speechConfig": {}}}, "generationConfig.speechConfig"),
        ({"generationConfig": {"responseMimeType": "text/xml"}}, "generationConfig.responseMimeType"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "generationConfig.responseMimeType"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "generationConfig.responseSchema.enum"),
        ({"generationConfig": {"thinkingConfig": {"thinkingBudget": 512}}},
         "generationConfig.thinkingConfig.thinkingBudget"),
        ({"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}}},
         "generationConfig.thinkingConfig.thinkingLevel"),
        ({"generationConfig": {"best": 1}}, "generationConfig.best"),
    ],
)  # fmt: skip
def test_refused(body: dict[str, Any], field: str) -> None:
    assert refusal(**body).field == field


def test_images() -> None:
    data = base64.urlsafe_b64encode(PNG).decode().rstrip("=")
    [message] = said({"parts": [{"text": "what is"}, {"inlineData": {"mimeType": "image/png", "data": data}}]})
    assert message.parts is not None and message.parts[0] == "what is" and message.images[0].data == PNG


def test_a_conversation_with_functions() -> None:
    model = {
        "role": "model",
        "parts": [
            {"text": "A city.", "thought": True},
            {"text": "I "},
            {"text": "look."},
            {"functionCall": {"id": "1", "name": "weather", "args": {"city": "Oslo"}}},
        ],
    }
    more = {"role": "model", "parts": [{"functionCall": {"name": "weather"}}]}
    results = {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "1", "name": "weather", "response": {"result": "rain"}}},
            {"functionResponse": {"name": "weather", "response": {}}},
            {"text": "And"},
            {"text": "now?"},
        ],
    }
    calls = ToolCall("weather", {"city": "Oslo"}, "1"), ToolCall("weather", {})
    assert said(USER, USER, model, more, results) == [
        Message("user", "hello\n\nhello"),
        Message("assistant", "I look.", tool_calls=calls, reasoning="A city."),
        Message("tool", '{"result": "rain"}', tool_call_id="1", name="weather"),
        Message("tool", "{}", name="weather"),
        Message("user", "And\nnow?"),
    ]


def test_functions() -> None:
    openapi = {"name": "f", "parameters": {"type": "OBJECT"}, "response": {"type": "STRING"}, "behavior": "BLOCKING"}
    tools = [{"functionDeclarations": [WEATHER]}, {"functionDeclarations": [openapi]}]
    weather = Tool("weather", "of a city", SCHEMA)
    other = Tool("f", None, {"type": "object"}, {"return": {"type": "string"}})

    def chosen(**config: Any) -> tuple[Any, Any]:
        request = parsed(tools=tools, toolConfig={"functionCallingConfig": config})
        return request.tools, request.tool_choice

    assert chosen() == ((weather, other), "auto")
    assert chosen(mode="ANY") == ((weather, other), "required")
    assert chosen(mode="ANY", allowedFunctionNames=["f"]) == ((other,), Named("f"))
    assert chosen(mode="NONE") == ((weather, other), "none")
    assert chosen(mode="VALIDATED", allowedFunctionNames=["weather"]) == ((weather,), "auto")


def test_forms_of_answers() -> None:
    assert configured(responseMimeType="application/json").constraint == Constraint("json")
    found = configured(responseMimeType="application/json", responseJsonSchema=SCHEMA).constraint
    assert found == Constraint("schema", SCHEMA)
    found = configured(responseMimeType="application/json", responseSchema={"type": "INTEGER"}).constraint
    assert found == Constraint("schema", {"type": "integer"})
    found = configured(responseMimeType="text/x.enum", responseSchema={"type": "STRING", "enum": ["a", "b"]}).constraint
    assert found == Constraint("choice", ("a", "b"))


def test_lenient() -> None:
    dropped: list[str] = []
    request = parsed(dropped=dropped, cached_content="x", tools=[{"googleSearch": {}}], generationConfig={"seed": 1})
    assert request.options == {"seed": 1} and dropped == ["cachedContent", "tools[0].googleSearch"]


def test_streams() -> None:
    def asked(**query: str) -> Generation:
        return gemini.parse_stream(Call({"contents": [USER]}, PATH, query))

    assert asked(alt="sse").sse and asked(alt="sse").stream and asked().stream and not asked(alt="json").sse
    with pytest.raises(FieldError, match=r"^alt is"):
        asked(alt="proto")


def test_counting() -> None:
    model = {"role": "model", "parts": [{"text": "hi"}]}
    inner = {"model": "models/m", "contents": [USER, model], "generationConfig": {"temperature": 1}}
    for body in ({"contents": [USER, model]}, {"generateContentRequest": inner}, {"generate_content_request": inner}):
        assert len(gemini.parse_count(Call(body, PATH)).messages) == 2
    with pytest.raises(FieldError, match="stands for them all"):
        gemini.parse_count(Call({"contents": [USER], "generateContentRequest": inner}, PATH))


def test_embeddings() -> None:
    one = {"model": "models/m", "content": {"parts": [{"text": "a"}, {"text": "b"}]}, "outputDimensionality": 4}
    request = gemini.parse_embed(Call(one, PATH))
    assert (request.model, request.inputs, request.dimensions) == ("m", ("a\nb",), 4)
    two = {"content": {"parts": {"text": "c"}}, "output_dimensionality": 4}
    assert gemini.parse_batch(Call({"requests": [one, two]}, PATH)).inputs == ("a\nb", "c")
    with pytest.raises(FieldError, match="different values"):
        gemini.parse_batch(Call({"requests": [one, {"content": {"parts": {"text": "c"}}}]}, PATH))
    with pytest.raises(FieldError) as caught:
        gemini.parse_batch(Call({"requests": [one, two | {"taskType": "RETRIEVAL_QUERY"}]}, PATH))
    assert caught.value.field == "requests[1].taskType"


def test_errors() -> None:
    status, headers, body = gemini.error(Problem("rate_limited", "slow down", retry_after=1.2))
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"}
    assert (status, headers) == (429, {"retry-after": "2"})
    assert body["error"] == {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED", "details": [retry]}
    [detail] = gemini.error(Problem("invalid", "bad", "store"))[2]["error"]["details"]
    assert detail["fieldViolations"] == [{"field": "store", "description": "bad"}]
    assert "details" not in gemini.error(Problem("not_found", "no", "model"))[2]["error"]


def test_pages_of_models() -> None:
    models = [{"name": str(i)} for i in range(5)]
    assert gemini.page(models, {}) == {"models": models}
    first = gemini.page(models, {"pageSize": "3"})
    assert first == {"models": models[:3], "nextPageToken": "3"}
    assert gemini.page(models, {"pageSize": "3", "pageToken": "3"}) == {"models": models[3:]}
    with pytest.raises(FieldError):
        gemini.page(models, {"pageToken": "x"})


WORDS = ("user", "model", "text", "image/png", "STRING", "OBJECT", "ANY", "BLOCK_NONE", "application/json", "models/m")


@given(bodies(GENERATE, *WORDS, contents=[USER]), st.booleans())
def test_any_body_is_read_or_refused(body: dict[str, Any], lenient: bool) -> None:
    with refusing():
        gemini.parse(Call(body, PATH, dropped=[] if lenient else None))


@given(bodies(COUNT_TOKENS, *WORDS, contents=[USER]) | bodies(EMBED, *WORDS, content=USER))
def test_any_body_is_counted_and_embedded_or_refused(body: dict[str, Any]) -> None:
    for parse in (gemini.parse_count, gemini.parse_embed, gemini.parse_batch):
        with refusing():
            parse(Call(json.loads(json.dumps(body)), PATH))  # type: ignore[operator]
