"""ChatML in code: the same as its template in Jinja."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herder.chat.chatml import ChatMLFormat, chatml_format
from herder.chat.message import Message, ToolCall, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import UsageError
from herder.text.tokenizer import Tokenizer
from tests.chat.templates import CHATML
from tests.text.texts import text

TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize("default", [True, False])
def test_chatml_in_code_equals_the_template(smollm: Tokenizer, smollm_template: str, default: bool) -> None:
    template = smollm_template if default else CHATML
    ours, jinja = chatml_format(smollm, template), JinjaFormat(smollm, template)
    assert isinstance(ours, ChatMLFormat)
    roles = st.sampled_from(["system", "user", "assistant", "tool"])

    @given(first=text, rest=st.lists(st.builds(Message, roles, text), max_size=3), prompt=st.booleans())
    def check(first: str, rest: list[Message], prompt: bool) -> None:
        messages = [Message("user", first), *rest]
        a = ours.render(messages, add_generation_prompt=prompt)
        b = jinja.render(messages, add_generation_prompt=prompt, learn=True)
        assert a.encode_with_mask(smollm) == b.encode_with_mask(smollm)
        assert a.text == b.text

    check()
    with_system = [Message("system", "Be brief."), Message("user", "x")]
    assert ours.render(with_system).text == jinja.render(with_system).text


def test_another_template_is_not_taken_for_chatml(smollm: Tokenizer, llama3: Tokenizer, smollm_template: str) -> None:
    assert chatml_format(smollm, smollm_template + " ") is None
    assert chatml_format(smollm, smollm_template.replace("assistant", "model")) is None
    assert chatml_format(llama3, smollm_template) is None


def test_chatml_refuses_what_its_template_ignores(smollm: Tokenizer, smollm_template: str) -> None:
    chat = chatml_format(smollm, smollm_template)
    assert chat is not None
    with pytest.raises(UsageError, match="no place for tools"):
        chat.render([Message("user", "x")], tools=read_tools(TOOLS))
    with pytest.raises(UsageError, match="no place for tool calls"):
        chat.render([Message("assistant", None, (ToolCall("f", {}),))])
    with pytest.raises(UsageError, match="there is no option 'date'"):
        chat.render([Message("user", "x")], date="today")
    assert chat.parse([*smollm.encode("Hello."), 2]) == Message("assistant", "Hello.") == chat.parse("Hello.<|im_end|>")
