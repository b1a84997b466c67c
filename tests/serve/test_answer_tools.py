"""Answers with tool calls: whatever the model would say, what is enforced comes, in pieces that join to JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from herder.chat.message import Message, Tool
from herder.core.errors import UsageError
from herder.llm import LLM
from herder.serve.fields import FieldError
from herder.serve.wire import CallArguments, CallStarted, ChatRequest, Named
from tests.serve.test_answers import collected, run, whole

LOOK = Tool(
    "look",
    "Looks somewhere",
    {
        "type": "object",
        "properties": {"at": {"enum": ["sky", "sea"]}},
        "required": ["at"],
        "additionalProperties": False,
    },
)
HEAR = Tool("hear", None, {"type": "object", "properties": {}, "additionalProperties": False})


def chat(**values: Any) -> ChatRequest:
    options = {"max_tokens": 200, "temperature": 1.0, "seed": 1}
    return ChatRequest(model="tiny", messages=(Message("user", "hello"),), options=options, **values)


@pytest.mark.parametrize("choice", ["required", Named("look")])
@pytest.mark.parametrize("n", [1, 3])
def test_a_call_that_is_required_comes(choice: Any, n: int) -> None:
    async def test(llm: LLM) -> None:
        request = chat(tools=(LOOK, HEAR), tool_choice=choice, parallel_tool_calls=False, n=n)
        events = await collected(llm, request)
        found = whole(request, events)
        for answered in found.choices:
            assert answered.reason == "tool_calls" and not answered.text.strip()
            assert len(answered.calls) == 1
            call = answered.calls[0]
            if call.name == "look":
                assert json.loads(call.arguments)["at"] in ("sky", "sea")
            else:
                assert (call.name, json.loads(call.arguments)) == ("hear", {})
                assert not isinstance(choice, Named)
        begun = {(e.choice, e.call): e.id for e in events if isinstance(e, CallStarted)}
        assert len(set(begun.values())) == n
        for event in events:
            assert not isinstance(event, CallArguments) or (event.choice, event.call) in begun

    run(test)


def test_tools_that_may_be_called_change_no_text_into_a_call() -> None:
    async def test(llm: LLM) -> None:
        request = chat(tools=(LOOK,), tool_choice="none")
        answered = whole(request, await collected(llm, request)).choices[0]
        assert not answered.calls and answered.text and answered.reason in ("stop", "length")

    run(test)


def test_a_tool_that_is_not_there_cannot_be_chosen() -> None:
    async def test(llm: LLM) -> None:
        with pytest.raises(FieldError, match="not among the tools"):
            await collected(llm, chat(tools=(Tool("look"),), tool_choice=Named("see")))
        with pytest.raises(UsageError, match="give tools"):
            await collected(llm, chat(tool_choice="required"))

    run(test)
