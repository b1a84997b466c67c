"""The program as a process, on a tiny model in a real file: nothing is replaced."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import herder
from tests.tiny import write_tiny_gguf

ROOT = Path(__file__).resolve().parents[2]
MESSAGES = [{"role": "system", "content": "S"}, {"role": "user", "content": "the hen <|im_end|>"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", formats="Q8_0").path)


def program(*words: str, stdin: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HERDER_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-m", "herder.cli", *words],
        cwd=ROOT,
        env=environment | variables,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_run_says_what_the_python_api_says(tiny: str) -> None:
    with herder.load(tiny) as llm:
        expected = llm.chat("the hen", temperature=0, max_tokens=20, logprobs=2)
        raw = llm.generate("the hen", max_tokens=20)
    words = ("run", tiny, "the hen", "--max-tokens", "20")
    done = program(*words, "--temperature", "0", "--json", "--logprobs", "2")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["text"] == expected.text and document["tokens"] == list(expected.tokens)
    assert document["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert document["logprobs"][0]["logprob"] == expected.logprobs[0].logprob
    assert [(one["token"], one["logprob"]) for one in document["logprobs"][0]["top"]] == list(expected.logprobs[0].top)
    streamed = program(*words, "--temperature", "0")
    assert streamed.stdout == expected.text + ("" if expected.text.endswith("\n") else "\n")
    assert streamed.stderr == ""
    assert json.loads(program(*words, "--raw", "--json").stdout)["tokens"] == list(raw.tokens)


def test_a_seed_repeats_an_answer_in_another_process(tiny: str) -> None:
    words = ("run", tiny, "the hen", "--max-tokens", "30", "--temperature", "1.5", "--json")
    first = json.loads(program(*words).stdout)
    again = json.loads(program(*words, "--seed", str(first["seed"]), "--threads", "1").stdout)
    assert again["tokens"] == first["tokens"] and again["seed"] == first["seed"]


def test_a_prompt_from_a_pipe(tiny: str) -> None:
    words = ("run", tiny, "--max-tokens", "5", "--temperature", "0")
    assert program(*words, stdin="the hen\n").stdout == program(*words, "the hen").stdout
    both = json.loads(program(*words, "--json", "the", stdin="hen\n").stdout)
    one = json.loads(program(*words, "--json", "the\n\nhen").stdout)
    assert both["tokens"] == one["tokens"] and both["usage"] == one["usage"]


def test_render_is_what_the_model_is_given(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(MESSAGES))
    text = program("render", tiny, str(path)).stdout
    assert (
        text
        == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nthe hen <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    ids = json.loads(program("render", tiny, "-", "--json", stdin=json.dumps(MESSAGES)).stdout)
    assert ids.count(2) == 2, "the user's <|im_end|> is text"
    with herder.load(tiny) as llm:
        usage = llm.chat(MESSAGES, max_tokens=1).usage
    assert len(ids) == usage.prompt_tokens
    without = program("render", tiny, str(path), "--no-generation-prompt").stdout
    assert text == without + "<|im_start|>assistant\n"


def test_render_with_another_template(tiny: str, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}|{{ m.content }}]{% endfor %}{{ today | default('-') }}")
    words = ("render", tiny, "-", "--template", str(template))
    assert program(*words, stdin=json.dumps(MESSAGES)).stdout == "[system|S][user|the hen <|im_end|>]-"
    template.write_text("{% for m in messages %}never ended")
    done = program(*words, stdin=json.dumps(MESSAGES))
    assert done.returncode == 8 and done.stderr.startswith("herder: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("[", "- is not JSON"),
        ("{}", "messages is an object: expected a list"),
        ('[{"role": "user", "contnt": "x"}]', "messages[0] has 'contnt'"),
        ("[]", "messages is empty"),
        ("[" * 100000, "- is not JSON"),
    ],
)
def test_render_refuses(tiny: str, messages: str, message: str) -> None:
    done = program("render", tiny, "-", stdin=messages)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_perplexity_is_that_of_the_logits(tiny: str) -> None:
    import numpy as np

    text = "the hen and the other hen in the pen " * 3
    done = program("perplexity", tiny, "-", "--context", "32", "--json", stdin=text)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    nll, scored = 0.0, 0
    with herder.load(tiny) as llm:
        tokens = llm.tokenizer.encode(text)
        for start in range(0, len(tokens), 32):
            window = tokens[start : start + 32]
            logits = llm.logits(window).astype(np.float64)
            nll += sum(np.log(np.exp(row - row[token]).sum()) for row, token in zip(logits, window[1:], strict=False))
            scored += len(window) - 1
    assert document["tokens"] == scored and document["text_tokens"] == len(tokens)
    assert document["perplexity"] == pytest.approx(math.exp(nll / scored), rel=1e-5)


def test_chat_over_a_pipe(tiny: str, tmp_path: Path) -> None:
    done = program(
        "chat", tiny, "--temperature", "0", "--max-tokens", "8",
        stdin="the hen\n/save talk\n/stats\n", HERDER_HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 messages, context" in done.stdout
    saved = json.loads((tmp_path / "state/chats/talk.json").read_text())
    with herder.load(tiny) as llm:
        answer = llm.chat("the hen", temperature=0, max_tokens=8).text
    assert saved["messages"][1]["content"] == answer


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["run", "{tiny}", "x" * 2000], 5),
        (["run", "no-such-model", "x"], 3),
        (["run", "{tiny}", "x", "--context", "100000"], 2),
        (["run", "{tiny}", "x", "--max-tokens", "100000"], 5),
        (["run", "org/name", "x", "--offline"], 6),
        (["run", "{tiny}", "x", "--template", "/dev/null/x"], 2),
        (["frobnicate"], 2),
    ],
)
def test_mistakes_are_one_line(tiny: str, words: list[str], code: int) -> None:
    done = program(*(word.format(tiny=tiny) for word in words))
    assert done.returncode == code
    assert done.stdout == "" and done.stderr.startswith("herder: ") and done.stderr.count("\n") == 1


def test_a_damaged_file_is_one_line(tiny: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(Path(tiny).read_bytes()[:-5000])
    for words in (["run", str(path), "x"], ["show", str(path)], ["chat", str(path)], ["perplexity", str(path), "-"]):
        done = program(*words, stdin="the hen")
        assert done.returncode == 4 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_ctrl_c_ends_a_run_with_130(tmp_path: Path) -> None:
    """Signalled once the answer has begun, in the middle of an answer that would take minutes."""
    path = write_tiny_gguf(tmp_path / "long.gguf", formats="Q8_0", context=100_000).path
    words = ["run", str(path), "--raw", "the", "--context", "100000", "--temperature", "3"]
    command = [sys.executable, "-m", "herder.cli", *words]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"\n"
        assert process.wait(30) == 130


def test_an_answer_needs_nothing_that_draws_or_downloads(tiny: str) -> None:
    code = (
        "import sys; from herder.cli.__main__ import main\n"
        f"code = main(['run', {tiny!r}, '--max-tokens', '1', 'hi'])\n"
        "heavy = {'rich', 'prompt_toolkit', 'huggingface_hub', 'numpy', 'torch', 'typer', 'asyncio', 'subprocess'}\n"
        "found = heavy & set(sys.modules)\n"
        "sys.exit(code or (str(found) if found else 0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("redirections", "code", "error"),
    [
        ("<&-", 0, ""),
        ("</dev/null >&-", 0, ""),
        ("</dev/null >/dev/full", 7, "herder: No space left on device\n"),
    ],
)
def test_standard_streams_that_are_closed_or_full(tiny: str, redirections: str, code: int, error: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full: run the tests there")
    script = f"'{sys.executable}' -m herder.cli run '{tiny}' --max-tokens 3 hi {redirections}"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (code, error)


def test_a_file_whose_name_is_no_text(tiny: str, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.gguf"
    os.link(tiny, path)
    done = subprocess.run(
        [sys.executable, "-m", "herder.cli", "pull", path], cwd=ROOT, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, path + b"\n")


def test_a_terminal_that_cannot_show_everything(tiny: str) -> None:
    done = program("tokenize", tiny, stdin=" h\u00e9", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "?" in done.stdout
