"""The command line run inside the test: words in, exit code and both outputs out."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import herder
from herder.cli.__main__ import main
from herder.core.errors import ModelNotFound
from tests.cli.fake_llm import FakeLLM


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("HERDER_", "HF_", "XDG_"))] + ["NO_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*words: str, stdin: str | bytes = b"") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLLM]:
    """What herder.load gives for the names "fake" and "other"; every load's keyword arguments are in llm.loads."""
    models = {"fake": FakeLLM("fake"), "other": FakeLLM("other", "Other: {}".format)}
    loads: list[tuple[str, dict[str, Any]]] = []

    def load(name: str, **options: Any) -> FakeLLM:
        loads.append((name, options))
        if name not in models:
            raise ModelNotFound(f"no model is called {name!r}")
        models[name].closed = False
        return models[name]

    monkeypatch.setattr(herder, "load", load, raising=False)
    fake = models["fake"]
    fake.loads, fake.models = loads, models  # type: ignore[attr-defined]
    yield fake
