"""What a measured row says: who is compared with whom, the ratio, the shares of the limit, and the quality gate."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from bench.rows import BITS, Row

SLACK = 1.05  # of a mean KL divergence: what two equal engines may differ by

GENERATED = "Herder-generated"  # its arithmetic of tokens that are not a prompt's, or of a prompt without tiles

Quality = dict[str, Any]  # "ENGINE FORMAT" -> {"kl", "tokens", "version"}


@dataclass(frozen=True)
class Verdict:
    """ours, theirs: entries of the row's JSON. share, their_share: of `limit`; None where nothing bounds the figure.
    gate: True, False, or None where the formats' quality was not measured. dot_products: our dot_product_share()."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    ratio: float
    share: float | None
    their_share: float | None
    gate: bool | None
    dot_products: float | None = None

    def word(self, row: Row) -> str:
        if self.ratio >= row.stretch:
            return "stretch"
        return "goal" if self.ratio >= row.goal else "below"


def seconds(entry: dict[str, Any]) -> float:
    return float(statistics.median(entry["seconds"]))


def divergence(name: str, entry: dict[str, Any], quality: Quality) -> float | None:
    known = quality.get(f"{name} {entry['format']}")
    return None if known is None else float(known["kl"])


def passes(row: Row, ours: dict[str, Any], theirs: dict[str, Any], quality: Quality) -> bool | None:
    """At no more bits, no worse, in the arithmetic that the row measures. None where one was not measured."""
    if BITS[ours["format"]] > BITS[theirs["format"]]:
        return False
    other = divergence(theirs["engine"], theirs, quality)
    mine = divergence("Herder", ours, quality)
    if row.what != "prefill" or row.isa:
        generated = divergence(GENERATED, ours, quality)
        mine = mine if generated is None else generated
    return None if mine is None or other is None else mine <= SLACK * other


def verdict(row: Row, result: dict[str, Any], quality: Quality) -> Verdict:
    """Peers: the fastest of them all. Herder: its fastest entry that passes the gate beside that one; if none does, its
    fastest whose quality is not known, and else the fastest, with a gate that says no."""
    if row.single:
        ours, theirs = result["entries"]
        gate: bool | None = True  # the same text, or there would be no figures
    else:
        own = sorted((e for e in result["entries"] if e["engine"] == "Herder"), key=seconds)
        theirs = min((e for e in result["entries"] if e["engine"] != "Herder"), key=seconds)
        gates = [passes(row, entry, theirs, quality) for entry in own]
        gate = next((wanted for wanted in (True, None) if wanted in gates), False)
        ours = own[gates.index(gate)]
    return Verdict(
        ours,
        theirs,
        seconds(theirs) / seconds(ours),
        share(row, result, ours),
        share(row, result, theirs),
        gate,
        dot_product_share(row, result, ours),
    )


def dot_product_share(row: Row, result: dict[str, Any], entry: dict[str, Any]) -> float | None:
    """Prefill: the operations of the layers over the peak of AVX-512's 8-bit dot product, where that was measured. It
    is what CPUs without tiles have, so a figure above 1 is one that they cannot reach."""
    peak = result["limits"].get("vnni_ops")
    if row.what != "prefill" or entry["format"] == "BF16" or not peak:
        return None
    return float(2 * row.tokens * result["model"]["layers"] / peak / seconds(entry))


def share(row: Row, result: dict[str, Any], entry: dict[str, Any]) -> float | None:
    """The part of what this machine allows.

    Prefill: the measured int8 peak over two operations a weight of the layers (the head works for the last token
    only); half that peak for bf16. Decode: the measured read bandwidth over the bytes of the file and, a stream, of
    16-bit keys and values; or the int8 peak with the head at work for every token, whichever is lower. A start: one
    reading of the file. Speculation has no limit. Peaks are those of the instruction set that Herder may use.
    """
    limits, model = result["limits"], result["model"]
    size = entry["file_bytes"]
    took = seconds(entry)
    if row.what == "speculate":
        return None
    if row.what == "start":
        return float(size / limits["bandwidth"] / took)
    operations = 2 * row.tokens * (model["layers"] + (model["head"] if row.what == "decode" else 0))
    if entry["format"] == "BF16":
        operations *= 2
    compute = operations / limits["int8_ops"]
    if row.what == "prefill":
        return float(compute / took)
    read = size + row.streams * (row.prompt + row.gen / 2) * model["kv"]
    return float(max(row.gen * read / limits["bandwidth"], compute) / took)
