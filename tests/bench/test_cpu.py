"""The CPU table: rows as data, merging, verdicts, the page and the chart. Nothing is measured."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import cpu
from bench.chart import Bar, svg
from bench.divergence import divergence
from bench.measure import Entry, best, recall
from bench.quality import WINDOW, windows
from bench.report import markdown
from bench.rows import BITS, BY_NAME, OPENVINO, ROWS
from bench.verdict import share, verdict

MODEL = {"layers": 10**9, "head": 2 * 10**8, "kv": 32768, "tied": True, "vocab": 128256}
LIMITS = {"bandwidth": 3e10, "int8_ops": 1e13, "f32_flops": 1e11}


def entry(engine: str, kind: str, *seconds: float) -> dict[str, Any]:
    return {
        "engine": engine,
        "format": kind,
        "file_bytes": 600_000_000,
        "settings": {"flash": False} if engine == "llama.cpp" else {},
        "version": "1",
        "system": "amx",
        "seconds": list(seconds),
    }


def result(*entries: dict[str, Any], prompt: int = 512, gen: int = 64) -> dict[str, Any]:
    plan = {"prompt": prompt, "gen": gen}
    return {"limits": LIMITS, "model": MODEL, "entries": list(entries), "plan": plan}


def test_every_row_is_there_once_and_has_a_goal() -> None:
    assert len(BY_NAME) == len(ROWS) == len({row.title for row in ROWS})
    for row in ROWS:
        assert 0 < row.goal < row.stretch
        assert set(row.formats) <= set(BITS)
        assert row.room >= row.streams * (row.prompt + row.gen)
    assert set(OPENVINO) | set(OPENVINO.values()) <= set(BITS)


def test_the_best_peer_counts_and_the_gate_chooses_our_format() -> None:
    row = BY_NAME["prefill-135m"]
    ours = [entry("Herder", "Q4_1", 0.1, 9.0, 0.1), entry("Herder", "Q4_0", 0.2, 0.2, 0.2)]
    theirs = [entry("llama.cpp", "Q4_0", 0.4), entry("OpenVINO", "Q4_0", 0.3)]
    quality = {"Herder Q4_1": {"kl": 0.001}, "Herder Q4_0": {"kl": 0.0104}, "OpenVINO Q4_0": {"kl": 0.01}}
    found = verdict(row, result(*ours, *theirs), quality)
    assert (found.ours["format"], found.theirs["engine"], found.gate) == ("Q4_0", "OpenVINO", True)  # Q4_1: more bits
    assert found.ratio == pytest.approx(1.5)
    assert found.word(row) == "below"
    worse = quality | {"Herder Q4_0": {"kl": 0.0106}}
    assert verdict(row, result(*ours, *theirs), worse).gate is False
    assert verdict(row, result(*ours, *theirs), {}).gate is None
    generated = quality | {"Herder-generated Q4_0": {"kl": 0.02}}  # no matter to prompts, all that matters to answers
    assert verdict(row, result(*ours, *theirs), generated).gate is True
    assert verdict(BY_NAME["decode-135m"], result(*ours, *theirs), generated).gate is False


@pytest.mark.parametrize(
    ("name", "seconds", "expected"),
    [
        ("prefill-1b", 0.5, 2 * 512 * 1e9 / 1e13 / 0.5),
        ("decode-1b", 4.0, 64 * (6e8 + (512 + 32) * 32768) / 3e10 / 4.0),
        ("start-8b", 1.0, 6e8 / 3e10 / 1.0),
        ("avx2-prefill", 1.0, 2 * 512 * 1e9 / 1e13),
        ("edit", 1.0, None),
    ],
)
def test_shares_of_the_limit(name: str, seconds: float, expected: float | None) -> None:
    found = share(BY_NAME[name], result(), entry("Herder", "Q4_0", seconds))
    assert found == (None if expected is None else pytest.approx(expected))


def test_prompts_are_compared_with_dot_products_too() -> None:
    row, both = BY_NAME["prefill-1b"], [entry("Herder", "Q4_0", 0.5), entry("llama.cpp", "Q4_0", 1.0)]
    measured = result(*both)
    assert verdict(row, measured, {}).dot_products is None
    measured["limits"] = LIMITS | {"vnni_ops": 3e12}
    assert verdict(row, measured, {}).dot_products == pytest.approx(2 * 512 * 1e9 / 3e12 / 0.5)
    assert verdict(BY_NAME["decode-1b"], measured, {}).dot_products is None
    document = cpu.empty()
    cpu.merge(document, "prefill-1b", measured, "2026-01-01")
    assert "(20%, VNNI 68%), Q4_0 |" in markdown(document, "c.svg")


def test_a_row_replaces_its_old_figures_and_no_other(tmp_path: Path) -> None:
    document = cpu.load(tmp_path / "benchmarks.json", 2)
    both = [entry("Herder", "Q4_0", 1.0), entry("llama.cpp", "Q4_0", 1.7)]
    cpu.merge(document, "decode-1b", result(*both), "2026-01-02")
    cpu.merge(document, "prefill-1b", result(*both), "2026-01-01")
    cpu.merge(document, "decode-1b", result(both[0], entry("llama.cpp", "Q4_0", 1.2)), "2026-01-03")
    cpu.save(document, tmp_path)
    again = cpu.load(tmp_path / "benchmarks.json", 2)
    assert again == document
    assert list(again["rows"]) == ["prefill-1b", "decode-1b"]
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "**1.70** | goal" in page and "**1.20** | goal" in page and "2026-01-01 to 2026-01-03" in page
    assert "llama.cpp, Q4_0, no flash" in page
    tree = ElementTree.parse(tmp_path / cpu.CHART)
    assert "1.70" in [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_settings_found_once_are_recalled(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch()
    entries = [
        Entry("Herder", "Q4_0", path),
        Entry("llama.cpp", "Q4_0", path, {"repack": True}, {"flash": True}, [2.0]),
        Entry("llama.cpp", "Q4_0", path, {"repack": True}, {"flash": False}, [1.0]),
        Entry("OpenVINO", "Q4_0", path, {"backend": "PA"}, {}, [3.0]),
    ]
    tries = json.loads(json.dumps([entry.record() for entry in entries[1:]]))
    fresh = [replace(entry, seconds=[]) for entry in entries]
    assert not recall(fresh, tries[1:])
    assert recall(fresh, tries)
    assert best(fresh) == [fresh[0], fresh[2], fresh[3]]


def test_figures_of_two_machines_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(cpu.empty() | {"cpu": "another"}), encoding="utf-8")
    with pytest.raises(SystemExit, match="another, 2 threads"):
        cpu.load(path, 2)


def test_the_page_has_a_quality_table() -> None:
    document = cpu.empty()
    both = [entry("Herder", "Q4_0", 1.0), entry("OpenVINO", "Q4_0", 2.0)]
    cpu.merge(document, "batch-8", result(*both, prompt=33, gen=32), "2026-01-01")
    document["quality"] = {"Herder Q4_0": {"kl": 0.0123, "tokens": 49664}, "OpenVINO Q8_0": {"kl": 1, "tokens": 512}}
    page = markdown(document, "c.svg")
    assert "| Herder, prompts | 0.01230 | - |" in page and "512 to 49,664 tokens" in page
    assert "| 8 streams, 1B | 256 (" in page


@pytest.mark.parametrize("ratios", [[], [0.4], [1.0, 2.5, 9.75]])
def test_charts_are_well_formed_and_nothing_leaves_them(ratios: list[float]) -> None:
    source = svg([Bar("a < b & c", ratio, 1.5) for ratio in ratios], "Speed > 1")
    root = ElementTree.fromstring(source)
    width = float(root.attrib["viewBox"].split()[2])
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in e.attrib]
    assert len(bars) == len(ratios)
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert all(float(bar.attrib["x"]) + length < width for bar, length in zip(bars, lengths, strict=True))
    assert lengths == sorted(lengths)


def test_divergence_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(0)
    one, other = (generator.normal(0, 4, (5, 300)).astype(np.float32) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        torch.tensor(other).double().log_softmax(-1),
        torch.tensor(one).double().log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    assert divergence(one, other) == pytest.approx(float(expected), rel=1e-5)
    assert divergence(one, one) == 0
    with pytest.raises(ValueError, match="shape"):
        divergence(one, other[:3])


def test_windows_are_whole() -> None:
    tokens = list(range(3 * WINDOW + 5))
    assert [len(piece) for piece in windows(tokens, 10**6)] == [WINDOW] * 3
    assert list(chain(*windows(tokens, 2 * WINDOW))) == tokens[: 2 * WINDOW]
    with pytest.raises(SystemExit, match="tokens"):
        windows(tokens[:9], WINDOW)


@pytest.mark.parametrize(
    ("rows", "message"),
    [("decode-1b", "--llama-python: it is not given: .*llama_cpp"), ("no-such", "--rows: no row 'no-such'")],
)
def test_refusals_are_one_line(rows: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message) as refused:
        cpu.main(["--rows", rows, "--models", str(tmp_path), "--out", str(tmp_path)])
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
