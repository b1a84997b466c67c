"""The verb serve: the command line as a configuration, and its check."""

from __future__ import annotations

from pathlib import Path

import pytest

from herder.cli import serve as module
from herder.cli.__main__ import main
from herder.cli.serve import COMMANDS
from herder.core.errors import HerderError, UsageError
from herder.serve.config import Config, Images, ModelSpec
from herder.weights import store
from herder.weights.store import Stored


def config(*words: str) -> Config:
    return module._config(COMMANDS["serve"].parse(words))


def test_models_aliases_and_limits() -> None:
    found = config(
        *("smollm2", "big=org/name:Q4_K_M", "--alias", "gpt-4o-mini=smollm2", "--alias", "gpt-4o=big"),
        *(
            "--port",
            "0",
            "--memory",
            "2GiB",
            "--parallel",
            "3",
            "--idle",
            "60",
            "--max-queue",
            "5",
            "--max-body",
            "4096",
        ),
        *("--cors", "https://a.example", "--context", "512", "--lenient"),
        *("--image-host", "pictures.example", "--image-host", "*.cdn.example"),
    )
    assert found.images == Images(("pictures.example", "*.cdn.example"))
    assert found.models == (
        ModelSpec("smollm2", "smollm2", ("gpt-4o-mini",), preload=True, pull=True, context=512),
        ModelSpec("big", "org/name:Q4_K_M", ("gpt-4o",), preload=True, pull=True, context=512),
    )
    assert (found.port, found.memory, found.parallel, found.idle, found.lenient) == (0, 2**31, 3, 60.0, True)
    assert (found.limits.queue, found.limits.body, found.cors) == (5, 4096, ("https://a.example",))


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "herder.toml"
    path.write_text('port = 1\nidle = 5\n[models.m]\nsource = "x"\ncontext = 64\n[models.n]\n')
    found = config("--config", str(path), "--port", "2", "m")
    assert (found.port, found.idle) == (2, 5.0)
    assert found.models == (ModelSpec("m", "x", preload=True, context=64), ModelSpec("n", "n"))


def test_offline_fetches_nothing() -> None:
    assert config("smollm2", "--offline").models == (ModelSpec("smollm2", "smollm2", preload=True),)


def test_without_models_everything_here_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [Stored(name, Path("x"), 1, None, "herder") for name in ("smollm2", "org/other")]
    monkeypatch.setattr(store, "list_models", lambda: here)
    assert config().models == (
        ModelSpec("smollm2", "smollm2", preload=True, pull=True),
        ModelSpec("org/other", "org/other"),
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alias", "x"], "write --alias"),
        (["smollm2", "--alias", "a=b"], "'b', which is not served"),
        (["--context", "5"], "--context is of the models on the command line"),
        (["smollm2", "--memory", "much"], "--memory is 'much'"),
        (["--config", "/nonexistent.toml"], "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        config(*words)


def test_check_ends_without_serving(smollm2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--check", f"small={smollm2}", "--port", "0"]) == 0
    out = capsys.readouterr().out
    assert "listen on http://127.0.0.1:0, without keys: this machine only" in out and "small: " in out
    assert main(["serve", "--check", "--host", "0.0.0.0", str(smollm2)]) == HerderError.exit_code + 1
    assert "no API keys" in capsys.readouterr().err
