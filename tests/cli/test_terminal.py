"""What is drawn on a terminal: Markdown as it comes, colours, progress, and a real chat on a pseudo-terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.markdown import Markdown

from herder.cli import terminal
from herder.cli.markdown import MarkdownView, finished
from herder.cli.progress import Transfer
from herder.core.sizes import bound_text, bytes_text, count_text, seconds_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", ""),
        ("one line", ""),
        ("a paragraph\n\nanother", "a paragraph\n\n"),
        ("```python\nx = 1\n\ny = 2\n", ""),
        ("```python\nx\n```\n\nafter", "```python\nx\n```\n\n"),
        ("~~~\n```\n\n~~~\n\nx", "~~~\n```\n\n~~~\n\n"),
        ("1. one\n\n2. two\n\n", ""),
        ("- one\n\n- two\n\nAfter the list", ""),
        ("- one\n\n- two\n\nAfter the list\n", "- one\n\n- two\n\n"),
        ("1. one\n2", ""),
        ("- one\n\n  still one\n\n", ""),
        ("text\n\n- item\n", "text\n\n"),
    ],
)
def test_blocks_that_cannot_change_any_more(text: str, done: str) -> None:
    assert text[: finished(text)] == done


@given(
    st.lists(
        st.sampled_from(["word ", "\n", "\n\n", "```\n", "- item\n", "1. x\n", "  in\n", "# T\n", "~~~"]), max_size=30
    )
)
def test_finished_blocks_stay_finished(pieces: list[str]) -> None:
    """What is printed for good is a prefix of what the whole text would print: nothing is taken back."""
    text, end = "", 0
    for piece in pieces:
        text += piece
        now = end + finished(text[end:])
        assert now >= end
        end = now


def test_what_is_redrawn_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that stay are those that the same blocks print without any redrawing."""
    monkeypatch.setattr("herder.cli.markdown._PAUSE", 0)
    monkeypatch.setattr("herder.cli.markdown._SHARE", 0)
    blocks = ["# Title", "Some **bold** words.", "```python\nprint(1)\n\nprint(2)\n```"]
    blocks.append("\n".join(f"{i}. item" for i in range(1, 30)))
    text = "\n\n".join(blocks) + "\n\nThe end"
    out, plain = io.StringIO(), io.StringIO()
    with MarkdownView(Console(file=out, force_terminal=True, width=60, height=10, color_system=None)) as view:
        for i in range(0, len(text), 7):
            view.write(text[i : i + 7])
    console = Console(file=plain, width=60)
    for block in blocks:
        console.print(Markdown(block))
        console.print()
    console.print(Markdown("The end"))
    assert screen(out.getvalue()) == screen(plain.getvalue())


def screen(output: str) -> list[str]:
    """What stays on a terminal: carriage returns, cursor up (CSI A) and erased lines (CSI 2K) carried out."""
    lines, row = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[[0-9;?]*[A-Za-z])", output):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and not part.startswith(("\r", "\x1b")):
            lines[row] += part
    return [line.rstrip() for line in lines]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_does_not_control_the_terminal() -> None:
    written = "a\x1b[2J\x1b]52;c;ZXZpbA==\x07\tb\r\n\x9b1m"
    assert terminal.harmless(written, io.StringIO()) == written, "a file gets exactly what was written"
    assert terminal.harmless(written, Screen()) == "a␛[2J␛]52;c;ZXZpbA==␇\tb␍\n\ufffd1m"


def test_colours_only_for_those_who_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.styled("x", "1", Screen()) == "\x1b[1mx\x1b[0m"
    assert terminal.styled("x", "1", io.StringIO()) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.styled("x", "1", Screen()) == "x"


def test_progress_without_a_terminal_says_little(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("herder.cli.progress.time.monotonic", lambda: float(next(clock)))
    progress = Transfer()
    for done in range(0, 100_000_000, 20_000_000):
        progress("fetching x", done, 100_000_000)
    progress("unpacking x", 5, None)
    assert capsys.readouterr().err == (
        "herder: fetching x: 20.0 MB of 100 MB\nherder: fetching x: 80.0 MB of 100 MB\nherder: unpacking x\n"
    )


def test_bytes() -> None:
    counts = (0, 999, 1000, 98_362_432, 4.92e9, 999.6e6, 8e14)
    assert [bytes_text(n) for n in counts] == ["0 B", "999 B", "1.00 kB", "98.4 MB", "4.92 GB", "1.00 GB", "800 TB"]


def test_bounds_are_exact() -> None:
    counts = (0, 1, 1000, 1024, 1536, 32 << 20, 3 << 29, 48 << 30, 2 << 50, 10**8)
    texts = ["0 B", "1 B", "1000 B", "1 KiB", "1536 B", "32 MiB", "1536 MiB", "48 GiB", "2048 TiB", "100000000 B"]
    assert [bound_text(count) for count in counts] == texts


def test_counts_and_durations() -> None:
    assert [count_text(n) for n in (12, 134_515_008, 8.03e9, 405.9e9)] == ["12", "135M", "8.03B", "406B"]
    assert [seconds_text(s) for s in (0.042, 2.14, 200, 3900)] == ["42 ms", "2.1 s", "3 min 20 s", "1 h 5 min"]


PROGRAM = """
import sys, time, herder
from tests.cli.fake_llm import FakeLLM
answers = {"long": "word " * 2000, "table": "**bold** and `code`"}
def load(name, **options):
    llm = FakeLLM(name, lambda text: answers.get(text, "You said: " + text))
    llm.context = 10**6
    start = llm._start
    def slow(*given):
        stream = start(*given)
        stream.pieces, pieces = Slow(stream.pieces), stream.pieces
        return stream
    llm._start = slow
    return llm
class Slow(list):
    def __iter__(self):
        for piece in list.__iter__(self):
            time.sleep(0.002)
            yield piece
herder.load = load
from herder.cli.__main__ import main
sys.exit(main(["chat", "fake", *sys.argv[1:]]))
"""


PROMPT = r">.*\x1b\[\?25h"  # the mark, and the cursor shown


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[pexpect.spawn]:
    environment = {**os.environ, "HERDER_HOME": str(tmp_path / "home"), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    environment["PROMPT_TOOLKIT_NO_CPR"] = "1"  # this terminal does not tell where its cursor is
    environment.pop("NO_COLOR", None)
    child = pexpect.spawn(
        sys.executable,
        ["-c", PROGRAM],
        env=environment,
        cwd=str(ROOT),
        encoding="utf-8",
        timeout=20,
        dimensions=(24, 80),
    )
    child.expect("/help lists the commands")
    child.expect(PROMPT)
    yield child
    child.close(force=True)


def test_a_chat_on_a_terminal(chat: pexpect.spawn, tmp_path: Path) -> None:
    chat.send("hello\r")
    chat.expect("You said: hello")
    chat.expect(r"15 tokens, 140\.0/s.*context 20 of 1000000 \(0 %\)")
    chat.send("two\x1b\rlines\r")  # Alt-Enter
    chat.expect("You said: two")
    chat.expect("lines")
    chat.expect("tokens,")
    chat.send("table\r")
    chat.expect("bold")
    chat.expect("tokens,")
    chat.send("\x04")  # Ctrl-D
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
    history = tmp_path / "home/state/chat_history"
    assert "+hello" in history.read_text() and history.stat().st_mode & 0o077 == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: pexpect.spawn) -> None:
    chat.send("long\r")
    chat.expect("word word")
    chat.send("\x03")
    chat.expect("tokens.*, stopped; context")
    chat.expect(PROMPT)
    chat.send("abandoned line\x03")
    chat.expect(PROMPT)
    chat.send("/stats\r")
    chat.expect("2 messages")
    chat.send("/quit\r")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0
