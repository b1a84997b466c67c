"""herder show on models too large to load, and on those whose layers differ."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from herder.cache.plan import sequence_bytes
from herder.core import machine
from herder.weights.catalogue import published
from tests.cli.conftest import Run
from tests.tiny import random_weights, tiny_config, write_tiny_gguf, write_tiny_hf
from tests.tiny_moe import llama4, mixtral
from tests.weights.headers import write_headers
from tests.weights.meta_files import dense_state, params, split, write_meta


def lines(out: str) -> dict[str, str]:
    return {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}


def test_llama_3_1_405b_by_its_headers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """812 GB in 191 shards, of which only the headers are there: nothing else is read."""
    config = published("llama-3.1-405b").config
    total = write_headers(tmp_path / "405b", config)
    assert total == 2 * config.parameters
    result = run("show", str(tmp_path / "405b"))
    assert result.code == 0 and result.err == ""
    found = lines(result.out)
    assert found["parameters"] == "406B (405,853,388,800)"
    assert found["layers"] == "126 of dimension 16384, feed-forward 53248"
    assert found["types"] == "1137 BF16 (812 GB)" and found["file"].endswith("-00001-of-00191.safetensors and 190 more")
    assert found["weights"] == "native 812 GB; torch 812 GB in bfloat16, 1.62 TB in float32"
    assert found["memory"] == "879 GB at 131072 tokens: native weights and a KV cache of 67.6 GB"
    document = json.loads(run("show", str(tmp_path / "405b"), "--json", "--context", "1").out)
    native = total + 2 * 253 * 16384  # the core keeps norms in float32
    assert document["memory"] == [
        {"context": 1, "kv_bytes": 516_096, "kv_local_bytes": 0, "total_bytes": native + 516_096}
    ]
    assert document["weights"]["torch"] == {"bfloat16": total, "float32": 2 * total}
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1 << 36, 1 << 36, False))
    result = run("run", str(tmp_path / "405b"), "hello")
    assert result.code == 10 and "the weights take 812 GB" in result.err and result.err.count("\n") == 1


def test_layers_of_bounded_reach_and_experts(run: Run, tmp_path: Path) -> None:
    config = tiny_config(**llama4(context=4096))
    path = write_tiny_hf(tmp_path / "llama4", dtype="BF16", **llama4(context=4096)).path
    document = json.loads(run("show", str(path), "--json").out)
    kv = sequence_bytes(config, 4096)
    [memory] = document["memory"]
    assert (memory["kv_bytes"], memory["kv_local_bytes"]) == (sum(kv), kv.local)
    native = document["weights"]["native"]
    assert native["active"] == native["experts"] // 4 > 0
    assert memory["total_bytes"] == native["resident"] + native["active"] + sum(kv)
    found = lines(run("show", str(path)).out)
    assert "of experts as they are used; torch" in found["weights"]
    assert "in layers of bounded reach)" in found["memory"]
    window = write_tiny_hf(tmp_path / "mixtral", **mixtral(window=40)).path
    assert lines(run("show", str(window)).out)["memory"].endswith("all of it in layers of bounded reach")


def test_metas_own_files(run: Run, tmp_path: Path) -> None:
    config = tiny_config(tied=False)
    weights, _, _ = random_weights(config, "F32", seed=1)
    path = write_meta(tmp_path / "meta", split(dense_state(config, weights), 2), params(config))
    found = lines(run("show", str(path)).out)
    assert found["layers"] == "2 of dimension 64, feed-forward 96"
    assert found["parameters"].endswith(f"({config.parameters:,})")
    assert found["file"].endswith("consolidated.00.pth and 1 more")


def test_files_are_compared_with_metas_list_when_asked_to(run: Run, tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf").path
    assert "checklist.chk cannot be read" in run("show", str(path), "--verify").err
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    (tmp_path / "checklist.chk").write_text(f"{digest}  model.gguf\n")
    assert run("show", str(path), "--verify").code == 0
    (tmp_path / "checklist.chk").write_text(f"{'0' * 32}  model.gguf\n")
    found = run("show", str(path), "--verify")
    assert found.code == 7 and "has the MD5 sum" in found.err and found.out == ""
