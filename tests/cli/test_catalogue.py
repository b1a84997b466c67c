"""herder models: a table that fits 100 columns, one model in detail, and both as JSON."""

from __future__ import annotations

import json

from herder.weights.catalogue import CATALOGUE, published
from tests.cli.conftest import Run


def test_the_table(run: Run) -> None:
    result = run("models")
    assert result.code == 0 and "PyTorch" in result.err
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", *CATALOGUE]
    assert max(map(len, lines + result.err.splitlines())) <= 100
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert " ".join(rows["llama-3.1-405b"]) == "126x16384 406B 128k 812 431 229 Llama 3.1 text"
    assert " ".join(rows["llama-4-maverick"]) == "48x5120 402B (17.2B) 1M 803 428 228 Llama 4 +images"
    assert rows["llama-guard-3-1b-int4"][-1] == "no"


def test_one_model_in_detail(run: Run) -> None:
    result = run("models", "llama-4-scout")
    assert result.code == 0 and result.err == ""
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines() if line[0] != " ")
    assert lines["attention"] == (
        "36 x chunks of 8192, QK norm, experts; 12 x full attention, no RoPE, temperature, experts"
    )
    assert lines["experts"] == "1 of 16 of 8192 and a shared one of 8192, by sigmoid"
    assert "kv 10M        517 GB (515 GB + 1.21 GB in layers of bounded reach)" in result.out
    assert lines["chat"] == "llama4" and lines["runs"].endswith("images: torch (--runtime torch)")
    assert max(map(len, result.out.splitlines())) <= 120
    assert "fetch         herder pull llama3.2:1b" in run("models", "llama-3.2-1b").out


def test_as_json(run: Run) -> None:
    everything = json.loads(run("models", "--json").out)
    assert [model["name"] for model in everything] == list(CATALOGUE)
    assert json.loads(run("models", "mixtral-8x7b", "--json").out) in everything
    by_name = {model["name"]: model for model in everything}
    scout = by_name["llama-4-scout"]
    assert scout["parameters"] == published("llama-4-scout").parameters
    assert scout["kv_bytes"] == {"everywhere": 480 << 30, "local": 9 << 27}
    assert scout["weight_bytes"]["BF16"] == 2 * scout["parameters"]
    assert scout["runs"] == {"native": ["text"], "torch": ["text", "images"]}
    assert by_name["smollm2-135m"]["weight_bytes"]["Q4_K"] is None
    assert by_name["llama-guard-3-1b-int4"]["runs"] == {"native": [], "torch": []}


def test_an_unknown_model(run: Run) -> None:
    result = run("models", "llama-5")
    assert result.code == 2 and result.err.startswith("herder: there is no published model 'llama-5': did you mean ")
    assert result.err.count("\n") == 1
