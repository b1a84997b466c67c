"""How a row is measured: which engines are in memory at a time, and who is measured when. The engines are fakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import measure
from bench.measure import HERDER, LLAMA, SCRIPTS, VINO, Pythons, Tries
from bench.models import Models
from bench.rows import BY_NAME, ROWS, Row

ENGINES = {script: engine for engine, script in SCRIPTS.items()}
COMPARED = [row for row in ROWS if row.what in ("prefill", "decode")]
APART = ("prefill-8b", "decode-8b")


class Engines:
    """Stands in for Worker: keeps what the workers did, in order, and who is open. The n-th measurement of all takes n
    seconds."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.most = 0

    def __call__(self, python: str, script: str) -> FakeWorker:
        return FakeWorker(self, ENGINES[script])


class FakeWorker:
    def __init__(self, engines: Engines, engine: str) -> None:
        self.engines, self.engine = engines, engine
        engines.open.append(engine)
        engines.most = max(engines.most, len(engines.open))
        engines.done.append((engine, "open"))

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self.engine in self.engines.open, "asked after it was closed"
        if do == "load":
            return {"model": {"layers": 1}} if self.engine == HERDER else {}
        if do == "limits":
            assert self.engine == HERDER, "only Herder's worker measures limits"
            self.engines.done.append((self.engine, do))
            return {"bandwidth": float(len(self.engines.done))}
        self.engines.done.append((self.engine, do))
        self.engines.calls.append((self.engine, arguments))
        return {"seconds": float(len(self.engines.calls))}

    def close(self) -> None:
        self.engines.open.remove(self.engine)
        self.engines.done.append((self.engine, "close"))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines()
    monkeypatch.setattr(measure, "Worker", engines)
    return engines


def compare(row: Row, folder: Path, rounds: int) -> dict[str, Any]:
    """With the peers' best settings already known."""
    models = Models(folder, "")
    for kind in ("BF16", "F16", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_M", "Q8_0"):
        (folder / f"{row.shape}-{kind}.gguf").touch()
    peers = [entry for entry in measure.candidates(row, models) if entry.engine != HERDER]
    tries = [entry.record() | {"seconds": [1.0 + i]} for i, entry in enumerate(peers)]
    return measure.compare(row, models, Pythons(), 2, rounds, Tries({row.name: tries}, lambda: None))


@pytest.mark.parametrize("row", COMPARED, ids=[row.name for row in COMPARED])
def test_engines_are_in_memory_together_where_they_fit(row: Row, engines: Engines, tmp_path: Path) -> None:
    result = compare(row, tmp_path, rounds=2)
    chosen = [entry["engine"] for entry in result["entries"]]
    assert engines.most == (1 if row.name in APART else len(chosen)) and not engines.open
    opened = [engine for engine, did in engines.done if did == "open"]
    assert opened == (chosen + chosen[::-1] if row.name in APART else chosen)


def test_engines_that_fit_take_turns_in_rounds_that_alternate(engines: Engines, tmp_path: Path) -> None:
    result = compare(BY_NAME["decode-1b"], tmp_path, rounds=3)
    forwards = [(engine, "decode") for engine in (HERDER, LLAMA, VINO)]
    limits = [(HERDER, "limits")]
    rounds = [*limits, *forwards, *limits, *forwards[::-1], *limits, *forwards]
    assert [(e, did) for e, did in engines.done if did not in ("open", "close")] == [*forwards, *rounds]
    assert [entry["seconds"] for entry in result["entries"]] == [[4, 9, 10], [5, 8, 11], [6, 7, 12]]


@pytest.mark.parametrize("name", APART)
def test_engines_that_do_not_fit_are_loaded_for_each_measurement(name: str, engines: Engines, tmp_path: Path) -> None:
    row = BY_NAME[name]
    result = compare(row, tmp_path, rounds=3)
    ours = [(HERDER, did) for did in ("open", row.what, "limits", row.what, "close")]
    llama, vino = ([(engine, did) for did in ("open", row.what, row.what, "close")] for engine in (LLAMA, VINO))
    assert engines.done == [*ours, *llama, *vino, *vino, *llama, *ours, *ours, *llama, *vino]
    assert [entry["seconds"] for entry in result["entries"]] == [[2, 12, 14], [4, 10, 16], [6, 8, 18]]
    short = 128 if row.what == "decode" else 512  # a decode's warm-up is shorter: it computes its prompt untimed
    assert [call["prompt"] for _, call in engines.calls] == [short, 512] * 9
    assert [call.get("gen") for _, call in engines.calls] == ([8, 24] if row.what == "decode" else [None, None]) * 9


def test_limits_are_the_medians_of_the_rounds(engines: Engines, tmp_path: Path) -> None:
    compared = compare(BY_NAME["decode-8b"], tmp_path, rounds=3)
    measured = [i + 1.0 for i, (_, did) in enumerate(engines.done) if did == "limits"]
    assert len(measured) == 3 and compared["limits"] == {"bandwidth": measured[1]}
