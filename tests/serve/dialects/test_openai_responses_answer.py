"""The answers of OpenAI's responses, whole: the object, its items, and that they are good input again."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import Response

from herder.core.request import TokenLogprob
from herder.serve.dialect import Context
from herder.serve.dialects.openai_responses_answer import answer
from herder.serve.wire import Answer, Call, Choice, Done, Started
from tests.serve.dialects.test_openai_responses import OUTPUT, TIME, WEATHER, asked, messages

CONTEXT = Context("7", 1700000000, "m", {}, lambda token: bytes([token]))
DONE = Done(11, 5, 4, 2, 0.5, 0.75, 1.0)


def answered(choice: Choice, truncated: int = 0, **body: Any) -> dict[str, Any]:
    found = answer(asked(**body), Answer([choice], Started(11, 4, truncated), DONE), CONTEXT)
    Response.model_validate(found, strict=True)
    json.dumps(found, allow_nan=False)
    return found


def test_an_answer() -> None:
    found = answered(Choice("Hi", tokens=5), metadata={"a": "b"}, temperature=0, instructions="Be kind.")
    assert found == {
        "id": "resp_7",
        "object": "response",
        "created_at": 1700000000,
        "completed_at": 1700000002,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "m",
        "output": [
            {
                "id": "msg_7_0",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
            }
        ],
        "usage": {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 7},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 16,
        },
        "background": False,
        "instructions": "Be kind.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": True,
        "temperature": 0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }


def test_thoughts_text_and_calls() -> None:
    choice = Choice(
        "Let me see.", "hmm", [Call("c1", "weather", '{"city":"Ulm"}'), Call("c2", "time")], reason="tool_calls"
    )
    found = answered(choice, tools=[WEATHER, TIME])
    assert found["output"][0] == {
        "id": "rs_7_0",
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "hmm"}],
    }
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert found["output"][2] == {
        "id": "fc_7_2",
        "type": "function_call",
        "status": "completed",
        "call_id": "c1",
        "name": "weather",
        "arguments": '{"city":"Ulm"}',
    }
    assert found["output"][3]["arguments"] == "{}"
    assert found["tools"][0] == WEATHER | {"strict": False}
    [reasoning, _] = answered(Choice("Hi", "hmm"), reasoning={"summary": "auto"})["output"]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hmm"}] and "content" not in reasoning


def test_an_answer_that_was_cut() -> None:
    found = answered(Choice("Let me", reason="length"), 3, truncation="auto")
    assert found["status"] == "incomplete" and found["incomplete_details"] == {"reason": "max_output_tokens"}
    assert found["output"][0]["status"] == "incomplete" and "completed_at" not in found
    assert found["truncated_prompt_tokens"] == 3
    calls = [Call("c1", "weather", "{}"), Call("c2", "weather", '{"ci')]
    found = answered(Choice("", "", calls, reason="length"))
    assert [item["status"] for item in found["output"]] == ["completed", "incomplete"]
    assert [item["status"] for item in answered(Choice("", "", calls[:1], reason="length"))["output"]] == ["completed"]
    assert answered(Choice("", "hm", reason="length"))["output"][0]["status"] == "incomplete"


def test_logprobs() -> None:
    tokens = [TokenLogprob(72, -0.5, ((72, -0.5), (104, float("-inf"))))]
    choice = Choice("H", logprobs=tokens)
    [message] = answered(choice, top_logprobs=2)["output"]
    assert message["content"][0]["logprobs"] == [
        {
            "token": "H",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [
                {"token": "H", "logprob": -0.5, "bytes": [72]},
                {"token": "h", "logprob": -9999.0, "bytes": [104]},
            ],
        }
    ]


def test_what_was_answered_can_be_said_again() -> None:
    """Items of an answer are good input: those that the client keeps itself, and those that are stored."""
    choice = Choice("Let me see.", "hmm", [Call("c1", "weather", '{"city":"Ulm"}')], reason="tool_calls")
    output: Any = Response.model_validate(answered(choice, tools=[WEATHER])).to_dict()["output"]
    found = messages({"role": "user", "content": "Ulm?"}, *output, OUTPUT)
    stored = asked(input=[{"role": "user", "content": "Ulm?"}]).items
    continued = asked(input=[OUTPUT])
    assert continued.request([*stored, *answered(choice)["output"]], continued.items).messages == found
    assert [message.role for message in found] == ["user", "assistant", "tool"]
