"""herder chat without a terminal: each line of standard input is a message."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from herder.chat.message import Message
from herder.cli.reader import message, unfinished
from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM


def users(llm: FakeLLM) -> list[str]:
    """What the user said last, each time the model was asked."""
    return [messages[-1]["content"] for messages, _ in llm.asked]


def test_a_conversation_goes_on(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin="hello\n\nagain\n")
    assert result == (0, "You said: hello\nYou said: again\n", "")
    assert llm.asked[1][0] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "You said: hello"},
        {"role": "user", "content": "again"},
    ]
    assert llm.closed


def test_what_was_thought_is_no_part_of_the_conversation(run: Run, llm: FakeLLM) -> None:
    real = llm._start

    def thinking(prompt: Any, text: str, options: Any) -> Any:
        stream = real(prompt, text, options)
        finish = stream.finish
        answer = Message("assistant", "Yes.", reasoning="Hm.")
        stream.finish = lambda said, reason: replace(finish(said, reason), message=answer)
        return stream

    llm._start = thinking  # type: ignore[method-assign]
    run("chat", "fake", stdin="hello\nagain\n")
    assert llm.asked[1][0][1] == {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("one\\\ntwo\n", "one\ntwo"),
        ('"""\nfirst\n\n  second\n"""\n', "first\n\n  second"),
        ('"""one line"""\n', "one line"),
        ("last line without an end", "last line without an end"),
        ("cut short\\", "cut short"),
        ("//etc/passwd is a path\n", "/etc/passwd is a path"),
        ('say """quoted""" words\n', 'say """quoted""" words'),
    ],
)
def test_messages_of_several_lines(run: Run, llm: FakeLLM, typed: str, meant: str) -> None:
    run("chat", "fake", stdin=typed)
    assert users(llm) == [meant]


def test_when_more_lines_follow() -> None:
    assert unfinished("a\\") and unfinished('"""a') and unfinished('a """\nb')
    assert not unfinished("a") and not unfinished('"""a"""') and not unfinished("")
    assert message('"""\n"""') == ""


def test_system_message_and_settings(run: Run, llm: FakeLLM) -> None:
    lines = [
        "/system Be brief.",
        "/system",
        "one",
        "/set temperature 0.5",
        "/set max-tokens=2",
        "two",
        "/system off",
        "three",
    ]
    result = run("chat", "fake", "--top-k", "7", stdin="\n".join(lines))
    assert result.code == 0
    assert [messages[0]["role"] for messages, _ in llm.asked] == ["system", "system", "user"]
    assert llm.asked[0][1] == {"top_k": 7}
    assert llm.asked[1][1] == {"top_k": 7, "temperature": 0.5}
    assert (
        "Be brief.\nBe brief.\nYou said: one\ntemperature is 0.5\nmax_tokens is 2\nYou said: \nno system message"
        in result.out
    )


def test_settings_are_listed_and_taken_back(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin="/set top_p 0.5\n/set\n/set top_p off\nhi\n")
    assert "  top_p               0.5\n" in result.out
    assert "  temperature         as the model has it\n" in result.out
    assert llm.asked[0][1] == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -3", "temperature is -3.0: must be between 0 and 100"),
        ("/set temperature hot", "temperature is 'hot': must be a number"),
        ("/set temprature 1", "there is no setting temprature: did you mean temperature?; /set lists them"),
        ("/quiet", "there is no command /quiet: did you mean /quit?; /help lists them"),
        ("/save", "name the conversation or a file: /save NAME"),
        ("/load", "name a conversation or a file: /load NAME; saved are none"),
        ("/load nothing", "cannot be read: No such file or directory"),
        ("/regenerate", "nothing was answered yet"),
        ("/model nothing", "no model is called 'nothing'"),
    ],
)
def test_mistakes_are_said_and_the_chat_goes_on(run: Run, llm: FakeLLM, line: str, message: str) -> None:
    result = run("chat", "fake", stdin=f"{line}\nhello\n")
    assert message in result.err and result.err.count("\n") == 1
    assert result.out.endswith("You said: hello\n")
    assert result.code != 0, "a script must see that a line failed"


def test_a_conversation_that_is_too_long_is_not_cut(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin=f"hello\n{'x' * 300}\nagain\n")
    assert result.code == 5
    assert result.err == "herder: the prompt has 320 tokens; /clear forgets what was said\n"
    assert llm.asked[-1][0][:2] == llm.asked[1][0][:2], "the failed message is not part of the conversation"
    assert users(llm)[-1] == "again" and len(llm.asked[-1][0]) == 3


def test_clear_and_regenerate(run: Run, llm: FakeLLM) -> None:
    run("chat", "fake", "--system", "S", stdin="one\n/regenerate\n/clear\ntwo\n")
    assert users(llm) == ["one", "one", "two"]
    assert [len(messages) for messages, _ in llm.asked] == [2, 2, 2]


def test_regenerate_with_a_seed_says_that_nothing_will_change(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", "--seed", "1", stdin="one\n/regenerate\n")
    assert "the seed is set, so the answer will be the same" in result.out


def test_ctrl_c_stops_the_answer_and_not_the_program(run: Run, llm: FakeLLM) -> None:
    llm.interrupt_after = 1
    result = run("chat", "fake", stdin="hello there\nagain\n")
    assert result.code == 0
    assert result.out == "You \nYou said: again\n"
    assert llm.asked[1][0][1] == {"role": "assistant", "content": "You "}, "what came of it stays"


def test_save_and_load(run: Run, llm: FakeLLM, tmp_path: Path) -> None:
    run("chat", "fake", "--system", "S", stdin="/set seed 4\none\n/save first\n")
    path = tmp_path / "home/state/chats/first.json"
    assert json.loads(path.read_text()) == {
        "model": "fake",
        "system": "S",
        "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "You said: one"}],
        "settings": {"seed": 4},
    }
    assert [p.name for p in path.parent.iterdir()] == ["first.json"]
    llm.asked.clear()
    result = run("chat", "fake", stdin="lost\n/load first\ntwo\n")
    assert "loaded 2 messages; fake (" in result.out
    assert [one["content"] for one in llm.asked[1][0]] == ["S", "one", "You said: one", "two"]
    llm.asked.clear()
    run("chat", "--load", str(path), stdin="three\n")
    assert [one["content"] for one in llm.asked[0][0]] == ["S", "one", "You said: one", "three"]
    assert llm.asked[0][1] == {"seed": 4}


def test_a_saved_conversation_brings_its_model(run: Run, llm: FakeLLM) -> None:
    run("chat", "other", stdin="one\n/save there\n")
    result = run("chat", "fake", stdin="/load there\ntwo\n")
    assert result.out.endswith("Other: two\n")
    assert llm.closed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is no saved conversation: Expecting property name"),
        ("[]", "is no saved conversation: it holds list and not an object"),
        ('{"model": "fake", "extra": 1}', "has 'extra', which no saved conversation has"),
        ('{"model": 3}', "model must be text"),
        (
            '{"model": "fake", "messages": [{"role": "god", "content": ""}]}',
            "messages must be a list of objects with role",
        ),
        ('{"model": "fake", "messages": ["x"]}', "messages must be a list"),
        ('{"model": "fake", "settings": {"warmth": 1}}', "there is no setting 'warmth'"),
        ('{"model": "fake", "settings": {"temperature": "x"}}', "are not numbers"),
        ('{"model": "fake", "settings": {"max_tokens": 0}}', "max_tokens is 0: must be a whole number"),
        ('{"model": "fake", "settings": []}', "settings must be an object"),
    ],
)
def test_a_file_that_is_no_conversation(run: Run, llm: FakeLLM, tmp_path: Path, data: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(data)
    result = run("chat", "--load", str(path), stdin="hi\n")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_another_model(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin="one\n/model other\ntwo\n/model\n")
    assert "You said: one\nother (135M parameters, context 200 tokens)\nOther: two\nother (" in result.out
    other = llm.models["other"]  # type: ignore[attr-defined]
    assert [m["content"] for m in other.asked[0][0]] == ["one", "You said: one", "two"], "the conversation goes on"
    assert llm.closed and other.closed


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin="/model nothing\nhello\n")
    assert result.out == "You said: hello\n"
    assert [name for name, _ in llm.loads] == ["fake", "nothing", "fake"]  # type: ignore[attr-defined]


def test_stats_help_and_quit(run: Run, llm: FakeLLM) -> None:
    result = run("chat", "fake", stdin="hello\n/stats\n/help\n/quit\nnever\n")
    assert users(llm) == ["hello"]
    assert "2 messages, context 20 of 200 (10 %)" in result.out
    assert "last: prompt 5 tokens in 10 ms" in result.out
    for name in ("/system", "/model", "/save", "/load", "/clear", "/stats", "/set", "/regenerate", "/quit"):
        assert name in result.out


def test_the_default_model(run: Run, llm: FakeLLM) -> None:
    assert run("chat", stdin="").code == 3
    assert llm.loads[0][0] == "smollm2"  # type: ignore[attr-defined]


def test_a_place_that_cannot_be_written(run: Run, llm: FakeLLM, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("chat", "fake", stdin=f"/save {tmp_path}/file/x.json\n")
    assert result.code == 7 and "cannot be written" in result.err
