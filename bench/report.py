"""The table of the CPU figures as a Markdown page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bench.rows import ROWS, Row
from bench.verdict import GENERATED, Verdict, seconds, verdict


def measured(document: dict[str, Any]) -> list[Row]:
    """The rows that there are figures of, with as many tokens as were measured."""
    return [replace(row, **document["rows"][row.name]["plan"]) for row in ROWS if row.name in document["rows"]]


def figure(row: Row, entry: dict[str, Any]) -> str:
    if row.what == "start":
        return f"{seconds(entry):.2f} s"
    rate = row.tokens / seconds(entry)
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def settings(entry: dict[str, Any]) -> str:
    words = [
        f"{name} {value}" if isinstance(value, str) else f"{'' if value else 'no '}{name}"
        for name, value in entry["settings"].items()
    ]
    return ", ".join([entry["format"], *words])


def line(row: Row, found: Verdict) -> str:
    def cell(entry: dict[str, Any], part: float | None, dot_products: float | None = None) -> str:
        parts = [f"{part:.0%}"] if part is not None else []
        parts += [f"VNNI {dot_products:.0%}"] if dot_products is not None else []
        return figure(row, entry) + (f" ({', '.join(parts)})" if parts else "")

    peer = "Herder without" if row.single else f"{found.theirs['engine']}, {settings(found.theirs)}"
    gate = {True: "yes", False: "**no**", None: "-"}[found.gate]
    word = {"stretch": "stretch", "goal": "goal", "below": f"below {row.goal:g}"}[found.word(row)]
    cells = [
        row.title,
        f"{cell(found.ours, found.share, found.dot_products)}, {found.ours['format']}",
        f"{cell(found.theirs, found.their_share)}, {peer}",
        f"**{found.ratio:.2f}**",
        word,
        gate,
    ]
    return f"| {' | '.join(cells)} |"


NAMES = {"Herder": "Herder, prompts", GENERATED: "Herder, generated tokens"}


def quality_table(quality: dict[str, Any]) -> list[str]:
    engines = list(dict.fromkeys(name.partition(" ")[0] for name in quality))
    formats = list(dict.fromkeys(name.partition(" ")[2] for name in quality))
    lines = [f"| KL, nats a token | {' | '.join(formats)} |", "|---|" + "---|" * len(formats)]
    for engine in engines:
        found = [quality.get(f"{engine} {kind}") for kind in formats]
        cells = [f"{one['kl']:.5f}" if one else "-" for one in found]
        lines.append(f"| {NAMES.get(engine, engine)} | {' | '.join(cells)} |")
    counts = sorted({one["tokens"] for one in quality.values()})
    text = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return [
        "",
        "## Quality",
        "",
        f"Mean Kullback-Leibler divergence from the default model in float32, over {text} tokens of a novel in windows "
        "of 512. Its published file is Q4_1, so there only the arithmetic differs; the other formats are requantized "
        "from it.",
        "",
        *lines,
    ]


def versions(rows: dict[str, Any]) -> list[str]:
    """One line for each engine, version and what it says about itself."""
    seen = {(e["engine"], e["version"], e["system"]) for row in rows.values() for e in row["entries"]}
    return [f"- {engine} {version}: {system}" for engine, version, system in sorted(seen)]


def markdown(document: dict[str, Any], chart: str) -> str:
    rows, quality = document["rows"], document["quality"]
    dates = sorted({row["date"] for row in rows.values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines = [
        "# Benchmarks",
        "",
        f"Made by `bench/cpu.py`, {when}: {document['cpu']}, {document['threads']} threads.",
        "",
        f"![Herder's speed as a multiple of the best peer's]({chart})",
        "",
        "Tokens/s unless a unit is given: medians of rounds that interleave the engines. In brackets: the part of what "
        "this machine allows, by its int8 peak (prefill) or read bandwidth (everything else), in the same run; "
        "*VNNI* is the part of what 8-bit dot products (`vpdpbusd`) would give, were there no tiles. "
        "*Beside* is the fastest peer in the best setting that a first try found, among all of the row's formats. "
        "*Gate*: Herder's divergence on the default model is no more than the peer's (up to 5 %), at no more bits a "
        "weight; `-` where it was not measured.",
        "",
        "| | Herder | beside | ratio | | gate |",
        "|---|---|---|---|---|---|",
    ]
    lines += [line(row, verdict(row, rows[row.name], quality)) for row in measured(document)]
    some = next(iter(rows.values()))["limits"]
    lines += [
        "",
        f"Limits when the first row was measured: {some['bandwidth'] / 1e9:.1f} GB/s, {some['int8_ops'] / 1e12:.2f} "
        "int8 TOPS. The shapes of 1B (Llama 3.2) and 8B (Llama 3.1) have random weights. Herder's figures include "
        "sampling, and its start is one of weights that `herder pack` has packed before; llama.cpp's are "
        "`llama_decode` alone; OpenVINO's are those it reports. All read the same files; "
        "bfloat16, which OpenVINO's reader refuses, it gets as float16.",
    ]
    if quality:
        lines += quality_table(quality)
    return "\n".join([*lines, "", "## Versions", "", *versions(rows), "", "`benchmarks.json` has every round.", ""])
