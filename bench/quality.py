"""How far each engine's predictions are from the exact ones: mean KL divergence by format, on the default model.

The reference is the default model's own file expanded to float32, and run by Herder in float32 (which the tests compare
with transformers). Formats other than the file's own are requantized from it. Windows of 512 tokens of a novel's text;
all engines answer a window before the next one, so the logits of one window are all that is ever stored. Herder is
asked twice where its arithmetic of generated tokens may be another than that of prompts: for both.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure import HERDER, SCRIPTS, VINO, Entry, Pythons
from bench.models import ROOT, Models, default_model
from bench.peers import Worker
from bench.rows import OPENVINO, ROWS, Row
from bench.verdict import GENERATED

TEXT = ROOT / "tests/data/persuasion.txt"
WINDOW = 512
FORMATS = ("Q4_1", "Q4_0", "IQ4_NL", "Q8_0", "BF16")
FLOATS = ("BF16", "F16")
_ROW: Row = next(row for row in ROWS if row.shape == "smollm2")


def windows(tokens: list[int], count: int) -> list[list[int]]:
    """The first `count` tokens in whole windows; the text has to hold them."""
    if len(tokens) < WINDOW:
        raise SystemExit(f"{TEXT} has {len(tokens)} tokens: a window needs {WINDOW}")
    return [tokens[i : i + WINDOW] for i in range(0, min(count, len(tokens)) - WINDOW + 1, WINDOW)]


def measure(
    known: dict[str, Any],
    count: int,
    models: Models,
    pythons: Pythons,
    threads: int,
    keep: Callable[[dict[str, Any]], None],
    formats: tuple[str, ...] = FORMATS,
) -> None:
    """Gives keep() "ENGINE FORMAT" -> {"kl", "tokens", "version"} after every window, of all windows so far; what
    `known` has for at least as many tokens of the same version of an engine is not measured again."""
    result = dict(known)
    reference = Worker(sys.executable, SCRIPTS[HERDER])
    path = str(default_model())
    tokens = reference.ask("tokenize", path=path, text=TEXT.read_text(encoding="utf-8"))["tokens"]
    reference.ask("load", path=path, threads=threads, tokens=1024, compute="float32")
    pieces = windows(tokens, max(count, WINDOW))
    done = len(pieces) * WINDOW
    entries: list[tuple[str, Entry]] = []
    for kind, engine in itertools.product(formats, SCRIPTS):
        if engine == VINO and kind not in OPENVINO:
            continue
        theirs = OPENVINO[kind] if engine == VINO else kind
        asked: list[tuple[str, dict[str, str]]] = [(engine, {})]
        if engine == HERDER and kind not in FLOATS:
            asked = [(HERDER, {"prompt_dtype": "auto"}), (GENERATED, {"prompt_dtype": "int8"})]
        for name, settings in asked:
            entry = Entry(engine, theirs, models.file("smollm2", theirs), settings)
            entry.open(_ROW, pythons, threads)
            old = known.get(f"{name} {theirs}", {})
            if old.get("version") == entry.about["version"] and old.get("tokens", 0) >= done:
                entry.close()
            else:
                entries.append((name, entry))
    totals = [0.0] * len(entries)
    with tempfile.TemporaryDirectory(prefix="herder-bench-") as folder:
        logits = str(Path(folder) / "reference.npy")
        for i, piece in enumerate(pieces if entries else []):
            reference.ask("logits", tokens=piece, path=logits, write=True)
            for j, (_, entry) in enumerate(entries):
                assert entry.worker
                totals[j] += entry.worker.ask("logits", tokens=piece, path=logits, write=False)["kl"]
            so_far = (i + 1) * WINDOW
            for (name, entry), total in zip(entries, totals, strict=True):
                version = entry.about["version"]
                result[f"{name} {entry.kind}"] = {"kl": total / so_far, "tokens": so_far, "version": version}
            keep(result)
            print(f"  window {i + 1} of {len(pieces)}", file=sys.stderr)
    for _, entry in entries:
        entry.close()
    reference.close()
