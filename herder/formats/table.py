"""One row per storage format: its GGUF id, its name, and how many weights share how many bytes.

Ids, block sizes and byte counts are those of ggml's `ggml_type` (checked against the `gguf` package in the tests) and
equal `hd_format` of native/include/herder.h, so an id goes from the file to the core unchanged. This module needs no
NumPy: readers and `herder show` use it without paying for the reference arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from herder.core.errors import ModelFileError, UnsupportedModel


@dataclass(frozen=True, slots=True)
class Format:
    """A storage format. Rows are cut into blocks of `block` consecutive weights, each stored in `block_bytes` bytes.

    quantized: the block holds integers and scales rather than floating-point numbers.
    """

    id: int
    name: str
    block: int
    block_bytes: int
    quantized: bool

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of `cols` weights. cols must be a multiple of `block` (see `whole_blocks`)."""
        return cols // self.block * self.block_bytes

    def whole_blocks(self, cols: int) -> bool:
        """Whether a row of `cols` weights fills whole blocks; no row can be stored otherwise."""
        return cols % self.block == 0


F32 = Format(0, "F32", 1, 4, False)
F16 = Format(1, "F16", 1, 2, False)
Q4_0 = Format(2, "Q4_0", 32, 18, True)
Q4_1 = Format(3, "Q4_1", 32, 20, True)
Q5_0 = Format(6, "Q5_0", 32, 22, True)
Q5_1 = Format(7, "Q5_1", 32, 24, True)
Q8_0 = Format(8, "Q8_0", 32, 34, True)
Q2_K = Format(10, "Q2_K", 256, 84, True)
Q3_K = Format(11, "Q3_K", 256, 110, True)
Q4_K = Format(12, "Q4_K", 256, 144, True)
Q5_K = Format(13, "Q5_K", 256, 176, True)
Q6_K = Format(14, "Q6_K", 256, 210, True)
IQ4_NL = Format(20, "IQ4_NL", 32, 18, True)
IQ4_XS = Format(23, "IQ4_XS", 256, 136, True)
BF16 = Format(30, "BF16", 1, 2, False)
MXFP4 = Format(39, "MXFP4", 32, 17, True)

FORMATS: tuple[Format, ...] = (
    F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4,
)  # fmt: skip

BY_ID: dict[int, Format] = {f.id: f for f in FORMATS}
BY_NAME: dict[str, Format] = {f.name: f for f in FORMATS}

# ggml types that exist and that we do not read. Refused by name, so that the user knows the file is not damaged.
UNSUPPORTED: dict[int, str] = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8",
    33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip


def format_by_id(format_id: int, where: str) -> Format:
    """The format of a GGUF type id. `where` names the file and tensor in the error.

    Raises UnsupportedModel for a type that exists but is not read here, ModelFileError for one that does not exist.
    """
    found = BY_ID.get(format_id)
    if found is not None:
        return found
    if format_id in UNSUPPORTED:
        known = ", ".join(f.name for f in FORMATS)
        raise UnsupportedModel(f"{where} is stored as {UNSUPPORTED[format_id]}, which is not supported; use {known}")
    raise ModelFileError(f"{where} has type id {format_id}, which no GGUF format has: download the file again")
