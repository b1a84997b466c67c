"""Shell completion: what can follow, and the scripts in the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from herder.cli import verbs
from herder.cli.shell import FILES, SHELLS, candidates
from tests.cli.conftest import Run

ROOT = Path(__file__).resolve().parents[2]


def values(*words: str) -> list[str]:
    return [value for value, _ in candidates(list(words))]


def test_verbs_come_first() -> None:
    assert values() == values("") == values("ru") == verbs.names()
    assert "complete" not in values("")


def test_options_models_and_files() -> None:
    assert "--temperature" in values("run", "--t") and "--help" in values("run", "-")
    assert {"smollm2", "llama3.2:1b", FILES} <= set(values("run", ""))
    assert values("run", "smollm2", "") == [], "a prompt is anything"
    assert values("run", "smollm2", "--template", "") == [FILES]
    assert values("run", "smollm2", "--runtime", "") == ["native", "torch"]
    assert values("run", "--seed", "1", "--json", "") == values("run", "")
    assert values("run", "--seed", "") == []
    assert values("run", "--dtype=") == ["--dtype=auto", "--dtype=float32", "--dtype=bfloat16", "--dtype=float16"]
    assert values("perplexity", "smollm2", "") == [FILES]
    assert values("completion", "") == list(SHELLS)
    assert values("nonsense", "") == []


def test_the_verb_prints_values_and_descriptions(run: Run) -> None:
    result = run("complete", "--", "completion", "")
    assert result == (0, "bash\t\nzsh\t\nfish\t\n", "")
    assert "run\tAnswer one prompt" in run("complete", "--", "").out
    assert "--help\tPrint this help\n" in run("complete", "--", "run", "--").out


def test_the_scripts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in SHELLS:
        result = run("completion", shell)
        assert result.code == 0 and "herder complete --" in result.out
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run("completion").out == run("completion", "fish").out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "the shell 'tcsh' is not one of bash, zsh, fish" in run("completion").err


@pytest.fixture
def path(tmp_path: Path) -> dict[str, str]:
    """An environment in which `herder` runs this source tree."""
    program = tmp_path / "bin/herder"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m herder.cli "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def shell(name: str, script: str, environment: dict[str, str]) -> list[str]:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: install it and run the tests again")
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run([name, *options, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("herder ru", ["run"]),
        ("herder completion ", ["bash", "zsh", "fish"]),
        ("herder run smollm2 --tempe", ["--temperature"]),
        ("herder run llama3.2:1", ["1b"]),
        ("herder run --dtype=b", ["bfloat16"]),
    ],
)
def test_in_bash(path: dict[str, str], line: str, expected: list[str]) -> None:
    script = (
        'eval "$(herder completion bash)"; compopt() { :; }\n'
        f"COMP_LINE='{line}'; COMP_POINT={len(line)}; _herder; printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    assert shell("bash", script, path) == expected


def test_in_fish(path: dict[str, str]) -> None:
    found = shell("fish", "herder completion fish | source; complete -C 'herder ru'", path)
    assert [line.split("\t")[0] for line in found] == ["run"]


def test_in_zsh(path: dict[str, str]) -> None:
    """zsh completes only on a terminal: here its own parser reads the script, and the function's words are checked."""
    script = (
        'autoload -Uz compinit; compinit -u -D; eval "$(herder completion zsh)"\n'
        "_describe() { print -l ${(P)2} }\n"
        "words=(herder ru); CURRENT=2; _herder\n"
    )
    assert any(line.startswith("run:Answer one prompt") for line in shell("zsh", script, path))
