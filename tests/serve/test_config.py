"""The configuration: every key read with its type, every unknown one refused by name."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from herder.core.errors import HerderError, UsageError
from herder.serve import lifecycle
from herder.serve.config import (
    Config,
    Images,
    Limits,
    Logging,
    ModelSpec,
    byte_count,
    check_config,
    parse_config,
    read_config,
)

WHOLE = """
host = "127.0.0.1"
port = 9000
hosts = ["herder.local"]
memory = "24 GiB"
parallel = 4
idle = 600
offline = true
lenient = true
cors = ["https://app.example"]
keys = "keys.db"
responses = "responses.db"
tls_certificate = "/etc/cert.pem"
tls_key = "key.pem"

[limits]
body = "8 MiB"
responses_bytes = "1 GiB"
queue = 3
drain = 5

[logging]
prompts = true
audit = "audit.jsonl"

[models.llama]
source = "llama3.2:1b"
aliases = ["gpt-4o-mini", "claude-haiku"]
preload = true
context = 4096
prompt_dtype = "int8"
kv_memory = "1GiB"
idle = 60
template = "chat.jinja"

[models.smollm2]
"""


def test_a_whole_configuration(tmp_path: Path) -> None:
    path = tmp_path / "herder.toml"
    path.write_text(WHOLE)
    config = read_config(path)
    check_config(config)
    assert config.memory == 24 * 2**30 and config.idle == 600.0 and config.limits.body == 8 * 2**20
    assert config.keys == str(tmp_path / "keys.db") and config.tls_certificate == "/etc/cert.pem"
    assert config.logging == Logging(prompts=True, audit=str(tmp_path / "audit.jsonl"))
    assert config.limits.depth == Limits().depth and config.limits.responses_bytes == 2**30
    llama, small = config.models
    assert llama == ModelSpec(
        "llama", "llama3.2:1b", ("gpt-4o-mini", "claude-haiku"), preload=True, context=4096, prompt_dtype="int8",
        kv_memory=2**30, idle=60.0, template=str(tmp_path / "chat.jinja"),
    )  # fmt: skip
    assert small == ModelSpec("smollm2", "smollm2")
    assert config.url == "https://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bogus = 1", "bogus is not a key"),
        ("[limits]\nbogus = 1", r"limits\.bogus is not a key"),
        ("[models.a]\nbogus = 1", r"models\.a\.bogus is not a key"),
        ("[models.a]\nname = 'b'\nnope = 1", "nope"),
        ("models = 3", "models is no table"),
        ("[models]\na = 3", r"models\.a is no table"),
        ("limits = 3", "limits is no table"),
        ("port = '80'", "port is '80'"),
        ("port = true", "port is True: must be a whole number"),
        ("port = -1", "0 or more"),
        ("port = 70000", "between 0"),
        ("idle = 'long'", "idle is 'long': must be a number"),
        ("memory = 'much'", "memory is 'much': must be a number"),
        ("cors = 'x'", "cors is 'x': must be a list"),
        ("lenient = 1", "lenient is 1: must be true or false"),
        ("parallel = 0", "parallel is 0"),
        ("[limits]\nbody = 3", r"limits\.body is 3"),
        ("[models.a]\nruntime = 'x'", r"models\.a\.runtime is 'x': must be one of native, torch"),
        ("[models.a]\ndtype = 'float16'", "dtype is 'float16'"),
        (
            "[models.a]\nprompt_dtype = 'int4'",
            r"models\.a\.prompt_dtype is 'int4': must be one of auto, int8, bfloat16",
        ),
        ("[models.a]\nruntime = 'torch'\nprompt_dtype = 'int8'", "prompt_dtype is 'int8': runtime 'torch' has none"),
        ("[models.a]\naliases = ['b']\n[models.b]", "'b' names both"),
        ("host = '0.0.0.0'", "no API keys"),
        ("tls_key = 'x'", "tls_certificate is missing"),
        ("port = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "herder.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        check_config(read_config(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_an_empty_configuration_is_the_default() -> None:
    assert parse_config({}) == Config()


def test_amounts_of_memory() -> None:
    assert byte_count("1.5 GiB", "x") == 3 * 2**29
    assert byte_count("1024", "x") == 1024
    for text in ("", "-1", "inf", "nan", "1 GB GiB", "GiB"):
        with pytest.raises(UsageError, match="x is"):
            byte_count(text, "x")


def test_every_key_is_documented() -> None:
    for kind in (Config, Images, Limits, Logging, ModelSpec):
        assert kind.__doc__ is not None
        undocumented = {
            "host",
            "port",
            "models",
            "offline",
            "limits",
            "logging",
            "runtime",
            "device",
            "dtype",
            "prompt_dtype",
            "threads",
        }
        undocumented |= {"context", "speculate", "template", "chat_format", "lenient"}
        names = {field.name for field in fields(kind)} - undocumented
        assert not [name for name in names if f"{name}:" not in kind.__doc__ and name not in kind.__doc__], kind


def test_check_prints_what_will_run(smollm2: Path) -> None:
    config = parse_config({"memory": "3 GiB", "models": {"m": {"source": str(smollm2), "aliases": ["n"]}}})
    text = "\n".join(lifecycle.described(config))
    for words in ("http://127.0.0.1:8080", "m (also n)", "context 8192", "when asked for", "images: none"):
        assert words in text
    assert "memory for models: 3 GiB (3.22 GB)" in text and "bodies up to 32 MiB" in text
    for wrong, words in (
        ({"models": {"m": {"source": "/nonexistent.gguf"}}}, "nonexistent"),
        ({"memory": "10 MiB", "models": {"m": {"source": str(smollm2)}}}, "memory"),
        ({"keys": "/nonexistent.db"}, "nonexistent"),
    ):
        with pytest.raises(HerderError, match=words):
            lifecycle.described(parse_config(wrong))
