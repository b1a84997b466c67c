"""herder run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM


def test_a_prompt_is_answered_on_standard_output(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake", "hello there")
    assert result == (0, "You said: hello there\n", "")
    assert llm.asked == [([{"role": "user", "content": "hello there"}], {})]
    assert llm.closed


def test_the_prompt_may_come_from_a_pipe(run: Run, llm: FakeLLM) -> None:
    assert run("run", "fake", stdin="piped\n").out == "You said: piped\n"
    assert run("run", "fake", "-", stdin="piped\n").out == "You said: piped\n"
    assert run("run", "fake", "--raw", stdin="kept\n").out == "You said: kept\n"
    assert llm.asked[-1][0] == "kept\n", "--raw changes nothing"


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_what_is_piped_in_follows_the_prompt_after_an_empty_line(
    run: Run, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: object, kind: str
) -> None:
    read, write = os.pipe()
    if kind == "pipe":
        os.write(write, b"the text\n\n")
    else:
        os.close(read)
        read = os.open(f"{tmp_path}/text", os.O_RDWR | os.O_CREAT)
        os.write(read, b"the text\n\n")
        os.lseek(read, 0, os.SEEK_SET)
    os.close(write)
    from herder.cli.__main__ import main

    with open(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["run", "fake", "Summarize:"]) == 0
    assert llm.asked[0][0] == [{"role": "user", "content": "Summarize:\n\nthe text"}]


def test_standard_input_that_may_never_end_is_left_alone_when_there_is_a_prompt(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from herder.cli.__main__ import main

    with open("/dev/null", encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["run", "fake", "hello"]) == 0
    assert llm.asked[0][0] == [{"role": "user", "content": "hello"}]


def test_no_prompt_at_all(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake")
    assert result.code == 2
    assert result.err == (
        "herder: PROMPT is missing: herder run fake 'your question', or pipe one in; `herder chat fake` holds a "
        "conversation\n"
    )
    assert llm.asked == []


def test_standard_input_that_is_no_text(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake", stdin=b"ab\xffcd")
    assert (result.code, result.err) == (2, "herder: standard input is not UTF-8 text: byte 0xff at position 2\n")


def test_every_option_reaches_the_model(run: Run, llm: FakeLLM) -> None:
    options = {
        "temperature": 0.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "seed": 3,
    }
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    seen = {}
    real = llm._start
    llm._start = lambda prompt, text, given: (seen.update(given), real(prompt, text, given))[1]  # type: ignore
    more = [
        "--system",
        "Be brief.",
        "--max-tokens",
        "2",
        "--stop",
        "a",
        "--stop=b",
        "--context",
        "100",
        "--threads",
        "2",
        "--speculate=4",
    ]
    result = run("run", "fake", *words, "--dtype=float32", "--prompt-dtype=int8", "--offline", *more, "hi")
    assert result.code == 0
    assert seen == {**options, "max_tokens": 2, "stop": ["a", "b"]}
    assert llm.asked[0][0][0] == {"role": "system", "content": "Be brief."}
    name, loading = llm.loads[0]  # type: ignore[attr-defined]
    assert name == "fake"
    given = ("context", "threads", "dtype", "prompt_dtype", "offline", "template", "speculate")
    assert {key: loading[key] for key in given} == {
        "context": 100,
        "threads": 2,
        "dtype": "float32",
        "prompt_dtype": "int8",
        "offline": True,
        "template": None,
        "speculate": 4,
    }


def test_options_that_were_not_given_are_left_to_the_model(run: Run, llm: FakeLLM) -> None:
    seen = {}
    real = llm._start
    llm._start = lambda prompt, text, given: (seen.update(given), real(prompt, text, given))[1]  # type: ignore
    run("run", "fake", "hi")
    assert seen in ({}, {"max_tokens": None, "stop": []})


def test_a_gap_between_two_pieces_of_code(run: Run, llm: FakeLLM) -> None:
    assert run("run", "fake", "--suffix", "):", "def f(").out == "You said: def f(...):\n"
    assert llm.asked[0][0] == [{"content": "def f("}, {"content": "):"}]
    refused = run("run", "fake", "--suffix", "):", "--system", "Be brief.", "def f(")
    assert refused.code == 2 and "--suffix uses no chat format: leave out --system, or --suffix" in refused.err


def test_a_template_file(run: Run, llm: FakeLLM, tmp_path: object) -> None:
    path = f"{tmp_path}/template.jinja"
    with open(path, "w", encoding="utf-8") as file:
        file.write("{{ messages }}")
    assert run("run", "fake", "--template", path, "hi").code == 0
    assert llm.loads[0][1]["template"] == "{{ messages }}"  # type: ignore[attr-defined]
    result = run("run", "fake", "--template", f"{tmp_path}/none", "hi")
    assert (result.code, result.err) == (
        2,
        f"herder: {tmp_path}/none cannot be read: No such file or directory\n",
    )


def test_json_has_everything(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake", "hi", "--json", "--logprobs", "2", "--seed", "5")
    assert result.code == 0 and result.err == ""
    document = json.loads(result.out)
    assert set(document) == {
        "model", "text", "tokens", "logprobs", "finish_reason", "stop", "seed", "usage", "timings",
    }  # fmt: skip
    assert document["text"] == "You said: hi"
    assert document["tokens"] == [ord(c) for c in "You said: hi"]
    assert document["seed"] == 5
    assert document["finish_reason"] == "stop"
    assert document["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "cached_tokens": 0}
    first = document["logprobs"][0]
    assert first["token"] == ord("Y") and first["text"] == "Y" and first["logprob"] == -0.5
    assert first["top"] == [
        {"token": ord("Y"), "text": "Y", "logprob": -0.5},
        {"token": 65, "text": "A", "logprob": -1.5},
    ]
    assert set(document["timings"]) == {
        "load", "queue", "prefill", "decode", "prefill_tokens_per_s", "decode_tokens_per_s",
    }  # fmt: skip
    assert document["timings"]["decode_tokens_per_s"] == pytest.approx(110)


def test_logprobs_alone_means_the_token_itself(run: Run, llm: FakeLLM) -> None:
    document = json.loads(run("run", "fake", "--json", "--logprobs", "hello").out)
    assert document["text"] == "You said: hello"
    assert document["logprobs"][0]["top"] == []
    assert json.loads(run("run", "fake", "--json", "hello").out)["logprobs"] is None


def test_statistics_go_to_standard_error(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake", "hi", "--stats")
    assert result.out == "You said: hi\n"
    assert result.err.startswith(
        "herder: prompt 2 tokens in 10 ms (200/s), answer 12 tokens in 100 ms (110.0/s), seed 7, loaded in "
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logprobs", "3", "hi"], "--logprobs needs --json"),
        (["--raw", "--system", "x", "hi"], "--raw uses no chat format"),
        (["--temperature", "-1", "hi"], "temperature is -1.0: must be between 0 and 100"),
        (["--temperature", "hot", "hi"], "--temperature is 'hot': must be a number"),
        (["--top-p", "0", "hi"], "top_p is 0.0: must be above 0"),
        (["--max-tokens", "0", "hi"], "--max-tokens is '0': must be a whole number, 1 or more"),
        (["--logprobs=65", "--json", "hi"], "logprobs is 65: must be between 0 and 64"),
        (["--dtype", "int3", "hi"], "--dtype is 'int3': must be one of auto, float32"),
        (["--tempratur", "1", "hi"], "there is no option --tempratur: did you mean --temperature?"),
        (["--seed"], "--seed needs a value: --seed N"),
        (["--seed", "--json", "hi"], "--seed needs a value"),
        (["--json=yes", "hi"], "--json takes no value"),
        (["why", "is"], "'is' is one argument too many: put quotes around a prompt of several words"),
    ],
)
def test_what_is_refused(run: Run, llm: FakeLLM, words: list[str], message: str) -> None:
    result = run("run", "fake", *words)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(f"herder: {message}") and result.err.count("\n") == 1
    assert llm.loads == [], "refused before a model is loaded"  # type: ignore[attr-defined]


def test_an_unknown_model(run: Run, llm: FakeLLM) -> None:
    assert run("run", "nothing", "hi") == (3, "", "herder: no model is called 'nothing'\n")


def test_a_prompt_that_is_too_long(run: Run, llm: FakeLLM) -> None:
    result = run("run", "fake", "x" * 300)
    assert (result.code, result.err) == (5, "herder: the prompt has 300 tokens\n")


def test_a_model_without_a_chat_format(run: Run, llm: FakeLLM) -> None:
    llm.chat_format = None
    for verb in (("run", "fake", "hi"), ("chat", "fake")):
        result = run(*verb, stdin="hi\n")
        assert result.code == 4
        assert "fake has no chat format: `herder run --raw` continues a text, --chat-format NAME or" in result.err
    assert run("run", "fake", "--raw", "hi").code == 0


def test_ctrl_c_ends_with_130(run: Run, llm: FakeLLM) -> None:
    llm.interrupt_after = 1
    result = run("run", "fake", "hello there")
    assert result.code == 130
    assert result.out == "You \n"
    assert llm.closed


def test_a_reader_that_leaves_is_no_error() -> None:
    """The pipe closes after the first line; the program ends quietly with the status of SIGPIPE."""
    code = (
        "import sys, herder; from tests.cli.fake_llm import FakeLLM\n"
        "herder.load = lambda name, **options: FakeLLM(name, lambda text: 'word ' * 200000)\n"
        "from herder.cli.__main__ import main; sys.exit(main(['run', 'fake', 'hi']))\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_debug_shows_the_traceback(run: Run, llm: FakeLLM) -> None:
    from herder.core.errors import ModelNotFound

    with pytest.raises(ModelNotFound):
        run("--debug", "run", "nothing", "hi")


def test_the_form_of_the_answer_reaches_the_model(
    run: Run, llm: FakeLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"type": "object"}')
    grammar.write_text('start: "a"')
    for words, expected in [
        (["--schema", str(schema)], {"schema": {"type": "object"}}),
        (["--grammar", str(grammar)], {"grammar": 'start: "a"'}),
        (["--regex", "a+"], {"regex": "a+"}),
        (["--choice", "yes", "--choice=no"], {"choice": ["yes", "no"]}),
    ]:
        seen: dict[str, object] = {}

        def start(prompt: object, text: str, given: dict[str, object], seen: dict[str, object] = seen) -> object:
            seen.update(given)
            return FakeLLM._start(llm, prompt, text, given)

        monkeypatch.setattr(llm, "_start", start)
        assert run("run", "fake", *words, "hi").code == 0
        assert {name: seen[name] for name in expected} == expected
    result = run("run", "fake", "--schema", str(grammar), "hi")
    assert result.code == 2 and "is not JSON" in result.err and result.err.count("\n") == 1
