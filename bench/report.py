"""The benchmark figures as a Markdown page."""

from __future__ import annotations

from typing import Any

FOUR_BITS = {"Q4_0", "Q4_1", "IQ4_NL", "Q4_K_M"}


def limit(name: str, shape: dict[str, Any], file_bytes: int) -> float:
    """tokens/s that the machine allows.

    Prefill: the measured int8 peak over two operations a weight of the layers (the head works for the last token only).
    One-stream decode: the measured bandwidth over the bytes of the file. Batched decode: whichever of the two is lower,
    with the file read once a step and the head at work for every token.
    """
    limits = shape["limits"]
    compute = limits["int8_ops"] / (2 * shape["parameters"]["layers"])
    if name == "prefill":
        return float(compute)
    streams = int(name.partition("x")[2] or 1)
    everything = limits["int8_ops"] / (2 * (shape["parameters"]["layers"] + shape["parameters"]["head"]))
    return float(min(streams * limits["bandwidth"] / file_bytes, everything))


def table(shape: dict[str, Any]) -> list[str]:
    names = list(shape["entries"][0]["tokens_per_s"])
    lines = [f"| tokens/s | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for entry in shape["entries"]:
        rates = entry["tokens_per_s"]
        cells = []
        for n in names:
            star = "" if entry["settings"][n].get("flash", True) else "*"
            cells.append(f"{rates[n]:.1f}{star} ({rates[n] / limit(n, shape, entry['file_bytes']):.0%})")
        lines.append(f"| {entry['engine']}, {entry['format']} | {' | '.join(cells)} |")
    ours, *theirs = shape["entries"]
    cells = []
    for n in names:
        best = max((e for e in theirs if e["format"] in FOUR_BITS), key=lambda e: e["tokens_per_s"][n])
        cells.append(f"{ours['tokens_per_s'][n] / best['tokens_per_s'][n]:.2f} ({best['format']})")
    lines.append(f"| Herder / llama.cpp's best 4-bit format | {' | '.join(cells)} |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    plan, first = result["plan"], result["shapes"][0]
    lines = [
        "# Benchmarks",
        "",
        f"Made by `bench/llamacpp.py` on {result['date']}: {result['cpu']}, {result['threads']} threads; "
        f"Herder {first['versions']['herder']}, llama-cpp-python {first['versions']['llama-cpp-python']}.",
        "",
        f"Medians of {plan['rounds']} rounds that interleave the entries. *prefill*: {plan['prompt']} tokens in one "
        f"batch. *decode*: {plan['gen']} tokens after that prompt. *decode xN*: {plan['batched_gen']} tokens in each "
        f"of N streams, all together, each after a prompt of its own of {plan['batched_prompt']} tokens. In brackets: "
        "the part of what this machine allows, by its measured read bandwidth and int8 peak.",
        "",
        "Herder's figures include sampling; llama.cpp's are `llama_decode` alone, as in llama-bench, with flash "
        "attention or without (*), whichever was faster in a first try.",
    ]
    for shape in result["shapes"]:
        limits = shape["limits"]
        lines += [
            "",
            f"## {shape['shape']}",
            "",
            f"File {shape['file_bytes'] / 1e6:.0f} MB. Measured limits: {limits['bandwidth'] / 1e9:.1f} GB/s, "
            f"{limits['int8_ops'] / 1e12:.2f} int8 TOPS, {limits['f32_flops'] / 1e12:.2f} float32 TFLOP/s. "
            f"Herder: {shape['system']['herder']}.",
            "",
            *table(shape),
        ]
    lines += ["", "`benchmarks.json` has every round.", ""]
    return "\n".join(lines)
