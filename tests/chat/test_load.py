"""Which format a model speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from herder.chat.chatml import ChatMLFormat
from herder.chat.llama3 import Llama3Format
from herder.chat.load import NAMES, load_chat_format
from herder.chat.message import Message, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import TemplateError, UnsupportedModel, UsageError
from herder.text.load import load_tokenizer
from herder.text.tokenizer import Tokenizer
from tests.chat.templates import CHATML, LLAMA3, MARKED
from tests.text.vocabularies import mistral_file

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


# By name -------------------------------------------------------------------------------------------------------------
VOCABULARIES = {
    "chatml": "smollm", "llama2": "llama2", "codellama": "codellama", "codellama-70b": "codellama", "llama3": "llama3",
    "llama4": "llama4", "mistral-v1": "llama2", "mistral-v2": "spm", "mistral-v3": "spm", "r1": "deepseek",
    "llama-guard-1": "llama2", "llama-guard-2": "llama3", "llama-guard-3": "llama3", "llama-guard-3-1b": "llama3",
    "llama-guard-3-vision": "llama3", "llama-guard-4": "llama4",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_format_by_name_goes_before_everything(name: str, request: pytest.FixtureRequest) -> None:
    chat = load_chat_format(request.getfixturevalue(VOCABULARIES[name]), "{{ messages }}", name=name)
    assert chat is not None and chat.name == name


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("llama2", "codellama", "mistral-v1")])
def test_a_format_needs_its_vocabulary(name: str, llama2: Tokenizer, llama3: Tokenizer) -> None:
    other = llama3 if VOCABULARIES[name] != "llama3" else llama2
    if name in ("llama-guard-1", "llama-guard-2"):  # nothing but BOS
        return
    with pytest.raises(UnsupportedModel, match="the vocabulary lacks"):
        load_chat_format(other, None, name=name)


def test_the_documentation_names_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs/chat.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in page] == []


def test_names_that_are_none(llama3: Tokenizer) -> None:
    with pytest.raises(UsageError, match="there is no chat format 'alpaca': known are chatml, llama2, codellama"):
        load_chat_format(llama3, None, name="alpaca")
    with pytest.raises(UsageError, match="a template and a chat format were given"):
        load_chat_format(llama3, None, "{{ messages }}", name="llama3")


@pytest.mark.parametrize(
    ("model", "vocabulary", "expected"),
    [
        ("Llama-2-7b-chat", "llama2", "llama2"),
        ("Llama 2 13B Chat", "llama2", "llama2"),
        ("Llama-2-7b", "llama2", None),
        ("CodeLlama-7b-Instruct", "codellama", "codellama"),
        ("CodeLlama-70b-Instruct", "codellama", "codellama-70b"),
        ("CodeLlama-13b-Python", "codellama", None),
        ("Mixtral-8x7B-Instruct-v0.1", "llama2", "mistral-v1"),
        ("Mistral-7B-v0.1", "llama2", None),
        ("Mistral-7B-v0.3", "spm", "mistral-v3"),  # its vocabulary has the tokens
        ("Llama-Guard-3-8B", "llama3", "llama-guard-3"),
        ("Llama-Guard-3-1B", "llama3", "llama-guard-3-1b"),
        ("Llama-Guard-3-11B-Vision", "llama3", "llama-guard-3-vision"),
        ("Meta-Llama-Guard-2-8B", "llama3", "llama-guard-2"),
        ("Llama-Guard-4-12B", "llama4", "llama-guard-4"),
        ("LlamaGuard-7b", "llama2", "llama-guard-1"),
        ("Meta-Llama-3-8B", "llama3", "llama3"),
        ("Llama-4-Scout-17B-16E-Instruct", "llama4", "llama4"),
        ("llama-2-7b-chat-in-name-only", "llama3", "llama3"),
        ("DeepSeek-R1-Distill-Llama-8B", "deepseek", "r1"),
        ("DeepSeek-R1-Distill-Llama-8B", "llama3", "llama3"),
    ],
)
def test_files_without_a_template(
    model: str, vocabulary: str, expected: str | None, request: pytest.FixtureRequest
) -> None:
    chat = load_chat_format(request.getfixturevalue(vocabulary), None, model=model)
    assert (None if chat is None else chat.name) == expected


def test_a_later_mistral_without_a_template_has_no_format() -> None:
    later = load_tokenizer(mistral_file("mistral_instruct_tokenizer_241114.model.v7"))
    assert load_chat_format(later, None) is None
