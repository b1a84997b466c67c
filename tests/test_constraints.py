"""The Python API's forms of answers, on the default model: JSON that validates at temperature 1, with speculation or
without; texts, choices and grammars; what cannot be asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

import herder
from herder.core.errors import UsageError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "water"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
QUESTION = "Describe Bob, who is 41 and likes tea, as JSON."


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[herder.LLM]:
    with herder.load(smollm2, context=1024) as llm:
        yield llm


def test_json_that_validates_and_that_speculation_does_not_change(smollm2: Path, llm: herder.LLM) -> None:
    with herder.load(smollm2, context=1024, speculate=6) as fast:
        for seed in range(4):
            answers = [
                one.chat(QUESTION, schema=SCHEMA, temperature=1.0, top_p=1.0, seed=seed, max_tokens=300)
                for one in (llm, fast)
            ]
            assert answers[0].tokens == answers[1].tokens and answers[0].finish_reason == "stop"
            jsonschema.validate(json.loads(answers[0].text), SCHEMA)


def test_each_form(llm: herder.LLM) -> None:
    answer = llm.chat("Give Bob's name and age as JSON.", json=True, temperature=0.0, max_tokens=300)
    assert answer.finish_reason == "stop" and isinstance(json.loads(answer.text), dict)
    assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", llm.chat("A phone number?", regex=r"[0-9]{3}-[0-9]{4}").text)
    assert llm.chat("Is water wet?", choice=["yes", "no"], temperature=2.0).text in ("yes", "no")
    assert llm.generate("The capital of France is", choice=[" Paris", " London"]).text == " Paris"
    sums = llm.chat("Two and two?", grammar='start: NUMBER (" + " NUMBER){1,2}\nNUMBER: /[0-9]{1,2}/').text
    assert re.fullmatch(r"[0-9]{1,2}( \+ [0-9]{1,2}){1,2}", sums)


def test_what_cannot_be_asked_for(llm: herder.LLM) -> None:
    with pytest.raises(UsageError, match="json and regex were given"):
        llm.chat("Hi", json=True, regex="a")
    with pytest.raises(UsageError, match="uniqueItems"):
        llm.chat("Hi", schema={"type": "array", "uniqueItems": True})
    with pytest.raises(UsageError, match="json is"):
        llm.chat("Hi", json=SCHEMA)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="tool_choice is an option of chats"):
        llm.generate("Hi", tool_choice="auto")
    with pytest.raises(UsageError, match="expected auto, required, none"):
        llm.chat("Hi", tool_choice="nosuch")
    with pytest.raises(UsageError, match="none is given"):
        llm.chat("Hi", tool_choice="required")


def test_without_llguidance(llm: herder.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=r"pip install 'herder\[serve\]'"):
        llm.chat("Hi", choice=["a"])


HERMES = (
    "{{ tools | tojson }} Answer with <tool_call>.{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
TOOLS = [
    {"type": "function", "function": {"name": "describe", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "ping"}},
]


def test_tools_that_must_be_called(smollm2: Path) -> None:
    with herder.load(smollm2, context=1024, template=HERMES) as llm:
        for choice, names in [("required", {"describe", "ping"}), ("describe", {"describe"}), ("ping", {"ping"})]:
            answer = llm.chat(
                QUESTION,
                tools=TOOLS,
                tool_choice=choice,
                parallel_tool_calls=False,
                temperature=1.0,
                seed=1,
                max_tokens=300,
            )
            assert answer.message is not None and answer.finish_reason == "stop"
            [call] = answer.message.tool_calls
            assert call.name in names and not answer.message.text
            if call.name == "describe":
                jsonschema.validate(dict(call.arguments), SCHEMA)
        answer = llm.chat(QUESTION, tools=TOOLS, tool_choice="auto", max_tokens=40, temperature=0.0)
        assert answer.message is not None and (answer.message.text or answer.message.tool_calls)
        spelled = 'start: "<tool_call>{\\"name\\": \\"ping\\", \\"arguments\\": {}}</tool_call>"'
        for choice, number in [("none", 0), (None, 1)]:  # the same text, a call or not
            answer = llm.chat(QUESTION, tools=TOOLS, tool_choice=choice, grammar=spelled)
            assert answer.message is not None and len(answer.message.tool_calls) == number
