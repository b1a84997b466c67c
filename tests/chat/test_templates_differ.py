"""Where the published chat templates and the formats in code differ, text by text, as data.

Each pair of a template and a conversation is rendered by both. What is not listed in DIFFERENCES must be equal; what is
listed must differ exactly so: a list of edits that make their text ours, in order. The reasons:

- Contents are trimmed by most templates; Meta's encoders, and ours, leave them alone.
- Dates: templates from 3.1 on always begin with the cutting knowledge date; ours, when asked (`date`).
- Spaces: templates spell out the space that SentencePiece puts before a text; here the encoder does it.
- Calls: the type of a call is written, as Meta's encoder does.
- Newlines: Llama Guard 3's prompt goes on to where the answer begins.
"""

from __future__ import annotations

from typing import Any

import pytest

from herder.chat.load import load_chat_format
from herder.chat.message import Message, read_messages, read_tools
from herder.chat.template import JinjaFormat
from herder.core.errors import HerderError
from tests.chat.published import template

CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CASES: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": " x "}],
    "talk": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "c"},
    ],
    "call": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "abcdefghi"},
    ],
    "tools": [{"role": "user", "content": "a"}],
}
# template -> (the vocabulary it is tried with, the format that it is known as)
MODELS = {
    "llama-2": ("llama2", "llama2"),
    "codellama-7b": ("codellama", "codellama"),
    "codellama-70b": ("codellama", "codellama-70b"),
    "llama-3": ("llama3", "llama3"),
    "llama-3.1": ("llama3", "llama3"),
    "llama-3.2": ("llama3", "llama3"),
    "llama-4": ("llama4", "llama4"),
    "mistral-7b-v0.2": ("llama2", "mistral-v1"),
    "mistral-7b-v0.3": ("spm", "mistral-v3"),
    "mistral-nemo": ("tekken", "mistral-v3"),
    "r1-distill": ("deepseek", "r1"),
    "llama-guard-1": ("llama2", "llama-guard-1"),
    "llama-guard-3-1b": ("llama3", "llama-guard-3-vision"),  # whose template is the same
    "smollm2": ("smollm", "chatml"),
}

Edits = list[tuple[str, str]]
BOTH_REFUSE = "both refuse"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
UNTRIMMED: Edits = [("\n\nx<|eot_id|>", "\n\n x <|eot_id|>")]
UNTRIMMED_ANSWER: Edits = [("\n\nb<|eot_id|>", "\n\n b <|eot_id|>")]
UNDATED: Edits = [(f"{SYSTEM}{DATES}<|eot_id|>", "")]
TYPED: Edits = [('{"name": "f", ', '{"type": "function", "name": "f", ')]
ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>"

DIFFERENCES: dict[tuple[str, str], Edits | str] = {
    ("llama-2", "call"): BOTH_REFUSE,
    ("llama-2", "tools"): BOTH_REFUSE,
    ("codellama-7b", "call"): BOTH_REFUSE,
    ("codellama-7b", "tools"): BOTH_REFUSE,
    ("codellama-70b", "question"): [("<s>", "<s> Source: system<step> "), (" <step>", "<step>")],
    ("codellama-70b", "talk"): [("<s>", "<s> "), *[(" <step>", "<step>")] * 4],
    ("codellama-70b", "call"): BOTH_REFUSE,
    ("codellama-70b", "tools"): BOTH_REFUSE,
    ("llama-3", "question"): UNTRIMMED,
    ("llama-3", "talk"): UNTRIMMED_ANSWER,
    # It knows no calls and writes what None looks like.
    ("llama-3", "call"): [
        ("None", '{"type": "function", "name": "f", "parameters": {"a": 1}}'),
        ("<|start_header_id|>tool<", "<|start_header_id|>ipython<"),
    ],
    ("llama-3", "tools"): "they refuse",
    ("llama-3.1", "question"): UNDATED + UNTRIMMED,
    ("llama-3.1", "talk"): [(DATES, ""), *UNTRIMMED_ANSWER],
    ("llama-3.1", "call"): [*UNDATED, *TYPED, ('"r"<|eot_id|>', "r<|eot_id|>")],
    ("llama-3.1", "tools"): "in words",
    ("llama-3.2", "question"): UNDATED + UNTRIMMED,
    ("llama-3.2", "talk"): [(DATES, ""), *UNTRIMMED_ANSWER],
    ("llama-3.2", "call"): [*UNDATED, *TYPED, ('"r"<|eot_id|>', "r<|eot_id|>")],
    ("llama-3.2", "tools"): "in words",
    ("llama-4", "call"): "they refuse",
    ("llama-4", "tools"): "in words",
    ("mistral-7b-v0.2", "question"): [("<s> [INST]", "<s>[INST]")],
    ("mistral-7b-v0.2", "talk"): [("<s> [INST]", "<s>[INST]"), ("]  b ", "] b "), ("</s> [INST]", "</s>[INST]")],
    ("mistral-7b-v0.2", "call"): BOTH_REFUSE,
    ("mistral-7b-v0.2", "tools"): BOTH_REFUSE,
    ("mistral-7b-v0.3", "question"): [("[INST]  x ", "[INST] x ")],
    ("mistral-7b-v0.3", "talk"): [("[INST] a", "[INST]a"), ("[INST] s", "[INST]s")],
    # A result that is no JSON has no quotes there, though it stands in JSON.
    ("mistral-7b-v0.3", "call"): [
        ("[INST] a", "[INST]a"),
        ("[TOOL_CALLS] [", "[TOOL_CALLS]["),
        ('[TOOL_RESULTS] {"content": r,', '[TOOL_RESULTS]{"content": "r",'),
    ],
    ("mistral-7b-v0.3", "tools"): [("[AVAILABLE_TOOLS] [", "[AVAILABLE_TOOLS]["), ("[INST] a", "[INST]a")],
    ("mistral-nemo", "talk"): [(" b </s>", " b</s>")],
    ("mistral-nemo", "call"): [('{"content": r,', '{"content": "r",')],
    ("r1-distill", "call"): BOTH_REFUSE,
    ("r1-distill", "tools"): BOTH_REFUSE,
    ("llama-guard-1", "question"): [("[INST] Task", "<s>[INST] Task")],
    ("llama-guard-1", "talk"): [("[INST] Task", "<s>[INST] Task")],
    ("llama-guard-1", "call"): BOTH_REFUSE,
    ("llama-guard-1", "tools"): BOTH_REFUSE,
    ("llama-guard-3-1b", "question"): [(ASSISTANT, ASSISTANT + "\n\n")],
    ("llama-guard-3-1b", "talk"): [(ASSISTANT, ASSISTANT + "\n\n")],
    ("llama-guard-3-1b", "call"): BOTH_REFUSE,
    ("llama-guard-3-1b", "tools"): BOTH_REFUSE,
    ("smollm2", "call"): BOTH_REFUSE,
    ("smollm2", "tools"): BOTH_REFUSE,
}
# How a template introduces its tools, in the user's message; ours does in the system message.
THEIR_WORDS = "Given the following functions, please respond with a JSON for a function call"
OUR_WORDS = "You have access to the following functions. To call "


def rendered(chat: Any, messages: list[Message], **options: Any) -> str | None:
    """The prompt's text; None when it is refused."""
    try:
        return str(chat.render(messages, **options).text)
    except HerderError:
        return None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODELS)
def test_exactly_the_known_differences(name: str, case: str, request: pytest.FixtureRequest) -> None:
    vocabulary, expected = MODELS[name]
    tokenizer = request.getfixturevalue(vocabulary)
    source = template(name)
    ours, theirs = load_chat_format(tokenizer, source), JinjaFormat(tokenizer, source)
    assert ours is not None and ours.name == expected
    messages = read_messages(CASES[case])
    if name.startswith("llama-guard"):
        messages = [message for message in messages if message.role != "system"][: 2 if case == "talk" else None]
    if name == "llama-guard-3-1b":  # it reads contents in parts only
        messages = [Message(m.role, m.content, m.tool_calls, parts=(m.text,)) for m in messages]
    tools = read_tools([TOOL]) if case == "tools" else None
    options = {"date_string": "26 Jul 2024"} if name == "llama-3.2" else {}  # today's, otherwise
    a, b = rendered(theirs, messages, tools=tools, **options), rendered(ours, messages, tools=tools)

    known = DIFFERENCES.get((name, case), [])
    if isinstance(known, str) and known != "in words":
        assert (a is None, b is None) == (True, known == BOTH_REFUSE)
        return
    assert a is not None and b is not None
    if known == "in words":
        assert (THEIR_WORDS in a, OUR_WORDS in a, THEIR_WORDS in b, OUR_WORDS in b) == (True, False, False, True)
        return
    for old, new in known:
        assert old in a, f"the template no longer says {old!r}"
        at = a.index(old)
        a = a[:at] + "\0" + a[at + len(old) :]  # so that no edit finds what another wrote
        a = a.replace("\0", f"\1{new}\2") if new else a.replace("\0", "")
    assert a.replace("\1", "").replace("\2", "") == b


def test_with_the_date_asked_for_nothing_is_left_but_trimming(llama3: Any) -> None:
    source = template("llama-3.1")
    ours, theirs = load_chat_format(llama3, source), JinjaFormat(llama3, source)
    assert ours is not None
    messages = [Message("system", "Be brief."), Message("user", "x"), Message("assistant", "y"), Message("user", "z")]
    assert ours.render(messages, date="26 Jul 2024").encode(llama3) == theirs.render(messages).encode(llama3)
    search = ["brave_search", "code_interpreter"]  # one empty line less
    dated = ours.render(messages, date="26 Jul 2024", builtin_tools=search).text
    assert dated == theirs.render(messages, builtin_tools=search).text.replace("search\n\nCutting", "search\nCutting")


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [("hermes", "llama3"), ("nemotron", "llama3"), ("mistral-small", "tekken"), ("llama-3.1", "smollm")],
)
def test_fine_tunes_keep_their_own_template(name: str, vocabulary: str, request: pytest.FixtureRequest) -> None:
    assert isinstance(load_chat_format(request.getfixturevalue(vocabulary), template(name)), JinjaFormat)
