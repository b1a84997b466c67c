"""AWQ against its definition: w = scale * (q - zero), packed as AutoAWQ's WQLinear_GEMM packs, nibble by nibble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herder.core.errors import UnsupportedModel
from tests.weights.quantized.checkpoint import read

OUT, IN = 24, 128
MODULE = "model.layers.0.mlp.up_proj"


def pack(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(n, out / 8) words: the word's nibbles, from the lowest, are outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight."""
    words = np.zeros((len(rows), rows.shape[1] // 8), np.uint32)
    for r in range(len(rows)):
        for word in range(words.shape[1]):
            for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words[r, word] |= np.uint32(int(rows[r, 8 * word + output]) << (4 * nibble))
    return words.view(np.int32)


@pytest.mark.parametrize(("group", "becomes"), [(32, "Q5_0"), (128, "Q5_0"), (-1, "Q5_0"), (16, "F16")])
def test_what_it_becomes(tmp_path: Path, group: int, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from herder.weights.quantized import made as module

    monkeypatch.setattr(module, "SLAB", 7 * IN)  # rows of a slab are not those of a word
    rng = np.random.default_rng(group + 1)
    size = IN if group == -1 else group
    q, zeros = rng.integers(0, 16, (IN, OUT)), rng.integers(0, 16, (IN // size, OUT))
    scales = rng.uniform(0.001, 0.1, zeros.shape).astype(np.float16)
    tensors = {f"{MODULE}.qweight": pack(q), f"{MODULE}.qzeros": pack(zeros), f"{MODULE}.scales": scales}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    made, taken = read(tmp_path, config, tensors, dtype="float16")
    matrix = made[f"{MODULE}.weight"]
    assert (matrix.format, taken) == (becomes, frozenset(tensors))
    wanted = np.empty((OUT, IN))
    for o in range(OUT):
        for i in range(IN):
            wanted[o, i] = float(scales[i // size, o]) * (int(q[i, o]) - int(zeros[i // size, o]))
    if becomes == "F16":
        wanted = wanted.astype(np.float16)
    np.testing.assert_array_equal(matrix.values, wanted.astype(np.float32))


@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "marlin", "exllama"])
def test_other_versions_are_refused_by_name(tmp_path: Path, version: str) -> None:
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": version}
    with pytest.raises(UnsupportedModel, match=f"AWQ version '{version}' is not supported; supported is gemm"):
        read(tmp_path, config, {"x": np.zeros(1, np.float32)})
