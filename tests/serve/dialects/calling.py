"""A model for tests of tools: the fake one, in ChatML with the calls that its fine-tunes make."""

from __future__ import annotations

from herder.chat.load import load_chat_format
from herder.llm import LLM
from tests.serve.models import fake_llm

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def calling_llm() -> LLM:
    llm = fake_llm()
    llm.chat_format = load_chat_format(llm.tokenizer, {"default": TEMPLATE})
    return llm
