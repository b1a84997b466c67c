"""The verbs about models and machines, on tiny models in real files."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from herder.core import machine
from herder.core.errors import UsageError
from herder.weights import registry, store
from herder.weights.registry import Entry, WheelSource
from tests.cli.conftest import Run
from tests.cli.fake_llm import FakeLLM
from tests.tiny import write_tiny_gguf

DATA = b"GGUF, as far as sizes go"
SOURCE = WheelSource("no-such-package", "1", "no_such_package/t.gguf", len(DATA), hashlib.sha256(DATA).hexdigest(), 100)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", formats="Q8_0", add_bos=False).path)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short name whose file is in its place, as after a pull."""
    monkeypatch.setitem(registry.MODELS, "tiny", Entry(SOURCE, "Tiny", "Apache-2.0"))
    path = store._directory("tiny") / "t.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    return path


# pull, list, rm ------------------------------------------------------------------------------------------------------


def test_pull_prints_where_the_model_is(run: Run, fetched: Path, tiny: str) -> None:
    assert run("pull", "tiny") == (0, f"{fetched}\n", "")
    assert json.loads(run("pull", "tiny", "--json").out) == {"model": "tiny", "path": str(fetched)}
    assert run("pull", tiny).out == f"{tiny}\n", "a path is used where it lies"


def test_pull_without_a_network(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("pull", "org/name", "--offline")
    assert result.code == 6 and "run `herder pull org/name` where there is a network" in result.err
    monkeypatch.setenv("HERDER_OFFLINE", "1")
    assert run("pull", "org/name").code == 6
    assert run("run", "org/name", "hi").code == 6


def test_list(run: Run, fetched: Path) -> None:
    result = run("list")
    assert result.code == 0 and result.err == ""
    heading, row = result.out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "USED", "FROM", "PATH"]
    assert row.split()[:3] == ["tiny", "24", "B"] and row.endswith(str(fetched))
    document = json.loads(run("list", "--json").out)
    assert document == [{"name": "tiny", "path": str(fetched), "bytes": 24, "used": None, "origin": "herder"}]
    everything = run("list", "--all").out
    assert all(f"\n{name} " in everything for name in registry.MODELS if name != "tiny")
    assert {model["name"] for model in json.loads(run("list", "--all", "--json").out)} == set(registry.MODELS)


def test_when_a_model_was_used_last(run: Run, fetched: Path) -> None:
    store.find("tiny")
    assert "just now" in run("list").out
    import os

    stamp = store._stamp("tiny", fetched)
    for age, text in ((90, "1 minute ago"), (7300, "2 hours ago"), (200_000, "2 days ago")):
        when = __import__("time").time() - age
        os.utime(stamp, (when, when))
        assert text in run("list").out


def test_list_of_nothing(run: Run) -> None:
    result = run("list")
    assert (result.code, result.out) == (0, "")
    assert "herder pull smollm2" in result.err
    assert run("list", "--json").out == "[]\n"


def test_rm(run: Run, fetched: Path, tiny: str) -> None:
    assert run("rm", "tiny") == (0, "", "herder: removed tiny, 24 B freed\n")
    assert not fetched.exists()
    assert run("rm", "tiny").code == 3
    assert run("rm", tiny).code == 7 and Path(tiny).exists()


# show, tokenize ------------------------------------------------------------------------------------------------------


def test_show(run: Run, tiny: str) -> None:
    result = run("show", tiny, "--context", "64", "--context", "128")
    assert result.code == 0 and result.err == ""
    lines = [line.split(maxsplit=1) for line in result.out.splitlines()]
    found = {name: value for name, value in lines if name != "memory"}
    assert found["name"] == "Tiny"
    assert found["architecture"] == "llama"
    assert found["layers"] == "2 of dimension 64, feed-forward 96"
    assert found["heads"] == "4 of 16, 2 for keys and values"
    assert found["vocabulary"] == "288 tokens, head tied to the embedding"
    assert found["licence"] == "apache-2.0"
    assert found["file"] == tiny
    assert "Q8_0" in found["types"] and "F32" in found["types"]
    assert [value.split(" at ")[1].split(":")[0] for name, value in lines if name == "memory"] == [
        "64 tokens",
        "128 tokens",
    ]


def test_show_as_json(run: Run, tiny: str) -> None:
    document = json.loads(run("show", tiny, "--json").out)
    assert document["config"]["dim"] == 64
    assert document["parameters"] > 50_000
    assert document["file_bytes"] == Path(tiny).stat().st_size
    (memory,) = document["memory"]
    assert memory["context"] == 256 and memory["kv_bytes"] == 2 * 2 * 2 * 16 * 256 * 2


def test_tokenize(run: Run, tiny: str) -> None:
    result = run("tokenize", tiny, stdin="the hen")
    assert result.code == 0
    ids = [int(line.split("\t")[0]) for line in result.out.splitlines()]
    assert json.loads(run("tokenize", tiny, "--json", stdin="the hen").out) == ids
    assert "".join(line.split("\t")[1] for line in result.out.splitlines()) == "theĠhen"


def test_tokenize_takes_control_tokens_as_text_unless_told(run: Run, tiny: str) -> None:
    text = "a<|im_end|>"
    assert 2 not in json.loads(run("tokenize", tiny, "--json", stdin=text).out)
    assert json.loads(run("tokenize", tiny, "--json", "--special", stdin=text).out)[-1] == 2


def test_tokenize_with_a_vocabulary_only_file(run: Run, tmp_path: Path, tiny: str) -> None:
    path = str(write_tiny_gguf(tmp_path / "vocabulary.gguf", vocabulary_only=True).path)
    assert run("tokenize", path, stdin="the hen").out == run("tokenize", tiny, stdin="the hen").out
    assert run("show", path).code == 4


def test_a_file_that_is_no_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    for verb in (("show",), ("tokenize",), ("bench",)):
        result = run(*verb, str(path), stdin="x")
        assert result.code == 4 and result.err.startswith("herder: ") and result.err.count("\n") == 1


# perplexity, bench, doctor -------------------------------------------------------------------------------------------


def test_perplexity(run: Run, llm: FakeLLM, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("x" * 25, encoding="utf-8")
    result = run("perplexity", "fake", str(text), "--context", "10", "--json")
    document = json.loads(result.out)
    assert result.code == 0 and result.err == ""
    assert document["perplexity"] == pytest.approx(2)
    assert (document["tokens"], document["windows"], document["text_tokens"]) == (9 + 9 + 4, 3, 25)
    assert document["nll"] == pytest.approx(22 * math.log(2))
    assert llm.loads[0][1]["context"] == 10  # type: ignore[attr-defined]
    plain = run("perplexity", "fake", "-", "--context", "10", stdin="x" * 25)
    assert plain.out == "2.0000\n" and "22 tokens scored in 3 windows of 10" in plain.err


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (["/no/such/file"], b"", "/no/such/file cannot be read: No such file or directory"),
        (["-"], b"x", "the text has 1 tokens: at least 2 are needed"),
        (["-"], b"\xff", "standard input is not UTF-8"),
        (["-", "--context", "1"], b"xx", "--context is 1: a window needs 2 tokens or more"),
    ],
)
def test_perplexity_refuses(run: Run, llm: FakeLLM, words: list[str], stdin: bytes, message: str) -> None:
    result = run("perplexity", "fake", *words, stdin=stdin)
    assert result.code == 2 and message in result.err


def test_windows_do_not_overlap() -> None:
    from herder.evals.perplexity import measure, windows

    assert [len(w) for w in windows(range(25), 10)] == [10, 10, 5]
    assert [len(w) for w in windows(range(21), 10)] == [10, 10], "nothing to score in a window of one"
    assert [token for window in windows(range(20), 10) for token in window] == list(range(20))
    with pytest.raises(UsageError):
        next(measure(lambda tokens: [], [1, 2], 1))


def test_bench_on_a_tiny_model(run: Run, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--prompt-tokens", "40", "--gen-tokens", "4", "--streams", "1,3", "--repeats", "2", "--threads", "1"]
    result = run("bench", tiny, *words, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["prefill_tokens_per_s"] > 0 and document["decode_tokens_per_s"] > 0
    assert set(document["batched_tokens_per_s"]) == {"1", "3"}
    fractions, limits = document["fractions"], document["limits"]
    assert set(fractions) == {"prefill_of_peak", "decode_of_bandwidth", "batched_of_bandwidth", "batched_of_peak"}
    assert set(fractions["batched_of_peak"]) == set(fractions["batched_of_bandwidth"]) == {"1", "3"}
    config = json.loads(run("show", tiny, "--json").out)["config"]
    kv = 2 * config["layers"] * config["kv_heads"] * config["head_dim"] * 2 * (40 + 4 // 2)
    bytes_per_s = document["decode_tokens_per_s"] * (limits["weights_read_per_step_bytes"] + kv)
    assert fractions["decode_of_bandwidth"] == pytest.approx(bytes_per_s / limits["bandwidth_bytes_per_s"])
    operations = document["prefill_tokens_per_s"] * limits["operations_per_token"]
    assert fractions["prefill_of_peak"] == pytest.approx(operations / limits["int8_ops_per_s"])
    assert limits["operations_per_token"] == 2 * (
        config["layers"] * (config["dim"] * config["head_dim"] * 12 + 3 * config["dim"] * config["ffn_dim"])
        + config["vocab"] * config["dim"]
    )
    assert document["machine"]["threads"] == 1 and document["versions"]["herder"]
    assert [len(values) for values in document["rounds"]["batched_tokens_per_s"].values()] == [2, 2]


def test_bench_prints_a_table(run: Run, tiny: str) -> None:
    result = run("bench", tiny, "--prompt-tokens", "8", "--gen-tokens", "2", "--streams", "1", "--repeats", "1")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["TOKENS/S", "prefill", "decode", "1"]
    assert "medians of 1" in result.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "name either a model or --synthetic SHAPE@FORMAT"),
        (["x", "--synthetic", "y"], 2, "name either a model or --synthetic"),
        (["--synthetic", "llama-9b@q4_0"], 2, "there is no published model 'llama-9b'"),
        (["--synthetic", "smollm2-135m@q4_0", "--gen-tokens", "1"], 2, "--gen-tokens is 1: must be 2 or more"),
        (
            ["--synthetic", "smollm2-135m@q4_0", "--prompt-tokens", "9000"],
            2,
            "make 9128 tokens: this model's context is 8192",
        ),
        (["--synthetic", "smollm2-135m@q4_0", "--streams", "65"], 2, "--streams has 65: at most 64"),
    ],
)
def test_bench_refuses(run: Run, words: list[str], code: int, message: str) -> None:
    result = run("bench", *words)
    assert result.code == code and message in result.err and result.err.count("\n") == 1


def test_bench_refuses_what_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(10**10, 10**9, False))
    result = run("bench", "--synthetic", "llama-3.1-8b@q4_0")
    assert result.code == 10
    assert "the weights take 5.04 GB" in result.err and "1.00 GB of memory are free" in result.err


def test_doctor(run: Run, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "DEFAULT", "tiny")
    result = run("doctor")
    assert result.code == 0, result.out
    assert [line.split()[1] for line in result.out.splitlines()] == [
        "herder", "packages", "core", "PyTorch", "processor", "memory", "pages", "models", "hub", "network",
    ]  # fmt: skip
    assert f"tiny is at {fetched}" in result.out
    document = json.loads(run("doctor", "--json").out)
    assert document["ok"] is True
    assert {check["status"] for check in document["checks"]} <= {"ok", "warning"}


def test_doctor_measures(run: Run) -> None:
    checks = json.loads(run("doctor", "--json", "--measure", "--threads", "1").out)["checks"]
    assert checks[-1]["name"] == "limits" and "int8 operations/s" in checks[-1]["detail"]


def test_doctor_finds_what_is_broken(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from herder.runtime import abi

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HERDER_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(abi, "library_path", lambda: str(tmp_path / "none.so"))
    abi.library.cache_clear()
    result = run("doctor", "--json")
    abi.library.cache_clear()
    assert result.code == 1
    document = json.loads(result.out)
    assert document["ok"] is False
    broken = {check["name"]: check["detail"] for check in document["checks"] if check["status"] == "broken"}
    assert set(broken) == {"core", "models"}
    assert "is missing: install Herder again" in broken["core"]
