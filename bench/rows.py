"""The rows of the table: what is measured, of which model in which formats, and the goal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

What = Literal["prefill", "decode", "start", "speculate"]

BITS = {"Q4_0": 4.5, "IQ4_NL": 4.5, "Q4_K_M": 4.85, "Q4_1": 5.0, "Q8_0": 8.5, "F16": 16.0, "BF16": 16.0}
"""Bits a weight of the layers' matrices (Q4_K_M mixes formats)."""

OPENVINO = {"Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q8_0": "Q8_0", "BF16": "F16"}
"""Formats that OpenVINO is measured in, and what it gets for them: its reader of GGUF files refuses bfloat16."""

SMALL = ("Q4_1", "Q4_0", "IQ4_NL")  # of the 135M model, whose rows no K-quant's block divides

ONE, EIGHT = "llama-3.2-1b", "llama-3.1-8b"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    prompt: tokens before the measured ones of a decode, or those of a prefill. gen: measured tokens of each stream.
    goal, stretch: ratios to the best peer. isa: "avx2" forces Herder and llama.cpp to it. texts: of speculation.
    """

    name: str
    title: str
    what: What
    shape: str
    formats: tuple[str, ...]
    goal: float
    stretch: float
    prompt: int = 512
    gen: int = 64
    streams: int = 1
    isa: str | None = None
    text: str = ""

    @property
    def single(self) -> bool:
        """Herder alone: its peer is its own plain decoding."""
        return self.what == "speculate"

    @property
    def apart(self) -> bool:
        """The engines do not fit in memory together, so each is loaded anew for each of its measurements."""
        return self.shape == EIGHT

    def trial(self) -> Row:
        """A shorter one, to find which setting is fastest."""
        short = self.shape == EIGHT or (self.shape == ONE and self.what == "prefill")
        return replace(self, gen=min(self.gen, 8), prompt=min(self.prompt, 128) if short else self.prompt)

    @property
    def repacks(self) -> tuple[bool, ...]:
        """The settings of llama.cpp's repacking to try. At 8k only its default: attention is what counts there, and a
        try takes a minute."""
        return (True, False) if self.prompt <= 1024 else (True,)

    @property
    def tokens(self) -> int:
        """How many one measurement counts."""
        return self.prompt if self.what == "prefill" else self.gen * self.streams

    @property
    def room(self) -> int:
        """Tokens of KV cache that one measurement fills, and those of the one before, which may still be there."""
        return 2 * self.streams * (-(-(self.prompt + self.gen) // 32) * 32 + 32)


PAGE = 33  # a full page of Herder's KV cache, and the token that the first step computes

ROWS = (
    Row("prefill-135m", "prefill 512, 4-bit, 135M", "prefill", "smollm2", SMALL, 1.6, 2.5),
    Row("prefill-1b", "prefill 512, 4-bit, 1B", "prefill", ONE, ("Q4_0", "Q4_K_M"), 1.5, 2.0),
    Row("prefill-8b", "prefill 512, 4-bit, 8B", "prefill", EIGHT, ("Q4_0",), 1.5, 2.0),
    Row("prefill-1b-q8", "prefill 512, Q8_0, 1B", "prefill", ONE, ("Q8_0",), 1.5, 2.0),
    Row("prefill-1b-bf16", "prefill 512, bf16, 1B", "prefill", ONE, ("BF16",), 1.5, 2.0),
    Row("decode-135m", "decode, 135M, same file", "decode", "smollm2", ("Q4_1",), 1.4, 1.9, gen=128),
    Row("decode-1b", "decode, 1B, same bytes", "decode", ONE, ("Q4_0",), 1.1, 1.3),
    Row("decode-8b", "decode, 8B, same bytes", "decode", EIGHT, ("Q4_0",), 1.1, 1.3, gen=24),
    Row("decode-8k", "decode at 8k context, 1B", "decode", ONE, ("Q4_0",), 1.5, 2.0, prompt=8192, gen=32),
    Row("batch-8", "8 streams, 1B", "decode", ONE, ("Q4_0",), 2.0, 3.0, PAGE, 32, 8),
    Row("batch-32", "32 streams, 1B", "decode", ONE, ("Q4_0",), 2.0, 3.0, PAGE, 32, 32),
    Row("edit", "n-gram speculation, edit", "speculate", "smollm2", ("Q4_1",), 1.8, 2.5, gen=256, text="edit"),
    Row("retrieval", "n-gram speculation, quote", "speculate", "smollm2", ("Q4_1",), 1.8, 2.5, gen=256, text="quote"),
    Row("start-8b", "load to first token, 8B Q4_0", "start", EIGHT, ("Q4_0",), 2.0, 5.0, prompt=8, gen=1),
    Row("avx2-prefill", "prefill 512, 1B, AVX2 only", "prefill", ONE, ("Q4_0",), 1.0, 1.2, isa="avx2"),
    Row("avx2-decode", "decode, 1B, AVX2 only", "decode", ONE, ("Q4_0",), 1.0, 1.2, isa="avx2"),
)
BY_NAME = {row.name: row for row in ROWS}
