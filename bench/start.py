"""Process start to the first token on the screen, and peak memory, beside llama.cpp; writes docs/start.{json,md}.

    python -m bench.start --llama-python PYTHON [--rounds 11] [--quick]

Measured from outside: from just before the process is made to the first byte of the answer on its standard output,
with the files in the page cache. Peak memory is the kernel's maximum resident set, which counts the mapped pages of the
model file. Rounds interleave the two; the figures are medians.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

from bench.models import ROOT, cpu_name, default_model

QUESTION = "Why is the sky blue?"


def start(command: list[str]) -> tuple[float, float]:
    """(seconds to the first byte on standard output, peak resident MB) of a process that runs to its end."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return seconds, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="an interpreter with llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one round; writes nothing")
    parser.add_argument("--herder", default=str(ROOT / ".venv/bin/herder"), help="the installed command")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    model = default_model()
    commands = {
        "Herder": [args.herder, "run", "smollm2", QUESTION, "--max-tokens", "1"],
        "llama.cpp (llama-cpp-python)": [
            *(args.llama_python, str(ROOT / "bench/peer_llamacpp.py")),
            *("first-token", str(model), QUESTION),
        ],
    }
    values: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for command in commands.values():
        start(command)  # warms the page cache
    rounds = 1 if args.quick else args.rounds
    for _ in range(rounds):
        for name, command in commands.items():
            values[name].append(start(command))
    lines = [
        "# Start",
        "",
        f"Made by `bench/start.py` on {datetime.date.today().isoformat()}: {cpu_name()}. The default model "
        f"({model.stat().st_size / 1e6:.0f} MB), one question; medians of {rounds} interleaved rounds, page cache "
        "warm. From process creation to the first byte of the answer; peak memory is the maximum resident set.",
        "",
        "| | start to first token | slowest | peak memory |",
        "|---|---|---|---|",
    ]
    for name, pairs in values.items():
        seconds, memory = zip(*pairs, strict=True)
        cells = [f"{statistics.median(seconds):.3f} s", f"{max(seconds):.3f} s", f"{statistics.median(memory):.0f} MB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join([*lines, ""])
    print(text)
    if not args.quick:
        (args.out / "start.md").write_text(text, encoding="utf-8")
        (args.out / "start.json").write_text(json.dumps(values) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
