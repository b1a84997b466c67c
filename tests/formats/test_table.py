"""The table of storage formats against ggml's own, and against the C ABI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from herder.core.errors import ModelFileError, UnsupportedModel
from herder.formats import table
from herder.formats.reference import PACKABLE

HEADER = Path(__file__).parents[2] / "native" / "include" / "herder.h"


def test_every_row_is_ggmls() -> None:
    for fmt in table.FORMATS:
        kind = gguf.GGMLQuantizationType[fmt.name]
        assert (fmt.id, (fmt.block, fmt.block_bytes)) == (kind.value, gguf.GGML_QUANT_SIZES[kind])


def test_every_ggml_type_is_either_supported_or_refused_by_its_name() -> None:
    for kind in gguf.GGMLQuantizationType:
        assert table.BY_ID[kind].name if kind in table.BY_ID else table.UNSUPPORTED[kind] == kind.name


def test_ids_are_those_of_the_c_abi() -> None:
    enum = re.search(r"typedef enum hd_format \{(.*?)\}", HEADER.read_text(), re.S)
    assert enum is not None
    ids = {name: int(value) for name, value in re.findall(r"HD_(\w+) = (\d+)", enum[1])}
    assert ids == {fmt.name: fmt.id for fmt in table.FORMATS}


def test_sizes() -> None:
    assert table.Q4_1.bits_per_weight == 5.0
    assert table.F32.bits_per_weight == 32.0
    assert table.Q6_K.row_bytes(512) == 420
    assert table.Q4_0.whole_blocks(64) and not table.Q4_0.whole_blocks(33)


def test_the_documents_table_is_this_one() -> None:
    text = (HEADER.parents[2] / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| .* \| (yes|no) \|$", text, re.M)
    assert {tuple(row) for row in rows} == {
        (
            f.name,
            str(f.id),
            str(f.block),
            str(f.block_bytes),
            f"{f.bits_per_weight:g}",
            "yes" if f in PACKABLE else "no",
        )
        for f in table.FORMATS
    }


def test_refusals_name_the_format() -> None:
    with pytest.raises(UnsupportedModel, match="tensor 'a' is stored as IQ2_XXS"):
        table.format_by_id(16, "model.gguf: tensor 'a'")
    for format_id, name in ((34, "TQ1_0"), (40, "NVFP4"), (28, "F64")):
        with pytest.raises(UnsupportedModel, match=name):
            table.format_by_id(format_id, "t")
    with pytest.raises(ModelFileError, match="type id 99"):
        table.format_by_id(99, "t")


def test_the_table_needs_no_numpy() -> None:
    code = "import sys, herder.formats.table, herder.weights.source_gguf; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=HEADER.parents[2])
